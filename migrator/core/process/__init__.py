"""A QEMU process: what it was started with, whose it is, and what it needs of its host. Pure.

- `qemu_program` tells which programs are QEMUs; `options` and `command_line` are what it was started with,
  `process_identity` whose it is.
- What it needs: `files` as a host sees them, `named_files` of its command line, `image_paths` of its disks at a target,
  `listening` ports and `ports_taken` on hosts, the `guest_network` of its host, a `tpm_emulator`, `certificates`.
- `replica` is how another one is started like it.
"""
