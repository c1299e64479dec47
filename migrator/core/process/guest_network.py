"""Network interfaces that carry a guest's traffic: its taps, their bridge and VLAN, and the host's uplink. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from migrator.core.findings import finding
from migrator.core.model import Finding

#: The bridge that Open vSwitch shows for all of its own; it is never up, and which of them it is cannot be seen.
_OVS = "ovs-system"
_TAP = "tun"
#: So many addresses of a tap are named.
_MOST_SAID = 4
#: VLANs of a bridge port that nobody has configured.
_USUAL = frozenset({"1 PVID Egress Untagged"})


@dataclass(frozen=True, kw_only=True)
class NetworkInterface:
    """One network interface of a host."""

    #: ``tun``, ``compare_bridge``, ``vlan``, ``bond``, ``veth``, as the kernel calls it; empty of hardware.
    kind: str = ""
    #: Somebody has switched it on.
    up: bool = False
    #: There is a cable; of a tap: a process has it open.
    carrier: bool = False
    #: The bridge or bond that it is on.
    master: str = ""
    #: Number of a VLAN interface's VLAN.
    vlan: int | None = None
    #: Of a bridge's port: the bridge notes which addresses send there.
    learning: bool = True
    #: True for a bridge that filters VLANs.
    filters: bool = False
    #: VLANs of a bridge's port, each with its flags: ``10 PVID Egress Untagged``.
    vlans: frozenset[str] = frozenset()


NetworkInterfaces = Mapping[str, NetworkInterface]


class NetworkState(StrEnum):
    """State of the interfaces that carry a guest's network cards where it runs."""

    UP = "up"
    #: A tap or its bridge is down, or not as it was at the source.
    DOWN = "down"
    #: All is up, but a bridge does not know yet that the guest has moved.
    UNLEARNED = "unlearned"
    #: The guest has no tap: no network, or one of QEMU's own.
    NONE = "none"
    #: The guest's network cannot be seen.
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class GuestTaps:
    """The taps of one QEMU process, and the interfaces of its host."""

    #: In the order in which it opened them; ``None``: they cannot be read.
    taps: tuple[str, ...] | None = None
    links: NetworkInterfaces = field(default_factory=dict)
    #: Addresses that the bridge has learned on each tap, with their VLAN where it filters them; a tap is left out where
    #: they were not or cannot be read.
    learned: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def state(self) -> tuple[NetworkState, str]:
        """State of the guest's network, and what is wrong with it in one line; empty where nothing is."""
        if self.taps is None or (self.taps and not self.links):
            return NetworkState.UNKNOWN, ""
        if not self.taps:
            return NetworkState.NONE, ""
        wrong = [said for tap in self.taps if (said := _wrong(self.links, tap))]
        return (NetworkState.DOWN, "; ".join(wrong)) if wrong else (NetworkState.UP, "")


def _wrong(links: NetworkInterfaces, tap: str) -> str:
    link = links.get(tap)
    if link is None:
        return f"{tap} does not exist"
    if not link.up:
        return f"{tap} is down"
    bridge = links.get(link.master)
    if bridge is not None and not bridge.up and link.master != _OVS:
        return f"{link.master}, which {tap} is on, is down"
    return ""


def arrival_state(here: GuestTaps, there: GuestTaps) -> tuple[NetworkState, str]:
    """Return the state of a guest that has come from `here`, measured by what it had there."""
    state, wrong = there.state
    said = [each.message for each in compare(here, there, "its host")]
    if state is NetworkState.UP and said:
        return NetworkState.DOWN, "; ".join(said)
    return state, wrong


@dataclass(frozen=True, kw_only=True)
class LearnedPlaces:
    """Knowledge of bridges about where a guest is; all empty where they cannot be asked."""

    #: Where they know it to be, and where they do not, or know it to be at the source still, each in one line.
    known: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


def learned_places(before: GuestTaps, left: GuestTaps, there: GuestTaps, target: str) -> LearnedPlaces:
    """Tell whether bridges know that a guest has moved.

    :param before: its taps at the source while it ran there.
    :param left: what is learned there now on the same taps.
    :param there: its taps at the target now.
    """
    known, lacking = [], []
    came_from = {theirs: mine for mine, theirs in _pairs(before.taps or (), there.taps or ())}
    for tap in there.taps or ():
        link = there.links.get(tap)
        bridge = there.links.get(link.master) if link is not None else None
        if link is None or bridge is None or bridge.kind != "bridge" or tap not in there.learned:
            continue
        mine = came_from.get(tap, "")
        here, now = before.learned.get(mine, frozenset()), there.learned[tap]
        if not link.learning and not now:
            continue  # it is reached by whatever is sent everywhere
        if not now or here - now:
            what = _some(here - now) if here else "any address"
            lacking.append(f"{link.master} at {target} has not learned {what} on {tap}")
        else:
            known.append(f"{link.master} at {target} has {_some(now)} on {tap}")
        if stale := left.learned.get(mine, frozenset()) & (here | now):
            lacking.append(f"{before.links[mine].master} at the source still has {_some(stale)} on {mine}")
    return LearnedPlaces(known=tuple(known), lacking=tuple(lacking))


def _some(addresses: frozenset[str]) -> str:
    few = sorted(addresses)[:_MOST_SAID]
    more = f" and {len(addresses) - len(few)} more" if len(addresses) > len(few) else ""
    return ", ".join(few) + more


def compare(here: GuestTaps, there: GuestTaps, target: str) -> Iterator[Finding]:
    """Compare what two QEMUs' taps hang on; yield a finding for all that differs at the target."""
    for mine, theirs in _pairs(here.taps or (), there.taps or ()):
        yield from compare_tap(here.links, there.links, mine, theirs, target)


def _pairs(here: Sequence[str], there: Sequence[str]) -> list[tuple[str, str]]:
    """Pair taps by name where both have it, else in their order."""
    alike = [(name, name) for name in here if name in there]
    left = [name for name in here if name not in there]
    return alike + list(zip(left, (name for name in there if name not in here), strict=False))


def compare_tap(
    here: NetworkInterfaces, there: NetworkInterfaces, mine: str, theirs: str, target: str
) -> Iterator[Finding]:
    """Compare one tap with its counterpart; one that does not exist there, or is not known here, has no findings."""
    before, now = here.get(mine), there.get(theirs)
    if before is None or now is None:
        return
    if before.up and not now.up:
        yield finding("tap-down", f"tap {theirs} is down at {target}; at the source it is up")
    if now.master != before.master:
        where = f"on {now.master}" if now.master else "on no bridge"
        was = f"on {before.master}" if before.master else "on none"
        yield finding("tap-bridge", f"tap {theirs} is {where} at {target}; at the source it is {was}")
    elif (here_ := _vlans(here, before)) != (there_ := _vlans(there, now)):
        yield finding(
            "tap-vlan",
            f"tap {theirs} is in VLAN {_said(there_)} at {target}; at the source it is in {_said(here_)}",
        )
    if before.master and now.master:
        yield from compare_bridge(here, there, before.master, now.master, target)


def compare_bridge(
    here: NetworkInterfaces, there: NetworkInterfaces, mine: str, theirs: str, target: str
) -> Iterator[Finding]:
    """Compare the bridges that taps are on, or will be."""
    before, now = here.get(mine), there.get(theirs)
    if before is None or now is None or _OVS in (mine, theirs):
        return
    if before.up and not now.up:
        yield finding("bridge-down", f"bridge {theirs} is down at {target}; at the source it is up")
    out = _uplinks(here, mine)
    if not any(here[name].up and here[name].carrier for name in out):
        return
    ways = _uplinks(there, theirs)
    if not ways:
        yield finding(
            "bridge-uplink",
            f"bridge {theirs} has no way out of {target}; at the source it has {', '.join(out)}",
        )
        return
    if not any(there[name].up and there[name].carrier for name in ways):
        down = ", ".join(f"{name} is {'without a cable' if there[name].up else 'down'}" for name in ways)
        yield finding("bridge-uplink", f"bridge {theirs} has no way out of {target}: {down}")
    tags, theirs_ = _tags(here, out), _tags(there, ways)
    if tags != theirs_ and (tags or theirs_):
        yield finding(
            "tap-vlan",
            f"bridge {theirs} leads into VLAN {_said(theirs_)} at {target}; at the source into {_said(tags)}",
        )


def _vlans(links: NetworkInterfaces, port: NetworkInterface) -> frozenset[str]:
    above = links.get(port.master)
    return port.vlans if above is not None and above.filters else _USUAL


def _uplinks(links: NetworkInterfaces, name: str) -> list[str]:
    """Return the interfaces on a bridge that are no guest's."""
    return sorted(each for each, link in links.items() if link.master == name and link.kind != _TAP)


def _tags(links: NetworkInterfaces, names: Sequence[str]) -> frozenset[str]:
    return frozenset(str(links[name].vlan) for name in names if links[name].vlan is not None)


def _said(vlans: frozenset[str]) -> str:
    return ", ".join(sorted(vlans)) or "none"
