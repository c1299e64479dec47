"""The hosts of the site as the engine uses them: discovery, checks, destinations, over SSH, QMP and processes.

- `hosts` implements the port on `connections`, which are a `host_directory`; `recent_facts` and `recent_processes` are
  what was read a moment ago, `monitor_clients` whose connections hold monitors, `target_parts` the interfaces of what
  checks targets and starts QEMUs there. `from_settings` makes all of it.
- `discovery` finds the guests of a host (`guest_records` which they are, `unreachable_guests` why one cannot be asked);
  `host_checks` and `process_checks` say what speaks against a target; `hooks` runs the site's commands.
- Guests of libvirt: `libvirt_connections` reach its daemons, `managed_guests` are found there, `managed_checks` say
  what speaks against a target, `managed_ends` are both ends, `managed_cold` those of a guest that is started anew.
- `destinations` starts the QEMU that a guest moves into (`launch_config`: how; `replication`: like the guest's, with
  `operator_paths` and `target_images`), `incoming_destination` is that QEMU until the guest has arrived.
  `image_comparison` compares what is left at the source, and removes it.
- `saved_guests` makes ends of migrations of files (`file_end`: `saving_file`, `loading_file`), `cold_starts` of guests
  that are started anew (`cold_ends`), `shut_off_guests` of those that are shut off.
"""
