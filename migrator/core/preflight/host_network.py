"""Findings against a host because of what the guest's network cards hang on. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.preflight.host_pair import HostPair
from migrator.core.process import guest_network
from migrator.core.process.command_line import CommandLine, Option

#: Script that QEMU runs where none is named.
_IFUP = "/etc/qemu-ifup"
#: From this version on, networks of QEMU's own stand in the stream by a number.
NUMBERS_NETWORKS_SINCE = (8, 2)
_ON = ("on", "yes", "true")
_SOCKETS = frozenset({"socket", "stream", "dgram", "l2tpv3", "vde", "passt"})


def paths_to_read(command: CommandLine) -> list[str]:
    """Return every path that :func:`check` looks at."""
    paths = [path for option in command.network() for path in _programs(option)]
    return [*paths, *(option["vhostdev"] for option in command.network() if option["vhostdev"])]


def check(pair: HostPair) -> Iterator[Finding]:
    """Yield findings about everything that the guest's network cards hang on."""
    yield from _numbered(pair)
    for option in pair.command.network():
        kind, name = option["type"], option["id"] or option["type"]
        if option["fd"] or option["fds"] or option["vhostfd"] or option["vhostfds"]:
            yield finding(
                "passed-descriptor", f"network {name} is an open file that another program handed to QEMU"
            )
        if kind == "user":
            yield finding("user-network", f"network {name} is QEMU's own: connections are lost")
        elif kind in _SOCKETS:
            yield finding("socket-network", f"network {name} is a {kind} to another program")
        elif kind in ("tap", "bridge"):
            yield from _tap(pair, option, name)
        elif kind in ("af-xdp", "netmap"):
            yield from _interface(pair, option["ifname"], name)
        elif kind == "vhost-vdpa" and not pair.files_there.file(option["vhostdev"]).exists:
            yield finding(
                "file-missing", f"{option['vhostdev']} of network {name} does not exist at {pair.target}"
            )


def _numbered(pair: HostPair) -> Iterator[Finding]:
    own = [option for option in pair.command.network() if option["type"] == "user"]
    mine, theirs = (
        tuple(int(part) for part in re.findall(r"\d+", text)[:2])
        for text in (pair.source.version, pair.files_there.offer.version)
    )
    if len(own) > 1 and theirs and theirs < NUMBERS_NETWORKS_SINCE <= mine:
        version = pair.files_there.offer.version
        yield finding(
            "user-networks",
            f"of {len(own)} networks of QEMU's own, QEMU {version} at {pair.target} takes in only the first",
        )


def _programs(option: Option) -> list[str]:
    """The script or helper that sets it up; none where the file is handed over or nobody sets it up."""
    if option["type"] not in ("tap", "bridge") or option["fd"] or option["fds"]:
        return []
    if option["helper"]:
        # A helper may come with arguments.
        return [option["helper"].split()[0]] if option["helper"].split() else []
    if option["type"] == "bridge" or option["br"]:
        return []  # the helper that QEMU was built with
    script = option["script"] or _IFUP
    return [] if script in ("no", "off") else [script]


def _tap(pair: HostPair, option: Option, name: str) -> Iterator[Finding]:
    for path in _programs(option):
        there = pair.files_there.file(path)
        if not there.exists or not there.executable:
            what = "is not executable" if there.exists else "does not exist"
            yield finding("net-script", f"{path}, which sets up network {name}, {what} at {pair.target}")
    yield from _bridge(pair, option, name)
    tap = option["ifname"]
    by_hand = option["script"] in ("no", "off")
    if tap and by_hand:  # else somebody sets it up once QEMU has it
        yield from guest_network.compare_tap(pair.here.links, pair.there.links, tap, tap, pair.target)
    held = pair.there.links.get(tap)
    if held is not None and held.kind == "tun" and held.carrier and not option["queues"]:
        yield finding("tap-in-use", f"tap {tap} of network {name} is open at {pair.target}: a process has it")
    # QEMU would make the tap itself, but nobody would then put it on a bridge.
    if tap and by_hand and pair.there.interfaces and tap not in pair.there.interfaces:
        yield finding("tap-missing", f"tap {tap} of network {name} does not exist at {pair.target}")
    if not pair.there.vhost_net:
        if option["vhostforce"] in _ON:
            yield finding(
                "vhost-net-required", f"network {name} insists on vhost, which {pair.target} has not"
            )
        elif option["vhost"] in _ON:
            yield finding("vhost-net-missing", f"network {name} uses vhost, which {pair.target} has not")


def _bridge(pair: HostPair, option: Option, name: str) -> Iterator[Finding]:
    if not pair.there.interfaces:
        return  # its interfaces could not be read
    bridge = option["br"]
    if option["type"] == "bridge" or (option["helper"] and not bridge):
        bridge = bridge or "br0"
    if bridge:
        if bridge not in pair.there.bridges:
            yield finding(
                "bridge-missing", f"bridge {bridge} of network {name} does not exist at {pair.target}"
            )
        yield from guest_network.compare_bridge(
            pair.here.links, pair.there.links, bridge, bridge, pair.target
        )
        return
    master = pair.files_here.masters.get(option["ifname"], "")
    if master and master not in pair.there.interfaces:
        yield finding(
            "bridge-maybe-missing",
            f"tap {option['ifname']} of network {name} is on {master} here, which does not exist at {pair.target}",
        )
    elif master and option["script"] not in ("no", "off"):  # which will put it there
        yield from guest_network.compare_bridge(
            pair.here.links, pair.there.links, master, master, pair.target
        )


def _interface(pair: HostPair, interface: str, name: str) -> Iterator[Finding]:
    if interface and pair.there.interfaces and interface not in pair.there.interfaces:
        yield finding(
            "net-interface", f"interface {interface} of network {name} does not exist at {pair.target}"
        )
