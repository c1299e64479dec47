"""The sockets of a stream at its source: found by the process and by the destination's addresses, options set there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from migrator import addresses
from migrator.core.link_speeds import StreamCounters
from migrator.errors import HostError, UsageError
from migrator.ports import GuestProcess, StreamOptions, StreamSockets

#: So long a server's options are waited for.
_HELP_SECONDS = 1.0


def tcp_peers(uris: Sequence[str]) -> list[tuple[str, int]]:
    """Return address and port of those that are TCP."""
    found = []
    for uri in uris:
        kind, _, rest = uri.partition(":")
        if kind == "tcp":
            try:
                found.append(addresses.host_port(rest))
            except UsageError:
                continue  # of a form that only QEMU knows
    return found


async def stream_sockets(
    process: GuestProcess | None, peers: Sequence[str], options: StreamOptions | None, *, again: bool
) -> StreamSockets:
    """Look at the sockets of a process; see :meth:`migrator.ports.Qemu.stream_sockets`."""
    wanted = tcp_peers(peers)
    if not wanted:
        return StreamSockets()
    if process is None:
        return StreamSockets(refused="which process it is cannot be told")
    options = options or StreamOptions()
    try:
        answer = await process.ask_sockets(
            {
                "do": "streams",
                "peers": wanted,
                "unsent": options.unsent_bytes,
                "pacing": options.pacing_bytes_per_second,
                "again": again,
            }
        )
    except HostError as error:
        return StreamSockets(refused=str(error))
    return StreamSockets(
        count=_number(answer.get("sockets")) or 0,
        queued_bytes=_number(answer.get("queued")),
        refused=str(answer.get("refused", ""))[:500],
        counters=_counters(answer.get("counted")),
    )


async def answer_at_once(process: GuestProcess | None, address: str) -> None:
    """Have a TCP server of a process answer without waiting for more to say; a help, and never an error.

    A QEMU before 8.1 leaves its disk server as the kernel has it: that keeps the second half of an answer back until
    the first was acknowledged, which a client that waits for the whole does after 40 ms. A client that connects is told
    two such, and the source's QEMU does nothing else meanwhile.

    :param address: ``tcp:ADDR:PORT``; of any other kind nothing is done.
    """
    served = tcp_peers([address])
    if process is not None and served:
        with contextlib.suppress(HostError, TimeoutError):
            async with asyncio.timeout(_HELP_SECONDS):
                await process.ask_sockets({"do": "answer_at_once", "port": served[0][1]})


def _counters(found: Any) -> StreamCounters | None:
    """Return what a host may have counted, if those are numbers that can be meant."""
    if not isinstance(found, dict):
        return None
    said = [found.get(name) for name in ("acknowledged", "at", "busy", "reader")]
    numbers = [float(each) for each in said if isinstance(each, int | float) and 0 <= each < 2**53]
    if len(numbers) < len(said):
        return None
    acknowledged, at, busy, reader = numbers
    return StreamCounters(
        at=at, acknowledged_bytes=int(acknowledged), busy_seconds=busy, reader_seconds=reader
    )


def _number(found: Any) -> int | None:
    """Return what a host may have said, if it is a number that can be meant."""
    return found if isinstance(found, int) and 0 <= found < 2**40 else None
