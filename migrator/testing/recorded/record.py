"""Asks the QEMUs on this machine about themselves and keeps what they answer beside this module."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from typing import Any
from uuid import UUID

from migrator.testing.lab import GuestMachine, Lab, RawMonitor, RawQmpError, binaries
from migrator.testing.recorded import path

_QUERIES = (
    "query-block",
    "query-commands",
    "query-cpus-fast",
    "query-dirty-rate",
    "query-hotpluggable-cpus",
    "query-kvm",
    "query-memdev",
    "query-memory-size-summary",
    "query-migrate-capabilities",
    "query-migrate-parameters",
    "query-name",
    "query-pci",
    "query-status",
    "query-version",
    "query-yank",
)
_CPU_PROPERTIES = ("feature-words", "family", "model", "stepping")
#: Nothing of the machine that it was recorded on is kept.
_IMAGE = "/images/guest.img"


async def record(version: str) -> dict[str, Any]:
    """Return one QEMU's answers."""
    machine = GuestMachine(uuid=UUID(int=1), mac="52:54:00:00:00:01")
    async with Lab() as lab:
        image = str(lab.image(machine))
        qemu = await lab.start(machine, binary=binaries()[version])
        async with RawMonitor(qemu.qmp) as monitor:
            answers = {name: await monitor.execute(name) for name in _QUERIES}
            properties = {"/machine type": await _get(monitor, "/machine", "type")}
            for cpu in answers["query-cpus-fast"]:
                cpu["thread-id"] = 1
                for name in _CPU_PROPERTIES:
                    properties[f"{cpu['qom-path']} {name}"] = await _get(monitor, cpu["qom-path"], name)
            lists = {
                folder: await monitor.execute("qom-list", path=folder)
                for folder in ("/machine/peripheral", "/machine/peripheral-anon")
            }
            schema = _reduced(await monitor.execute("query-qmp-schema"))
            found = {
                "greeting": monitor.greeting,
                "answers": answers,
                "properties": properties,
                "lists": lists,
                "schema": schema,
            }
            kept: dict[str, Any] = json.loads(json.dumps(found).replace(image, _IMAGE))
            return kept


async def _get(monitor: RawMonitor, where: str, name: str) -> Any:
    try:
        return await monitor.execute("qom-get", path=where, property=name)
    except RawQmpError:
        return None


def _reduced(schema: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the commands, and the objects that are their arguments."""
    commands = [entry for entry in schema if entry["meta-type"] == "command"]
    wanted = {entry["arg-type"] for entry in commands}
    return [entry for entry in schema if entry in commands or entry["name"] in wanted]


def main() -> int:
    """Record every QEMU here."""
    for version in binaries():
        text = json.dumps(asyncio.run(record(version)), sort_keys=True, separators=(",", ":"))
        # Without a time in it: the same answers, the same bytes.
        path(version).write_bytes(gzip.compress(text.encode(), mtime=0))
        print(f"{path(version).name}: {path(version).stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
