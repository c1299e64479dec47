"""A service without hosts: what the entrances ask of the engine, in memory, with guests that move when told to.

::

    world = ScriptedService()
    async with serving(world, tmp_path) as place:
        ...
    with in_thread(tmp_path) as service: ...     # for commands as a user types them
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from migrator.api.commands import (
    Activate,
    Cancel,
    Check,
    Command,
    Evacuate,
    Migrate,
    Plan,
    Postcopy,
    Resolve,
    Restore,
)
from migrator.api.documents import (
    CheckDocument,
    DecisionDocument,
    DirtyRatesDocument,
    FindingDocument,
    ForecastDocument,
    MigrationDocument,
    ResolutionDocument,
    SampleDocument,
)
from migrator.api.evacuation_documents import EvacuationDocument, EvacuationGuest
from migrator.api.events import (
    DecisionTaken,
    EvacuationStateChanged,
    Event,
    EventKind,
    MigrationProgressed,
    MigrationStateChanged,
    Subject,
)
from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.api.plan_documents import PlanDocument, PlannedGuest, PlannedGuestExperience
from migrator.api.queries import EvacuationFilter, EventBatch, EventTexts, MigrationFilter
from migrator.api.replies import Answer, Refusal
from migrator.api.requests import Caller
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.inventory import HostState
from migrator.core.model import Mode, Severity, State
from migrator.engine.commands.dispatcher import Dispatcher
from migrator.engine.event_bus import EventBus
from migrator.http.limits import Limits
from migrator.testing.journal import MemoryJournal
from tests import http_service
from tests.http_service import HOSTILE, MemoryTokens, Place
from tests.some_events import page_of

_Result = TypeVar("_Result")
MIB = 2**20


class ScriptedService:
    """Two hosts with guests; `Reading` and `Controller` in one.

    :param journal_lag: seconds from an event to its being in the journal.
    :param steps: of every migration, `pace` seconds each; ``None``: they stay in precopy until :meth:`finish`.
    """

    def __init__(self, *, journal_lag: float = 0.0, steps: int | None = 4, pace: float = 0.02) -> None:
        self.bus = EventBus()
        self.bus.subscribe(self._journal)
        if journal_lag:
            self.bus.mark_journalled(0)
        self.journal: list[dict[str, Any]] = []
        self.refreshed: list[str | None] = []
        self.log = MemoryJournal()
        self.journal_lag = journal_lag
        self.steps = steps
        self.pace = pace
        self.end = State.COMPLETED
        #: With ``failed``: it was preflight.
        self.refuses = False
        self.troubles: list[str] = []
        self.carried_out: list[tuple[Command, Caller]] = []
        self.wait_before_answer: Callable[[], Awaitable[None]] | None = None
        self._begun: dict[str, Answer] = {}
        self._hosts = {
            name: HostDocument(
                host=name,
                state=HostState.ACTIVE,
                up=True,
                address=f"192.0.2.{n}",
                memory_total_bytes=64 * 2**30,
                memory_free_bytes=32 * 2**30,
                cpus=16,
                kvm=True,
                link_bytes_per_second=1.25e9,
            )
            for n, name in enumerate(("alpha", "beta"), start=1)
        }
        self._guests: dict[str, GuestDocument] = {}
        for n, (name, host) in enumerate(
            (("web", "alpha"), ("db", "alpha"), (HOSTILE, "alpha"), ("web", "beta"), ("mail", "beta")),
            start=1,
        ):
            uuid = f"00000000-0000-4000-8000-{n:012d}"
            self._guests[uuid] = GuestDocument(
                guest=uuid,
                name=name,
                uuid=uuid,
                host=host,
                run_state="running",
                memory_bytes=n * 256 * MIB,
                vcpus=n,
                policy="default",
                movable=name != "mail",
                obstacle="libvirt manages it" if name == "mail" else "",
                obstacle_code="libvirt" if name == "mail" else "",
            )
        self._migrations: dict[str, MigrationDocument] = {}
        self._evacuations: dict[str, EvacuationDocument] = {}
        self._samples: dict[str, list[SampleDocument]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # Reading

    def active_migrations(self) -> Sequence[MigrationDocument]:
        return [one for one in self._migrations.values() if one.ended_at is None]

    def active_evacuations(self) -> Sequence[EvacuationDocument]:
        return [one for one in self._evacuations.values() if one.ended_at is None]

    def hosts(self) -> Sequence[HostDocument]:
        count = {name: sum(g.host == name for g in self._guests.values()) for name in self._hosts}
        return [host.model_copy(update={"guests": count[name]}) for name, host in self._hosts.items()]

    def host(self, name: str) -> HostDocument | None:
        return next((host for host in self.hosts() if host.host == name), None)

    async def refresh(self, host: str | None = None) -> None:
        self.refreshed.append(host)

    def guests(self, host: str | None = None) -> Sequence[GuestDocument]:
        found = [guest for guest in self._guests.values() if host in (None, guest.host)]
        return sorted(found, key=lambda guest: (guest.host, guest.name))

    def guest(self, which: str) -> GuestDocument | None:
        found = [g for g in self._guests.values() if which in (g.guest, g.name, f"{g.host}/{g.name}")]
        if len(found) > 1:
            names = ", ".join(f"{g.host}/{g.name} ({g.uuid})" for g in found)
            raise Refusal("ambiguous", f"{which} may be: {names}")
        return found[0] if found else None

    async def migrations(
        self, *, limit: int, before: str | None = None, where: MigrationFilter | None = None
    ) -> Sequence[MigrationDocument]:
        return self._page(list(self._migrations.values()), limit, before, where.values() if where else None)

    async def migration(self, identifier: str) -> MigrationDocument | None:
        return self._migrations.get(identifier)

    async def dirty_rates(self, guest: str) -> DirtyRatesDocument:
        """Nothing was measured."""
        return DirtyRatesDocument(guest=guest)

    async def samples(self, migration: str) -> Sequence[SampleDocument]:
        return list(self._samples.get(migration, ()))

    async def evacuations(
        self, *, limit: int, before: str | None = None, where: EvacuationFilter | None = None
    ) -> Sequence[EvacuationDocument]:
        return self._page(list(self._evacuations.values()), limit, before, where.values() if where else None)

    async def evacuation(self, identifier: str) -> EvacuationDocument | None:
        return self._evacuations.get(identifier)

    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        subject: Subject | None = None,
        subject_id: str | None = None,
    ) -> EventBatch:
        rows = await self._rows(after=after, limit=limit, subject=subject, subject_id=subject_id)
        return page_of(rows, after=after, limit=limit)

    async def _rows(
        self, *, after: int, limit: int, subject: str | None, subject_id: str | None
    ) -> Sequence[Mapping[str, Any]]:
        await asyncio.sleep(0)
        found = [
            event
            for event in self.journal
            if event["event_id"] > after
            and subject in (None, event["subject"])
            and subject_id in (None, event["subject_id"])
        ]
        return found[:limit]

    async def event_texts(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = 1 << 20,
        subject: str | None = None,
        subject_id: str | None = None,
    ) -> EventTexts:
        items: list[tuple[int, str]] = []
        size = 0
        for event in await self._rows(after=after, limit=limit + 1, subject=subject, subject_id=subject_id):
            text = json.dumps(event, separators=(",", ":"))
            size += len(text)
            if len(items) == limit or (items and size > most_bytes):
                return EventTexts(items=items, last=items[-1][0], more=True)
            items.append((event["event_id"], text))
        return EventTexts(items=items, last=items[-1][0] if items else after, more=False)

    def complaints(self) -> Sequence[str]:
        return self.troubles

    # Controller

    async def carry_out(self, command: Command, caller: Caller, *, key: str) -> Answer:
        if self.wait_before_answer is not None:
            await self.wait_before_answer()
        if key and key in self._begun:
            return self._begun[key]
        self.carried_out.append((command, caller))
        answer = self._begin(command, caller)
        if key:
            self._begun[key] = answer
        return answer

    def _resolve(self, one: MigrationDocument, command: Resolve) -> Answer:
        if one.state is not State.HELD:
            raise Refusal("not-now", f"migration {one.id} is {one.state}: only a held one takes a word")
        taken = command.guest_at == "destination"
        if command.dry_run:
            return ResolutionDocument(
                migration=one.id,
                guest_at=command.guest_at,
                accepted=taken,
                code="said",
                will=["let the guest run at the destination"] if taken else [],
                refused="" if taken else "the guest is at the destination",
            )
        if not taken or command.agreed not in ("", "said"):
            raise Refusal("conflict", "the guest is at the destination")
        ended = {"state": State.COMPLETED, "ended_at": datetime.now(UTC), "error": None}
        self._set(one.model_copy(update=ended))
        return self._migrations[one.id]

    def _begin(self, command: Command, caller: Caller) -> Answer:
        match command:
            case Migrate():
                return self.migrate(
                    self._known(command.guest or ""), to=command.to or "beta", user=caller.user
                )
            case Evacuate():
                return self._evacuate(self._host(command.host), command.deadline, user=caller.user)
            case Restore():
                raise Refusal("conflict", f"host {self._host(command.host).host} was not evacuated")
            case Activate():
                return self._host(command.host)
            case Cancel():
                return self.cancel(command.target)
            case Postcopy():
                return self._migrations[self._migration(command.migration).id]
            case Resolve():
                return self._resolve(self._migration(command.migration), command)
            case Plan():
                host = self._host(command.host).host
                guests = [g for g in self.guests() if g.host == host]
                planned = [
                    PlannedGuest(
                        guest=guest.guest,
                        guest_name=guest.name,
                        target="beta" if guest.movable else None,
                        order=n,
                        reason="the most free memory",
                        takes_p50_seconds=2.0,
                        downtime_seconds=0.05,
                        policy="default",
                        verdict="converges",
                        possible=guest.movable,
                        experience=PlannedGuestExperience(
                            last_move_seconds=4.2, note="last moved 3 days ago in 4.2 s"
                        ),
                    )
                    for n, guest in enumerate(guests, start=1)
                ]
                return PlanDocument(
                    host=host,
                    guests=planned,
                    cannot_move=sum(not each.possible for each in planned),
                    takes_p50_seconds=6.0,
                    takes_p90_seconds=9.0,
                )
            case Check():
                guest = self._known(command.guest or "")
                return CheckDocument(guest=guest.guest, host=command.to, possible=True)
        raise Refusal("invalid", "what is that?")

    def _known(self, which: str) -> GuestDocument:
        guest = self.guest(which)
        if guest is None:
            raise Refusal("not-found", f"there is no guest {which!r}")
        if not guest.movable:
            finding = FindingDocument(
                code="libvirt", severity=Severity.ERROR, message="libvirt manages it", remedy="use virsh"
            )
            raise Refusal("preflight", "1 finding", findings=[finding.model_dump(mode="json")])
        return guest

    def _host(self, name: str) -> HostDocument:
        if name not in self._hosts:
            raise Refusal("not-found", f"there is no host {name}")
        return self._hosts[name]

    def _migration(self, identifier: str) -> MigrationDocument:
        if identifier not in self._migrations:
            raise Refusal("not-found", f"there is no migration {identifier}")
        return self._migrations[identifier]

    # What happens

    def migrate(
        self, guest: GuestDocument, *, to: str = "beta", user: str = "tests", evacuation: str | None = None
    ) -> MigrationDocument:
        identifier = f"m{len(self._migrations) + 1}"
        now = datetime.now(UTC)
        one = MigrationDocument(
            id=identifier,
            guest=guest.guest,
            guest_name=guest.name,
            source=guest.host,
            destination=to,
            policy="default",
            state=State.PREPARING,
            evacuation=evacuation,
            requested_by=user,
            created_at=now,
            started_at=now,
            max_downtime_seconds=0.3,
            total_bytes=guest.memory_bytes,
            remaining_bytes=guest.memory_bytes,
        )
        self._set(one)
        if self.steps is not None:
            task = asyncio.get_running_loop().create_task(self._move(identifier), name=f"move {identifier}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return one

    async def _move(self, identifier: str) -> None:
        for step in range(self.steps or 0):
            self.progress(identifier, step / (self.steps or 1))
            await asyncio.sleep(self.pace)
            if self._migrations[identifier].state.final:
                return
        self.finish(identifier)

    def progress(self, identifier: str, ratio: float, *, forecast: ForecastDocument | None = None) -> None:
        """It is in precopy, so far."""
        one = self._migrations[identifier]
        if one.state is not State.PRECOPY:
            self._set(one.model_copy(update={"state": State.PRECOPY}))
            self.decide(identifier, "begin", "the stream has 100 MiB/s, the guest dirties 1 MiB/s")
        one = self._migrations[identifier].model_copy(
            update={
                "progress_ratio": ratio,
                "remaining_bytes": round((one.total_bytes or 0) * (1 - ratio)),
                "bandwidth_bytes_per_second": 100.0 * MIB,
                "dirty_rate_bytes_per_second": 1.0 * MIB,
                "round": 1,
                "forecast": forecast
                or ForecastDocument(p10_seconds=1.0, p50_seconds=2.0, p90_seconds=3.0, verdict="converges"),
            }
        )
        self._migrations[identifier] = one
        began = one.started_at or one.created_at
        sample = SampleDocument(
            at_seconds=(datetime.now(UTC) - began).total_seconds(),
            state=one.state,
            round=one.round,
            total_bytes=one.total_bytes or 0,
            remaining_bytes=one.remaining_bytes or 0,
            bandwidth_bytes_per_second=one.bandwidth_bytes_per_second or 0.0,
            dirty_rate_bytes_per_second=one.dirty_rate_bytes_per_second or 0.0,
        )
        self._samples.setdefault(identifier, []).append(sample)
        self.bus.publish(MigrationProgressed(migration=one))

    def enter(self, identifier: str, state: State) -> None:
        """It is in that state now."""
        self._set(self._migrations[identifier].model_copy(update={"state": state}))

    def decide(self, identifier: str, action: str, reason: str) -> None:
        one = self._migrations[identifier]
        made = DecisionDocument(at_seconds=0.1, action=action, reason=reason)
        self._migrations[identifier] = one.model_copy(update={"decisions": [*one.decisions, made]})
        self.bus.publish(DecisionTaken(migration=identifier, decision=made))

    def finish(self, identifier: str, state: State | None = None, *, downtime_seconds: float = 0.042) -> None:
        """It has ended so."""
        state = state or self.end
        one = self._migrations[identifier]
        if one.state.final:
            return
        over = state is not State.HELD
        done = state is State.COMPLETED
        self._set(
            one.model_copy(
                update={
                    "state": state,
                    "refused": self.refuses,
                    "mode": Mode.PRECOPY,
                    "ended_at": datetime.now(UTC) if over else None,
                    "progress_ratio": 1.0 if done else one.progress_ratio,
                    "remaining_bytes": 0 if done else one.remaining_bytes,
                    "downtime_seconds": downtime_seconds if done else None,
                    "duration_seconds": 1.5,
                    "error": None if done else f"it was made to be {state}",
                    "held_code": None if over else "neither-runs",
                }
            )
        )
        if done:
            guest = self._guests[one.guest]
            self._guests[one.guest] = guest.model_copy(update={"host": one.destination})
        if one.evacuation is not None:
            self._tally(one.evacuation)

    def cancel(self, target: str) -> Answer:
        if target in self._evacuations:
            evacuation = self._evacuations[target]
            ended = {"state": EvacuationState.CANCELLED, "ended_at": datetime.now(UTC)}
            self._evacuations[target] = evacuation.model_copy(update=ended)
            for one in self.active_migrations():
                if one.evacuation == target:
                    self.finish(one.id, State.CANCELLED)
            self._say(self._evacuations[target])
            return self._evacuations[target]
        one = self._migration(target)
        if one.state.final:
            raise Refusal("not-now", f"migration {target} has ended: {one.state}")
        self.finish(target, State.CANCELLED)
        return self._migrations[target]

    def _evacuate(self, host: HostDocument, deadline: datetime | None, *, user: str) -> EvacuationDocument:
        if any(one.host == host.host for one in self.active_evacuations()):
            raise Refusal("conflict", f"host {host.host} is being evacuated already")
        identifier = f"e{len(self._evacuations) + 1}"
        now = datetime.now(UTC)
        mine = [guest for guest in self.guests() if guest.host == host.host]
        self._evacuations[identifier] = EvacuationDocument(
            id=identifier,
            host=host.host,
            state=EvacuationState.RUNNING,
            policy="default",
            requested_by=user,
            created_at=now,
            deadline=deadline,
            forecast_end_at=now + timedelta(seconds=30),
            forecast_end_p10_at=now + timedelta(seconds=20),
            forecast_end_p90_at=now + timedelta(seconds=60),
            guests=[
                EvacuationGuest(guest=guest.guest, guest_name=guest.name, standing=GuestStanding.WAITING)
                for guest in mine
            ],
            guests_left=len(mine),
        )
        self._hosts[host.host] = host.model_copy(update={"state": HostState.DRAINING})
        self._say(self._evacuations[identifier])
        for guest in mine:
            if guest.movable:
                self.migrate(guest, to="beta" if host.host == "alpha" else "alpha", evacuation=identifier)
        self._tally(identifier)
        return self._evacuations[identifier]

    def _tally(self, identifier: str) -> None:
        evacuation = self._evacuations[identifier]
        latest = {one.guest: one for one in self._migrations.values() if one.evacuation == identifier}
        guests = []
        for entry in evacuation.guests:
            one = latest.get(entry.guest)
            standing, reason = GuestStanding.NO_TARGET, "nobody can take it"
            if one is not None:
                reason = one.error or ""
                standing = {
                    State.COMPLETED: GuestStanding.MOVED,
                    State.HELD: GuestStanding.HELD,
                    State.FAILED: GuestStanding.SET_ASIDE,
                }.get(one.state, GuestStanding.MIGRATING)
            guests.append(
                entry.model_copy(
                    update={
                        "standing": standing,
                        "reason": reason,
                        "target": one and one.destination,
                        "migration": one and one.id,
                    }
                )
            )
        left = sum(guest.standing is not GuestStanding.MOVED for guest in guests)
        over = all(guest.standing is not GuestStanding.MIGRATING for guest in guests)
        update: dict[str, Any] = {"guests": guests, "guests_left": left}
        if over and evacuation.ended_at is None:
            update["state"] = EvacuationState.INCOMPLETE if left else EvacuationState.COMPLETED
            update["ended_at"] = datetime.now(UTC)
        self._evacuations[identifier] = evacuation.model_copy(update=update)
        self._say(self._evacuations[identifier])

    def _say(self, evacuation: EvacuationDocument) -> None:
        evacuation = evacuation.model_copy(update={"can_cancel": evacuation.ended_at is None})
        self._evacuations[evacuation.id] = evacuation
        self.bus.publish(EvacuationStateChanged(evacuation=evacuation))

    def _set(self, one: MigrationDocument) -> None:
        late = one.state.final or one.state in (State.FINISHING, State.HELD)
        one = one.model_copy(update={"can_cancel": not late, "can_postcopy": one.state is State.PRECOPY})
        self._migrations[one.id] = one
        if (guest := self._guests.get(one.guest)) is not None:
            under_way = None if one.ended_at else one.id
            self._guests[one.guest] = guest.model_copy(update={"migration": under_way})
        self.bus.publish(MigrationStateChanged(migration=one))

    def _journal(self, event: Event) -> None:
        if event.kind is EventKind.PROGRESS:
            return
        written = dict(event.payload)
        if self.journal_lag:
            asyncio.get_running_loop().call_later(self.journal_lag, self._journalled, written)
        else:
            self.journal.append(written)

    def _journalled(self, event: dict[str, Any]) -> None:
        self.journal.append(event)
        self.bus.mark_journalled(event["event_id"])

    @staticmethod
    def _page(
        found: list[Any], limit: int, before: str | None, where: Mapping[str, str | Sequence[str]] | None
    ) -> list[Any]:
        found.reverse()
        if before is not None:
            ids = [one.id for one in found]
            found = found[ids.index(before) + 1 :] if before in ids else []
        for key, value in (where or {}).items():
            fields = ("source", "destination", "host") if key == "host" else (key,)
            wanted = {value} if isinstance(value, str) else set(value)
            found = [one for one in found if wanted & {getattr(one, name, None) for name in fields}]
        return found[:limit]

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def serving(
    world: ScriptedService,
    directory: Path,
    *,
    limits: Limits | None = None,
    timeout_seconds: int = 2,
    port: int = 0,
    tokens: MemoryTokens | None = None,
) -> AsyncIterator[Place]:
    """`world` on a Unix socket, on loopback, and its probes."""
    commands = Dispatcher(controller=world, log=world.log)
    try:
        async with http_service.serving(
            commands,
            world,
            directory,
            limits=limits,
            timeout_seconds=timeout_seconds,
            port=port,
            tokens=tokens,
        ) as place:
            yield place
    finally:
        await world.close()


@dataclass
class InThread:
    """A service in a thread of its own, so that a test may block."""

    directory: Path
    make: Callable[[], ScriptedService]
    world: ScriptedService = field(init=False)
    place: Place = field(init=False)
    #: As in a journal: they outlive a service.
    tokens: MemoryTokens = field(default_factory=MemoryTokens)
    _loop: asyncio.AbstractEventLoop = field(init=False)
    _stop: asyncio.Event = field(init=False)
    _thread: threading.Thread = field(init=False)
    _ready: threading.Event = field(init=False)

    def start(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="service")
        self._thread.start()
        assert self._ready.wait(10), "the service did not start"

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.world = getattr(self, "world", None) or self.make()
        # Where it was before, once it was somewhere.
        port = int(self.place.url.rpartition(":")[2]) if hasattr(self, "place") else 0
        async with serving(self.world, self.directory, port=port, tokens=self.tokens) as self.place:
            self._ready.set()
            await self._stop.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(15)
        assert not self._thread.is_alive(), "the service did not stop"

    def do(self, action: Callable[[ScriptedService], _Result]) -> _Result:
        """Do it on the service's own loop."""

        async def there() -> _Result:
            return action(self.world)

        return asyncio.run_coroutine_threadsafe(there(), self._loop).result(10)


@contextlib.contextmanager
def in_thread(directory: Path, make: Callable[[], ScriptedService] = ScriptedService) -> Iterator[InThread]:
    """A service while the block lasts; it may be stopped and started in it."""
    service = InThread(directory, make)
    service.start()
    try:
        yield service
    finally:
        if service._thread.is_alive():
            service.stop()
