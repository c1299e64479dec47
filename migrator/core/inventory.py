"""Hosts and guests as the controller knows them. Pure values: what was read is in them, nothing is asked here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from migrator.core.link_speeds import NOTHING_LEARNED, LearnedSpeeds
from migrator.core.managed_guest import ManagedDomain
from migrator.core.model import RunState
from migrator.core.process.certificates import HostCertificates
from migrator.core.process.guest_network import NetworkInterface, NetworkState
from migrator.core.process.listening import ListeningPort

#: What QEMU holds beside the memory of its guest: RssAnon of 7.2 and 10.0 whose guest has touched nothing is 20 to
#: 28 MiB, under KVM and TCG.
_QEMUS_OWN_BYTES = 20 << 20
#: Where a destination's run directory is made if nothing else is configured and root starts it.
RUN_DIRECTORY = "/run/migrator/guests"
#: Where QMP sockets are looked for if nothing else is configured.
MONITOR_SOCKETS = ("/run/qemu/*.qmp", f"{RUN_DIRECTORY}/*/control.qmp")
#: Where QEMU and libvirt look for certificates by custom.
TLS_DIRECTORY = "/etc/pki/qemu"
#: Stands for the run state of a guest that cannot be asked.
LOST_CONTACT = "lost-contact"


class HostState(StrEnum):
    """The use that a host may be put to; the one word for it on every interface."""

    #: Takes guests and keeps those it has.
    ACTIVE = "active"
    #: Is being emptied: never a target, and every guest that appears on it is taken away too.
    DRAINING = "draining"
    #: Empty; may be switched off. Never a target until it is activated or restored.
    MAINTENANCE = "maintenance"


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """Facts read from a host; whatever could not be read is at its default."""

    #: MemTotal and MemAvailable of the kernel.
    memory_total_bytes: int = 0
    memory_free_bytes: int = 0
    #: Logical CPUs.
    cpus: int = 0
    #: Processes that ran or waited for a CPU, on average over the last minute; ``None``: not known.
    load: float | None = None
    cpu_model: str = ""
    #: As in /proc/cpuinfo.
    cpu_flags: frozenset[str] = frozenset()
    #: Abilities of its virtualisation for nested guests, as in /proc/cpuinfo's ``vmx flags`` (``ept``, ``vpid``).
    nested_flags: frozenset[str] = frozenset()
    #: /dev/kvm can be opened.
    kvm: bool = False
    #: An unprivileged userfaultfd, or a QEMU that runs as root: postcopy can work there.
    userfaultfd: bool = False
    vhost_net: bool = False
    #: Programs that the network between hosts is probed with.
    python3: bool = True
    ping: bool = True
    #: Free pages by their size in bytes.
    hugepages: Mapping[int, int] = field(default_factory=dict)
    #: Of the slowest link that carries the migration address, where it says; payload, after TCP's 5 %.
    link_bytes_per_second: float | None = None
    #: Path of every QEMU found, with its version.
    qemus: Mapping[str, str] = field(default_factory=dict)
    #: Network interfaces that exist there, bridges among them.
    interfaces: frozenset[str] = frozenset()
    bridges: frozenset[str] = frozenset()
    #: Ports that somebody listens at there who is no guest we know of, and the addresses that it has; empty where that
    #: could not be read.
    ports: frozenset[ListeningPort] = frozenset()
    addresses: frozenset[str] = frozenset()
    #: Each of the interfaces, and what it is on; those that could not be looked at are missing.
    links: Mapping[str, NetworkInterface] = field(default_factory=dict)
    #: systemd runs as pid 1: processes are started as units of their own.
    systemd: bool = False
    boot_id: str = ""
    kernel: str = ""
    #: Why its libvirt cannot be asked, in one line; empty where it can, or there is none.
    libvirt_error: str = ""
    #: Guests that its libvirt has shut off, when it could last be asked: no migration takes them along.
    shut_off_guests: int = 0
    #: For QEMU's streams.
    certificates: HostCertificates = field(default_factory=HostCertificates)


@dataclass(frozen=True, kw_only=True)
class Host:
    """One host: what was configured, what was read from it, and what it may be used for."""

    name: str
    #: Where other hosts reach it with a migration's stream: an IP address or a name.
    address: str = "127.0.0.1"
    state: HostState = HostState.ACTIVE
    #: No guest is brought here, whatever its state; those that are here stay.
    cordoned: bool = False
    #: The host answered when it was last asked.
    up: bool = True
    #: Why it did not, in one line; empty while it is up.
    error: str = ""
    facts: HostFacts = HostFacts()
    #: Configured, else read, else ``None``: unknown.
    link_bytes_per_second: float | None = None
    #: That is what its card says: nobody configured it.
    link_is_read: bool = False
    #: What its link and the paths from it were seen to carry.
    learned: LearnedSpeeds = NOTHING_LEARNED
    #: Configured; 0 takes what was read.
    memory_bytes: int = 0
    #: Never given to guests.
    memory_reserve_bytes: int = 0
    #: vCPUs that may be placed for every CPU.
    cpu_overcommit_ratio: float = 4.0
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Streams at a time, where there shall be a limit beside the link's speed.
    max_incoming: int | None = None
    max_outgoing: int | None = None
    #: Directory for guests that are saved as a last resort; empty: none.
    saved_dir: str = ""
    #: Guests that come here may be given other ports for those that are taken.
    spare_ports: bool = False

    @property
    def usable_bytes(self) -> int:
        """Memory that guests may have in all: what there is without the reserve."""
        return max(0, (self.memory_bytes or self.facts.memory_total_bytes) - self.memory_reserve_bytes)


@dataclass(frozen=True, kw_only=True)
class Guest:
    """One guest, known by its uuid; while it migrates it is the one at the source."""

    #: Its uuid; where it has none its identity; where that cannot be known either ``HOST/NAME``, or ``HOST:SOCKET``.
    key: str
    host: str
    uuid: str = ""
    #: Our name for it, where it has no uuid; kept when the guest moves.
    identity: str = ""
    #: As its owner called it: anything, and never part of a topic, a path or a shell line.
    name: str = ""
    #: Path of its QMP socket on its host.
    socket: str = ""
    #: On its host; ``None`` where that is unknown.
    pid: int | None = None
    #: Which process it is: equal texts are one process, also of two hosts that are one machine; empty: unknown.
    process: str = ""
    memory_bytes: int = 0
    #: What its process holds of it and of its own; ``None`` where that cannot be read. The rest was never touched.
    resident_bytes: int | None = None
    vcpus: int = 1
    run: RunState = RunState.RUNNING
    #: Distinct bytes of pages per second, as last measured; ``None`` until then.
    dirty_rate_bytes_per_second: float | None = None
    #: Bytes of its disks that would be copied to a host, by the host's name, as last found; no other is known.
    disk_bytes_to: Mapping[str, int] = field(default_factory=dict)
    #: Name of its policy; empty takes the site's default.
    policy: str = ""
    #: Higher first.
    priority: int = 0
    #: Guests of one group are kept on one host where that is possible.
    group: str = ""
    #: Guests that name the same word are never put on one host.
    anti_affinity: str = ""
    #: Labels that its host must have.
    requires: Mapping[str, str] = field(default_factory=dict)
    #: Ports that its QEMU listens at, and would again at a target.
    listens: tuple[ListeningPort, ...] = ()
    #: What is to be done about one that is taken at a target: ``keep`` it, or ``any`` other will do; empty: as its
    #: host says.
    ports: str = ""
    #: Codes of findings that the configuration accepts for it.
    accept: tuple[str, ...] = ()
    #: State of the interfaces that carry its network cards, and what is wrong in one line.
    network: tuple[NetworkState, str] = (NetworkState.UNKNOWN, "")
    #: Why it cannot be moved at all, in one line (libvirt manages it, its monitor is held, the configuration says
    #: so); empty when it can be tried.
    obstacle: str = ""
    #: Code of that finding: ``libvirt``, ``monitor-held``, ``monitor-silent``, ``no-monitor``, ``not-movable``,
    #: ``arriving``…
    obstacle_code: str = ""
    #: Manager besides us: ``libvirt``, ``systemd:UNIT``…; empty where none is known.
    managed_by: str = ""
    #: ... and would start the guest again when its process ends.
    restarts: bool = False
    #: What libvirt says of it besides; ``None`` where it is not libvirt's, or that cannot be asked.
    domain: ManagedDomain | None = None
    #: It cannot be asked: it is there, and everything else of it is as it was when it last could be.
    lost_contact: bool = False
    #: A monitor of it is where its host's monitors are looked for; else only its process is known.
    monitored: bool = True

    @property
    def arriving(self) -> bool:
        """True while it is on its way to this host from another."""
        return self.run is RunState.INMIGRATE

    @property
    def to_send_bytes(self) -> int:
        """Return how much of its memory is not empty, as far as is known."""
        if self.resident_bytes is None:
            return self.memory_bytes
        return min(self.memory_bytes, max(0, self.resident_bytes - _QEMUS_OWN_BYTES))

    @property
    def state(self) -> str:
        """The run state for every interface, or that contact with the guest is lost."""
        return LOST_CONTACT if self.lost_contact else self.run.value

    @property
    def label(self) -> str:
        """A name for people: the guest's name where it has one, else its uuid, else its place."""
        return self.name or self.uuid or (f"{self.host}:{self.socket}" if self.socket else self.key)

    def fields(self) -> dict[str, Any]:
        """Return the guest as plain JSON, for :meth:`from_fields`."""
        listens = [port.fields() for port in self.listens]
        return {
            **vars(self),
            "disk_bytes_to": dict(self.disk_bytes_to),
            "requires": dict(self.requires),
            "listens": listens,
            "accept": list(self.accept),
            "network": list(self.network),
            "domain": self.domain.fields() if self.domain is not None else None,
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Guest:
        """Return the guest that :meth:`fields` described; what only a newer version knows of it is left out.

        :raise KeyError: a field is missing.
        :raise ValueError: a word is not known.
        """
        listens = tuple(ListeningPort.of(*each) for each in fields.get("listens", ()))
        state, problem = fields.get("network", (NetworkState.UNKNOWN, ""))
        network = (NetworkState(state), problem)
        domain = fields.get("domain")
        made = {
            "domain": ManagedDomain.from_fields(domain) if domain is not None else None,
            "run": RunState(fields["run"]),
            "listens": listens,
            "accept": tuple(fields.get("accept", ())),
            "network": network,
        }
        known = {each.name for each in dataclass_fields(cls)}
        return cls(**{name: value for name, value in {**fields, **made}.items() if name in known})


class Findable(Protocol):
    """Keys by which a guest is found."""

    @property
    def key(self) -> str: ...
    @property
    def uuid(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def socket(self) -> str: ...
    @property
    def arriving(self) -> bool:
        """True while it is on its way to this host from another."""


_Guest = TypeVar("_Guest", bound=Findable)


def find(which: str, guests: Iterable[_Guest]) -> list[_Guest]:
    """Return every guest of that key, uuid, name, HOST/NAME or HOST:SOCKET; a key or uuid leaves the others out."""
    guests = list(guests)
    exact = [guest for guest in guests if which in (guest.key, guest.uuid)]
    if exact:
        return exact
    host, _, name = which.partition("/")
    # One that is on its way to another host is where it comes from.
    return [
        guest
        for guest in guests
        if not guest.arriving
        and (
            guest.name == which
            or (guest.host == host and guest.name == name)
            or (guest.socket and which == f"{guest.host}:{guest.socket}")
        )
    ]
