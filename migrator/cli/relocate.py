"""Moves guests that are shut off: each is started without running, moved by the service, and put away again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from migrator import settings as configuration
from migrator.cli import Exit, watch
from migrator.cli.client import Document, ServiceClient
from migrator.cli.output import OutputForm
from migrator.cli.show import print_line
from migrator.core.model import RunState
from migrator.core.shut_off_guest import ShutOffGuest
from migrator.errors import UsageError
from migrator.settings import DEFAULT_PATH
from migrator.site.from_settings import make_site
from migrator.site.shut_off_guests import ShutOffGuests, described_paths


def relocate(
    client: ServiceClient,
    config: Path | None,
    files: Sequence[str],
    *,
    source: str,
    target: str,
    policy: str | None,
    accept: list[str],
    output: OutputForm,
) -> int:
    """Move guests that are shut off, one after the other; ends at the first that does not move.

    May be typed again after an interruption: each goes on where it was.
    """
    described_paths(files)
    settings = configuration.load(config or DEFAULT_PATH)
    known = {host.name for host in settings.hosts}
    for host in (source, target):
        if host not in known:
            raise UsageError(f"there is no host {host} in the configuration")
    if source == target:
        raise UsageError(f"the guests are on {source} already")

    def do(work: Any) -> Any:
        async def done() -> Any:
            async with _guests(settings) as guests:
                return await work(guests)

        return asyncio.run(done())

    for file in files:
        code = _one(
            client, do, file, source=source, target=target, policy=policy, accept=accept, output=output
        )
        if code is not Exit.DONE:
            return code
    return Exit.DONE


@contextlib.asynccontextmanager
async def _guests(settings: configuration.Settings) -> AsyncIterator[ShutOffGuests]:
    site = make_site(settings)
    try:
        yield ShutOffGuests(site)
    finally:
        await site.close()


def _one(
    client: ServiceClient,
    do: Any,
    file: str,
    *,
    source: str,
    target: str,
    policy: str | None,
    accept: list[str],
    output: OutputForm,
) -> int:
    async def described(guests: ShutOffGuests) -> ShutOffGuest:
        guest = await guests.read(source, file)
        guests.check_paths(guest, source=source, target=target)
        return guest

    guest = do(described)
    there = _find(client, guest.uuid)
    migration = ""
    if there is None:
        do(lambda guests: guests.start(source, guest))
        there = _find(client, guest.uuid)
        if there is None:
            raise UsageError(
                f"the service does not find the QEMU that was started on {source}: see its sockets"
            )
    elif there["run_state"] != RunState.PRELAUNCH:
        raise UsageError(
            f"guest {guest.uuid} of {file} is not shut off: it is {there['run_state']} on {there['host']}"
        )
    if there["host"] == source:
        code, migration = _move(client, guest.uuid, target, policy, accept, output)
        there = _find(client, guest.uuid)
        if there is None or code is not Exit.DONE:
            if there is not None and there["host"] == source and there["run_state"] == RunState.PRELAUNCH:
                do(lambda guests: guests.put_away(source, guest.uuid))
            return code or Exit.FAILED
    if there["host"] != target:
        raise UsageError(f"guest {guest.uuid} is on {there['host']}, not on {target}")

    async def finish(guests: ShutOffGuests) -> str:
        # Its description first: whatever comes then, it is where its disks are.
        await guests.copy_description(file, source=source, target=target)
        await guests.put_away(target, guest.uuid)
        return await guests.put_aside(source, file, migration=migration or guest.uuid)

    aside = do(finish)
    if not output.document:
        print_line(f"{guest.uuid} is shut off on {target}: {file}; {source} keeps {aside}")
    return Exit.DONE


def _find(client: ServiceClient, uuid: str) -> Document | None:
    found = client.get("guests", refresh="true")
    items: list[Document] = found["items"]
    return next((each for each in items if each["uuid"] == uuid), None)


def _move(
    client: ServiceClient, uuid: str, target: str, policy: str | None, accept: list[str], output: OutputForm
) -> tuple[int, str]:
    begun = client.post("migrations", {"guest": uuid, "to": target, "policy": policy, "accept": accept})
    return watch.migration(client, begun, output=output), str(begun["id"])
