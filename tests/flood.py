"""A flood on the service's entrances, in a process of its own: ``python -m tests.flood KIND HOST:PORT [WHAT]``.

It goes on until its standard input ends. Bounded: so many connections, each with one request at a time.
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

from tests.mqtt_fakes import PREFIX

#: Connections that one flood has at a time.
CONNECTIONS = 100


async def _silent(host: str, port: int, _: str) -> None:
    """Connects, says nothing, and comes again."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        await reader.read()
    finally:
        writer.close()


async def _asks(host: str, port: int, what: str) -> None:
    """Asks for a path, again and again."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        while True:
            writer.write(f"GET {what} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
    finally:
        writer.close()


async def _streams(host: str, port: int, token: str) -> None:
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


async def _commands(host: str, port: int, who: str) -> None:
    """A viewer of the broker that asks for one plan after the other, and reads no reply."""
    user, password = who.split()
    async with aiomqtt.Client(host, port, username=user, password=password, timeout=20) as client:
        for number in itertools.count():
            body = {"id": f"flood-{number}", "sent_at": datetime.now(UTC).isoformat(), "host": "a"}
            await client.publish(f"{PREFIX}/command/{user}/plan", json.dumps(body), qos=1)


KINDS: dict[str, Callable[[str, int, str], Awaitable[None]]] = {
    "silent": _silent,
    "asks": _asks,
    "streams": _streams,
    "commands": _commands,
}


async def _again(kind: Callable[[str, int, str], Awaitable[None]], host: str, port: int, what: str) -> None:
    while True:
        with contextlib.suppress(OSError, EOFError, ValueError, aiomqtt.MqttError):
            await kind(host, port, what)
        await asyncio.sleep(0.05)


async def _main(kind: str, where: str, what: str) -> None:
    host, _, port = where.rpartition(":")
    many = 1 if kind == "commands" else CONNECTIONS
    tasks = [
        asyncio.create_task(_again(KINDS[kind], host, int(port), what), name=f"flood {number}")
        for number in range(many)
    ]
    await asyncio.to_thread(sys.stdin.buffer.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    os.nice(5)  # it is the service that is measured, not what is left of two processors
    asyncio.run(_main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""))
