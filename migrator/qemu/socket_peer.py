"""The process at the other end of a QMP socket on this machine."""

from __future__ import annotations

import socket
import struct


def peer_pid(sock: socket.socket) -> int | None:
    """Return the pid behind a connected unix socket (SO_PEERCRED); ``None`` where it is not of this pid namespace."""
    pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid or None
