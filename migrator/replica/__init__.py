"""The state of the service in another process, which answers for it: a snapshot, then what changes, and requests.

:mod:`publisher` is the end at the process that drives migrations, :mod:`state` and :mod:`requests` are the other end;
between them is a :mod:`channel`. Neither knows how the other process is started or what it serves.
"""
