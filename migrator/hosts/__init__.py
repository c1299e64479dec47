"""Hosts: reached locally, through a command prefix (a network namespace), or over SSH."""
