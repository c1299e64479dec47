"""Reads :class:`~migrator.core.preflight.facts.Facts` over QMP: two or three round trips; nothing changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from migrator.core.model import MigrationStatus, RunState
from migrator.core.preflight.facts import Device, Disk, Facts, ImageFeatures
from migrator.core.process.command_line import path_of
from migrator.errors import CommandFailed
from migrator.machine import LocalProcess
from migrator.ports import GuestProcess
from migrator.qemu import block_owners
from migrator.qemu.drive_slots import PERIPHERAL, DriveSlot, read_drive_slots
from migrator.qemu.monitor import Monitor
from migrator.qemu.non_migrated_state import Ask, read_non_migrated_state

#: Where QEMU keeps the devices it was given: those with an id, and those without.
_PERIPHERAL = (PERIPHERAL, f"{PERIPHERAL}-anon")
#: Features of a qcow2 image that a copy gets: as query-block shows them, and as qemu-img takes them.
_TEXTS = {"compat": "compat", "refcount-bits": "refcount_bits", "compression-type": "compression_type"}
_FLAGS = {"lazy-refcounts": "lazy_refcounts", "extended-l2": "extended_l2"}
_NO_UUID = "00000000-0000-0000-0000-000000000000"


async def read_facts(monitor: Monitor, process: GuestProcess | None) -> Facts:
    """Read what this QEMU shows of itself.

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

    questions = {
        "version": monitor.execute("query-version", timeout=10.0),
        "status": monitor.execute("query-status", timeout=10.0),
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
        "under_way": read_non_migrated_state(ask, process.arguments() if process else []),
        **{path: ask("qom-list", path=path) for path in _PERIPHERAL},
    }
    got = dict(zip(questions, await asyncio.gather(*questions.values()), strict=True))

    devices = await asyncio.gather(
        *(_device(ask, path, entry) for path in _PERIPHERAL for entry in got[path] or [] if _is_child(entry))
    )
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
        devices=tuple(sorted([*devices, *_built_in(got["pci"] or [])])),
        disks=tuple(_disks(await read_drive_slots(monitor, got["block"] or []), process)),
        blockers=await _blockers(ask, migrate.get("blocked-reasons", ())),
        capabilities=frozenset(entry["capability"] for entry in got["capabilities"] or []),
        parameters=frozenset(got["parameters"] or ()),
        non_migrated=got["under_way"],
        listening="socket-address" in migrate,
        incoming=_incoming(process),
        pid=process.pid if process else None,
    )


async def _blockers(ask: Ask, reasons: Sequence[str]) -> tuple[str, ...]:
    """Return what QEMU says against a migration, with names for disks that people know."""
    if not any(block_owners.made_up(each) for each in reasons):
        return tuple(reasons)
    graph = await ask("x-debug-query-block-graph")
    return tuple(reasons) if graph is None else block_owners.with_known_names(reasons, graph)


def _register(word: dict[str, Any]) -> str:
    leaf, sub = word["cpuid-input-eax"], word.get("cpuid-input-ecx")
    return f"CPUID[{leaf:#x}{'' if sub is None else f',{sub:#x}'}].{word['cpuid-register']}"


def _cpu(cpu: dict[str, Any]) -> str:
    place = ",".join(f"{key}={value}" for key, value in sorted(cpu["props"].items()))
    return f"{cpu['type']} {place}"


def _is_child(entry: dict[str, str]) -> bool:
    return entry["type"].startswith("child<")


async def _device(ask: Callable[..., Awaitable[Any]], path: str, entry: dict[str, str]) -> Device:
    """Read a device and its place from its own properties.

    query-pci shows nothing behind a bridge that no firmware has set up yet, as at a destination.
    """
    where = f"{path}/{entry['name']}"
    bus, address, standby = await asyncio.gather(
        *(ask("qom-get", path=where, property=name) for name in ("parent_bus", "addr", "failover_pair_id"))
    )
    slot = ""
    if bus and isinstance(address, int):
        slot = f"bus {bus.rpartition('/')[2]} slot {address >> 3:x}.{address & 7}"
    elif bus:
        slot = f"bus {bus.rpartition('/')[2]}"
    name = entry["name"] if path == _PERIPHERAL[0] else ""
    return Device(name=name, driver=entry["type"][6:-1], slot=slot, standby=str(standby or ""))


def _built_in(buses: list[dict[str, Any]]) -> Iterable[Device]:
    """Yield the PCI devices of the machine itself, and those that were given no id."""
    for bus in buses:
        for function in bus["devices"]:
            if not function["qdev_id"]:
                identity = function["id"]
                yield Device(
                    name="",
                    driver=f"pci {identity['vendor']:04x}:{identity['device']:04x}",
                    slot=f"bus {bus['bus']} slot {function['slot']}.{function['function']}",
                )


def _disks(drives: list[DriveSlot], process: GuestProcess | None) -> Iterable[Disk]:
    for drive in drives:
        inserted = drive.inserted
        if not inserted:
            continue
        file = inserted["file"]
        identity = ""
        path = path_of(file)
        if isinstance(process, LocalProcess) and path and not path.startswith("/dev/fdset/"):
            identity = process.opened(path)
        yield Disk(
            device=drive.name,
            file=file,
            format=inserted["drv"],
            virtual_bytes=inserted["image"]["virtual-size"],
            read_only=inserted["ro"],
            identity=identity,
            image=_features(inserted["image"]),
        )


def _features(image: Mapping[str, Any]) -> ImageFeatures:
    specific = image.get("format-specific")
    found = specific.get("data") if isinstance(specific, dict) else None
    data: Mapping[str, Any] = found if isinstance(found, dict) else {}
    options = [f"{option}={data[key]}" for key, option in _TEXTS.items() if data.get(key)]
    options += [f"{option}=on" for key, option in _FLAGS.items() if data.get(key) is True]
    if image.get("cluster-size") and data:
        options.append(f"cluster_size={image['cluster-size']}")
    bitmaps = data.get("bitmaps")
    beneath: Mapping[str, Any] = image.get("backing-image") or {}
    return ImageFeatures(
        allocated_bytes=image.get("actual-size", 0),
        options=tuple(options),
        encrypted=bool(image.get("encrypted")) or "encrypt" in data,
        header_bytes=int(data.get("payload-offset", 0)),
        snapshots=len(image.get("snapshots", ())),
        bitmaps=len(bitmaps) if isinstance(bitmaps, list) else 0,
        data_file="data-file" in data,
        backing_file=str(image.get("backing-filename", "")),
        backing_format=str(beneath.get("format", "")),
        backing_bytes=_chain_bytes(beneath),
    )


def _chain_bytes(image: Mapping[str, Any]) -> int:
    """Return what is allocated of an image and of all that it is based on."""
    further = _chain_bytes(image["backing-image"]) if "backing-image" in image else 0
    return int(image.get("actual-size", 0)) + further


def _incoming(process: GuestProcess | None) -> str | None:
    arguments = process.arguments() if process else []
    for flag, value in pairwise(arguments):
        if flag in ("-incoming", "--incoming"):
            return value
    return "" if arguments else None
