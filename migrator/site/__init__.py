"""The hosts of the site as the engine uses them: discovery, checks, destinations, over SSH, QMP and processes.

- `hosts` implements the port on `connections`, which are a `host_directory`; `recent_facts` and `recent_processes` are
  what was read a moment ago. `from_settings` makes all of it.
- `discovery` finds the guests of a host (`guest_records` which they are, `unreachable_guests` why one cannot be asked);
  `host_checks` and `process_checks` say what speaks against a target; `hooks` runs the site's commands.
- `destinations` starts the QEMU that a guest moves into (`replication`: like the guest's), `incoming_destination` is
  that QEMU until the guest has arrived; `saved_guests` makes ends of migrations of files (`file_end`).
"""
