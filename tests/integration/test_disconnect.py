"""A monitor that a frozen client holds is freed at its host, and nobody else's connection is touched."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.hosts.disconnect import disconnect
from migrator.hosts.local import LocalAccess
from migrator.hosts.ssh import SshAccess
from migrator.machine import LocalProcess
from migrator.testing import network
from migrator.testing.lab import GuestMachine, Lab
from migrator.testing.network import LabHosts, inside
from tests.conftest import missing
from tests.sshd import Sshd

HOLDS = """
import os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    client.recv(65536)
    print("holds", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    print("ended" if client.recv(65536) == b"" else "goes on", flush=True)
"""


class FrozenClient:
    """A process that holds a monitor and does not run."""

    def __init__(self, path: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, path], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "holds\n"
        os.waitpid(self.process.pid, os.WUNTRACED)
        held = LocalProcess(self.process.pid)
        self.identity = held.identity
        held.close()

    def woken(self) -> str:
        """What it finds when it goes on."""
        os.kill(self.process.pid, signal.SIGCONT)
        return self.process.communicate(timeout=10)[0].strip()


@pytest.fixture
def frozen(monitor: str) -> Iterator[FrozenClient]:
    client = FrozenClient(monitor)
    yield client
    with client.process:
        client.process.kill()


@pytest.fixture
async def monitor(lab: Lab) -> str:
    return str((await lab.start(GuestMachine())).qmp)


async def answers(path: str, within: float = 1.0) -> bool:
    """Whether a QEMU says its greeting to one more client; few can wait until it has taken those before."""
    try:
        async with asyncio.timeout(within):
            while not await _greets(path):
                await asyncio.sleep(0.02)
    except TimeoutError:
        return False
    return True


async def _greets(path: str) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            return b"QMP" in await reader.readline()
        finally:
            writer.close()
    except OSError:
        return False


async def test_whoever_comes_next_is_answered_and_who_was_frozen_finds_it_closed(
    monitor: str, frozen: FrozenClient
) -> None:
    access = LocalAccess("here")
    assert not await answers(monitor)
    other = {**frozen.identity, "start_time": frozen.identity["start_time"] + 1}
    assert await disconnect(access, [monitor], other) == 0, "another process had that pid by now"
    assert await disconnect(access, [monitor], {**frozen.identity, "pid": os.getpid()}) == 0
    assert not await answers(monitor)
    assert await disconnect(access, [monitor], frozen.identity) == 1
    assert await answers(monitor, within=10.0)
    assert await disconnect(access, [monitor], frozen.identity) == 0
    assert frozen.woken() == "ended"


async def test_a_controller_that_came_over_ssh_loses_its_connection_and_no_other_does(
    tmp_path: Path, lab: Lab
) -> None:
    if reason := network.possible():
        missing(reason)
    with LabHosts("alpha", "control", isolated=True) as hosts:
        sshd = Sshd(tmp_path / "sshd", address=hosts["alpha"].address, prefix=hosts["alpha"].prefix)
        with sshd, inside(hosts["control"].namespace):
            frozen, bystander, heir = (SshAccess("alpha", sshd.config()) for _ in range(3))
            try:
                monitor = str((await lab.start(GuestMachine(), prefix=hosts["alpha"].prefix)).qmp)
                reader, writer = await asyncio.open_unix_connection(await frozen.forward(monitor))
                assert b"QMP" in await reader.readline()
                identity, other = await frozen.client_identity(), await bystander.client_identity()
                assert identity != other
                assert await disconnect(heir, [monitor], other) == 0, "it has no connection to this monitor"
                assert not await answers(await heir.forward(monitor))
                assert await disconnect(heir, [monitor], identity) == 1
                async with asyncio.timeout(10.0):
                    assert await reader.read() == b""
                    while not await answers(await heir.forward(monitor)):
                        pass
                writer.close()
                assert await bystander.client_identity() == other
                assert await frozen.client_identity() != identity, "it connects anew, and is another there"
            finally:
                for access in (frozen, bystander, heir):
                    await access.close()
