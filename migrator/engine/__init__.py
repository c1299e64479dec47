"""Drives migrations through the ports; knows no QMP, no file and no socket."""
