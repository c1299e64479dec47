"""Live documents and the list of controllers in memory: the contracts of :mod:`migrator.ports.controllers`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from migrator.errors import LeaseLost
from migrator.ports import Claim, Lease
from migrator.ports.controllers import (
    COMMANDS_CHANNEL,
    LIVE_CHANNEL,
    ControllerInfo,
    LiveDocument,
    PresentController,
    WaitingCommand,
    controller_lease,
)
from migrator.store import schema

if TYPE_CHECKING:
    from migrator.testing.journal import MemoryJournal

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MemoryLiveDocuments:
    """See :class:`migrator.ports.controllers.LiveDocuments`."""

    def __init__(self, journal: MemoryJournal) -> None:
        self._journal = journal
        self._documents: dict[tuple[str, str], LiveDocument] = {}
        self._version = 0

    async def write(
        self, documents: Sequence[LiveDocument], *, writer: str, lease: Lease | None = None
    ) -> int:
        """See :meth:`migrator.ports.controllers.LiveDocuments.write`."""
        await self._journal.write("live")
        if lease is not None and not self._journal.leases.holds(lease):
            raise LeaseLost(f"the lease {lease.name} of {lease.owner} does not hold any more")
        self._version += 1
        for each in documents:
            written = replace(each, writer=writer, version=self._version)
            self._documents.pop((each.kind, each.id), None)
            self._documents[each.kind, each.id] = written
        await self._journal.signals.notify(LIVE_CHANNEL)
        return self._version

    async def since(self, version: int, kinds: Collection[str] = ()) -> list[LiveDocument]:
        """See :meth:`migrator.ports.controllers.LiveDocuments.since`."""
        await self._journal.read("live")
        return [
            each
            for each in self._documents.values()
            if each.version > version and (not kinds or each.kind in kinds)
        ]

    async def version(self) -> int:
        """See :meth:`migrator.ports.controllers.LiveDocuments.version`."""
        await self._journal.read("live")
        return self._version


class MemoryWaitingCommands:
    """See :class:`migrator.ports.controllers.WaitingCommands`."""

    def __init__(self, journal: MemoryJournal) -> None:
        self._journal = journal
        #: By key: the envelope, and who has begun to carry it out.
        self._waiting: dict[str, tuple[str, str]] = {}
        #: Of each that is taken.
        self.age_seconds = 0.0

    async def leave(
        self,
        *,
        key: str,
        verb: str,
        body_hash: str,
        body: Mapping[str, Any],
        caller: Mapping[str, str],
        envelope: str,
    ) -> Claim:
        """See :meth:`migrator.ports.controllers.WaitingCommands.leave`."""
        claim = await self._journal.claim_command(
            key=key, verb=verb, body_hash=body_hash, body=body, caller=caller
        )
        if claim.new:
            self._waiting[key] = (envelope, "")
            await self._journal.signals.notify(COMMANDS_CHANNEL, key)
        return claim

    async def waiting(self) -> list[WaitingCommand]:
        """See :meth:`migrator.ports.controllers.WaitingCommands.waiting`."""
        await self._journal.read("waiting")
        return [
            WaitingCommand(key=key, envelope=envelope, taken=bool(by))
            for key, (envelope, by) in self._waiting.items()
            if self._journal.commands[key]["reply"] is None
        ]

    async def take(self, key: str, *, by: str) -> WaitingCommand | None:
        """See :meth:`migrator.ports.controllers.WaitingCommands.take`."""
        await self._journal.write("take")
        if key not in self._waiting or self._journal.commands[key]["reply"] is not None:
            return None
        envelope, before = self._waiting[key]
        self._waiting[key] = (envelope, by)
        return WaitingCommand(key=key, envelope=envelope, taken=bool(before), age_seconds=self.age_seconds)

    async def take_back(self, key: str) -> bool:
        """See :meth:`migrator.ports.controllers.WaitingCommands.take_back`."""
        await self._journal.write("take_back")
        if self._waiting.get(key, ("", "x"))[1] or self._journal.commands[key]["reply"] is not None:
            return False
        del self._waiting[key], self._journal.commands[key]
        return True

    async def replies(self, keys: Collection[str]) -> dict[str, Mapping[str, Any]]:
        """See :meth:`migrator.ports.controllers.WaitingCommands.replies`."""
        await self._journal.read("replies")
        found = {key: self._journal.commands[key]["reply"] for key in keys if key in self._journal.commands}
        return {key: reply for key, reply in found.items() if reply is not None}

    async def forget(self, key: str) -> None:
        """See :meth:`migrator.ports.controllers.WaitingCommands.forget`."""
        await self._journal.write("forget")
        if (self._journal.commands.get(key) or {}).get("reply") is not None:
            del self._journal.commands[key]
            self._waiting.pop(key, None)


@dataclass
class _Row:
    info: ControllerInfo
    started_at: float
    seen_at: float
    lease_seconds: float


class MemoryControllers:
    """See :class:`migrator.ports.controllers.Controllers`."""

    def __init__(self, journal: MemoryJournal) -> None:
        self._journal = journal
        self._rows: dict[str, _Row] = {}
        self.complaint = ""

    async def join(self, info: ControllerInfo, *, seconds: float, known: int | None = None) -> Lease | None:
        """See :meth:`migrator.ports.controllers.Controllers.join`."""
        lease = await self._journal.leases.acquire(
            controller_lease(info.name), owner=info.name, seconds=seconds, known=known
        )
        if lease is not None:
            now = self._journal.leases.now()
            self._rows[info.name] = _Row(info, now, now, seconds)
        return lease

    async def beat(self, info: ControllerInfo, lease: Lease, *, seconds: float) -> Lease | None:
        """See :meth:`migrator.ports.controllers.Controllers.beat`."""
        [renewed] = await self._journal.leases.renew([lease], seconds=seconds)
        if renewed is not None:
            now = self._journal.leases.now()
            row = self._rows.setdefault(info.name, _Row(info, now, now, seconds))
            row.info, row.seen_at, row.lease_seconds = info, now, seconds
        return renewed

    async def leave(self, lease: Lease) -> None:
        """See :meth:`migrator.ports.controllers.Controllers.leave`."""
        await self._journal.leases.release(lease)
        self._rows.pop(lease.owner, None)

    async def all(self) -> list[PresentController]:
        """See :meth:`migrator.ports.controllers.Controllers.all`."""
        held = {each.name: each for each in await self._journal.leases.all()}
        now = self._journal.leases.now()
        found = []
        for name, row in self._rows.items():
            lease = held.get(controller_lease(name))
            found.append(
                PresentController(
                    info=row.info,
                    schema=schema.HEAD,
                    token=lease.token if lease else 0,
                    started_at=_EPOCH + timedelta(seconds=row.started_at),
                    seen_at=_EPOCH + timedelta(seconds=row.seen_at),
                    age_seconds=max(0.0, now - row.seen_at),
                    present=lease is not None and lease.left_seconds > 0,
                    lease_seconds=row.lease_seconds,
                )
            )
        return sorted(found, key=lambda each: (each.info.instance, each.info.name))
