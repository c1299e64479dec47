"""The only place that speaks with libvirt, by its Python binding, which may be missing.

- `binding` is the binding, or one line about what to install; `event_thread` runs libvirt's event loop.
- `connection` is the connection to the daemon of one host: every call on a thread, bounded in time, events on our loop.
"""
