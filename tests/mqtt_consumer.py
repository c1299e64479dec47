"""A service that a test kills: it hangs at one point of a command. Arguments: port, directory, where."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from migrator.api.commands import Command
from migrator.api.documents import MigrationDocument
from migrator.api.replies import Reply
from migrator.api.requests import Caller, Envelope
from migrator.ports import Claim
from tests.mqtt_fakes import FakeLog, Service
from tests.mqtt_peer import settings


async def serve(port: int, directory: Path, where: str) -> None:
    """Until it is killed."""

    async def at(point: str) -> None:
        if point == where:
            (directory / "there").touch()
            await asyncio.Event().wait()

    class Log(FakeLog):
        async def claim_command(self, *documents: Any, **fields: Any) -> Claim:
            claim = await super().claim_command(*documents, **fields)
            await at("claimed")
            return claim

    service = Service(settings(port), log=Log(directory / "journal"))
    begun, carry_out, execute = directory / "begun", service.controller.carry_out, service.dispatcher.execute

    async def begin(command: Command, caller: Caller, *, key: str) -> Any:
        if command.verb != "migrate":
            return await carry_out(command, caller, key=key)
        line = key.replace("\n", " ")
        if not begun.exists() or line not in begun.read_text().splitlines():
            with begun.open("a") as file:
                file.write(f"{line}\n")
                file.flush()
                os.fsync(file.fileno())
            await at("begun")
        document: MigrationDocument = service.controller.migration("m1")
        return document

    async def through(envelope: Envelope) -> Reply:
        await at("received")
        reply = await execute(envelope)
        await at("answered")
        return reply

    changes: Mapping[Any, Any] = {"carry_out": begin}
    for name, value in changes.items():
        setattr(service.controller, name, value)
    service.dispatcher.execute = through  # type: ignore[method-assign]
    await service.mqtt.run()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
