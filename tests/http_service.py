"""The HTTP entrance in front of a service of a test: on a Unix socket, on loopback, and its probes.

::

    async with (
        two_hosts(tmp_path).running() as running,
        serving(running.dispatcher, running.queries, tmp_path) as place,
    ):
        ...
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from migrator.http.app import create_app
from migrator.http.limits import Limits
from migrator.http.listeners import Tcp, UnixSocket
from migrator.http.server import Servers
from migrator.ports import Grant
from migrator.testing.simulated_service import SimulatedService
from migrator.testing.workload import MIB

OPERATOR, VIEWER = "operator-secret", "viewer-secret"
#: Operators that are limited to the host alpha, or beta.
OF_ALPHA, OF_BETA = "alpha-secret", "beta-secret"
_TOKENS: dict[str, tuple[str, str, tuple[str, ...] | None]] = {
    OPERATOR: ("olga", "operator", None),
    VIEWER: ("vera", "viewer", None),
    OF_ALPHA: ("drain-alpha", "operator", ("alpha",)),
    OF_BETA: ("drain-beta", "operator", ("beta",)),
}
#: A name that wants to be markup, a column and an escape sequence.
HOSTILE = "<img src=x onerror=alert(1)>[red]\x1b[31m'\";"


def two_hosts(directory: Path) -> SimulatedService:
    """Return a service whose hosts alpha and beta have three and two guests: one name is there twice, one is hostile,
    and ``mail`` cannot move.
    """
    service = SimulatedService(directory)
    for name in ("alpha", "beta"):
        service.site.add_host(name, link=1000 * MIB, start_seconds=0.0)
    for name in ("web", "db", HOSTILE):
        service.site.add_guest(name, host="alpha", memory_bytes=256 * MIB)
    service.site.add_guest("web", host="beta", memory_bytes=256 * MIB, namesake=True)
    service.site.add_guest("mail", host="beta", memory_bytes=256 * MIB, obstacle="libvirt manages it")
    return service


def hold_commands(service: SimulatedService, until: asyncio.Event) -> asyncio.Event:
    """Have the journal take commands that have a caller's id only once that happens; what is returned happens when the
    first has come that far.
    """
    asked, pause = asyncio.Event(), service.journal.pause

    async def hold(call: str) -> None:
        if call == "claim_command":
            asked.set()
            await until.wait()
        await pause(call)

    service.journal.pause = hold
    return asked


class MemoryTokens:
    """A few tokens; what is in :attr:`revoked` (a name) holds no more."""

    def __init__(self) -> None:
        self.revoked: set[str] = set()
        self._sessions: dict[str, Grant] = {}

    async def verify(self, secret: str) -> Grant | None:
        name, role, hosts = _TOKENS.get(secret, ("", "", None))
        if not name or name in self.revoked:
            return None
        return Grant(id=f"token {name}", name=name, role=role, hosts=hosts)

    async def begin_session(self, token: Grant, *, seconds: float) -> tuple[str, Grant]:
        secret = f"session-of-{token.name}-{len(self._sessions)}"
        ends_at = datetime.now(UTC) + timedelta(seconds=seconds)
        self._sessions[secret] = replace(token, id=f"session {secret}", ends_at=ends_at)
        return secret, self._sessions[secret]

    async def session(self, secret: str) -> Grant | None:
        found = self._sessions.get(secret)
        return None if found is None or found.name in self.revoked else found

    async def end_session(self, secret: str) -> None:
        self._sessions.pop(secret, None)

    async def holding(self, grants: Collection[str]) -> set[str]:
        tokens = {f"token {name}" for name, _, _ in _TOKENS.values() if name not in self.revoked}
        sitting = {each.id for each in self._sessions.values() if each.name not in self.revoked}
        return (tokens | sitting) & set(grants)


@dataclass(frozen=True)
class Place:
    """Where a service is."""

    socket: Path
    app: FastAPI
    servers: Servers

    @property
    def url(self) -> str:
        return self.servers.addresses[1]

    @property
    def probes(self) -> str:
        return self.servers.addresses[2]


@contextlib.asynccontextmanager
async def serving(
    commands: Any,
    queries: Any,
    directory: Path,
    *,
    limits: Limits | None = None,
    timeout_seconds: int = 2,
    port: int = 0,
    tokens: MemoryTokens | None = None,
) -> AsyncIterator[Place]:
    """Serve while the block lasts."""
    app = create_app(commands, queries, tokens or MemoryTokens(), metrics=_metrics, limits=limits)
    servers = Servers(
        app,
        unix=UnixSocket(path=directory / "run" / "api.sock"),
        tcp=Tcp(port=port),
        metrics=Tcp(),
        timeout_seconds=timeout_seconds,
    )
    async with servers:
        yield Place(directory / "run" / "api.sock", app, servers)


async def _metrics(accept: str | None) -> tuple[bytes, str]:
    return b"migrator_up 1\n", "text/plain; version=0.0.4; charset=utf-8"
