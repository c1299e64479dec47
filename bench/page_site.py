"""A simulated site behind the real engine, its HTTP entrance and the page: for pictures of it, and to measure it.

::

    async with served(site_of(hosts=12, guests=60), directory) as (running, url):
        ...                                     # sign in with TOKEN
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from migrator.core.hooks import Hook, HookPlace, HookResult, RollPoint
from migrator.http.app import create_app
from migrator.http.limits import Limits
from migrator.http.listeners import Tcp, UnixSocket
from migrator.http.server import Servers
from migrator.ports import Grant
from migrator.ports.hooks import RollHooks
from migrator.replica.channel import MessageKind
from migrator.replica.publisher import Publisher
from migrator.replica.queries import ReplicaQueries
from migrator.replica.state import ReplicaState
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.workload import MIB, steady

#: Of the one operator that there is.
TOKEN = "operator-of-a-simulated-site"  # noqa: S105 - it opens nothing else
_NAMES = ("web", "db", "mail", "cache", "queue", "build", "git", "search", "auth", "video")


class OneToken:
    """Implements :class:`migrator.http.access.TokenVerifier` for one operator."""

    def __init__(self) -> None:
        self._sessions: dict[str, Grant] = {}

    async def verify(self, secret: str) -> Grant | None:
        """See the protocol."""
        return Grant(id="token operator", name="operator", role="operator") if secret == TOKEN else None

    async def begin_session(self, token: Grant, *, seconds: float) -> tuple[str, Grant]:
        """See the protocol."""
        secret = f"session-{len(self._sessions)}"
        ends_at = datetime.now(UTC) + timedelta(seconds=seconds)
        self._sessions[secret] = replace(token, id=secret, ends_at=ends_at)
        return secret, self._sessions[secret]

    async def session(self, secret: str) -> Grant | None:
        """See the protocol."""
        return self._sessions.get(secret)

    async def end_session(self, secret: str) -> None:
        """See the protocol."""
        self._sessions.pop(secret, None)

    async def holding(self, grants: Collection[str]) -> set[str]:
        """See the protocol."""
        return {"token operator", *self._sessions} & set(grants)


class TwoHooks:
    """Implements :class:`migrator.ports.hooks.RollHooks`: one hook patches, one says whether the host is ready."""

    def for_roll(self, point: RollPoint) -> Sequence[Hook]:
        """See the protocol."""
        name = "patch-and-reboot" if point is RollPoint.AFTER_DRAIN else "smoke-test"
        return [Hook(name=name, point=point, command=("/it",), place=HookPlace.HOST, timeout_seconds=1800.0)]

    async def run(self, hook: Hook, host: str, document: Mapping[str, Any]) -> HookResult:  # noqa: ARG002 - all are well
        """See the protocol."""
        return HookResult(status=0)


def site_of(*, hosts: int, guests: int, link: float = 120 * MIB, seed: int = 1) -> SimulatedSite:
    """Return a site whose guests are spread evenly, write at various rates, and of whom a few cannot move."""
    site, chance = SimulatedSite(), random.Random(seed)
    for n in range(1, hosts + 1):
        site.add_host(f"host-{n}", link=link, memory_bytes=512 << 30)
    for n in range(guests):
        memory = chance.choice((256, 512, 1024, 2048)) * MIB
        rate = chance.choice((0.5, 2, 5, 10, 30)) * MIB
        site.add_guest(
            f"{_NAMES[n % len(_NAMES)]}-{n // len(_NAMES) + 1:02}",
            host=f"host-{n % hosts + 1}",
            memory_bytes=memory,
            workload=replace(steady(memory // 8, rate), constant_bytes=memory // 2),
            obstacle="a disk is a file of its host" if n % 97 == 11 else "",
        )
    return site


class _Replica:
    """The state of the engine as the process that answers requests has it; here it is told in the same process."""

    def __init__(self) -> None:
        self.state = ReplicaState()

    def send(self, kind: MessageKind, body: bytes = b"", number: int = 0) -> None:  # noqa: ARG002 - nothing is asked
        """Take a message of the engine's publisher."""
        self.state.receive(kind, body)

    async def ask(self, what: str, **_: Any) -> Any:
        """Ask the engine for nothing: it looks at its hosts by itself, and keeps samples in memory."""


@asynccontextmanager
async def served(
    site: SimulatedSite, directory: Path, *, hooks: RollHooks | None = None
) -> AsyncIterator[tuple[RunningEngine, str]]:
    """Run the engine on the site and serve it, while the block lasts; what is returned last is the page's address.

    :param hooks: of rolls.
    """
    service, replica = SimulatedService(directory / "records", site), _Replica()
    service.roll_hooks = hooks
    async with service.running(killed=True) as running:
        publisher = Publisher(source=running.queries, events=running.bus)
        publisher.attach(replica)
        publishing = asyncio.create_task(publisher.run(), name="publisher")
        await replica.state.complete.wait()
        journal: Any = service.journal
        requests: Any = replica
        queries = ReplicaQueries(
            state=replica.state, journal=journal, samples=service.samples, requests=requests
        )
        limits = Limits(requests_per_second=500, burst=5000)
        app = create_app(running.dispatcher, queries, OneToken(), limits=limits)
        servers = Servers(
            app, unix=UnixSocket(path=directory / "api.sock"), tcp=Tcp(port=0), timeout_seconds=2
        )
        try:
            async with servers:
                yield running, servers.addresses[1]
        finally:
            publishing.cancel()
            await asyncio.wait({publishing})
