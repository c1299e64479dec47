"""The sockets of a stream at its source: each has its options, they follow the share, and are gone in postcopy."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator import process_sockets
from migrator.core.model import State
from migrator.core.policy import PostcopyMode
from migrator.engine.migration.shared_path import OwnPath
from migrator.errors import HostError
from migrator.hosts import socket_helper
from migrator.hosts.access import HostAccess
from migrator.hosts.local import LocalAccess
from migrator.hosts.ssh import SshAccess
from migrator.machine import LocalProcess
from migrator.ports import GuestProcess
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, Pair, until
from migrator.testing.network import LabHosts
from tests import driven, postcopy
from tests.driven import MIB, PLAIN
from tests.socket_options import socket_options
from tests.sshd import Sshd

UNPACED = 2**64 - 1
#: Takes seconds at the shares that these tests give.
FILLED = GuestMachine(habit=Habit(region_bytes=16 * MIB, passes=1))
#: Its second round takes some tenths of a second over 60 Mbit/s.
WRITING = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=2e6))
SHARE = 3 * MIB

#: Connects to each address, says so, and fills the first connection until it ends.
CLIENT = """
import socket, sys
ports = [int(word) for word in sys.argv[1:]]
connections = [socket.create_connection(("127.0.0.1", port)) for port in ports]
print("connected", flush=True)
connections[0].sendall(bytes(64 << 20))
"""

#: Listens at two ports, says which, and for each line says of the next connection whether it sends at once.
SERVER = """
import socket, sys
servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(server.getsockname()[1] for server in servers), flush=True)
for _, server in zip(sys.stdin, servers):
    connection, _ = server.accept()
    print(bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)), flush=True)
"""


@contextmanager
def client(*ports: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CLIENT, *map(str, ports)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "connected\n"
            yield process
        finally:
            process.kill()


async def queued(held: GuestProcess, request: dict[str, object]) -> Mapping[str, Any]:
    """Ask until something is queued: the client begins to write only now."""
    answer: Mapping[str, Any] = {}

    async def waits() -> bool:
        nonlocal answer
        answer = await held.ask_sockets(request)
        return bool(answer["queued"])

    await until(waits, what="bytes in the queue")
    return answer


class TestAtAHost:
    """Whichever way leads there."""

    @pytest.fixture(params=["local", "ssh"])
    async def host(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[HostAccess]:
        if request.param == "local":
            yield LocalAccess("here")
            return
        with Sshd(tmp_path / "sshd") as sshd:
            access = SshAccess("there", sshd.config())
            yield access
            await access.close()

    async def test_options_are_on_the_connections_to_that_peer_and_on_no_other(
        self, host: HostAccess
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as meant, socket.create_server(("127.0.0.1", 0)) as other:
            mine, others = meant.getsockname()[1], other.getsockname()[1]
            with client(mine, others, mine) as process:
                held = await host.process(process.pid)
                assert held is not None
                request = {
                    "do": "streams",
                    "peers": [["127.0.0.1", mine]],
                    "unsent": 131072,
                    "pacing": 1000000,
                }
                answer = await queued(held, request)
                assert (answer["sockets"], answer["refused"]) == (2, "")
                assert socket_options(process.pid, mine) == [(131072, 1000000)] * 2
                assert socket_options(process.pid, others) != [(131072, 1000000)]
                again = await held.ask_sockets(
                    {"do": "streams", "peers": [["127.0.0.1", mine]], "again": True}
                )
                assert again["sockets"] == 2
                await held.ask_sockets({**request, "unsent": None, "pacing": 0})
                assert socket_options(process.pid, mine) == [(131072, UNPACED)] * 2
                process.kill()
                assert await held.wait_dead(10)
                gone = await held.ask_sockets(request)
                assert (gone["sockets"], gone["queued"]) == (0, None)
                held.close()

    async def test_a_server_sends_its_answers_at_once_from_then_on(self, host: HostAccess) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            ports = process.stdout.readline().split()
            held = await host.process(process.pid)
            assert held is not None
            answer = await held.ask_sockets({"do": "answer_at_once", "port": int(ports[0])})
            assert answer["count"] == 1
            said = []
            for port in ports:
                with socket.create_connection(("127.0.0.1", int(port))):
                    process.stdin.write("accept\n")
                    process.stdin.flush()
                    said.append(process.stdout.readline().strip())
            assert said == ["True", "False"]
            held.close()
            process.stdin.close()

    async def test_the_pace_ends_with_the_connection_of_whoever_set_it(self, tmp_path: Path) -> None:
        with Sshd(tmp_path / "sshd") as sshd, socket.create_server(("127.0.0.1", 0)) as meant:
            access, port = SshAccess("there", sshd.config()), meant.getsockname()[1]
            with client(port) as process:
                held = await access.process(process.pid)
                assert held is not None
                request = {"do": "streams", "peers": [["127.0.0.1", port]], "unsent": 131072}
                await queued(held, {**request, "pacing": 1000000})
                assert socket_options(process.pid, port) == [(131072, 1000000)]
                await access.close()

                async def lifted() -> bool:
                    return socket_options(process.pid, port) == [(131072, UNPACED)]

                await until(lifted, what="the pace is lifted")

    async def test_what_is_queued_is_known_where_the_process_may_not_be_traced(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(process_sockets, "_PIDFD_GETFD", -1)  # ENOSYS: an old kernel
        with socket.create_server(("127.0.0.1", 0)) as meant:
            port = meant.getsockname()[1]
            with client(port) as process:
                held = LocalProcess(process.pid)
                answer = await queued(held, {"do": "streams", "peers": [["127.0.0.1", port]], "unsent": 1})
                assert answer["sockets"] == 1
                assert "pidfd_getfd" in answer["refused"]
                held.close()

    async def test_host_without_python_says_what_it_lacks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(socket_helper, "_PYTHON", "no-python-here")
        with Sshd(tmp_path / "sshd") as sshd:
            access = SshAccess("there", sshd.config())
            try:
                with pytest.raises(HostError, match="install python3"):
                    await access.ask_sockets({"do": "streams"})
            finally:
                await access.close()


class TurnTaken(OwnPath):
    """A path that others leave to the stream as long as the test says so."""

    has_turn = False


def port_of(pair: Pair) -> int:
    """The port at which its destination listens."""
    held = Path(f"/proc/{pair.destination.pid}/net/tcp").read_text().splitlines()[1:]
    inodes = {str(each.readlink()) for each in Path(f"/proc/{pair.destination.pid}/fd").iterdir()}
    for line in held:
        words = line.split()
        if f"socket:[{words[9]}]" in inodes:
            return int(words[1].partition(":")[2], 16)
    return 0


async def seen_at(qemu: LabQemu, port: int, *, pace: int) -> None:
    """Wait until every socket of its stream has that pace, and little may wait in it."""

    def shaped() -> bool:
        found = socket_options(qemu.pid, port)
        return bool(found) and all(each[1] == pace and 0 < each[0] <= 1 << 20 for each in found)

    await until(shaped, what=f"all of {qemu!r} paced at {pace}: {socket_options(qemu.pid, port)}", within=10)


class TestOfAMigration:
    async def test_follow_the_share_and_what_was_queued_at_the_stop_is_told(
        self, lab: Lab, each_qemu: Path
    ) -> None:
        pair = await lab.pair(FILLED, source=each_qemu, destination=each_qemu)
        async with driven.driven(pair, policy=PLAIN) as drive:
            drive.requests.share = SHARE
            running = asyncio.create_task(drive.run())
            await until(lambda: drive.source.given["migrate"] > 0, what="the stream", within=20)
            port = port_of(pair)
            await seen_at(pair.source, port, pace=SHARE)

            async def bounded() -> bool:
                parameters = await pair.source.query("query-migrate-parameters")
                return bool(SHARE < parameters["max-bandwidth"] < 1.2 * SHARE)

            # QEMU would send what its own limit allows in bursts: it stays as a bound above the pace.
            await until(bounded, what="QEMU's own limit above the pace")
            drive.requests.share = 2 * SHARE
            await seen_at(pair.source, port, pace=2 * SHARE)
            drive.requests.share = None
            await seen_at(pair.source, port, pace=UNPACED)
            result = await running
        assert result.state is State.COMPLETED
        assert result.queued_at_stop_bytes is not None

    async def test_share_does_not_count_while_others_give_way_to_it(
        self, lab: Lab, one_version: Path
    ) -> None:
        pair = await lab.pair(FILLED, source=one_version, destination=one_version)
        path = TurnTaken()
        async with driven.driven(pair, policy=PLAIN, shared_path=path) as drive:
            drive.requests.share = SHARE
            running = asyncio.create_task(drive.run())
            await until(lambda: drive.source.given["migrate"] > 0, what="the stream", within=20)
            port = port_of(pair)
            await seen_at(pair.source, port, pace=SHARE)
            path.has_turn = True
            await seen_at(pair.source, port, pace=UNPACED)
            result = await running
        assert result.state is State.COMPLETED

    async def test_nothing_is_paced_in_postcopy(self, lab: Lab, one_version: Path) -> None:
        pair = await lab.pair(FILLED, source=one_version, destination=one_version)
        policy = PLAIN.but(postcopy=PostcopyMode.ALLOW, max_bandwidth_bytes_per_second=SHARE)
        async with postcopy.driven(pair, policy=policy) as drive:
            running = asyncio.create_task(drive.run())
            await until(lambda: drive.source.given["migrate"] > 0, what="the stream", within=20)
            port = port_of(pair)
            await seen_at(pair.source, port, pace=SHARE)
            await postcopy.slowly(pair)
            drive.requests.postcopy = True
            await until(lambda: drive.was_postcopy, what="postcopy", within=20)
            await seen_at(pair.source, port, pace=UNPACED)
            await postcopy.quickly(pair)
            result = await running
        assert result.state is State.COMPLETED


async def test_end_is_paced_where_the_sockets_cannot_be_reached(
    hosts: LabHosts, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_sockets, "_PIDFD_GETFD", -1)
    for host in hosts:
        host.set_speed(7.5e6)
    source = await lab.boot(WRITING, prefix=hosts["alpha"].prefix)
    destination = await lab.start(WRITING, prefix=hosts["beta"].prefix, incoming=True)
    pair = Pair(source, destination)
    limits = []
    async with driven.driven(pair, listen=f"tcp:{hosts['beta'].address}:0") as drive:
        tune = drive.source.tune

        async def noting(tuning: object) -> None:
            limits.append(getattr(tuning, "max_bandwidth_bytes_per_second", None))
            await tune(tuning)  # type: ignore[arg-type]

        drive.source.tune = noting  # type: ignore[method-assign]
        result = await drive.run()
    assert result.state is State.COMPLETED
    paces = [limit for limit in limits if limit is not None and limit < 7.5e6]
    assert paces, limits
    assert result.queued_at_stop_bytes is not None
