"""A journal in memory, for tests: the contract of :class:`migrator.ports.Journal`, and it can be made to fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from migrator.api.queries import EventTexts
from migrator.errors import JournalError, LeaseLost
from migrator.ports import Claim, Lease, Signals
from migrator.ports.controllers import REPLIES_CHANNEL
from migrator.store.signals import LocalSignals
from migrator.testing.assignments import MemoryAssignments
from migrator.testing.controllers import MemoryControllers, MemoryLiveDocuments, MemoryWaitingCommands
from migrator.testing.leases import MemoryLeases
from migrator.text import as_json, writable

#: As in the one on disk.
_RESERVED = 500


async def _let_others_go_on(call: str) -> None:  # noqa: ARG001 - as whatever a test puts in its place
    await asyncio.sleep(0)


class MemoryJournal:
    """See :class:`migrator.ports.Journal` and :class:`migrator.ports.CommandLog`.

    What one service left in it another can go on with: give the same object to both.

    :param latency_seconds: what each call takes, like a disk's or a server's.
    :ivar broken: while it is not empty every write fails and says so.
    :ivar pause: awaited in every call before it does anything, with what is called: as with a disk, others go on
        meanwhile. Tests put there what they want to happen then; what it raises, the call raises.
    :ivar unreadable: while it is not empty every read fails and says so.
    :ivar leases: see :class:`migrator.testing.leases.MemoryLeases`.
    :ivar live: see :mod:`migrator.testing.controllers`, like `controllers` and `waiting`.
    :ivar signals: told in this process.
    :ivar commands: by key, for tests that look: ``verb``, ``hash``, ``body``, ``caller``, ``reply``, ``at``.
    """

    def __init__(self, *, latency_seconds: float = 0.0) -> None:
        self.pause: Callable[[str], Awaitable[None]] = _let_others_go_on
        if latency_seconds:
            self.pause = lambda call: asyncio.sleep(latency_seconds)
        self.broken = ""
        self.unreadable = ""
        self.complaint = ""
        self._documents: dict[tuple[str, str], str] = {}
        self._events: dict[int, str] = {}
        self.commands: dict[str, dict[str, Any]] = {}
        self._last_event_id = 0
        self._reserved = 0
        self.leases = MemoryLeases(self)
        self.signals: Signals = LocalSignals()
        self.live = MemoryLiveDocuments(self)
        self.controllers = MemoryControllers(self)
        self.waiting = MemoryWaitingCommands(self)
        self.assignments = MemoryAssignments(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Nothing to let go of."""

    async def probe(self) -> str:
        """Try whether it can be written; :attr:`complaint` as it is then."""
        await self.pause("probe")
        self.complaint = self.broken
        return self.complaint

    async def write(self, call: str) -> None:
        """Begin a write.

        :raise JournalError: it is :attr:`broken`.
        """
        await self.pause(call)
        self._write()

    def _write(self) -> None:
        self.complaint = self.broken
        if self.broken:
            raise JournalError(self.broken)

    async def read(self, call: str = "read") -> None:
        """Begin a read.

        :raise JournalError: it is :attr:`unreadable`.
        """
        await self.pause(call)
        if self.unreadable:
            raise JournalError(self.unreadable)

    async def save(
        self,
        *given: tuple[str, Mapping[str, Any]],
        events: Sequence[Mapping[str, Any]] = (),
        lease: Lease | None = None,
    ) -> list[int]:
        await self.pause("save")
        rows = {(kind, document["id"]): as_json(document) for kind, document in given}
        self._write()
        told = [(event["event_id"], as_json(event)) for event in self._numbered(events)]
        given_ids = {event["event_id"] for event in events}
        taken = [number for number, _ in told if number not in given_ids]
        if lease is not None and not self.leases.holds(lease):
            raise LeaseLost(f"the lease {lease.name} of {lease.owner} does not hold any more")
        for number, body in told:
            if {self._events.get(number, body), dict(told)[number]} != {body}:
                raise JournalError(f"the journal has another event {number} already")
        self._documents.update(rows)
        self._events.update(told)
        if any(given_ids) and max(given_ids) + _RESERVED // 2 > self._reserved:
            self._reserved = max(given_ids) + _RESERVED
            self._last_event_id = max(self._last_event_id, self._reserved)
        self._last_event_id = max(self._last_event_id, *taken, 0)
        return [number for number, _ in told]

    def _numbered(self, events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        found = []
        last = max(self._last_event_id, *self._events, 0) if events else 0
        for event in events:
            if not event["event_id"]:
                last += 1
            found.append(event if event["event_id"] else {**event, "event_id": last})
        return found

    async def _of_kind(self, kind: str) -> list[dict[str, Any]]:
        await self.read()
        return [json.loads(body) for (its, _), body in self._documents.items() if its == kind]

    async def unfinished(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in await self._of_kind(kind) if not each.get("ended_at")]

    async def find(self, kind: str, identifier: str) -> dict[str, Any] | None:
        await self.read()
        body = self._documents.get((kind, identifier))
        return None if body is None else json.loads(body)

    async def page(
        self,
        kind: str,
        *,
        limit: int,
        before: str | None = None,
        where: Mapping[str, str | Sequence[str]] | None = None,
    ) -> list[dict[str, Any]]:
        found = await self._of_kind(kind)
        if before is not None:
            places = [place for place, each in enumerate(found) if each["id"] == before]
            found = found[: places[0]] if places else []
        for name, value in (where or {}).items():
            wanted = {writable(each) for each in ([value] if isinstance(value, str) else value)}
            found = [each for each in found if wanted & set(_values(kind, each, name))]
        return found[::-1][:limit]

    async def events(
        self, *, after: int = 0, limit: int = 1000, subject: str | None = None, subject_id: str | None = None
    ) -> list[dict[str, Any]]:
        await self.read()
        found = [json.loads(self._events[number]) for number in sorted(self._events) if number > after]
        return [
            each
            for each in found
            if subject in (None, each["subject"]) and subject_id in (None, each["subject_id"])
        ][:limit]

    async def latest_events(
        self, *, subject: str, subject_id: str, limit: int, before: int | None = None
    ) -> list[dict[str, Any]]:
        """See :meth:`migrator.store.journal.SqlJournal.latest_events`."""
        found = await self.events(limit=len(self._events), subject=subject, subject_id=subject_id)
        return [each for each in found[::-1] if before is None or each["event_id"] < before][:limit]

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
        for event in await self.events(after=after, limit=limit + 1, subject=subject, subject_id=subject_id):
            text = json.dumps(event, separators=(",", ":"))
            size += len(text)
            if len(items) == limit or (items and size > most_bytes):
                return EventTexts(items=items, last=items[-1][0], more=True)
            items.append((event["event_id"], text))
        return EventTexts(items=items, last=items[-1][0] if items else after, more=False)

    async def positions(self) -> tuple[int, dict[tuple[str, str], int]]:
        sequences: dict[tuple[str, str], int] = {}
        for event in await self.events(limit=len(self._events)):
            subject, identifier = event["subject"], event["subject_id"]
            if self._goes_on(subject, identifier):
                sequences[subject, identifier] = max(
                    event["sequence"], sequences.get((subject, identifier), 0)
                )
        return max(self._last_event_id, *self._events, 0), sequences

    def _goes_on(self, subject: str, identifier: str) -> bool:
        if subject == "host":
            return True
        if subject == "command":
            command = self.commands.get(identifier)
            return command is not None and not _settled(command)
        body = self._documents.get((subject, identifier))
        return body is not None and not json.loads(body).get("ended_at")

    async def claim_command(
        self,
        *given: tuple[str, Mapping[str, Any]],
        key: str,
        verb: str,
        body_hash: str,
        body: Mapping[str, Any],
        caller: Mapping[str, str],
        lease: Lease | None = None,
    ) -> Claim:
        await self.pause("claim_command")
        rows = {(kind, document["id"]): as_json(document) for kind, document in given}
        self._write()
        if lease is not None and not self.leases.holds(lease):
            raise LeaseLost(f"the lease {lease.name} of {lease.owner} does not hold any more")
        there = self.commands.get(key)
        if there is not None:
            return Claim(new=False, other_body=there["hash"] != body_hash, reply=there["reply"])
        self.commands[key] = {
            "verb": verb,
            "hash": body_hash,
            "body": dict(body),
            "caller": dict(caller),
            "reply": None,
            "at": datetime.now(UTC),
        }
        self._documents.update(rows)
        return Claim(new=True)

    async def command_behind(self, kind: str, identifier: str) -> dict[str, Any] | None:
        """See :meth:`migrator.store.journal.SqlJournal.command_behind`."""
        document = await self.find(kind, identifier)
        key = (document or {}).get("_private", {}).get("command")
        if not key or key not in self.commands:
            return None
        command = self.commands[key]
        return {
            "key": key,
            "verb": command["verb"],
            "caller": command["caller"],
            "settled": _settled(command),
        }

    async def unsettled(self) -> list[tuple[str, str]]:
        """See :meth:`migrator.store.journal.SqlJournal.unsettled`."""
        await self.read()
        found = []
        for (kind, identifier), body in self._documents.items():
            document = json.loads(body)
            found += [
                (kind, identifier)
                for key in _values(kind, document, "command")
                if document.get("ended_at") and self._goes_on("command", key)
            ]
        return found

    async def answer_command(self, *, key: str, reply: Mapping[str, Any], told: bool = True) -> None:
        await self.pause("answer_command")
        self._write()
        if key in self.commands:
            self.commands[key] |= {"reply": json.loads(json.dumps(reply)), "told": told}
            await self.signals.notify(REPLIES_CHANNEL, json.dumps([key, reply]))

    async def prune(self, older_than: datetime) -> int:
        """See :meth:`migrator.store.journal.SqlJournal.prune`."""
        await self.pause("prune")
        self._write()
        self._last_event_id = max(self._last_event_id, *self._events, 0)
        old = {
            (kind, each["id"])
            for (kind, _), body in self._documents.items()
            if (each := json.loads(body)).get("ended_at")
            and datetime.fromisoformat(each["ended_at"]) < older_than
        }
        for key in old:
            del self._documents[key]
        needed = {
            key
            for (kind, _), body in self._documents.items()
            for key in _values(kind, json.loads(body), "command")
        }
        self.commands = {
            key: each for key, each in self.commands.items() if each["at"] >= older_than or key in needed
        }
        events = {number: json.loads(body) for number, body in self._events.items()}
        last = {
            each["subject_id"]: number for number, each in sorted(events.items()) if each["subject"] == "host"
        }
        for number, event in events.items():
            aged = datetime.fromisoformat(event["time"]) < older_than
            subject = event["subject"], event["subject_id"]
            if (
                subject in old
                or (subject[0] == "command" and aged and subject[1] not in self.commands)
                or (subject[0] == "host" and aged and last[subject[1]] != number)
            ):
                del self._events[number]
        return len(old)


def _values(kind: str, document: Mapping[str, Any], name: str) -> list[Any]:
    """Return the values that `where` is compared with."""
    match name:
        case "host":
            own = document["id"] if kind == "host" else None
            values = [document.get("source"), document.get("destination"), document.get("host"), own]
        case "command":
            values = [document.get("command"), (document.get("_private") or {}).get("command")]
        case "state" | "guest" | "evacuation":
            values = [document.get(name)]
        case _:
            raise ValueError(f"cannot ask for {name}")
    return [value for value in values if value]


def _settled(command: Mapping[str, Any]) -> bool:
    """Nothing more will be said to the command."""
    reply = command["reply"]
    if not reply or not command.get("told", True):
        return False
    return reply["kind"] != "accepted" or reply.get("subject") not in ("migration", "evacuation")
