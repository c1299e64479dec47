"""This controller among those that share the journal: its heartbeat, and what it knows of the others."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Self

from migrator import logs
from migrator.errors import JournalError
from migrator.ports import HeldLease, Lease
from migrator.ports.assignments import AvailableDriver
from migrator.ports.controllers import ControllerInfo, PresentController
from migrator.store.journal import SqlJournal
from migrator.store.kept_token import KeptToken
from migrator.store.sole_use import NAME as SITE

#: A lease is renewed so many times before it could end.
_BEATS = 4
#: Older versions know nothing of assignments.
_FIRST_THAT_DRIVE = "0010"


@dataclass(frozen=True)
class Presence:
    """The controllers and leases that a heartbeat has found; times are by the database's clock."""

    controllers: Sequence[PresentController] = ()
    leases: Sequence[HeldLease] = ()
    #: Why nothing newer is known; empty while all is well.
    complaint: str = ""
    #: Seconds by which this machine's clock is ahead of the database's, at least; behind it where that is negative.
    clock_ahead_seconds: float = 0.0
    #: When it was found, by this machine's monotonic clock.
    found_at: float = field(default_factory=time.monotonic, compare=False)

    @property
    def planner(self) -> HeldLease | None:
        """Return the lease of the controller that acts for the site; ``None``: none does."""
        return next((each for each in self.leases if each.name == SITE and each.left_seconds > 0), None)

    @property
    def acting(self) -> PresentController | None:
        """Return the controller that acts for the site; ``None``: none does, or nothing is known of it."""
        planner = self.planner
        return next(
            (each for each in self.controllers if planner is not None and each.info.name == planner.owner),
            None,
        )

    def others(self, name: str) -> bool:
        """Tell whether another controller than this one is there."""
        return any(each.present and each.info.name != name for each in self.controllers)


class Heartbeat:
    """Says every now and then that this controller is there, for as long as the ``async with`` block lasts.

    A server that is away is no reason to end: it is joined again when it is back.

    :param info: this controller as it describes itself; :meth:`describe` changes that.
    :param seconds: how long its lease holds without being renewed.
    :param kept: where the token of its lease outlives the process, so that one of a copied state directory is told from
        one that began anew.
    :ivar now: what was found last.
    :ivar wall_clock: this machine's; only tests need another.
    :ivar lease: its own, with a new token whenever it had to be taken anew; ``None`` until it was taken once.
    """

    def __init__(
        self,
        journal: SqlJournal,
        *,
        info: ControllerInfo,
        seconds: float,
        kept: KeptToken | None = None,
    ) -> None:
        self._journal, self._seconds, self._kept = journal, seconds, kept
        self._known = kept.read() if kept is not None else None
        #: Since when another process has the lease of this one's name; on this machine's monotonic clock.
        self._refused_since: float | None = None
        self.info = info
        self.lease: Lease | None = None
        self.now = Presence()
        #: How many migrations this controller drives.
        self.driven: Callable[[], int] = lambda: 0
        #: Controllers that have lost what they had under leases up to that token, by name.
        self._gone: dict[str, int] = {}
        self._told: list[Callable[[Presence], None]] = []
        self._soon = asyncio.Event()
        self.wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        self._task: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[str] | None = None

    def subscribe(self, callback: Callable[[Presence], None]) -> None:
        """Call `callback` after each heartbeat; it must return at once and never raise."""
        self._told.append(callback)

    @property
    def name(self) -> str:
        """Return the name of this controller."""
        return self.info.name

    def holds(self) -> bool:
        """Return whether the name is certainly this process's own: its lease has not ended."""
        return self.lease is not None and self.lease.may_act

    def note_gone(self, name: str, token: int) -> None:
        """Note that a controller has lost what it had under its lease up to that token, whatever is known of it."""
        self._gone[name] = max(token, self._gone.get(name, token))

    def live(self) -> dict[str, int]:
        """Return the controllers whose leases hold, as far as is known, each with its token."""
        return self._live(self.now.controllers)

    async def live_now(self) -> dict[str, int]:
        """Return the same, as the database has it now.

        :raise JournalError: it cannot be asked.
        """
        return self._live(await self._journal.controllers.all())

    def last_tokens(self) -> dict[str, int]:
        """Return the token that each controller had last, as far as is known, whether or not its lease holds."""
        return {each.info.name: each.token for each in self.now.controllers}

    def _live(self, controllers: Sequence[PresentController]) -> dict[str, int]:
        own = {} if self.lease is None else {self.name: self.lease.token}
        return own | {
            each.info.name: each.token
            for each in controllers
            if each.present
            and each.info.name != self.name
            and each.token > self._gone.get(each.info.name, -1)
        }

    def newer(self) -> str:
        """Return a controller of a newer version that is there, and acts or stands by; empty where there is none.

        It reads all that this one writes, but not the other way round.
        """
        live, own = self.live(), _numbers(self.info.version)
        return next(
            (
                f"{each.info.instance} ({each.info.version})"
                for each in self.now.controllers
                if live.get(each.info.name) == each.token
                and each.info.role in ("standby", "acting")
                and _numbers(each.info.version) > own
            ),
            "",
        )

    def describe(self, *, role: str | None = None, detail: str | None = None) -> None:
        """Say something else of this controller, at once."""
        self.info = replace(
            self.info,
            role=self.info.role if role is None else role,
            detail=self.info.detail if detail is None else detail,
        )
        self._soon.set()

    async def __aenter__(self) -> Self:
        await self.beat()
        self._task = asyncio.create_task(self._run(), name="heartbeat")
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._task, self._probing):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        lease, self.lease = self.lease, None
        if lease is not None:  # from here on another may have what it drove
            try:
                await self._journal.controllers.leave(lease)
            except JournalError:
                pass  # the lease ends by itself

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._seconds / _BEATS):
                    await self._soon.wait()
            except TimeoutError:
                pass
            self._soon.clear()
            await self.beat()

    async def beat(self) -> None:
        """Renew the lease and look at the others; a server that is away is said in :attr:`now`."""
        controllers = self._journal.controllers
        self.info = replace(self.info, migrations=self.driven())
        try:
            renewed = None
            began = self.wall_clock()
            if self.lease is not None:
                renewed = await controllers.beat(self.info, self.lease, seconds=self._seconds)
            if renewed is None:
                renewed = await self._join()
            self.lease = renewed or self.lease
            between = (began, self.wall_clock())
            found = Presence(await controllers.all(), await self._journal.leases.all())
            await self._journal.leases.end_stuck()
            if renewed is None:
                found = replace(found, complaint=self._refused(found))
            else:
                self._refused_since = None
                if not controllers.complaint:
                    found = replace(found, clock_ahead_seconds=self._clock_ahead(found, *between))
                elif not self.now.complaint:
                    logs.logger().warning(
                        "what this controller says of itself cannot be written", error=controllers.complaint
                    )
                found = replace(found, complaint=controllers.complaint)
        except JournalError as error:
            if not self.now.complaint:
                logs.logger().warning("no heartbeat can be given", error=str(error))
            found = replace(self.now, complaint=str(error))
        if self._journal.complaint and (self._probing is None or self._probing.done()):
            # Where nothing is to be written nobody would find that it can be again.
            self._probing = asyncio.create_task(self._journal.probe(), name="probe of the journal")
        self.now = found
        self._journal.others = found.others(self.info.name)
        for told in tuple(self._told):
            told(found)

    def _clock_ahead(self, found: Presence, began: datetime, ended: datetime) -> float:
        """Return :attr:`Presence.clock_ahead_seconds` by when the database says that this controller was seen."""
        own = next((each for each in found.controllers if each.info.name == self.name), None)
        if own is None or began <= own.seen_at <= ended:
            return 0.0
        return (began - own.seen_at if began > own.seen_at else ended - own.seen_at).total_seconds()

    async def _join(self) -> Lease | None:
        lease = await self._journal.controllers.join(self.info, seconds=self._seconds, known=self._known)
        if lease is not None:
            self._known = lease.token
            if self._kept is not None:
                self._kept.keep(lease.token)
        return lease

    def _refused(self, found: Presence) -> str:
        """Return what is wrong where another process has the lease of this one's name.

        It may be this controller's own, of which nobody answered whether it was taken: that one ends by itself.
        """
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        if now - self._refused_since <= self._seconds:
            return "the lease of this controller's name is taken: it waits for its end"
        other = next((each.info for each in found.controllers if each.info.name == self.name), None)
        where = f"{other.instance}{f' at {other.url}' if other.url else ''}" if other is not None else "one"
        complaint = (
            f"another controller ({where}) has the same id {self.name}: the state directory of one is a copy of the "
            "other's. This one drives nothing. Stop the one that has the copy, delete the file controller in its state "
            "directory, and start it again"
        )
        if complaint != self.now.complaint:
            logs.logger().warning("another controller has the same id", what=complaint)
        return complaint


class Drivers:
    """See :class:`migrator.ports.assignments.DriverPool`."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat

    @property
    def name(self) -> str:
        """See :attr:`migrator.ports.assignments.DriverPool.name`."""
        return self._heartbeat.name

    def available(self) -> Sequence[AvailableDriver]:
        """See :meth:`migrator.ports.assignments.DriverPool.available`."""
        live = self._heartbeat.live()
        return [
            AvailableDriver(
                name=each.info.name,
                instance=each.info.instance,
                token=each.token,
                hosts=frozenset(each.info.hosts or ()),
            )
            for each in self._heartbeat.now.controllers
            if each.info.name != self.name
            and live.get(each.info.name) == each.token
            and each.info.role == "standby"
            and each.schema >= _FIRST_THAT_DRIVE
            and _numbers(each.info.version) >= _numbers(self._heartbeat.info.version)
        ]

    def lives(self, name: str, token: int) -> bool:
        """See :meth:`migrator.ports.assignments.DriverPool.lives`."""
        return self._heartbeat.live().get(name) == token

    def instance(self, name: str) -> str:
        """See :meth:`migrator.ports.assignments.DriverPool.instance`."""
        found = (each.info.instance for each in self._heartbeat.now.controllers if each.info.name == name)
        return next(found, name)

    def note_gone(self, name: str, token: int) -> None:
        """See :meth:`migrator.ports.assignments.DriverPool.note_gone`."""
        self._heartbeat.note_gone(name, token)

    def subscribe(self, callback: Callable[[], None]) -> None:
        """See :meth:`migrator.ports.assignments.DriverPool.subscribe`."""
        self._heartbeat.subscribe(lambda _: callback())


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, which are compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version))
