"""A controller of a new version waits until older ones, which could not read the journal any more, have gone.

It says so: in its log, as its systemd status, and to whoever asks it for ``/readyz``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable

from migrator import __version__, logs
from migrator.errors import UpgradeWaits
from migrator.http import from_settings as http_settings
from migrator.service.notify import notify
from migrator.settings.models import HttpSettings
from migrator.store.backend import Place, Server
from migrator.store.journal import SqlJournal
from migrator.store.step_records import controller_id

_RETRY_SECONDS = 1.0
#: It is shown as there for so long after it last said so.
_SHOWN_SECONDS = 6.0
#: For somebody who asks meanwhile to say what for.
_REQUEST_SECONDS = 5.0


class NotNeeded(Exception):
    """A controller was asked to stop before its turn to act came."""


async def open_journal(
    place: Place, http: HttpSettings, *, stop: Callable[[], Awaitable[object]], instance: str = ""
) -> SqlJournal:
    """Open the journal, however long older controllers keep it from being migrated.

    :param instance: of this controller, which is shown among those that are there meanwhile.
    :raise NotNeeded: `stop` returned first.
    :raise JournalError: it cannot be opened, for another reason.
    """
    try:
        return await SqlJournal.open(place)
    except UpgradeWaits as error:
        logs.logger().warning("waits for older controllers to go", why=str(error))
        why = [str(error)]
    stopped = asyncio.ensure_future(stop())
    async with _Complaint(http, why):
        try:
            while not stopped.done():
                notify(f"READY=1\nSTATUS=waits: {why[0]}\nWATCHDOG=1")
                await _say_waiting(place, instance, why[0])
                await asyncio.wait({stopped}, timeout=_RETRY_SECONDS)
                try:
                    return await SqlJournal.open(place)
                except UpgradeWaits as error:
                    why[0] = str(error)
            raise NotNeeded
        finally:
            stopped.cancel()


async def _say_waiting(place: Place, instance: str, why: str) -> None:
    if not isinstance(place, Server) or place.beside is None:
        return
    # Only where one is used: its client takes a while to import.
    from migrator.store.postgresql import PostgresServer  # noqa: PLC0415

    await PostgresServer.say_waiting(
        place,
        name=controller_id(place.beside.parent),
        instance=instance,
        version=__version__,
        detail=why,
        seconds=_SHOWN_SECONDS,
    )


class _Complaint:
    """Answers every request with why nothing is done yet."""

    def __init__(self, http: HttpSettings, why: list[str]) -> None:
        self._listeners, self._why = http_settings.listeners(http), why
        self._servers: list[asyncio.Server] = []

    async def __aenter__(self) -> None:
        await self._listeners.bind()
        for name, listener in self._listeners.sockets.items():
            tls = self._listeners.tls(name)
            self._servers.append(
                await asyncio.start_server(self._answer, sock=listener, ssl=tls, limit=16384)
            )

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        self._listeners.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError
        ):
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                lives = head.split(b" ", 2)[1:2] == [b"/healthz"]
                body = json.dumps({"ready": False, "role": "waiting", "complaints": self._why}).encode()
                status = b"200 OK" if lives else b"503 Service Unavailable"
                writer.write(
                    b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nRetry-After: 5\r\nMigrator-Role: waiting\r\n"
                    b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
                )
                await writer.drain()
        writer.close()
