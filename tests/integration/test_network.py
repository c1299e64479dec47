"""Hosts made of namespaces: links have the speed they were given, black holes are silent, nothing is left over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from migrator.testing import network
from migrator.testing.lab import Lab, until
from migrator.testing.network import LabHost, LabHosts, NetworkError

#: Counts what comes in until the connection ends; says its port first, then the bytes.
RECEIVER = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
    connection.settimeout(float(sys.argv[2]))
    total = 0
    try:
        while chunk := connection.recv(1 << 20):
            total += len(chunk)
    except TimeoutError:
        print("silence", flush=True)
    print(total, flush=True)
"""

SENDER = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as connection:
    connection.sendall(bytes(int(sys.argv[3])))
"""

#: Connects, sends for ever, and says how it ended, or that after a while it had not.
PERSISTENT = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as connection:
    print("connected", flush=True)
    connection.settimeout(0.5)
    try:
        while True:
            connection.send(bytes(1 << 20))
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


@contextmanager
def running(host: LabHost, script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [*host.prefix, sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("speed", [5e6, 50e6])
def test_link_has_the_speed_it_was_given(hosts: LabHosts, speed: float) -> None:
    for host in hosts:
        host.set_speed(speed)
    with running(hosts["beta"], RECEIVER, hosts["beta"].address, 60) as receiver:
        began = time.monotonic()
        hosts["alpha"].run(
            sys.executable, "-c", SENDER, hosts["beta"].address, line(receiver), str(round(speed))
        )
        assert int(line(receiver)) == round(speed)
        seconds = time.monotonic() - began
    # A second, less what the buckets hold, more for headers and the interpreter's start.
    assert 0.8 < seconds < 6


def test_slower_of_two_links_decides_and_limits_can_be_lifted(hosts: LabHosts) -> None:
    hosts["beta"].set_speed(10e6)
    for limited in (True, False):
        with running(hosts["beta"], RECEIVER, hosts["beta"].address, 60) as receiver:
            port = line(receiver)
            began = time.monotonic()
            hosts["alpha"].run(sys.executable, "-c", SENDER, hosts["beta"].address, port, "10000000")
            assert int(line(receiver)) == 10_000_000
            assert (time.monotonic() - began > 0.8) == limited
        hosts["beta"].set_speed(None)


def test_black_hole_swallows_without_a_word_and_heals(hosts: LabHosts) -> None:
    alpha, beta = hosts["alpha"], hosts["beta"]
    with (
        running(beta, RECEIVER, beta.address, 1) as receiver,
        running(alpha, PERSISTENT, beta.address, line(receiver)) as sender,
    ):
        assert line(sender) == "connected"
        beta.black_hole()
        # Neither end is told: one waits for what does not come, the other for what is not acknowledged.
        assert line(sender) == "TimeoutError"
        assert line(receiver) == "silence"
    beta.heal()
    with running(beta, RECEIVER, beta.address, 60) as receiver:
        alpha.run(sys.executable, "-c", SENDER, beta.address, line(receiver), "1000")
        assert int(line(receiver)) == 1000


@pytest.mark.usefixtures("hosts")  # says where they cannot be had
def test_two_hosts_lose_each_other_and_nobody_else() -> None:
    with LabHosts("alpha", "beta", "gamma", isolated=True) as hosts:
        _lose_each_other(hosts["alpha"], hosts["beta"], hosts["gamma"])


def _lose_each_other(alpha: LabHost, beta: LabHost, gamma: LabHost) -> None:
    script = "import socket, sys; socket.create_connection((sys.argv[1], 9), timeout=0.5)"
    beta.lose(alpha)
    for one, other in ((alpha, beta), (beta, alpha)):
        with pytest.raises(NetworkError, match="TimeoutError"):
            one.run(sys.executable, "-c", script, other.address)
    with pytest.raises(NetworkError, match="ConnectionRefused"):
        gamma.run(sys.executable, "-c", script, beta.address)
    beta.heal()
    for one, other in ((alpha, beta), (beta, alpha)):
        with pytest.raises(NetworkError, match="ConnectionRefused"):
            one.run(sys.executable, "-c", script, other.address)


def test_connecting_into_a_black_hole_is_not_refused(hosts: LabHosts) -> None:
    hosts["beta"].black_hole()
    script = "import socket, sys; socket.create_connection((sys.argv[1], 9), timeout=0.5)"
    with pytest.raises(NetworkError, match="TimeoutError"):
        hosts["alpha"].run(sys.executable, "-c", script, hosts["beta"].address)


async def test_qemu_runs_on_a_host_by_its_own_pid(hosts: LabHosts, lab: Lab) -> None:
    qemu = await lab.start(prefix=hosts["alpha"].prefix)
    assert str(qemu.pid) in hosts["alpha"].run("ip", "netns", "pids", str(hosts["alpha"].namespace)).split()
    assert Path(f"/proc/{qemu.pid}/exe").resolve().name == "qemu-system-x86_64"
    hosts.close()
    await until(lambda: not qemu.alive, what="the end of what ran on the host")


def test_nothing_is_seen_outside_nor_left_over(hosts: LabHosts) -> None:
    names = [host.namespace for host in hosts]
    interfaces = {name for _, name in socket.if_nameindex()}
    assert not any(name.startswith(("port", "uplink", "br0")) for name in interfaces)
    hosts.close()
    assert not any(Path("/run/netns", str(name)).exists() for name in names)


def test_leftovers_of_a_run_that_died_are_reaped(hosts: LabHosts) -> None:
    script = (
        "import os; from migrator.testing.network import LabHosts; h = LabHosts('gamma', isolated=True)\n"
        "print(h['gamma'].namespace, flush=True); os._exit(1)"
    )
    dead = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False
    ).stdout.strip()
    # Another run on this machine may have been faster.
    assert dead in network.reap_stale() or not Path("/run/netns", dead).exists()
    assert all(Path("/run/netns", str(host.namespace)).exists() for host in hosts)
    assert str(os.getpid()) not in dead


def test_loopback_serves_where_namespaces_may_not_be_made() -> None:
    with LabHosts("alpha", "beta", isolated=False) as hosts:
        assert [host.prefix for host in hosts] == [(), ()]
        assert hosts["alpha"].address != hosts["beta"].address
        with pytest.raises(NetworkError, match="cannot be slowed"):
            hosts["alpha"].set_speed(1e6)
