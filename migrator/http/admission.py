"""Admission of connections: who may connect, how many at a time, how soon each may ask; decided before TLS.

An address that floods waits in its own connections: they are read no faster than its share. What is refused costs a
system call; what waits costs a descriptor and a timer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import socket
import struct
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from migrator import logs
from migrator.settings.models import HttpSettings

#: Of IPv6 an address is as good as its network of this length, which one customer has.
_IPV6_PREFIX = 64
#: Addresses whose pace is remembered; the one heard of longest ago goes first.
_ADDRESSES = 4096
#: What was refused is logged at most this often, with how often it was.
_LOG_SECONDS = 60.0
_PEER = struct.Struct("3i")
#: What holds where nothing is configured.
_UNSAID = HttpSettings()


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Bounds of one entrance, before anything is known of who comes: those that ``[http]`` sets, and others."""

    #: Connections at a time, of all and of one address.
    connections: int = _UNSAID.connections
    connections_per_address: int = _UNSAID.connections_per_address
    #: New connections a second of one address, on average, and at once: a TLS handshake costs a millisecond.
    connects_per_second: float = 50.0
    connects_burst: int = 100
    #: Requests a second that are begun for one address and for all, and how many at once. More wait their turn.
    address_requests_per_second: float = _UNSAID.address_requests_per_second
    requests_per_second: float = 400.0
    burst: int = 20
    #: For TLS to be agreed upon; and for the first bytes to become a whole request head.
    handshake_seconds: float = 5.0
    head_seconds: float = 5.0

    @classmethod
    def of(cls, http: HttpSettings) -> Admission:
        """Return what the section says."""
        return cls(
            connections=http.connections,
            connections_per_address=http.connections_per_address,
            address_requests_per_second=http.address_requests_per_second,
        )


def within_descriptors(admission: Admission, *, share: float, descriptors: int | None = None) -> Admission:
    """Return the limits with no more connections than a share of this process' file descriptors.

    The rest is for what steers: monitors, pidfds, the journal, SSH.

    :param share: ratio of the limit that this entrance may hold.
    :param descriptors: the limit; by default this process' soft one.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if descriptors is None else descriptors
    most = max(4, min(admission.connections, int(limit * share)))
    return replace(
        admission,
        connections=most,
        connections_per_address=max(2, min(admission.connections_per_address, most // 2)),
    )


def raise_descriptor_limit(most: int = 65536) -> None:
    """Take as many file descriptors as this process may have, up to `most`; never fewer than it has now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Pace:
    """A rate with a burst (the generic cell rate algorithm): each step is told how long it has to wait.

    :param per_second: steps that may be taken, on average.
    :param burst: steps that may be taken at once.
    """

    def __init__(self, *, per_second: float, burst: int) -> None:
        self._interval = 1.0 / per_second
        self._tolerance = burst * self._interval
        self._due = 0.0

    def wait(self, now: float, *, most: float | None = None) -> float | None:
        """Take a step, and return the seconds until it may begin.

        :param now: on any clock that does not go back.
        :param most: a step that would have to wait longer is not taken: ``None``.
        """
        due = max(self._due, now) + self._interval
        wait = max(0.0, due - self._tolerance - now)
        if most is not None and wait > most:
            return None
        self._due = due
        return wait


class Gate:
    """Keeps the bounds of one entrance.

    :param name: of the entrance, for the log.
    """

    def __init__(
        self, name: str, admission: Admission, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.admission = admission
        self._name = name
        self._clock = clock
        self._open: Counter[str] = Counter()
        self._paces: OrderedDict[str, tuple[Pace, Pace]] = OrderedDict()
        self._all = Pace(per_second=admission.requests_per_second, burst=admission.burst * 2)
        self._refused = 0
        self._logged_at = float("-inf")

    @property
    def connections(self) -> int:
        """How many are open, those in a TLS handshake among them."""
        return self._open.total()

    def enter(self, address: str) -> bool:
        """Return whether one more connection of an address is taken; :meth:`leave` once it has ended."""
        connects, _ = self._pace(address)
        allowed = (
            self.connections < self.admission.connections
            and self._open[address] < self.admission.connections_per_address
            and connects.wait(self._clock(), most=0.0) is not None
        )
        if allowed:
            self._open[address] += 1
        else:
            self._open += Counter()  # drops those at 0
            self._say_refused(
                f"{address}: {self._open[address]} of {self.connections} open are its own; "
                f"http.connections is {self.admission.connections}, http.connections_per_address "
                f"{self.admission.connections_per_address}"
            )
        return allowed

    def leave(self, address: str) -> None:
        """A connection that was taken has ended."""
        self._open[address] -= 1
        if self._open[address] <= 0:
            del self._open[address]

    def request(self, address: str) -> float:
        """Count one request of an address; seconds until its turn among the requests of that address."""
        _, requests = self._pace(address)
        return requests.wait(self._clock()) or 0.0

    def turn(self) -> float:
        """Count one request whose turn has come at its address; seconds until its turn among those of all."""
        return self._all.wait(self._clock()) or 0.0

    def exhausted(self, error: OSError) -> None:
        """A connection could not be accepted."""
        self._say_refused(f"{error.strerror}: give the service more file descriptors (LimitNOFILE)")

    def _pace(self, address: str) -> tuple[Pace, Pace]:
        found = self._paces.pop(address, None)
        if found is None:
            bounds = self.admission
            found = (
                Pace(per_second=bounds.connects_per_second, burst=bounds.connects_burst),
                Pace(per_second=bounds.address_requests_per_second, burst=bounds.burst),
            )
        self._paces[address] = found
        while len(self._paces) > _ADDRESSES:
            self._paces.popitem(last=False)
        return found

    def _say_refused(self, why: str) -> None:
        self._refused += 1
        now = self._clock()
        if now - self._logged_at < _LOG_SECONDS:
            return
        logs.logger(part="http", entrance=self._name).warning(
            "connections refused", last=why, refused=self._refused
        )
        self._refused, self._logged_at = 0, now


def address_of(connection: socket.socket) -> str:
    """Return whose connection it is: ``unix:UID``, an IPv4 address, or the network of an IPv6 one."""
    if connection.family == socket.AF_UNIX:
        try:
            _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        except OSError:
            return "unix"
        return f"unix:{uid}"
    try:
        return network_of(str(connection.getpeername()[0]))
    except OSError:
        return "unknown"  # it has gone already


def network_of(address: str) -> str:
    """Return the part of a socket's address that is counted together; anything else stays as it is."""
    text = address.partition("%")[0]
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False))
    return text


#: Makes the protocol of one connection: its address, and what to call once it has ended.
Factory = Callable[[str, Callable[[], None]], asyncio.Protocol]
