"""Room on every host, indexed once, and the constraint that keeps a guest from a host. Pure.

:mod:`migrator.core.placement` chooses among the hosts by it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from migrator.core.inventory import Guest, Host, HostState
from migrator.core.process.listening import ListeningPort
from migrator.core.process.ports_taken import PortsTaken
from migrator.units import show_bytes


class Constraint(StrEnum):
    """A constraint that can keep a guest from a host, in the order in which the first one is named."""

    #: The guest is there already.
    SAME_HOST = "same-host"
    #: The host did not answer.
    DOWN = "down"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"
    #: Somebody wants no new guests there.
    CORDONED = "cordoned"
    #: The host is emptied in the same plan.
    LEAVING = "leaving"
    #: Somebody named the one host it shall go to, and this is another.
    NOT_ASKED_FOR = "not-asked-for"
    LABEL = "label"
    #: The guest runs under KVM, the host has none.
    KVM = "kvm"
    #: A move there failed, or the caller knows another reason.
    EXCLUDED = "excluded"
    MEMORY = "memory"
    CPU = "cpu"
    #: A guest of the same word is there.
    ANTI_AFFINITY = "anti-affinity"
    #: A port that its QEMU listens at is taken there, or the host has not the address.
    PORT = "port"


@dataclass(frozen=True, kw_only=True)
class PlacementRequest:
    """One guest that wants a place."""

    guest: Guest
    #: Hosts it must not go to, each with the reason in words: it failed there, preflight refused it.
    excluded: Mapping[str, str] = field(default_factory=dict)
    #: Taken where it fits: what an earlier plan said, so that plans stay as they were told.
    prefer: str = ""
    #: The one host it may go to, where somebody asked for one; for ``restore`` its home.
    only: str = ""
    #: The guest may be given other ports for those that are taken.
    spare_ports: bool = False
    #: It runs under KVM; ``None``: unknown, then it is taken to do so if its own host has KVM.
    kvm: bool | None = None


@dataclass(frozen=True, kw_only=True)
class ConstraintCheck:
    """One constraint of one guest against one host."""

    constraint: Constraint
    fits: bool
    #: A sentence for a person, whether it fits or not.
    text: str


@dataclass(frozen=True, eq=False)
class Candidates:
    """Hosts that a kind of guest may go to; one object for all guests of the kind."""

    #: In the order they were given.
    places: tuple[int, ...]
    allowed: frozenset[int]


class Fleet:
    """Hosts and what is left of them, as of one look at the inventory.

    Memory that is left is what guests may have in all (:attr:`Host.usable_bytes`) without that of the guests there
    and of those on their way there, and never more than the kernel says is available without those on their way. A
    host whose memory is unknown has none; one whose CPUs are unknown has no limit of them. A guest that migrates
    counts on both hosts.

    Building it takes less than a microsecond a guest; it does not change afterwards.
    """

    def __init__(
        self,
        *,
        hosts: Iterable[Host],
        guests: Iterable[Guest],
        reserved: Mapping[str, str] | None = None,
        leaving: Collection[str] = (),
    ) -> None:
        """
        :param guests: all there are, those to be placed too.
        :param reserved: key of each guest that is on its way already, to the name of its target.
        :param leaving: names of hosts that are emptied in this plan, whatever their state says.
        """
        self.hosts: Sequence[Host] = tuple(hosts)
        self.index = {host.name: place for place, host in enumerate(self.hosts)}
        self.capacity_bytes = [host.usable_bytes for host in self.hosts]
        self.capacity_cpus = [
            host.facts.cpus * host.cpu_overcommit_ratio if host.facts.cpus else math.inf
            for host in self.hosts
        ]
        self.memory_left = list(self.capacity_bytes)
        self.cpus_left = list(self.capacity_cpus)
        #: How many guests of each anti-affinity word, and of each group, a host has or gets.
        self.words: dict[str, dict[int, int]] = {}
        self.groups: dict[str, dict[int, int]] = {}
        #: Ports that are taken on each host.
        self.ports = PortsTaken((host.facts.ports, host.facts.addresses) for host in self.hosts)
        self._classes: dict[tuple[frozenset[tuple[str, str]], bool, str], Candidates] = {}
        self.leaving = frozenset(leaving)
        self.barred = [_barred(host, self.leaving) for host in self.hosts]
        self._count(guests, reserved or {})
        #: Hosts that guests may go to at all, and what keeps them from the others.
        self.open = tuple(place for place, bar in enumerate(self.barred) if bar is None)
        self.barred_for = Counter(bar for bar in self.barred if bar is not None)

    def _count(self, guests: Iterable[Guest], reserved: Mapping[str, str]) -> None:
        index, arriving = self.index, [0] * len(self.hosts)
        memory_left, cpus_left = self.memory_left, self.cpus_left
        for guest in guests:
            place = index.get(guest.host)
            if place is not None:
                memory_left[place] -= guest.memory_bytes
                cpus_left[place] -= guest.vcpus
                if guest.listens or guest.anti_affinity or guest.group:
                    self._add(guest, place)
            if reserved and guest.key in reserved:
                target = index.get(reserved[guest.key])
                if target is not None and target != place:
                    memory_left[target] -= guest.memory_bytes
                    cpus_left[target] -= guest.vcpus
                    self._add(guest, target)
                    arriving[target] += guest.memory_bytes
        for place, host in enumerate(self.hosts):
            if host.facts.memory_free_bytes:
                available = host.facts.memory_free_bytes - arriving[place]
                memory_left[place] = min(memory_left[place], available)

    def _add(self, guest: Guest, place: int) -> None:
        """Note what a guest keeps others from, but for memory and CPUs."""
        self.ports.shift(guest.listens, place, 1)
        if guest.anti_affinity:
            there = self.words.setdefault(guest.anti_affinity, {})
            there[place] = there.get(place, 0) + 1
        if guest.group:
            there = self.groups.setdefault(guest.group, {})
            there[place] = there.get(place, 0) + 1

    def needs_kvm(self, request: PlacementRequest) -> bool:
        """Tell whether only a host with KVM will do."""
        if request.kvm is not None:
            return request.kvm
        home = self.index.get(request.guest.host)
        return home is not None and self.hosts[home].facts.kvm

    def kept_ports(self, request: PlacementRequest, place: int) -> tuple[ListeningPort, ...]:
        """Return the ports that the guest has to have on that host; none where it may be given others."""
        ports, spare = request.guest.listens, self.hosts[place].spare_ports
        if request.spare_ports or request.guest.ports == "any" or (spare and request.guest.ports != "keep"):
            return ()
        return ports

    def candidates(self, requires: Mapping[str, str], kvm: bool, only: str = "") -> Candidates:
        """Return the open hosts that have these labels, and KVM where it is needed; `only` leaves at most that one."""
        key = (frozenset(requires.items()), kvm, only)
        found = self._classes.get(key)
        if found is None:
            hosts, wanted = self.hosts, key[0]
            places = tuple(
                place
                for place in self.open
                if (not kvm or hosts[place].facts.kvm)
                and wanted <= hosts[place].labels.items()
                and only in ("", hosts[place].name)
            )
            found = self._classes[key] = Candidates(places, frozenset(places))
        return found


def _barred(host: Host, leaving: Collection[str]) -> Constraint | None:
    if not host.up:
        return Constraint.DOWN
    if host.state is HostState.DRAINING:
        return Constraint.DRAINING
    if host.state is HostState.MAINTENANCE:
        return Constraint.MAINTENANCE
    if host.cordoned:
        return Constraint.CORDONED
    return Constraint.LEAVING if host.name in leaving else None


def check(fleet: Fleet, request: PlacementRequest, host: str) -> tuple[ConstraintCheck, ...]:
    """Return every constraint of one guest against one host of the fleet; the guest can go there if all of them fit.

    The guest's own memory counts as on its way there only if the fleet has it as reserved; leave it out of `reserved`
    to ask for a guest that is migrating.

    :raise KeyError: when the fleet has no such host.
    """
    place = fleet.index[host]
    there, guest = fleet.hosts[place], request.guest
    usable = fleet.barred[place]
    found = [_check_state(there, usable, leaves=host in fleet.leaving)]
    if guest.host == host:
        found.insert(
            0, ConstraintCheck(constraint=Constraint.SAME_HOST, fits=False, text=f"it is on {host} already")
        )
    if request.only and request.only != host:
        text = f"it shall go to {request.only}"
        found.append(ConstraintCheck(constraint=Constraint.NOT_ASKED_FOR, fits=False, text=text))
    if host in request.excluded:
        found.append(ConstraintCheck(constraint=Constraint.EXCLUDED, fits=False, text=request.excluded[host]))
    if fleet.needs_kvm(request):
        text = (
            "/dev/kvm can be opened there" if there.facts.kvm else "it runs under KVM, which is missing there"
        )
        found.append(ConstraintCheck(constraint=Constraint.KVM, fits=there.facts.kvm, text=text))
    for key, value in guest.requires.items():
        has = there.labels.get(key)
        text = f"has label {key}={value}" if has == value else f"lacks label {key}={value}"
        if has not in (None, value):
            text += f" (has {key}={has})"
        found.append(ConstraintCheck(constraint=Constraint.LABEL, fits=has == value, text=text))
    if guest.anti_affinity:
        others = fleet.words.get(guest.anti_affinity, {}).get(place, 0) - (guest.host == host)
        text = f"{others or 'no'} other guest{'s' * (others != 1)} with anti-affinity {guest.anti_affinity!r} there"
        found.append(ConstraintCheck(constraint=Constraint.ANTI_AFFINITY, fits=others <= 0, text=text))
    if (ports := fleet.kept_ports(request, place)) and guest.host != host:
        found.append(_check_ports(fleet, ports, place))
    return (*found, _check_memory(fleet, guest, place), _check_cpu(fleet, guest, place))


def _check_ports(fleet: Fleet, ports: tuple[ListeningPort, ...], place: int) -> ConstraintCheck:
    port = fleet.ports.first_conflict(ports, place)
    if port is None:
        return ConstraintCheck(constraint=Constraint.PORT, fits=True, text="its ports are free there")
    text = (
        f"{port} is taken there"
        if fleet.ports.has_address(port, place)
        else f"it has not the address of {port}"
    )
    return ConstraintCheck(constraint=Constraint.PORT, fits=False, text=text)


def _check_state(host: Host, bar: Constraint | None, *, leaves: bool) -> ConstraintCheck:
    if bar is None:
        # Any of the five would do; it is open.
        return ConstraintCheck(constraint=Constraint.DOWN, fits=True, text="it is up and takes guests")
    words = {
        Constraint.DOWN: f"it does not answer{f': {host.error}' if host.error else ''}",
        Constraint.DRAINING: "an evacuation is emptying it"
        if leaves
        else "its last evacuation ended with guests left on it, so it takes none: "
        f"migrator evacuate {host.name} goes on, migrator activate {host.name} lets guests come",
        Constraint.MAINTENANCE: "it is in maintenance: "
        f"migrator restore {host.name} or migrator activate {host.name} ends that",
        Constraint.CORDONED: f"it is cordoned: migrator uncordon {host.name} lets guests come",
        Constraint.LEAVING: "it is emptied in the same plan",
    }
    return ConstraintCheck(constraint=bar, fits=False, text=words[bar])


def _check_memory(fleet: Fleet, guest: Guest, place: int) -> ConstraintCheck:
    left, host = max(0, fleet.memory_left[place]), fleet.hosts[place]
    if not fleet.capacity_bytes[place]:
        text = "its memory is unknown: set memory of that host"
        return ConstraintCheck(constraint=Constraint.MEMORY, fits=False, text=text)
    text = f"{show_bytes(left)} of memory left, {show_bytes(guest.memory_bytes)} needed"
    if left < guest.memory_bytes <= fleet.capacity_bytes[place] and host.memory_reserve_bytes:
        text += f" ({show_bytes(host.memory_reserve_bytes)} are kept in reserve: memory_reserve)"
    return ConstraintCheck(
        constraint=Constraint.MEMORY, fits=fleet.memory_left[place] >= guest.memory_bytes, text=text
    )


def _check_cpu(fleet: Fleet, guest: Guest, place: int) -> ConstraintCheck:
    left, host = fleet.cpus_left[place], fleet.hosts[place]
    if math.isinf(left):
        return ConstraintCheck(
            constraint=Constraint.CPU, fits=True, text="its number of CPUs is unknown: no limit"
        )
    text = (
        f"{max(0, math.floor(left))} vCPUs left, {guest.vcpus} needed "
        f"({host.facts.cpus} CPUs, {host.cpu_overcommit_ratio:g} vCPUs on each: cpu_overcommit)"
    )
    return ConstraintCheck(constraint=Constraint.CPU, fits=left >= guest.vcpus, text=text)
