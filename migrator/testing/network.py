"""Hosts on one machine: network namespaces joined by a bridge, each with its own address, link and speed.

::

    with Hosts("alpha", "beta", bytes_per_second=100e6) as hosts:
        hosts["alpha"].prefix           # put before a command, it runs on that host
        hosts["beta"].address           # where alpha reaches it
        hosts["beta"].black_hole()      # now every packet from and to it disappears, without a word to anyone
        hosts["beta"].heal()
        hosts["beta"].lose(hosts["alpha"])  # only what these two send each other disappears; heal() as well

The bridge has a namespace of its own, so that nothing of it is seen in the one that the machine itself lives in.
Where namespaces may not be made (:func:`possible` says why), hosts are addresses on loopback: they can run guests,
but their links cannot be slowed or broken.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from migrator.testing.stale import owned, stale

_NAMESPACES = Path("/run/netns")
_SUBNET = "10.219.77"
_LINK, _BRIDGE = "uplink", "br0"
_WAIT_SECONDS = 30.0
#: Hardware that there is not.
_NOBODY = "02:6d:69:67:ff:ff"
_numbers = itertools.count(1)


class NetworkError(RuntimeError):
    """A command that builds or changes the network failed; says which and why."""


def _ip(*words: str, commands: list[str] | None = None) -> str:
    """Run ``ip``, with ``commands`` for its ``-batch`` if given; returns what it prints."""
    return _run("ip", *words, *([] if commands is None else ["-batch", "-"]), text="\n".join(commands or []))


def _run(*command: str, text: str = "") -> str:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_WAIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise NetworkError(f"{' '.join([*command, *text.splitlines()])}: {done.stderr.strip()}")
    return done.stdout


@functools.cache
def possible() -> str | None:
    """Return why namespaces with links of a set speed cannot be made here; ``None`` where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc", "nsenter"):
        if shutil.which(tool) is None:
            return f"there is no {tool}: install iproute2 and util-linux"
    try:
        with LabHosts("trial", bytes_per_second=1e9, isolated=True) as hosts:
            hosts["trial"].black_hole()
    except NetworkError as error:
        return f"network namespaces cannot be made here: {error}"
    return None


class LabHost:
    """One host of :class:`LabHosts`."""

    def __init__(
        self, name: str, address: str, namespace: str | None, port: tuple[str, str], hardware: str = ""
    ) -> None:
        self.name = name
        #: Where the other hosts reach it.
        self.address = address
        #: As in ``ip netns``; ``None`` on loopback.
        self.namespace = namespace
        self._switch, self._port = port
        #: Of its link; empty on loopback.
        self.hardware = hardware
        #: A process whose mounts are the host's; ``None``: it sees the same files as all others.
        self.mounts: int | None = None
        self._lost: list[LabHost] = []
        self._muted: list[LabHost] = []
        self._speed: float | None = None
        self._small = False

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address} {self.namespace or 'on loopback'}>"

    @property
    def prefix(self) -> tuple[str, ...]:
        """Put before a command, it runs on this host, in the same process."""
        mounts = () if self.mounts is None else ("nsenter", f"--mount=/proc/{self.mounts}/ns/mnt", "--wdns=/")
        return mounts if self.namespace is None else (*mounts, *_inside(self.namespace))

    def run(self, *command: str) -> str:
        """Run a command on this host; returns what it prints.

        :raise NetworkError: when it fails.
        """
        return _run(*self.prefix, *command)

    def add_bridge(self, name: str, *, way_out: str = "") -> None:
        """A bridge for guests on this host.

        :param way_out: an interface made for it, with a cable, that leads nowhere; empty: the bridge has none.
        :raise NetworkError: when it cannot be made, or is there already.
        """
        self.run("ip", "link", "add", name, "type", "bridge")
        self.run("ip", "link", "set", name, "up")
        if way_out:
            self.run("ip", "link", "add", way_out, "type", "veth", "peer", "name", f"{way_out}-far")
            self.run("ip", "link", "set", f"{way_out}-far", "up")
            self.run("ip", "link", "set", way_out, "up", "master", name)

    def add_tap(self, name: str, *, bridge: str = "", up: bool = True) -> None:
        """A tap that stays, for a QEMU to open; on a bridge, and up, as asked.

        :raise NetworkError: when it cannot be made, or is there already.
        """
        self.run("ip", "tuntap", "add", name, "mode", "tap")
        if bridge:
            self.run("ip", "link", "set", name, "master", bridge)
        if up:
            self.run("ip", "link", "set", name, "up")

    @property
    def speed(self) -> float | None:
        """Return the limit of its link in bytes a second; ``None`` where it has none."""
        return self._speed

    def set_speed(self, bytes_per_second: float | None) -> None:
        """Limit the host's link, each way; ``None``: as fast as the machine goes.

        :raise NetworkError: on loopback, if a limit is asked for.
        """
        if self.namespace is None:
            if bytes_per_second is None:
                return
            raise NetworkError(f"the link of {self!r} cannot be slowed: {possible()}")
        self._speed = bytes_per_second
        for namespace, interface in ((self.namespace, _LINK), (self._switch, self._port)):
            if bytes_per_second is None:
                with contextlib.suppress(NetworkError):  # there was no limit
                    _run("tc", "-n", namespace, "qdisc", "del", "dev", interface, "root")
                continue
            # The bucket holds whole packets as the sender's stack makes them (64 KiB) and 5 ms of line; the queue,
            # 50 ms, is what a switch would have.
            burst = max(128 << 10, round(bytes_per_second * 0.005))
            queue = max(512 << 10, round(bytes_per_second * 0.05))
            bucket = ["rate", f"{round(bytes_per_second * 8)}bit", "burst", str(burst), "limit", str(queue)]
            _run("tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root", "tbf", *bucket)

    def small_packets_only(self, most: int = 600) -> None:
        """Lose every packet to this host of more than `most` bytes, as a switch that is set up wrong does;
        :meth:`heal` undoes it.

        :raise NetworkError: on loopback.
        """
        rate = round((self._speed or 1e9) * 8)
        # A bucket that a packet does not fit into at all loses it; segments that are still together are taken apart.
        bucket = ["rate", f"{rate}bit", "burst", str(most), "limit", str(512 << 10)]
        self._tc("qdisc", "replace", "dev", self._port, "root", "tbf", *bucket)
        self._small = True

    def link_down(self) -> None:
        """Pull the cable out; :meth:`heal` plugs it in again.

        :raise NetworkError: on loopback.
        """
        self._switch_port("down")

    def reset_connections(self, other: LabHost) -> None:
        """Break every TCP connection of this host with another; both ends are told.

        :raise NetworkError: where the kernel cannot.
        """
        self.run("ss", "-K", "dst", other.address)

    def mute(self, other: LabHost) -> None:
        """Lose what this host sends to another, and nothing of what comes back; :meth:`heal` undoes it."""
        self.point(other, _NOBODY)
        self._muted.append(other)

    def black_hole(self) -> None:
        """Lose every packet from and to this host: no reset, no message, no link that goes down.

        :raise NetworkError: on loopback.
        """
        # Taken from its bridge the port stays up, but what comes in on it goes nowhere.
        self._switch_port("nomaster")

    def lose(self, other: LabHost) -> None:
        """Lose every packet between this host and another, as :meth:`black_hole` does with all others.

        :raise NetworkError: on loopback.
        """
        for one, far in ((self, other), (other, self)):
            one.point(far, _NOBODY)
        self._lost.append(other)

    def heal(self) -> None:
        """Undo :meth:`black_hole`, every :meth:`lose` of this host, and whatever else says so."""
        self._switch_port("master", _BRIDGE)
        self._switch_port("up")
        if self._small:
            self._small = False
            self._tc("qdisc", "del", "dev", self._port, "root")
            self.set_speed(self._speed)
        for other in self._muted:
            self.point(other, other.hardware)
        self._muted.clear()
        for other in self._lost:
            for one, far in ((self, other), (other, self)):
                one.point(far, far.hardware)
        self._lost.clear()

    def point(self, other: LabHost, hardware: str) -> None:
        """Send what is for another host to this piece of hardware.

        :raise NetworkError: on loopback.
        """
        if self.namespace is None:
            raise NetworkError(f"the link of {self!r} cannot be broken: {possible()}")
        words = ("neigh", "replace", other.address, "lladdr", hardware, "dev", _LINK, "nud", "permanent")
        _ip("-n", self.namespace, *words)

    def _tc(self, *words: str) -> None:
        if self.namespace is None:
            raise NetworkError(f"the link of {self!r} cannot be changed: {possible()}")
        _run("tc", "-n", self._switch, *words)

    def _switch_port(self, *words: str) -> None:
        if self.namespace is None:
            raise NetworkError(f"the link of {self!r} cannot be broken: {possible()}")
        _ip("-n", self._switch, "link", "set", self._port, *words)


class LabHosts:
    """Some hosts that reach each other. A context manager; or call :meth:`close`.

    :param names: of the hosts, in the order of their addresses.
    :param bytes_per_second: the speed of each host's link, each way; ``None``: unlimited.
    :param isolated: ``True`` for namespaces, ``False`` for loopback; ``None``: as possible.
    :raise NetworkError: when it cannot be built; nothing of it is left then.
    """

    def __init__(
        self, *names: str, bytes_per_second: float | None = None, isolated: bool | None = None
    ) -> None:
        self.isolated = possible() is None if isolated is None else isolated
        self._hosts: dict[str, LabHost] = {}
        self._switch = ""
        if not self.isolated:
            for number, name in enumerate(names, start=1):
                self._hosts[name] = LabHost(name, f"127.0.0.{number}", None, ("", ""))
            return
        reap_stale()
        run = owned(str(next(_numbers)))
        self._switch = f"{run}-switch"
        for number, name in enumerate(names, start=1):
            port, hardware = (self._switch, f"port{number}"), _hardware(number)
            self._hosts[name] = LabHost(name, f"{_SUBNET}.{number}", f"{run}-{name}", port, hardware)
        atexit.register(self.close)
        try:
            self._build()
            for host in self:
                host.set_speed(bytes_per_second)
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        _ip(commands=[f"netns add {namespace}" for namespace in self._namespaces])
        switch = ["link set lo up", f"link add {_BRIDGE} type bridge", f"link set {_BRIDGE} up"]
        for number, host in enumerate(self, start=1):
            port = f"port{number}"
            switch += [
                f"link add {port} type veth peer name {_LINK} address {host.hardware} netns {host.namespace}",
                f"link set {port} up master {_BRIDGE}",
            ]
        _ip("-n", self._switch, commands=switch)
        for host in self:
            # Neighbours are told, not asked for: a host in a black hole is not even known to be unreachable.
            neighbours = [
                f"neigh add {other.address} lladdr {other.hardware} dev {_LINK} nud permanent"
                for other in self
                if other is not host
            ]
            commands = [
                "link set lo up",
                f"link set {_LINK} up",
                f"addr add {host.address}/24 dev {_LINK}",
                *neighbours,
            ]
            _ip("-n", str(host.namespace), commands=commands)

    @property
    def _namespaces(self) -> list[str]:
        return [self._switch, *(host.namespace for host in self if host.namespace)] if self.isolated else []

    def __iter__(self) -> Iterator[LabHost]:
        return iter(self._hosts.values())

    def __getitem__(self, name: str) -> LabHost:
        return self._hosts[name]

    def close(self) -> None:
        """Kill what still runs on the hosts and remove them. May be called again."""
        for namespace in self._namespaces:
            _remove(namespace)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def reap_stale() -> list[str]:
    """Remove the namespaces of runs that died before they could; returns their names."""
    names = [path.name for path in stale(_NAMESPACES)]
    for name in names:
        _remove(name)
    return names


@contextlib.contextmanager
def inside(namespace: str | None) -> Iterator[None]:
    """This thread, and what it starts, is in that network namespace for the length of the block."""
    if namespace is None:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as before, Path("/run/netns", namespace).open() as there:
        if libc.setns(there.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
        try:
            yield
        finally:
            libc.setns(before.fileno(), 0)


def _inside(namespace: str) -> tuple[str, ...]:
    return ("nsenter", f"--net={_NAMESPACES / namespace}", "--")


def _hardware(number: int) -> str:
    return f"02:6d:69:67:{number >> 8:02x}:{number & 255:02x}"


def _remove(namespace: str) -> None:
    with contextlib.suppress(NetworkError):  # somebody else may have reaped it
        for pid in _ip("netns", "pids", namespace).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "delete", namespace)
