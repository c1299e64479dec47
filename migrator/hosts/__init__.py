"""Hosts: reached locally, through a command prefix (a network namespace), or over SSH.

- The way there (`host_config`): `access` is its interface, `local` and `ssh` have it (`ssh_config`); over SSH
  `ssh_connection` is one connection a host, `remote_process` a handle on a process there, `socket_helper` the python3
  there that takes sockets of its processes, `process_watch` one command that watches all that are held.
- What is read: `facts` of a host, `processes`, `sockets` and who holds them, `socket_watch` for monitors that come and
  go, `bound_ports` and `listening` the ports, `memory_usage` what processes hold, `thread_scheduling` where threads
  run, `guest_network` what carries a guest's network, `managers` who else keeps a guest, `certificates` of QEMU's
  streams (`certificate_install` puts them there), `host_files` which files a guest uses (`own_files`: of this machine),
  `sharing_probe` which of them are the same on two hosts, `held_room` what migrations still fill, `customary_places`
  where run directories are, `path_probe` sends a burst between two hosts. What comes of it is parsed without trust:
  `host_output`, and `network_output` what is JSON.
- A QEMU started: `target_survey` reads what must be known before, `run_directories` makes the directory that belongs to
  it, `launch` starts it there and ends it (`launch_scripts`). `process_identity` reads whose a process is and what it
  may use, `run_as` gives that to another: the same script goes before the destination's command line and before the
  trial that tells what would come of it.
- What a guest gets at its new host: `new_files`, `new_volumes`, `path_links` for the paths that the operator knows,
  `tpm_emulators`; `stale_directories` are what guests that ended left.
- `stream_tunnel` carries a stream through OpenSSH, `disconnect` ends connections of one process to sockets,
  `private_directory` has sockets of our own.
- Programs that run there: `guard` takes a controller's place while that cannot steer, `state_program` writes and reads
  a saved guest, `image_program` compares and removes images.
"""
