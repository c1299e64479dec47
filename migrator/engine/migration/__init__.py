"""One migration, from its request to its end: the same for the service, for ``direct``, and after a crash.

It knows nothing of other migrations.

- `session` takes it from its request to its end; for the service `documented_session` has its document and its group,
  `journalled_session` its place in the journal and its hooks. `session_phase` says how far it is and what may follow,
  `requests` what others want of it, `services` what it works with, `session_ends` opens both ends and lets them go.
  `preflight` finds what speaks against it, `cleanup` clears the hosts up, `guest_network` looks at what carries the
  guest's network, `session_hooks` runs the site's hooks. `file_session` and `file_move` say that one end is a file,
  `cold_session` that the guest is shut down and started anew.
- `driver` begins it, or takes it up, and `driver_loop` drives it through the ports; `contained_loop` is what goes wrong
  in this program meanwhile. `driver_state` has its parts, and what may be asked of it. `prepare` sets both ends up,
  `steering` steers while memory is copied, `steps` takes the steps of the lifecycle, `observer` looks, `stream_shaper`
  has the stream's sockets, `shared_path` what is known of others on its path, `guarding` the source's guard,
  `group_hold` the switch that waits for the guest's group, `disk_mirrors` the disks that both ends do not share,
  `stream_recovery` a postcopy whose network broke, `unplug_wait` the cards that the guest has to let go of;
  `managed_driver`, `managed_loop`, `managed_state` and `managed_postcopy` have a manager, libvirt, carry it out;
  `intent_log` writes the record, `ending` says what is said at the end.
- `take_over` goes on with what another controller left: `missing_record` without its record, `stray_records` where the
  journal does not know it. `held_migrations` judges what is held again, `resolution` ends it as a person says.
"""
