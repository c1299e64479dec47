"""A QEMU process: what it was started with, whose it is, and what it needs of its host. Pure.

`options` and `command_line` are what it was started with, `process_identity` whose it is; other modules say which
files, ports and networks it needs, and `replica` how another one is started like it.
"""
