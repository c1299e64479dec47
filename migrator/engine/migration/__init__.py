"""One migration, from its request to its end: the same for the service, for ``direct``, and after a crash."""
