"""Frames that go over the pipes between the service and the process that computes for it.

A frame is its length in four bytes, and as much. A request is the name of a function, portions, and an empty frame; an
answer is one frame: whether it went well, and the result or what went wrong, in a line.
"""

from __future__ import annotations

import struct

_LENGTH = struct.Struct("!I")
LENGTH_BYTES = _LENGTH.size
END = _LENGTH.pack(0)


def frame(body: bytes) -> bytes:
    """Return the body as a frame."""
    return _LENGTH.pack(len(body)) + body


def length(head: bytes) -> int:
    """Return the length of the body that follows."""
    found: int = _LENGTH.unpack(head)[0]
    return found
