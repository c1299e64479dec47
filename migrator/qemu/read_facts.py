"""Reads :class:`~migrator.core.facts.Facts` over QMP: two pipelined round trips, nothing changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from migrator.core.facts import Device, Disk, Facts
from migrator.core.model import MigrationStatus, RunState
from migrator.errors import CommandFailed
from migrator.machine import LocalProcess
from migrator.ports import GuestProcess
from migrator.qemu.monitor import Monitor

_NO_UUID = "00000000-0000-0000-0000-000000000000"


async def read_facts(monitor: Monitor, process: GuestProcess | None) -> Facts:
    """What this QEMU says of itself.

    :raise QemuError: when it cannot be asked.
    """

    async def ask(command: str, **arguments: Any) -> Any:
        """The answer, or ``None`` where this QEMU or this machine type has no such thing."""
        try:
            return await monitor.execute(command, arguments or None, timeout=10.0)
        except CommandFailed:
            return None

    def machine(name: str) -> Any:
        return ask("qom-get", path="/machine", property=name)

    async with asyncio.TaskGroup() as group:
        tasks = {
            key: group.create_task(coroutine, name=f"{monitor.name} {key}")
            for key, coroutine in {
                "version": ask("query-version"),
                "status": ask("query-status"),
                "migrate": ask("query-migrate"),
                "uuid": ask("query-uuid"),
                "name": ask("query-name"),
                "kvm": ask("query-kvm"),
                "memory": ask("query-memory-size-summary"),
                "backends": ask("query-memdev"),
                "cpus": ask("query-hotpluggable-cpus"),
                "vcpus": ask("query-cpus-fast"),
                "pci": ask("query-pci"),
                "block": ask("query-block"),
                "capabilities": ask("query-migrate-capabilities"),
                "parameters": ask("query-migrate-parameters"),
                "machine": machine("type"),
                "named": ask("qom-list", path="/machine/peripheral"),
                "unnamed": ask("qom-list", path="/machine/peripheral-anon"),
            }.items()
        }
    got = {key: task.result() for key, task in tasks.items()}

    plugged = [cpu for cpu in got["cpus"] or [] if "qom-path" in cpu]
    features: dict[str, int] = {}
    if got["vcpus"]:
        path = got["vcpus"][0]["qom-path"]
        names = ("feature-words", "family", "model", "stepping")
        words, *rest = await asyncio.gather(*(ask("qom-get", path=path, property=name) for name in names))
        features = {_register(word): word["features"] for word in words or []}
        features |= {name: value for name, value in zip(names[1:], rest, strict=True) if value is not None}

    version = got["version"]["qemu"]
    migrate = got["migrate"] or {}
    uuid = (got["uuid"] or {}).get("UUID", _NO_UUID)
    return Facts(
        version=f"{version['major']}.{version['minor']}.{version['micro']}",
        run=RunState(got["status"]["status"]),
        status=MigrationStatus(migrate.get("status", "none")),
        uuid="" if uuid == _NO_UUID else uuid,
        guest_name=(got["name"] or {}).get("name", ""),
        machine=str(got["machine"] or "").removesuffix("-machine"),
        accelerator="kvm" if (got["kvm"] or {}).get("enabled") else "tcg",
        memory_bytes=sum((got["memory"] or {}).values()),
        memory_backends=tuple(
            sorted((entry.get("id", ""), entry["size"]) for entry in got["backends"] or [])
        ),
        cpus=tuple(sorted(_cpu(cpu) for cpu in plugged)),
        cpu_features=features,
        devices=tuple(sorted(_devices(got["named"] or [], got["unnamed"] or [], got["pci"] or []))),
        disks=tuple(_disks(got["block"] or [], process)),
        blockers=tuple(migrate.get("blocked-reasons", ())),
        capabilities=frozenset(entry["capability"] for entry in got["capabilities"] or []),
        parameters=frozenset(got["parameters"] or ()),
        listening="socket-address" in migrate,
        incoming=_incoming(process),
        pid=process.pid if process else None,
    )


def _register(word: dict[str, Any]) -> str:
    leaf, sub = word["cpuid-input-eax"], word.get("cpuid-input-ecx")
    return f"CPUID[{leaf:#x}{'' if sub is None else f',{sub:#x}'}].{word['cpuid-register']}"


def _cpu(cpu: dict[str, Any]) -> str:
    place = ",".join(f"{key}={value}" for key, value in sorted(cpu["props"].items()))
    return f"{cpu['type']} {place}"


def _devices(
    named: list[dict[str, str]], unnamed: list[dict[str, str]], buses: list[dict[str, Any]]
) -> Iterable[Device]:
    functions = {
        path: function
        for bus in buses
        for path, function in _functions(bus["devices"], f"bus {bus['bus']} slot ")
    }
    slots = {function["qdev_id"]: path for path, function in functions.items() if function["qdev_id"]}
    for entry in named:
        if entry["type"].startswith("child<"):
            yield Device(name=entry["name"], driver=entry["type"][6:-1], slot=slots.get(entry["name"], ""))
    for entry in unnamed:
        if entry["type"].startswith("child<"):
            yield Device(name="", driver=entry["type"][6:-1])
    for path, function in functions.items():
        if not function["qdev_id"]:
            identity = function["id"]
            yield Device(name="", driver=f"pci {identity['vendor']:04x}:{identity['device']:04x}", slot=path)


def _functions(devices: list[dict[str, Any]], prefix: str) -> Iterable[tuple[str, dict[str, Any]]]:
    # By the chain of slots from the root: bus numbers behind a bridge are given by the guest's firmware, which has
    # not run at the destination.
    for device in devices:
        path = f"{prefix}{device['slot']}.{device['function']}"
        yield path, device
        yield from _functions(device.get("pci_bridge", {}).get("devices", []), f"{path} slot ")


def _disks(blocks: list[dict[str, Any]], process: GuestProcess | None) -> Iterable[Disk]:
    for block in blocks:
        inserted = block.get("inserted")
        if inserted is None:
            continue
        file = inserted["file"]
        identity = ""
        if isinstance(process, LocalProcess) and file.startswith("/"):
            try:
                stat = Path(f"/proc/{process.pid}/root{file}").stat()
                identity = f"{stat.st_dev}:{stat.st_ino}"
            except OSError:
                pass  # not to be seen from here: then it cannot be compared
        yield Disk(
            device=(block.get("qdev") or block["device"]).removeprefix("/machine/peripheral/"),
            file=file,
            format=inserted["drv"],
            virtual_bytes=inserted["image"]["virtual-size"],
            read_only=inserted["ro"],
            identity=identity,
        )


def _incoming(process: GuestProcess | None) -> str | None:
    arguments = process.arguments() if process else []
    for flag, value in pairwise(arguments):
        if flag in ("-incoming", "--incoming"):
            return value
    return "" if arguments else None
