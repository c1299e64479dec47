"""Block devices behind a guest's disks, and how they stand on one another: read from one QEMU, made at another. Pure.

What QEMU does not show of one that was added while the guest ran is refused in plain words.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic_core import from_json

from migrator.errors import Refused, StrangeAnswer
from migrator.qemu.backends import Command

_FILES = frozenset({"file", "host_device", "host_cdrom"})
#: Drivers that have no contents of their own.
FILTERS = frozenset({"copy-on-read", "throttle", "preallocate", "compress", "mirror_top", "commit_top"})
#: More block devices that stand on one another, and more ways through them, are not looked into: libvirt ends at 200.
_DEEPEST, _WAYS = 256, 200_000
_MAY_HAVE_BACKING = frozenset({"qcow2", "qed", "vmdk", "qcow", "parallels"})


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The block devices of one QEMU and how they hang together."""

    #: query-named-block-nodes, by node name.
    nodes: Mapping[str, Mapping[str, Any]]
    #: Nodes below each node, by the name of the edge (``file``, ``backing``).
    children: Mapping[str, Mapping[str, str]]
    #: Uppermost node of each drive that has an id.
    roots: Mapping[str, str] = field(default_factory=dict)
    #: Nodes that something has: a device, a drive, a job, an export, or another such node; ``None``: not known.
    used: frozenset[str] | None = None

    @property
    def bases(self) -> frozenset[str]:
        """Nodes that others are based on."""
        return frozenset(below["backing"] for below in self.children.values() if "backing" in below)

    def depth(self, name: str) -> int:
        """Return how many nodes this one stands on, one on the other; 0 for one that is not there."""
        node = name if name in self.nodes else next((n for n in self.nodes if lasting_name(n) == name), "")
        return max((1 + self.depth(child) for child in self.children.get(node, {}).values()), default=0)

    def contents(self, name: str) -> str:
        """The node that has the contents of this one: itself, but for filters, which only pass on."""
        while name in self.nodes and self.nodes[name]["drv"] in FILTERS:
            below = self.children.get(name, {})
            name = below.get("file") or below.get("backing") or ""
        return name

    def top(self, name: str) -> Mapping[str, Any]:
        """The uppermost node of a drive or node."""
        return self.nodes[self.roots.get(name, name)]

    def chain(self, name: str) -> list[tuple[str, str]]:
        """File and driver of a node and of all that it is based on; filters, which only pass on, are left out."""
        found: list[tuple[str, str]] = []
        at = self.contents(name)
        while at in self.nodes:
            found.append((_plain(self.nodes[at]["file"]), self.nodes[at]["drv"]))
            at = self.contents(self.children.get(at, {}).get("backing", ""))
        return found

    def commands(self, wanted: str, there: Sequence[str]) -> Iterator[Command]:
        """Yield the commands that make the block device that a device calls `wanted`, its named nodes first.

        :param there: names of nodes and drives that the other QEMU has already.
        :raise Refused: when QEMU does not show enough of it.
        """
        made = set(there)
        if wanted in made:
            return
        root = wanted if wanted in self.nodes else self.roots.get(wanted)
        if root is None:
            raise Refused(f"there is no block device {wanted}, which a device names")
        for name in self._named_below(root):
            if name not in made:
                made.add(name)
                yield "blockdev-add", {**self._options(name), "node-name": name}
        yield "blockdev-add", {**self._options(root), "node-name": lasting_name(wanted)}

    def _named_below(self, node: str) -> Iterator[str]:
        for child in self.children.get(node, {}).values():
            yield from self._named_below(child)
            if not child.startswith("#"):
                yield child

    def _options(self, name: str) -> dict[str, Any]:
        node = self.nodes[name]
        below = self.children.get(name, {})
        driver, shown = node["drv"], node["file"]
        if node.get("encrypted"):
            raise self._unreadable(name, "it is encrypted")
        options: dict[str, Any] = {
            "driver": driver,
            "read-only": node["ro"],
            "cache": {"direct": node["cache"]["direct"], "no-flush": node["cache"]["no-flush"]},
            "detect-zeroes": node["detect_zeroes"],
        }
        if node["detect_zeroes"] == "unmap":
            options["discard"] = "unmap"  # QEMU takes the one only with the other
        if "file" not in below:
            return options | self._protocol(name, driver, shown)
        if shown.startswith("json:"):
            told = self._told(name, shown)
            plain = {key: value for key, value in told.items() if not isinstance(value, dict)}
            options |= {
                key: value for key, value in plain.items() if key not in ("driver", "file", "backing")
            }
        for edge, child in below.items():
            if edge not in ("file", "backing"):
                raise self._unreadable(name, f"it has a {edge}")
            if not child.startswith("#"):
                options[edge] = child
            elif edge == "file":
                options[edge] = self._options(child)
            # A backing file without a name of its own is found by QEMU in the image, as it was here.
        if driver in _MAY_HAVE_BACKING and "backing" not in below:
            options["backing"] = None
        return options

    def _protocol(self, name: str, driver: str, shown: str) -> dict[str, Any]:
        if shown.startswith("json:"):
            told = self._told(name, shown)
            return {key: value for key, value in told.items() if key != "driver"}
        if driver in _FILES:
            return {"filename": shown}
        if driver == "nbd":
            try:
                return _nbd(shown)
            except (KeyError, ValueError) as error:
                raise self._unreadable(name, "its address cannot be read") from error
        raise self._unreadable(name, f"its driver is {driver}")

    def _told(self, name: str, shown: str) -> dict[str, Any]:
        told = _json(shown[5:])
        if told is None:
            raise self._unreadable(name, "its file name is no JSON")
        return told

    def _unreadable(self, name: str, why: str) -> Refused:
        return Refused(
            f"block device {name} was added while the guest ran, and QEMU does not show enough of it to make it again "
            f"({why}): start the destination with it by a template, or unplug its disk"
        )


def lasting_name(node: str) -> str:
    """The name of a node, or one for a node that has none but QEMU's own, which nobody may give."""
    return f"migrator-{node[1:]}" if node.startswith("#") else node


def _plain(file: str) -> str:
    """A file name of QEMU's, written in one way where it is JSON."""
    told = _json(file[5:]) if file.startswith("json:") else None
    return file if told is None else json.dumps(told, sort_keys=True)


def _json(text: str) -> dict[str, Any] | None:
    """Parse a JSON object; ``None`` where the text is none."""
    try:
        found = from_json(text, allow_inf_nan=False)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _nbd(shown: str) -> dict[str, Any]:
    url = urlsplit(shown)
    server: dict[str, Any]
    if url.scheme == "nbd+unix":
        server = {"type": "unix", "path": parse_qs(url.query)["socket"][0]}
    else:
        server = {"type": "inet", "host": url.hostname or "", "port": str(url.port or 10809)}
    export = unquote(url.path.removeprefix("/"))
    return {"server": server, "export": export} if export else {"server": server}


def block_nodes(
    named: Sequence[Mapping[str, Any]],
    graph: Mapping[str, Sequence[Mapping[str, Any]]],
    blocks: Sequence[Mapping[str, Any]],
    *,
    where: str = "QEMU",
) -> Nodes:
    """Read query-named-block-nodes, x-debug-query-block-graph and query-block.

    :param where: whose they are, for messages.
    :raise StrangeAnswer: they do not hang together.
    """
    names = {node["id"]: node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
    children: dict[str, dict[str, str]] = {}
    for edge in graph["edges"]:
        if edge["parent"] in names and edge["child"] in names:
            children.setdefault(names[edge["parent"]], {})[edge["name"]] = names[edge["child"]]
    known = {node["node-name"] for node in named}
    if wrong := _no_graph(children) or (
        "" if known.issuperset(children) else "nodes that query-named-block-nodes does not show"
    ):
        raise StrangeAnswer(where, "x-debug-query-block-graph", wrong)
    roots = {
        block["device"]: block["inserted"]["node-name"]
        for block in blocks
        if block["device"] and "inserted" in block
    }
    parents = {node["id"] for node in graph["nodes"]} - names.keys()
    waiting = [
        names[edge["child"]]
        for edge in graph["edges"]
        if edge["parent"] in parents and edge["child"] in names
    ]
    used: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in used:
            used.add(name)
            waiting += children.get(name, {}).values()
    return Nodes(
        nodes={node["node-name"]: node for node in named},
        children=children,
        roots=roots,
        used=frozenset(used) if graph["nodes"] else None,
    )


def _no_graph(children: Mapping[str, Mapping[str, str]]) -> str:
    """Say why nobody can walk through these; empty where one can: no circle, not too deep, not too many paths."""
    parents = Counter(child for below in children.values() for child in below.values())
    depths: dict[str, int] = {}
    ways: Counter[str] = Counter()
    waiting = [name for name in children if not parents[name]]
    ways.update(dict.fromkeys(waiting, 1))
    walked = 0
    while waiting:
        name = waiting.pop()
        walked += name in children
        for child in children.get(name, {}).values():
            depths[child] = max(depths.get(child, 0), depths.get(name, 0) + 1)
            ways[child] += ways[name]
            parents[child] -= 1
            if not parents[child]:
                waiting.append(child)
    if walked < len(children):
        return "block devices that stand on each other in a circle"
    if max(depths.values(), default=0) > _DEEPEST or ways.total() > _WAYS:
        return f"more than {_DEEPEST} block devices that stand on one another"
    return ""
