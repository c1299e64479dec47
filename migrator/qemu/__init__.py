"""The adapter to QEMU: the only place that speaks QMP, knows its units, or touches its process.

- A session: `address` is where it is, `replies` what a QEMU may answer, command by command, `client` bounds what comes
  over a socket (`socket_peer`: who is there), `monitor` is one session (time-outs, events, reconnection), `querying`
  asks what not every version knows, `pending_connects` keeps connections that were not greeted.
- One end of a migration: `endpoint`, with `migration_settings` (capabilities and parameters), `view_reader`,
  `status_query` (one look at it), `stream_sockets`, `stream` (a postcopy's that broke), `stream_tls`, `stream_cancel`,
  `incoming` (a destination listens), `block_mirrors` (disks over NBD) and `events`; `process_handle` is its process,
  `process_ending` ends that (`fence_command`: an operator's command does), `transport` is how both are reached on
  another host. `claim` is the right to change it, by `marks` that everyone sees who asks a QEMU; `source_guard` says
  what the guard of a source's host is told, `guard` is that program.
- What is read: `identify` tells which guest it is, `samples` are figures of a migration in our units, `threads` what
  each thread does, `dirty_rate` how fast the guest writes, `block_owners` what people call a block node;
  `disk_comparison` serves disks to be compared. `features` by introspection, `read_facts` for preflight,
  `runtime_state` what was set while it ran, `non_migrated_state` what does not move with the guest, `device_inventory`
  what it has, `naming` what a guest without a uuid is called; `guest_agent` sets the clock of one that stood still.
- A second QEMU like it: `current_command_line` is the source's as it would read today (`current_devices`,
  `current_disks`, `hot_plugged`, `backends`, `block_graph`, `media`), `source` gives all of it to whoever starts the
  other one, `cmdline` and `devices` make that, `drive_slots` and `drive_ids` are names of drives, `image_locations`
  and `port_assignment` what is elsewhere at the target, `option_checks` what cannot be had there, `operator_files`
  keeps the operator's sockets and files usable after the move.
"""
