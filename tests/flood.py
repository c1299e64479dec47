"""A flood on the service's entrances, in a process of its own.

``python -m tests.flood CONNECTIONS PAUSE KIND HOST:PORT [WHAT]`` goes on until its standard input ends. Bounded: so
many connections, each with one request at a time and so many seconds between two.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import aiomqtt

from tests.mqtt_peer import PREFIX


async def _silent(host: str, port: int, _what: str, _pause: float) -> None:
    """Connects, says nothing, and comes again."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        await reader.read()
    finally:
        writer.close()


async def _asks(host: str, port: int, what: str, pause: float) -> None:
    """Asks for a path, again and again."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        while True:
            writer.write(f"GET {what} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            await asyncio.sleep(pause)
    finally:
        writer.close()


async def _streams(host: str, port: int, token: str, _pause: float) -> None:
    """Opens a stream of all that ever was, and does not read."""
    reader, writer = await asyncio.open_connection(host, port, limit=1024)
    try:
        head = (
            f"GET /api/v1/events?after=0 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        writer.write(head.encode())
        await writer.drain()
        await reader.readexactly(12)
        await asyncio.sleep(3600)
    finally:
        writer.close()


async def _commands(host: str, port: int, who: str, pause: float) -> None:
    """A viewer of the broker that asks for one plan after the other, and reads no reply."""
    user, password = who.split()
    async with aiomqtt.Client(host, port, username=user, password=password, timeout=20) as client:
        for number in itertools.count():
            body = {"id": f"flood-{number}", "sent_at": datetime.now(UTC).isoformat(), "host": "a"}
            await client.publish(f"{PREFIX}/command/{user}/plan", json.dumps(body), qos=1)
            await asyncio.sleep(pause)


Kind = Callable[[str, int, str, float], Awaitable[None]]
KINDS: dict[str, Kind] = {
    "silent": _silent,
    "asks": _asks,
    "streams": _streams,
    "commands": _commands,
}


async def _again(kind: Kind, host: str, port: int, what: str, pause: float) -> None:
    while True:
        with contextlib.suppress(OSError, EOFError, ValueError, aiomqtt.MqttError):
            await kind(host, port, what, pause)
        await asyncio.sleep(max(0.05, pause))


async def _main(connections: str, pause: str, kind: str, where: str, what: str = "") -> None:
    host, _, port = where.rpartition(":")
    many = 1 if kind == "commands" else int(connections)
    tasks = [
        asyncio.create_task(_again(KINDS[kind], host, int(port), what, float(pause)), name=f"flood {number}")
        for number in range(many)
    ]
    await asyncio.to_thread(sys.stdin.buffer.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    os.nice(5)  # it is the service that is measured, not what is left of two processors
    asyncio.run(_main(*sys.argv[1:]))
