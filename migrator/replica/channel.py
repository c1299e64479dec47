"""Messages between two processes over one socket: bytes of JSON, each with its kind and a number."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Self

#: MessageKind, number, length of what follows.
_HEAD = struct.Struct("!BQI")
#: Of one message; more is not from the other end of ours.
_LARGEST_BYTES = 64 * 1024 * 1024
#: Of all that the other end has not taken yet; a snapshot of a large site is a tenth of it.
_MOST_WAITING_BYTES = 64 * 1024 * 1024


class MessageKind(IntEnum):
    """Kinds of message. Those up to ``REQUEST`` go to the process that answers, the others to the one that steers."""

    #: What it needs to begin; sent again when it changes.
    SETTINGS = 1
    #: The documents of one host and its guests; ``null`` in place of the host: there is no such host any more.
    HOST = 2
    #: The document of one host, those of its guests that are different from before, and who is not there any more.
    GUESTS = 16
    #: A migration or an evacuation as it is now.
    MIGRATION = 3
    EVACUATION = 4
    #: ``[subject, id]`` of one that memory has forgotten: the journal has it.
    FORGOTTEN = 5
    #: An event that was published. It changes documents at once; listeners get it with ``DELIVERED``.
    EVENT = 6
    #: The journal has the oldest event that was not delivered yet: listeners get it. Where the journal gives numbers:
    #: its own, or 0, and that of the last one before it.
    DELIVERED = 7
    #: An event that listeners get at once, and that changes no document.
    PAST_EVENT = 12
    #: Likewise, of an event that has no number and repeats that of another.
    EVENT_WITHOUT_NUMBER = 13
    #: Sent every second, and when something in it changes.
    STATUS = 8
    #: All that there is follows.
    BEGIN = 14
    #: All that there is was sent: the number of the last event, and the last sequence of each subject.
    COMPLETE = 9
    #: This controller and the others, as JSON; sent every second or two.
    SERVICE = 15
    #: To the request of that number.
    REPLY = 10
    #: No more is to be answered; end.
    CLOSE = 11
    #: Something to be done; the number is given by whoever asks.
    REQUEST = 20
    #: Answers are given from now on.
    READY = 21
    #: Sent every second.
    ALIVE = 22
    #: An error of migrator itself was met.
    FAULT = 23


#: MessageKind, number and body.
Received = Callable[[MessageKind, int, bytes], None]


class Channel(asyncio.Protocol):
    """One end of the socket.

    :param received: called with each message, in order; returns at once.
    :param lost: called once when the other end has gone, was cut off, or sent what is no message.
    :param most_waiting_bytes: an end that lets more than this wait for it is cut off.
    """

    def __init__(self, *, received: Received, lost: Callable[[str], None], most_waiting_bytes: int) -> None:
        self._received, self._lost = received, lost
        self._most = most_waiting_bytes
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._why = ""

    @classmethod
    async def over(
        cls,
        end: socket.socket,
        *,
        received: Received,
        lost: Callable[[str], None],
        most_waiting_bytes: int = _MOST_WAITING_BYTES,
    ) -> Self:
        """Use a connected socket, which belongs to the channel from here on."""

        channel = cls(received=received, lost=lost, most_waiting_bytes=most_waiting_bytes)
        await asyncio.get_running_loop().create_connection(lambda: channel, sock=end)
        return channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._transport = None
        self._out.clear()
        closed = exc is None or isinstance(exc, ConnectionError)
        self._lost(self._why or ("it has closed the connection" if closed else str(exc)))

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _HEAD.size:
            kind, number, length = _HEAD.unpack_from(self._buffer, at)
            if length > _LARGEST_BYTES:
                self.cut_off(f"it sent a message of {length} bytes")
                return
            if len(self._buffer) - at - _HEAD.size < length:
                break
            begin = at + _HEAD.size
            at = begin + length
            self._received(MessageKind(kind), number, bytes(memoryview(self._buffer)[begin:at]))
        del self._buffer[:at]

    def send(self, kind: MessageKind, body: bytes = b"", number: int = 0) -> None:
        """Send a message soon; never waits. What is sent to an end that has gone is dropped."""
        if self._transport is None or self._transport.is_closing():
            return
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out += (_HEAD.pack(kind, number, len(body)), body)
        self._out_bytes += len(body)
        if self._out_bytes + self._transport.get_write_buffer_size() > self._most:
            self.cut_off(f"it has let more than {self._most} bytes wait")

    def _flush(self) -> None:
        """All that was sent in one turn of the loop goes with one system call."""
        out, self._out, self._out_bytes = self._out, [], 0
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    def cut_off(self, why: str) -> None:
        """Close at once, whatever waits; `lost` is called with `why`."""
        self._why = self._why or why
        self._out.clear()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Send what waits, then close."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    @property
    def open(self) -> bool:
        """Messages can be sent."""
        return self._transport is not None and not self._transport.is_closing()
