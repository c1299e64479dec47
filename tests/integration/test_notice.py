"""Sockets that appear or vanish are noticed at once, by inotify here and by a poll over SSH."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.local import LocalAccess
from migrator.hosts.socket_watch import watch_sockets
from migrator.hosts.ssh import SshAccess
from migrator.testing.lab import until
from tests.conftest import missing
from tests.sshd import Sshd


def _needs_sshd() -> None:
    if os.geteuid() != 0 or not Path("/usr/sbin/sshd").exists():
        missing("an sshd of its own needs root and openssh-server")


@pytest.fixture(params=["here", "ssh"])
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[HostAccess]:
    if request.param == "here":
        yield LocalAccess("here")
        return
    _needs_sshd()
    with Sshd(tmp_path / "sshd") as server:
        access = SshAccess("there", server.config())
        yield access
        await access.close()


@asynccontextmanager
async def noticing(host: HostAccess, *patterns: str) -> AsyncIterator[Callable[[], int]]:
    heard = 0

    def hear() -> None:
        nonlocal heard
        heard += 1

    task = asyncio.create_task(watch_sockets(host, patterns, hear))
    await asyncio.sleep(1.0)  # it has begun
    yield lambda: heard
    task.cancel()
    await asyncio.wait({task})


def listen(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener


async def test_sockets_that_come_and_go_are_noticed_whatever_was_there_before(
    host: HostAccess, tmp_path: Path
) -> None:
    base = tmp_path / "a directory"
    async with noticing(host, f"{base}/*.qmp", f"{base}/guests/*/control.qmp") as heard:
        with listen(base / "one.qmp"):
            await until(lambda: heard() == 1, what="the first")
            with listen(base / "guests" / "x" / "control.qmp"):
                await until(lambda: heard() == 2, what="one in a directory of its own")
        (base / "one.qmp").unlink()
        await until(lambda: heard() == 3, what="its end")
        (base / "nothing").write_text("")
        await asyncio.sleep(2.5)
        assert heard() == 3


async def test_a_connection_that_is_lost_is_told(tmp_path: Path) -> None:
    _needs_sshd()
    with Sshd(tmp_path / "sshd") as server:
        access = SshAccess("there", server.config(keepalive_seconds=0.3))
        async with asyncio.timeout(30):
            watching = asyncio.create_task(watch_sockets(access, ["/nowhere/*"], lambda: None))
            await asyncio.sleep(1)
            await access.close()
            with pytest.raises(HostError):
                await watching
