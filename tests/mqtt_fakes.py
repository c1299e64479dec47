"""A small service behind the MQTT entrance, and clients beside it. Its journal is a dictionary, or a file."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from migrator.api.commands import Command, Evacuate, Migrate
from migrator.api.documents import (
    CheckDocument,
    DecisionDocument,
    DirtyRatesDocument,
    MigrationDocument,
    SampleDocument,
)
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import (
    DecisionTaken,
    EvacuationStateChanged,
    Event,
    HostStateChanged,
    MigrationProgressed,
    MigrationStateChanged,
    Subject,
    read_event,
)
from migrator.api.inventory_documents import GuestDocument, HostDocument
from migrator.api.plan_documents import PlanDocument
from migrator.api.queries import EvacuationFilter, EventBatch, EventTexts, MigrationFilter
from migrator.api.replies import Answer
from migrator.api.requests import Caller
from migrator.core.drain.states import EvacuationState
from migrator.core.inventory import HostState
from migrator.core.model import State
from migrator.engine.commands.dispatcher import Dispatcher
from migrator.engine.event_bus import EventBus
from migrator.mqtt import Mqtt, MqttConfig
from migrator.ports import Claim, Lease
from tests.some_events import page_of


class FakeLog:
    """The journal's commands; with a file they outlive the process, and are on disk when a call returns."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.commands: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self.commands.setdefault(entry["key"], {}).update(entry)

    def _write(self, **entry: Any) -> None:
        self.commands.setdefault(entry["key"], {}).update(entry)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())

    async def claim_command(
        self,
        *documents: tuple[str, Mapping[str, Any]],
        key: str,
        verb: str,
        body_hash: str,
        body: Mapping[str, Any],
        caller: Mapping[str, str],
        lease: Lease | None = None,
    ) -> Claim:
        known = self.commands.get(key)
        if known is not None:
            return Claim(
                new=False, other_body=known["body_hash"] != body_hash, reply=known.get("reply") or None
            )
        self._write(key=key, verb=verb, body_hash=body_hash, body=dict(body), caller=dict(caller))
        return Claim(new=True)

    async def answer_command(self, *, key: str, reply: Mapping[str, Any], told: bool = True) -> None:
        settled = told and not (reply["kind"] == "accepted" and reply["verb"] in ("migrate", "evacuate"))
        self._write(key=key, reply=dict(reply), settled=settled)


@dataclass(kw_only=True)
class FakeQueries:
    """A service's state, as the test sets it."""

    bus: EventBus = field(default_factory=EventBus)
    all_migrations: dict[str, MigrationDocument] = field(default_factory=dict)
    all_evacuations: dict[str, EvacuationDocument] = field(default_factory=dict)
    all_hosts: dict[str, HostDocument] = field(default_factory=dict)
    journalled: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bus.subscribe(lambda event: self.journalled.append(dict(event.payload)))

    def active_migrations(self) -> Sequence[MigrationDocument]:
        return [each for each in self.all_migrations.values() if each.ended_at is None]

    def active_evacuations(self) -> Sequence[EvacuationDocument]:
        return [each for each in self.all_evacuations.values() if each.ended_at is None]

    def hosts(self) -> Sequence[HostDocument]:
        return list(self.all_hosts.values())

    def host(self, name: str) -> HostDocument | None:
        return self.all_hosts.get(name)

    async def refresh(self, host: str | None = None) -> None:
        raise AssertionError("MQTT never asks hosts")

    def guests(self, host: str | None = None) -> Sequence[GuestDocument]:
        return []

    def guest(self, which: str) -> GuestDocument | None:
        return None

    async def migrations(
        self, *, limit: int, before: str | None = None, where: MigrationFilter | None = None
    ) -> Sequence[MigrationDocument]:
        return _page(self.all_migrations, limit, before)

    async def migration(self, identifier: str) -> MigrationDocument | None:
        return self.all_migrations.get(identifier)

    async def last_state(self, subject: Subject, subject_id: str) -> Event | None:
        states = [event for event in self.journalled if event["kind"] == "state"]
        of_it = [
            event for event in states if (event["subject"], event["subject_id"]) == (subject, subject_id)
        ]
        return read_event(of_it[-1]) if of_it else None

    async def dirty_rates(self, guest: str) -> DirtyRatesDocument:
        """Nothing was measured."""
        return DirtyRatesDocument(guest=guest)

    async def samples(self, migration: str) -> Sequence[SampleDocument]:
        return []

    async def evacuations(
        self, *, limit: int, before: str | None = None, where: EvacuationFilter | None = None
    ) -> Sequence[EvacuationDocument]:
        return _page(self.all_evacuations, limit, before)

    async def evacuation(self, identifier: str) -> EvacuationDocument | None:
        return self.all_evacuations.get(identifier)

    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        subject: Subject | None = None,
        subject_id: str | None = None,
    ) -> EventBatch:
        found = [
            event
            for event in self.journalled
            if event["event_id"] > after
            and event["kind"] != "progress"
            and subject in (None, event["subject"])
            and subject_id in (None, event["subject_id"])
        ]
        return page_of(found[:limit], after=after, limit=limit)

    async def event_texts(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = 1 << 20,
        subject: str | None = None,
        subject_id: str | None = None,
    ) -> EventTexts:
        """Only HTTP asks for them."""
        raise NotImplementedError

    def complaints(self) -> Sequence[str]:
        return []


def _page(documents: Mapping[str, Any], limit: int, before: str | None) -> list[Any]:
    newest = list(documents.values())[::-1]
    start = 0 if before is None else [each.id for each in newest].index(before) + 1
    return newest[start : start + limit]


class FakeController:
    """Begins what it is told, at once, and remembers how often."""

    def __init__(self, queries: FakeQueries) -> None:
        self.queries = queries
        self.begun: list[tuple[Command, Caller, str]] = []
        self.by_key: dict[str, Answer] = {}
        #: Awaited before anything is begun.
        self.before: Callable[[Command], Awaitable[None]] | None = None

    async def carry_out(self, command: Command, caller: Caller, *, key: str) -> Answer:
        if self.before is not None:
            await self.before(command)
        if key in self.by_key:
            return self.by_key[key]
        answer = self._answer(command)
        self.begun.append((command, caller, key))
        self.by_key[key] = answer
        return answer

    def _answer(self, command: Command) -> Answer:
        match command:
            case Migrate():
                return self.migration(f"m{len(self.begun)}", guest=command.guest)
            case Evacuate():
                document = EvacuationDocument(
                    id=f"e{len(self.begun)}",
                    host=command.host,
                    state=EvacuationState.RUNNING,
                    created_at=datetime.now(UTC),
                )
                self.say_evacuation(document)
                return document
        match command.verb:
            case "plan":
                return PlanDocument(host="a")
            case "check":
                return CheckDocument(guest="g", host="b", possible=True)
        return HostDocument(host="a", state=HostState.ACTIVE, up=True)

    def migration(self, identifier: str, **fields: Any) -> MigrationDocument:
        """Begin one."""
        document = MigrationDocument(
            **{
                "id": identifier,
                "guest": "g",
                "source": "a",
                "destination": "b",
                "policy": "default",
                "state": State.QUEUED,
                "created_at": datetime.now(UTC),
                **fields,
            }
        )
        self.say(document)
        return document

    def say(self, document: MigrationDocument) -> None:
        """Journal it and tell of it, as the engine does."""
        self.queries.all_migrations[document.id] = document
        self.queries.bus.publish(MigrationStateChanged(migration=document))

    def change(self, identifier: str, **fields: Any) -> None:
        """A migration goes on."""
        self.say(self.queries.all_migrations[identifier].model_copy(update=fields))

    def end(self, identifier: str, *, at: datetime | None = None) -> None:
        """It completes."""
        self.change(identifier, state=State.COMPLETED, ended_at=at or datetime.now(UTC), progress_ratio=1.0)

    def decide(self, identifier: str, action: str) -> None:
        """A decision of it."""
        decision = DecisionDocument(at_seconds=1.0, action=action, reason="because")
        self.queries.bus.publish(DecisionTaken(migration=identifier, decision=decision))

    def progress(self, identifier: str, ratio: float) -> None:
        """How far it is."""
        document = self.queries.all_migrations[identifier].model_copy(update={"progress_ratio": ratio})
        self.queries.bus.publish(MigrationProgressed(migration=document))

    def say_evacuation(self, document: EvacuationDocument) -> None:
        """As :meth:`say`."""
        self.queries.all_evacuations[document.id] = document
        self.queries.bus.publish(EvacuationStateChanged(evacuation=document))

    def host(self, name: str, state: HostState = HostState.ACTIVE) -> None:
        """A host is in that state."""
        document = HostDocument(host=name, state=state, up=True)
        self.queries.all_hosts[name] = document
        self.queries.bus.publish(HostStateChanged(host=document))


class Service:
    """All of it, joined."""

    def __init__(
        self,
        configured: MqttConfig,
        *,
        log: FakeLog | None = None,
        queries: FakeQueries | None = None,
        **fields: Any,
    ) -> None:
        self.queries = queries or FakeQueries()
        self.controller = FakeController(self.queries)
        self.log = log or FakeLog()
        self.heard: list[tuple[str, str, str]] = []
        self.dispatcher = Dispatcher(
            controller=self.controller, log=self.log, count=lambda *each: self.heard.append(each)
        )
        self.mqtt = Mqtt(
            config=configured,
            commands=self.dispatcher,
            queries=self.queries,
            journal=self,
            # As kept in a state directory: one service after the other has it.
            **{"client_id": f"migrator-{configured.site}-{configured.instance}-{'0' * 32}", **fields},
        )

    @property
    def connected(self) -> bool:
        """Whether the broker is there, as it says."""
        return self.mqtt.connected

    async def command_behind(self, kind: str, identifier: str) -> Mapping[str, Any] | None:
        """See :class:`migrator.mqtt.replies.OutcomeJournal`."""
        for key, begun in self.controller.by_key.items():
            if identifier == getattr(begun, "id", None) and key in self.log.commands:
                command = self.log.commands[key]
                return {**command, "settled": command.get("settled", False)}
        return None

    async def unsettled(self) -> list[tuple[str, str]]:
        """See :class:`migrator.mqtt.replies.OutcomeJournal`."""
        ended = [
            (Subject.MIGRATION, each.id) for each in self.queries.all_migrations.values() if each.ended_at
        ]
        ended += [
            (Subject.EVACUATION, each.id) for each in self.queries.all_evacuations.values() if each.ended_at
        ]
        behind = {key: await self.command_behind(*key) for key in ended}
        return [key for key in ended if (command := behind[key]) is not None and not command["settled"]]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Service]:
        """Until the end of the block; its end is bounded."""
        task = asyncio.create_task(self.mqtt.run(), name="service under test")
        try:
            while not self.connected and not task.done():
                await asyncio.sleep(0.005)
            if task.done():
                task.result()
            yield self
        finally:
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=10)
            assert done, "it did not end"
            if not task.cancelled() and task.exception():
                raise task.exception()  # type: ignore[misc]
