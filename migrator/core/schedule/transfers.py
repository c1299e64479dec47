"""Subjects of the schedule: guests on their way, the links they take, and how long they take. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from migrator.core.inventory import Host
from migrator.core.link_speeds import MOST_OF_PATH_RATIO, LinkSpeed

#: A guest that dirties as fast as the stream carries is made to end by throttling or postcopy; it then sends about so
#: many times what one that does not write would.
_MOST_TIMES_SENT = 3.0
#: What is left at the end goes in this time, and never with less than this part of the full speed.
_EMPTY_SECONDS = 0.25
_LEAST_SHARE = 1 / 16
#: Of ten paths that nobody has measured one is more than so many times slower than its card: there is a switch of the
#: class below on it.
_CARD_DOUBT = 10.0


class TransferPhase(StrEnum):
    """How far a guest on its way is, as the schedule sees it."""

    #: Nothing was done yet.
    WAITING = "waiting"
    #: Its destination is being started and set up; it holds no link.
    PREPARING = "preparing"
    #: Both ends are set up; it waits for the link.
    READY = "ready"
    #: Its memory is on the link, or it is being switched over.
    TRANSFERRING = "transferring"
    #: The guest runs at the destination and leftovers are cleared away. No link is held.
    FINISHING = "finishing"


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One guest on its way, as of now."""

    guest: str
    source: str
    target: str
    phase: TransferPhase = TransferPhase.WAITING
    #: Bytes that the stream has still to carry, without what will be dirtied meanwhile.
    bytes_left: float = 0.0
    #: Bytes of its disks that have to be copied before that: at full speed, whatever the guest dirties.
    disk_bytes_left: float = 0.0
    #: Distinct bytes of pages that the guest dirties per second.
    dirty_rate_bytes_per_second: float = 0.0
    #: The transfer from now to its end if it had its links alone, where that is known better (the same guest's last
    #: migration, a forecast while it does have them alone); ``None``: reckoned from bytes, speed and dirty rate, and a
    #: fixed part. A forecast made while it shares a link is too long.
    alone_seconds: float | None = None
    #: It needs its links for itself; ``None``: it does if it dirties a good part of what they carry.
    barely_converges: bool | None = None
    #: Its policy's ceiling, or what the stream was seen to carry at most; ``None`` is none.
    max_bytes_per_second: float | None = None
    #: Higher first.
    priority: int = 0
    #: Seconds from now by which it should have ended; ``None`` is no deadline.
    deadline_seconds: float | None = None
    #: What has not ended by then is cancelled, so it is not begun if it would not.
    stop_at_deadline: bool = False
    #: Still to go, for the prediction.
    prepare_seconds: float = 1.0
    finish_seconds: float = 0.5
    #: Relative spread (one standard deviation) of how long it takes.
    spread_ratio: float = 0.2


@dataclass(frozen=True, kw_only=True)
class LinkRules:
    """Rules by which links are shared; the site's, not a guest's."""

    #: Share of every link, in either direction, that migrations leave to the guests' own traffic.
    reserve_ratio: float = 0.1
    #: Taken for a link whose speed is unknown, bytes per second: 10 Gbit/s. Too high a guess leaves it to TCP to share
    #: it out; too low a one would slow everything down.
    assumed_link_bytes_per_second: float = 1.25e9 * 0.95
    #: From this ratio of dirty rate to link speed on a guest has its links alone: it would send a third more in all.
    barely_ratio: float = 0.25
    #: Up to this ratio it costs nothing to share a link.
    quiet_ratio: float = 0.05
    #: So many times a link's speed may be asked for by those that share it: quiet guests fill the gaps that each of
    #: them leaves at its beginning and end. More may share it if they are limited elsewhere (a slower link, a policy).
    quiet_at_a_time: int = 3
    #: The next one begins when one has so little left to send, so that the link is never idle.
    overlap_seconds: float = 0.5
    #: Guests prepared ahead on one source, and on one target, that do not have a link yet.
    prepared_per_source: int = 2
    prepared_per_target: int = 4
    #: So many where the link would else wait for preparations: guests so small that they are sent faster.
    prepared_at_most: int = 6
    #: The part of a transfer that uses no bandwidth, where no forecast says so.
    fixed_seconds: float = 0.3
    #: How far the time of preparing may be off, either way.
    prepare_spread_ratio: float = 0.5
    #: Common to all: how far the links' speeds may be off (one standard deviation).
    link_spread_ratio: float = 0.05


@dataclass(eq=False, kw_only=True, slots=True)
class LinkDirection:
    """One direction of one host's link, or the path between two hosts where that carries less than both of theirs."""

    host: str
    #: For people: ``host-1's link out``.
    name: str
    #: Name of its limit in the configuration; empty where there is none.
    key: str
    #: Bandwidth that migrations may take, bytes per second.
    capacity: float
    #: Streams at a time; ``None`` is no limit.
    limit: int | None
    #: It carries less than it should, as was seen.
    narrow: bool = False
    #: What was seen of it.
    learned: LinkSpeed = field(default_factory=LinkSpeed)


class LinkTable:
    """The links of all hosts, made as they are asked for."""

    def __init__(self, hosts: Mapping[str, Host], rules: LinkRules) -> None:
        self._hosts = hosts
        self._rules = rules
        self._pipes: dict[tuple[str, bool], LinkDirection] = {}
        self._paths: dict[tuple[str, str], Path] = {}

    def of(self, hosts: Mapping[str, Host], rules: LinkRules) -> LinkTable:
        """Return the table of these hosts: with the links and paths of this one, where their hosts are as they were."""
        if rules != self._rules:
            return LinkTable(hosts, rules)
        before = self._hosts
        changed = hosts.keys() ^ before.keys() | {
            name
            for name, host in hosts.items()
            if name in before and host is not before[name] and _link(host) != _link(before[name])
        }
        if not changed:
            self._hosts = hosts
            return self
        after = LinkTable(hosts, rules)
        after._pipes = {key: pipe for key, pipe in self._pipes.items() if key[0] not in changed}
        after._paths = {key: path for key, path in self._paths.items() if changed.isdisjoint(key)}
        return after

    def pipe(self, name: str, *, out: bool) -> LinkDirection:
        """Return one direction of a host's link; a host that is not known has one without limits."""
        pipe = self._pipes.get((name, out))
        if pipe is None:
            host = self._hosts.get(name)
            speed = host.link_bytes_per_second if host is not None else None
            capacity = (speed or self._rules.assumed_link_bytes_per_second) * (1 - self._rules.reserve_ratio)
            learned = LinkSpeed()
            if host is not None:
                learned = host.learned.out if out else host.learned.into
            seen = _seen(learned, capacity)
            pipe = self._pipes[name, out] = LinkDirection(
                host=name,
                name=f"{name}'s link {'out' if out else 'in'}",
                key="max_outgoing" if out else "max_incoming",
                capacity=seen,
                limit=None if host is None else host.max_outgoing if out else host.max_incoming,
                narrow=seen < capacity,
                learned=learned,
            )
        return pipe

    def path(self, source: str, target: str) -> Path:
        """Return the path between two hosts."""
        path = self._paths.get((source, target))
        if path is None:
            path = self._paths[source, target] = self._path(source, target)
        return path

    def _path(self, source: str, target: str) -> Path:
        ends = (self.pipe(source, out=True), self.pipe(target, out=False))
        host = self._hosts.get(source)
        learned = host.learned.to.get(target, LinkSpeed()) if host is not None else LinkSpeed()
        least = min(end.capacity for end in ends)
        capacity = _seen(learned, least)
        links: tuple[LinkDirection, ...] = ends
        if capacity < least:
            name = f"the path from {source} to {target}"
            between = LinkDirection(
                host=source,
                name=name,
                key="",
                capacity=capacity,
                limit=None,
                narrow=True,
                learned=learned,
            )
            links = (*ends, between)
        configured = self._is_configured(source)
        doubt = 1.0
        if not configured and learned.bytes_per_second is None:
            doubt = max(1.0, min(_CARD_DOUBT, capacity / max(1.0, learned.at_least)))
        proven = configured or learned.measured
        return Path(links=links, speed=capacity, learned=learned, proven=proven, doubt=doubt)

    def _is_configured(self, source: str) -> bool:
        host = self._hosts.get(source)
        return host is None or (bool(host.link_bytes_per_second) and not host.link_is_read)


def _link(host: Host) -> tuple[object, ...]:
    """Return all that a :class:`LinkTable` goes by."""
    return (
        host.link_bytes_per_second,
        host.link_is_read,
        host.learned,
        host.max_outgoing,
        host.max_incoming,
    )


def _seen(learned: LinkSpeed, capacity: float) -> float:
    """Return what may be taken of a link, given what it should carry and what it was seen to."""
    if learned.bytes_per_second is None:
        return capacity
    return min(capacity, learned.bytes_per_second * MOST_OF_PATH_RATIO)


@dataclass(eq=False, kw_only=True, slots=True)
class Path:
    """Way between two hosts."""

    #: The link out of the source, the one into the target, and what is between them where that is narrower.
    links: tuple[LinkDirection, ...]
    #: Bytes per second that one stream may take that has it alone.
    speed: float
    learned: LinkSpeed
    #: Its speed was measured, or somebody configured it; else it is what a card says, or a guess.
    proven: bool
    #: So many times slower it may be, as nobody vouches for :attr:`speed`: 1 where somebody does.
    doubt: float = 1.0


def stream_speed(source: str, target: str, network: LinkTable) -> float:
    """Return the bytes per second that the links between two hosts let one stream carry that has them alone."""
    return network.path(source, target).speed


class Move:
    """A transfer with what follows from it; the prediction moves it on."""

    __slots__ = (
        "alone",
        "bytes_left",
        "disk_seconds_left",
        "finish_left",
        "fixed_left",
        "into",
        "key",
        "links",
        "load",
        "must_end",
        "never",
        "out",
        "path",
        "phase",
        "prepare_left",
        "sending_left",
        "speed",
        "transfer",
    )

    def __init__(self, transfer: Transfer, network: LinkTable, rules: LinkRules) -> None:
        self.transfer = transfer
        self.phase = transfer.phase
        self.out = network.pipe(transfer.source, out=True)
        self.into = network.pipe(transfer.target, out=False)
        self.path = network.path(transfer.source, transfer.target)
        #: All that it takes a part of.
        self.links = self.path.links
        ceiling = transfer.max_bytes_per_second or float("inf")
        #: Bytes per second with its links alone.
        self.speed = max(1.0, min(self.path.speed, ceiling))
        self.bytes_left = transfer.bytes_left
        disks = transfer.disk_bytes_left / self.speed
        sending = disks + transfer.bytes_left / self.net(self.speed)
        known = transfer.alone_seconds
        # A forecast that sees no end says nothing: what makes it end is not in it.
        total = known if known is not None and math.isfinite(known) else sending + rules.fixed_seconds
        #: Seconds alone, at full speed: those that need the link, and those after them that do not.
        self.sending_left = min(sending, total)
        self.fixed_left = total - min(sending, total)
        #: Of the seconds that need the link, those at the beginning in which disks are copied.
        self.disk_seconds_left = min(disks, self.sending_left)
        self.prepare_left = transfer.prepare_seconds
        self.finish_left = transfer.finish_seconds
        dirty_ratio = transfer.dirty_rate_bytes_per_second / self.speed
        self.alone = transfer.barely_converges
        if self.alone is None:
            self.alone = dirty_ratio >= rules.barely_ratio
        #: Bandwidth that it is expected to take of its links, bytes per second.
        self.load = self.speed
        if dirty_ratio <= rules.quiet_ratio and not self.alone:
            self.load *= self.sending_left / max(1e-9, self.seconds_alone)
        self.never = ""
        for pipe, what in ((self.out, "outgoing"), (self.into, "incoming")):
            if pipe.limit is not None and pipe.limit < 1:
                self.never = f"{pipe.host} takes no {what} migrations ({pipe.key} is {pipe.limit})"
        deadline = transfer.deadline_seconds
        latest_start = float("inf") if deadline is None else deadline - self.seconds_alone
        #: Seconds from when the deadlines were given, by which it has ended or is cancelled.
        self.must_end = deadline if deadline is not None and transfer.stop_at_deadline else float("inf")
        #: The order of turn: priority, then who must begin first, then the longest first.
        self.key = (-transfer.priority, latest_start, -self.seconds_alone, transfer.guest)

    @property
    def seconds_alone(self) -> float:
        """Return the seconds from now to the end of the transfer, with its links alone."""
        return self.sending_left + self.fixed_left

    @property
    def link_seconds(self) -> float:
        """Return for how long it fills a link: less than it takes, where it does not fill it."""
        return self.seconds_alone * self.load / self.speed

    def net(self, bandwidth: float) -> float:
        """Return how fast `bandwidth` brings the end nearer, while the guest dirties: bytes per second, more than 0."""
        return max(bandwidth - self.transfer.dirty_rate_bytes_per_second, bandwidth / _MOST_TIMES_SENT)

    def pace_at(self, bandwidth: float) -> float:
        """Return the seconds alone that are done in a second at `bandwidth`: at most 1."""
        if self.disk_seconds_left > 0:
            return min(bandwidth, self.speed) / self.speed
        return self.net(min(bandwidth, self.speed)) / self.net(self.speed)

    def demand(self) -> float:
        """Return the bandwidth that it can use: less at its end, when little is left to send.

        Never so little that a look at dirty memory that finds more than was thought leaves it crawling, or that QEMU,
        which switches when what is left goes in the downtime limit at the present speed, waits for it.
        """
        if self.disk_seconds_left > 0:
            return self.speed
        soon = self.bytes_left / _EMPTY_SECONDS + 2 * self.transfer.dirty_rate_bytes_per_second
        return min(self.speed, max(self.speed * _LEAST_SHARE, soon))

    def load_now(self, rules: LinkRules) -> float:
        """Return the load that it puts on its links; hardly any when it is about to end."""
        return 0.0 if not self.alone and self.sending_left <= rules.overlap_seconds else self.load


def moves_of(transfers: Iterable[Transfer], hosts: Mapping[str, Host], rules: LinkRules) -> list[Move]:
    """Return each transfer with what follows from it, in the order of turn."""
    network = LinkTable(hosts, rules)
    return sorted((Move(one, network, rules) for one in transfers), key=lambda move: move.key)
