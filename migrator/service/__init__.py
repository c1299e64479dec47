"""The service: joins the siblings below into one program."""
