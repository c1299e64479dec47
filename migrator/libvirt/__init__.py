"""The only place that speaks with libvirt, by its Python binding, which may be missing.

- `binding` is the binding, or one line about what to install; `event_thread` runs libvirt's event loop.
- `connection` is the connection to the daemon of one host: every call on a thread, bounded in time, events on our loop.
- `migration` has the ends of a move that libvirt carries out, `cold_ends` those of a guest that is shut down and
  started anew (`cold_guest`: from what).
"""
