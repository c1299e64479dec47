"""One migration, from its request to its end: the same for the service, for ``direct``, and after a crash.

It knows nothing of other migrations.

- `session` takes it from its request to its end; for the service `documented_session` has its document and its group,
  `journalled_session` its place in the journal and its hooks. `session_phase` says how far it is and what may follow,
  `requests` what others want of it, `services` what it works with, `session_ends` opens both ends and lets them go.
  `session_state` is what is known of it, `outcome` what is shown of its course and end. `preflight` finds what speaks
  against it (`ceiling`: whether its downtime can be kept at all), `slow_step` tells of a step that takes long,
  `cleanup` clears the hosts up, and `leftovers` what could not be reached then, `guest_network` looks at what carries
  the guest's network, `session_hooks` runs the site's hooks. `file_session` and `file_move` say that one end is a file
  (`saved_entry` in the journal, `mapped_load` where QEMU reads it by itself), `cold_session` that the guest is shut
  down and started anew.
- `driver` begins it, or takes it up, and `driver_loop` drives it through the ports; `contained_loop` is what goes wrong
  in this program meanwhile. `driver_state` has its parts, and what may be asked of it.
- Before: `block_job_wait` and `quiet_wait` wait, `prepare` sets both ends up, `stream_security` encrypts and
  `stream_routing` leads the stream, `disk_mirrors` are the disks that both ends do not share.
- While it copies: `observer` looks (`phase_timeouts`: how long nothing may change), `steps` takes the steps of the
  lifecycle, `steering` steers while memory is copied, `disk_following` has the disks keep up, `postcopy_steering`
  steers a postcopy; `stream_shaper` has the stream's sockets, `shared_path` what is known of others on its path,
  `guarding` the source's guard, `group_hold` the switch that waits for the guest's group, `unplug_wait` the cards that
  the guest has to let go of, `stream_recovery` a postcopy whose network broke.
- Notes: `intent_log` writes the record, `intent_updates` what both ends show, `stop_interval` measures the standstill,
  `runtime_settings` sets what is not in the stream, `ending` says what is said at the end, `removal_document` what
  becomes of old images.
- `managed_driver`, `managed_loop`, `managed_state`, `managed_choice` and `managed_postcopy` have a manager, libvirt,
  carry it out.
- `take_over` goes on with what another controller left: `missing_record` without its record, `stray_records` where the
  journal does not know it. `held_migrations` judges what is held again, `resolution` ends it as a person says.
"""
