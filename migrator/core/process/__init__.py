"""A QEMU process: what it was started with, whose it is, and what it needs of its host. Pure."""
