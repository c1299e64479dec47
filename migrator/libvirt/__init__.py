"""The only place that speaks with libvirt, by its Python binding, which may be missing.

- `binding` is the binding, or one line about what to install; `event_thread` runs libvirt's event loop.
- `opening` begins to open it early; `connection` is the connection to the daemon of one host: every call on a thread,
  bounded in time, events on our loop.
- `domains` are the guests of a host, kept by events; `domain_xml` reads what libvirt says of one, `domain_disks` its
  images.
- `end` is one end of a migration, `domain_view` a look at it, `migration` the source whose libvirt carries it out,
  `job_stats` its figures. `target_checks` asks a target whether it would take the guest.
- `cold_source` and `cold_destination` are the ends (`cold_end`) of a guest that is shut down and started anew
  (`cold_guest`: from what).
"""
