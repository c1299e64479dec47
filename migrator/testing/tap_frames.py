"""Frames at an interface of a host, with the kernel's time of each, however late whoever reads them is."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import NamedTuple, Self

from migrator.testing.network import LabHost, inside

_SO_TIMESTAMPNS = 35
#: All protocols: a bridge takes the frames of its ports away from those who want one only.
_ALL = 3
_IPV4, _RARP = b"\x08\x00", b"\x80\x35"
_ECHO = {b"\x08": "request", b"\x00": "reply"}


class Frame(NamedTuple):
    """One frame of those that tell where a guest is."""

    #: By the machine's real-time clock.
    at: float
    #: ``request`` or ``reply`` of a ping, or ``announcement`` by the guest's QEMU.
    kind: str


class TapFrames:
    """Pings and announcements at an interface, from now on. A context manager."""

    def __init__(self, host: LabHost, interface: str) -> None:
        with inside(host.namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        self._socket.bind((interface, _ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        self._socket.setblocking(False)

    def read(self) -> list[Frame]:
        """Return those that have come since the last time, the first of them first."""
        found: list[Frame] = []
        while True:
            try:
                frame, said, _, _ = self._socket.recvmsg(2000, 100)
            except BlockingIOError:
                return found
            if kind := _kind(frame):
                seconds, nanoseconds = struct.unpack("qq", said[0][2])
                found.append(Frame(seconds + nanoseconds / 1e9, kind))

    def close(self) -> None:
        """Read no more."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _kind(frame: bytes) -> str:
    if frame[12:14] == _RARP:
        return "announcement"
    if frame[12:14] == _IPV4 and frame[23] == socket.IPPROTO_ICMP:
        return _ECHO.get(frame[34:35], "")
    return ""
