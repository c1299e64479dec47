"""A service that a test kills: it hangs at one point of a command. Arguments: port, directory, where.

Of the entrance it has all. Behind it stand just what a kill may not lose, claims and what was begun, on disk, and an
engine that begins a migration in a line of a file: a real one would load for a second of the processor, eight times,
and what becomes of a migration that another controller takes up is not asked here.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from migrator.api.commands import Command
from migrator.api.documents import MigrationDocument
from migrator.api.plan_documents import PlanDocument
from migrator.api.replies import Reply
from migrator.api.requests import Caller, Envelope
from migrator.core.model import State
from migrator.engine.commands.dispatcher import Dispatcher
from migrator.mqtt import Mqtt
from migrator.ports import Claim, Lease
from migrator.replica.queries import ReplicaQueries
from migrator.replica.requests import SteeringRequests
from migrator.replica.state import ReplicaState
from tests.mqtt_peer import settings


class DiskLog:
    """Commands, on disk when a call returns; see :class:`migrator.ports.CommandLog`.

    :ivar commands: by key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.commands: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            self.commands.setdefault(entry["key"], {}).update(entry)

    def _write(self, **entry: Any) -> None:
        self.commands.setdefault(entry["key"], {}).update(entry)
        append(self._path, json.dumps(entry))

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
            other = known["body_hash"] != body_hash
            return Claim(new=False, other_body=other, reply=known.get("reply"))
        self._write(key=key, verb=verb, body_hash=body_hash, body=dict(body), caller=dict(caller))
        return Claim(new=True)

    async def answer_command(self, *, key: str, reply: Mapping[str, Any], told: bool = True) -> None:
        self._write(key=key, reply=dict(reply))


class NothingEnded:
    """The journal of a service in which nothing has ended, and nothing happens."""

    async def command_behind(self, kind: str, identifier: str) -> None:
        """See :class:`migrator.mqtt.replies.OutcomeJournal`."""

    async def unsettled(self) -> list[tuple[str, str]]:
        """See :class:`migrator.mqtt.replies.OutcomeJournal`."""
        return []

    async def page(self, kind: str, **_: Any) -> list[dict[str, Any]]:
        """See :class:`migrator.ports.Journal`."""
        return []


def append(path: Path, line: str) -> None:
    """Have one more line in a file, on disk."""
    with path.open("a") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())


class Begins:
    """Begins each migration once, whoever asks for it again."""

    def __init__(self, path: Path, at: Any) -> None:
        self._path, self._at = path, at

    async def carry_out(
        self, command: Command, caller: Caller, *, key: str
    ) -> MigrationDocument | PlanDocument:
        """See :class:`migrator.engine.commands.dispatcher.Controller`."""
        if command.verb != "migrate":
            return PlanDocument(host="a")
        line = key.replace("\n", " ")
        if not self._path.exists() or line not in self._path.read_text().splitlines():
            append(self._path, line)
            await self._at("begun")
        return MigrationDocument(
            id="m1",
            guest="g",
            source="a",
            destination="b",
            policy="default",
            state=State.QUEUED,
            created_at=datetime.now(UTC),
        )


async def serve(port: int, directory: Path, where: str) -> None:
    """Until it is killed."""

    async def at(point: str) -> None:
        if point == where:
            (directory / "there").touch()
            await asyncio.Event().wait()

    class Log(DiskLog):
        async def claim_command(self, *documents: Any, **fields: Any) -> Claim:
            claim = await super().claim_command(*documents, **fields)
            await at("claimed")
            return claim

    class Hanging(Dispatcher):
        async def execute(self, envelope: Envelope) -> Reply:
            await at("received")
            reply = await super().execute(envelope)
            await at("answered")
            return reply

    configured = settings(port)
    journal: Any = NothingEnded()
    queries = ReplicaQueries(
        state=ReplicaState(), journal=journal, samples=journal, requests=SteeringRequests()
    )
    mqtt = Mqtt(
        config=configured,
        commands=Hanging(controller=Begins(directory / "begun", at), log=Log(directory / "journal")),
        queries=queries,
        journal=journal,
        client_id=f"migrator-{configured.site}-{configured.instance}-{'0' * 32}",
    )
    await mqtt.run()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
