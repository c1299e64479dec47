"""One migration: which step is safe next, when to switch, throttle or give up, and what it will cost. Pure.

What is safe:

- `lifecycle` is the decision table, of `rules` and of the `operator_rows` that only a person's answer opens;
  `situation` is what goes into it, `invariants` what must hold at every look whatever it says.
- `answer_review` says what would come of a person's answer, `rescue` what to do without a record, `unfinished` what a
  QEMU shows of a migration that was left, `drivers` who may follow whom at a QEMU.
- `managed_lifecycle` is the table of a migration that the guest's manager, libvirt, carries out; `managed_situation` is
  what goes into it.
- `cold_situation` is what both ends show of a guest that is shut down and started anew.

While memory is copied:

- `convergence` decides (`convergence_state` goes from one sample to the next, `convergence_rungs` are the rungs of the
  ladder), `throttling` how much CPU time is taken, `switch_timing` when QEMU gets its real downtime limit (`objective`
  is what that is chosen by), `halted_stream` when a target is given up, `held_switch` how a copy goes on while the
  guest waits for its group.
- `disk_copies` are the disks that are copied; `disk_backlog` says when the switch can bear what is left of them, and
  what memory may have of the path meanwhile.
- `stream_layout` is how many channels memory has and what is compressed, `traffic_shaping` what may wait in the
  stream's sockets (`tunnel_queue`: in a tunnel) and how fast they send, `postcopy_bandwidth` what a postcopy sends
  unasked.

What it will cost, and has cost:

- `forecast`, before it `advance_forecast` (nothing is begun), `early_forecast` (the first round has not ended) and
  `mirror_forecast` (disks are copied); `time_left` says how little is known, `prior` what is known of the guest,
  `quiet_start` when to begin, `downtime_floor` the least downtime that can be had.
- `guest_impact` is how long a guest stood still, `guest_clock` whether its clock is set after that; `progress` never
  falls, `downsampling` keeps enough figures for a curve.
"""
