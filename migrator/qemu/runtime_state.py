"""State that somebody set in a QEMU while it ran and its migration does not carry: read at one, set again at another.

Both QEMUs are compared by what they show, so that a destination which has it already is told nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from migrator.errors import CommandFailed
from migrator.qemu.block_graph import Nodes, block_nodes
from migrator.qemu.monitor import Monitor
from migrator.qemu.non_migrated_state import block_node_label

_ASK_SECONDS = 10.0
_PERIPHERAL = ("/machine/peripheral", "/machine/peripheral-anon")
_THREADS = ("aio-max-batch", "thread-pool-min", "thread-pool-max")
#: Properties of objects that can be set after they were made, by how their type's name begins.
_OF_OBJECTS = {
    "throttle-group": ("limits",),
    "iothread": (*_THREADS, "poll-max-ns", "poll-grow", "poll-shrink"),
    "main-loop": _THREADS,
    "memory-backend-": ("merge", "dump"),
    "filter-": ("status",),
}
_POLLING = "guest-stats-polling-interval"
_HISTOGRAMS = {
    "rd_latency_histogram": "boundaries-read",
    "wr_latency_histogram": "boundaries-write",
    "flush_latency_histogram": "boundaries-flush",
}
_FORWARD = re.compile(
    r"^ *(?P<kind>TCP|UDP)\[HOST_FORWARD\] +\d+ +(?P<from>\S+) +(?P<port>\d+) +(?P<to>\S+) +(?P<toport>\d+) ",
    re.MULTILINE,
)
_HUB = re.compile(r"^Hub -?\d+ \((?P<name>[^)\n]+)\):\r?$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class RuntimeState:
    """Runtime state that one QEMU shows; see ``docs/travels.md``."""

    #: By QOM path and property.
    properties: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    #: Bytes after which an event is sent; of each block node by its name, or by the way to it from its device.
    thresholds: Mapping[str, int] = field(default_factory=dict)
    #: Name of the node there, by the same key.
    nodes: Mapping[str, str] = field(default_factory=dict)
    #: Nodes with a threshold that neither has a name nor belongs to a device.
    nameless: tuple[str, ...] = ()
    #: Arguments of block-latency-histogram-set for each device with a disk.
    histograms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Port forwards of user networks, as hostfwd_add takes them.
    forwards: frozenset[str] = frozenset()


def to_json(state: RuntimeState) -> dict[str, Any]:
    """Return the state as plain JSON, for :func:`from_json`."""
    return {
        "properties": [[path, name, value] for (path, name), value in state.properties.items()],
        "thresholds": dict(state.thresholds),
        "nodes": dict(state.nodes),
        "nameless": list(state.nameless),
        "histograms": {device: dict(each) for device, each in state.histograms.items()},
        "forwards": sorted(state.forwards),
    }


def from_json(saved: Mapping[str, Any]) -> RuntimeState:
    """Return the state that :func:`to_json` wrote."""
    return RuntimeState(
        properties={(path, name): value for path, name, value in saved["properties"]},
        thresholds=saved["thresholds"],
        nodes=saved["nodes"],
        nameless=tuple(saved["nameless"]),
        histograms=saved["histograms"],
        forwards=frozenset(saved["forwards"]),
    )


async def _ask(monitor: Monitor, command: str, **arguments: Any) -> Any:
    """Return the answer, or ``None`` where this QEMU has no such thing."""
    try:
        return await monitor.execute(command, arguments or None, timeout=_ASK_SECONDS)
    except CommandFailed:
        return None


async def read_runtime_state(monitor: Monitor) -> RuntimeState:
    """Read the runtime state of one QEMU; nothing is changed.

    :raise QemuError: when it cannot be asked.
    """
    objects, *devices, nodes, blocks, graph, statistics, usernet = await asyncio.gather(
        _ask(monitor, "qom-list", path="/objects"),
        *(_ask(monitor, "qom-list", path=path) for path in _PERIPHERAL),
        _ask(monitor, "query-named-block-nodes", flat=True),
        _ask(monitor, "query-block"),
        _ask(monitor, "x-debug-query-block-graph"),
        _ask(monitor, "query-blockstats"),
        _ask(monitor, "human-monitor-command", **{"command-line": "info usernet"}),
    )
    wanted = [
        (f"/objects/{name}", prop)
        for name, kind in _children(objects)
        for prefix, props in _OF_OBJECTS.items()
        if kind.startswith(prefix)
        for prop in props
    ]
    for path, listing in zip(_PERIPHERAL, devices, strict=True):
        for name, kind in _children(listing):
            wanted.append((f"{path}/{name}", "bootindex"))
            if "balloon" in kind:
                wanted.append((f"{path}/{name}", _POLLING))
    values = await asyncio.gather(
        *(_ask(monitor, "qom-get", path=path, property=name) for path, name in wanted)
    )
    places = _places(
        block_nodes(nodes or [], graph or {"nodes": [], "edges": []}, blocks or [], where=monitor.name),
        blocks or [],
    )
    thresholds = {node["node-name"]: node["write_threshold"] for node in nodes or []}
    return RuntimeState(
        properties={key: value for key, value in zip(wanted, values, strict=True) if value is not None},
        thresholds={places[name]: value for name, value in thresholds.items() if name in places},
        nodes={place: name for name, place in places.items()},
        nameless=tuple(
            block_node_label(node)
            for node in nodes or []
            if node["write_threshold"] and node["node-name"] not in places
        ),
        histograms={
            each["qdev"]: shown
            for each in statistics or []
            if each.get("qdev") and (shown := _histograms(each["stats"]))
        },
        forwards=frozenset(_forwards(usernet or "")),
    )


def _children(listing: Iterable[Mapping[str, str]] | None) -> list[tuple[str, str]]:
    return [
        (entry["name"], entry["type"][6:-1]) for entry in listing or [] if entry["type"].startswith("child<")
    ]


def _places(nodes: Nodes, blocks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return for each block node the name or place by which it can be found in another QEMU."""
    found = {name: name for name in nodes.nodes if not name.startswith("#")}

    def walk(name: str, place: str) -> None:
        found.setdefault(name, place)
        for edge, child in nodes.children.get(name, {}).items():
            walk(child, f"{place}/{edge}")

    for block in blocks:
        top = block.get("inserted", {}).get("node-name")
        if top and block.get("qdev"):
            walk(top, f"the disk of {block['qdev']}")
    return found


def _histograms(statistics: Mapping[str, Any]) -> dict[str, Any]:
    shown = {argument: statistics.get(name) for name, argument in _HISTOGRAMS.items()}
    return {argument: each["boundaries"] for argument, each in shown.items() if each}


def _forwards(text: str) -> Iterable[str]:
    parts = _HUB.split(text)
    for name, listing in zip(parts[1::2], parts[2::2], strict=True):
        for found in _FORWARD.finditer(listing):
            address = "" if found["from"] == "*" else found["from"]
            kind = found["kind"].lower()
            yield f"{name} {kind}:{address}:{found['port']}-{found['to']}:{found['toport']}"


async def restore_runtime_state(monitor: Monitor, wanted: RuntimeState, present: RuntimeState) -> list[str]:
    """Set in this QEMU what `wanted` has otherwise; return what could not be set, each in a few words with QEMU's own.

    :param present: what was read of it a moment ago.
    :raise QemuError: it does not answer.
    """
    refused = [f"write threshold of {name}: its block node has no name" for name in wanted.nameless]
    for what, command, arguments in differences(wanted, present):
        if not command:
            refused.append(what)
            continue
        try:
            said = await monitor.execute(command, arguments)
        except CommandFailed as error:
            refused.append(f"{what}: {error.description}")
        else:
            if isinstance(said, str) and said.strip():  # the human monitor has no other way to fail
                refused.append(f"{what}: {' '.join(said.split())}")
    return refused


def differences(wanted: RuntimeState, present: RuntimeState) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield what makes `present` the same: subject, command and arguments; no command where there is none. Pure."""
    for (path, name), value in wanted.properties.items():
        if present.properties.get((path, name), value) != value:
            yield f"{name} of {path}", "qom-set", {"path": path, "property": name, "value": value}
    for place, threshold in wanted.thresholds.items():
        what = f"write threshold of {place}"
        if place not in present.nodes and threshold:
            yield f"{what}: there is no such block node", "", {}
        elif present.thresholds.get(place, threshold) != threshold:
            arguments = {"node-name": present.nodes[place], "write-threshold": threshold}
            yield what, "block-set-write-threshold", arguments
    for device, boundaries in wanted.histograms.items():
        if present.histograms.get(device) != boundaries:
            command = "block-latency-histogram-set"
            yield f"latency histograms of {device}", command, {"id": device, **boundaries}
    for line in sorted(wanted.forwards - present.forwards):
        yield f"forwarded port {line}", "human-monitor-command", {"command-line": f"hostfwd_add {line}"}
    for line in sorted(present.forwards - wanted.forwards):
        rule = f"hostfwd_remove {line.rpartition('-')[0]}"
        yield (
            f"forwarded port {line}, which is not there any more",
            "human-monitor-command",
            {"command-line": rule},
        )


async def carry_traces(source: Monitor, destination: Monitor) -> list[str]:
    """Enable at the destination the trace events that are enabled at the source; return those that could not be.

    :raise QemuError: one of them does not answer.
    """
    here = await _enabled(source)
    if not here:
        return []
    refused = []
    for name in sorted(here - await _enabled(destination)):
        try:
            await destination.execute("trace-event-set-state", {"name": name, "enable": True})
        except CommandFailed as error:
            refused.append(f"trace event {name}: {error.description}")
    return refused


async def _enabled(monitor: Monitor) -> set[str]:
    events = await _ask(monitor, "trace-event-get-state", name="*")
    return {event["name"] for event in events or [] if event["state"] == "enabled"}
