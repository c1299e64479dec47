"""Ports for servers that are given theirs by number: nobody else is given one meanwhile."""

from __future__ import annotations

import os
import socket
from collections import deque

#: Bound, and never listened at: the kernel gives such a port to nobody who asks for any, nor to a connection. More than
#: one test has at a time.
_held: deque[int] = deque(maxlen=100)


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port at which a server that sets SO_REUSEADDR, as all do, can listen; nobody answers there before."""
    holder = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((address, 0))
    if len(_held) == _held.maxlen:
        os.close(_held.popleft())
    port = int(holder.getsockname()[1])
    _held.append(holder.detach())  # until the end of the process
    return port
