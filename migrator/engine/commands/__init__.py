"""Commands: taken once from every interface, checked, journalled, and carried out."""
