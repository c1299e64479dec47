"""What stands behind a guest's devices, read from one QEMU and written as QMP commands for another. Pure.

QEMU does not keep the words a backend was made with, so they are put together from what it shows. What it does not
show is either of no consequence for the guest, or refused in plain words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from migrator.errors import Refused

#: A QMP command with its arguments.
Command = tuple[str, dict[str, Any]]

_FILES = frozenset({"file", "host_device", "host_cdrom"})
#: Drivers that have no contents of their own.
FILTERS = frozenset({"copy-on-read", "throttle", "preallocate", "compress", "mirror_top", "commit_top"})
_MAY_HAVE_BACKING = frozenset({"qcow2", "qed", "vmdk", "qcow", "parallels"})


@dataclass(frozen=True, kw_only=True)
class Netdev:
    """One network backend, as ``info network`` shows it."""

    kind: str
    detail: str
    queues: int = 1


def netdevs(text: str) -> dict[str, Netdev]:
    """Read the answer of ``info network``; cards are left out."""
    found: dict[str, Netdev] = {}
    for match in re.finditer(
        r"^ *(?:\\ )?([#\w.-]+): index=(\d+),type=([\w-]+),?(.*?)\r?$", text, re.MULTILINE
    ):
        name, kind = match[1], match[3]
        if kind not in ("nic", "hubport"):
            queues = found[name].queues + 1 if name in found else 1
            found[name] = Netdev(kind=kind, detail=match[4], queues=queues)
    return found


def netdev_add(name: str, netdev: Netdev, *, vhost: bool) -> Command:
    """How to make it again.

    :param vhost: it was seen to be driven by vhost-net.
    :raise Refused: when QEMU does not show enough of it.
    """
    arguments: dict[str, Any] = {"id": name}
    if netdev.kind == "user":
        shown = re.fullmatch(r"net=([\d.]+),restrict=(on|off)", netdev.detail)
        if shown:
            arguments |= {"type": "user", "net": f"{shown[1]}/24", "restrict": shown[2] == "on"}
            return "netdev_add", arguments
    elif netdev.kind == "tap":
        shown = re.fullmatch(r"ifname=(.*),script=(.*),downscript=(.*)", netdev.detail)
        if shown:
            arguments |= {"type": "tap", "ifname": shown[1]}
            arguments |= {"script": shown[2] or "no", "downscript": shown[3] or "no"}
            arguments |= {"vhost": True} if vhost else {}
            arguments |= {"queues": netdev.queues} if netdev.queues > 1 else {}
            return "netdev_add", arguments
        shown = re.fullmatch(r"helper=(.*?)(?:,br=(.*))?", netdev.detail)
        if shown:
            bridge = {"type": "bridge", "br": shown[2]} if shown[2] else {"type": "tap"}
            return "netdev_add", arguments | bridge | {"helper": shown[1]}
    raise Refused(
        f"network backend {name} ({netdev.kind}: {netdev.detail}) was added while the guest ran, and QEMU does not "
        "show enough of it to make it again: start the destination with it by a template, or unplug its card"
    )


def chardev_add(name: str, shown: str, run_directory: str) -> Command:
    """How to make a character device again; a listening socket is put into `run_directory`.

    :param shown: its ``filename`` in query-chardev.
    :raise Refused: when QEMU does not show enough of it.
    """
    if shown == "null":
        return "chardev-add", {"id": name, "backend": {"type": "null", "data": {}}}
    if re.match(r"(disconnected:)?unix:.*,server", shown, re.DOTALL):
        address = {"type": "unix", "data": {"path": f"{run_directory}/{name}.sock"}}
        data = {"addr": address, "server": True, "wait": False}
        return "chardev-add", {"id": name, "backend": {"type": "socket", "data": data}}
    if shown == "pty" or shown.startswith("pty:"):
        return "chardev-add", {"id": name, "backend": {"type": "pty", "data": {}}}
    raise Refused(
        f"character device {name} ({shown}) was added while the guest ran, and QEMU does not show enough of it to "
        "make it again: start the destination with it by a template, or unplug its device"
    )


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The block devices of one QEMU and how they hang together."""

    #: query-named-block-nodes, by node name.
    nodes: Mapping[str, Mapping[str, Any]]
    #: Of each node: the nodes below it, by the name of the edge (``file``, ``backing``).
    children: Mapping[str, Mapping[str, str]]
    #: Of each drive that has an id: its uppermost node.
    roots: Mapping[str, str] = field(default_factory=dict)

    def top(self, name: str) -> Mapping[str, Any]:
        """The uppermost node of a drive or node."""
        return self.nodes[self.roots.get(name, name)]

    def chain(self, name: str) -> list[tuple[str, str]]:
        """File and driver of a node and of all that it is based on; filters, which only pass on, are left out."""
        found: list[tuple[str, str]] = []
        at: str | None = name
        while at is not None and at in self.nodes and len(found) < len(self.nodes):
            below, driver = self.children.get(at, {}), self.nodes[at]["drv"]
            if driver in FILTERS:
                at = below.get("file") or below.get("backing")
                continue
            found.append((_plain(self.nodes[at]["file"]), driver))
            at = below.get("backing")
        return found

    def commands(self, wanted: str, there: Sequence[str]) -> Iterator[Command]:
        """What makes the block device that a device calls `wanted`, its named nodes first.

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
        yield "blockdev-add", {**self._options(root), "node-name": wanted}

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
            told = json.loads(shown[5:])
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
            told = json.loads(shown[5:])
            return {key: value for key, value in told.items() if key != "driver"}
        if driver in _FILES:
            return {"filename": shown}
        if driver == "nbd":
            return _nbd(shown)
        raise self._unreadable(name, f"its driver is {driver}")

    def _unreadable(self, name: str, why: str) -> Refused:
        return Refused(
            f"block device {name} was added while the guest ran, and QEMU does not show enough of it to make it again "
            f"({why}): start the destination with it by a template, or unplug its disk"
        )


def _plain(file: str) -> str:
    """A file name of QEMU's, written in one way where it is JSON."""
    return json.dumps(json.loads(file[5:]), sort_keys=True) if file.startswith("json:") else file


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
) -> Nodes:
    """Read query-named-block-nodes, x-debug-query-block-graph and query-block."""
    names = {node["id"]: node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
    children: dict[str, dict[str, str]] = {}
    for edge in graph["edges"]:
        if edge["parent"] in names and edge["child"] in names:
            children.setdefault(names[edge["parent"]], {})[edge["name"]] = names[edge["child"]]
    roots = {
        block["device"]: block["inserted"]["node-name"]
        for block in blocks
        if block["device"] and "inserted" in block
    }
    return Nodes(nodes={node["node-name"]: node for node in named}, children=children, roots=roots)
