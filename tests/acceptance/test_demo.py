"""``migrator demo``: every guest arrives, and nothing is left behind, also when it is interrupted."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.testing import network
from migrator.testing.lab import binaries, until
from tests.command import run, started
from tests.conftest import missing
from tests.libvirt_hosts import reason


@pytest.fixture(autouse=True)
def _needs_qemu() -> None:
    if not binaries():
        missing("there is no QEMU here")


def command_lines() -> Iterator[str]:
    """Of every process on this machine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")


def left_over(pid: int) -> list[str]:
    """Processes and namespaces of the demo with this pid."""
    found = [line for line in command_lines() if f"migrator-{pid}-" in line]
    if network.possible() is None:
        names = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True, timeout=10).stdout
        found += [line for line in names.splitlines() if f"migrator-{pid}-" in line]
    return found


@pytest.mark.timeout(180)
async def test_every_guest_arrives_with_its_memory() -> None:
    async with started("demo", "--link", "200MiB/s") as command:
        ended = await command.ended(within=150)
    assert ended.code == 0, ended
    what = ended.out[ended.out.index("What became of them") :]
    rows = [line.split() for line in what.splitlines() if line.rstrip().endswith("memory intact")]
    assert [row[0] for row in rows] == ["idle", "web", "mail", "frozen", "batch", "cold", "shared"]
    assert [row[0] for row in rows if "TLS" in row] == ["web"]
    assert "paused, memory intact" in what
    assert "does not support live migration" in ended.out
    assert "7 of 7 guests run on alpha again" in ended.out
    assert "Nothing of it is left running" in ended.out


@pytest.mark.matrix
@pytest.mark.timeout(500)
async def test_guests_of_libvirt_go_along_and_nothing_of_them_is_left() -> None:
    if why := reason():
        missing(why)
    async with started("demo", "--libvirt", "--link", "200MiB/s") as command:
        ended = await command.ended(within=400)
        pid = command.pid
    assert ended.code == 0, ended
    what = ended.out[ended.out.index("What became of them") :]
    moved = [line.split() for line in what.splitlines() if "libvirt's;" in line]
    assert [(row[0], "precopy" in row) for row in moved] == [("shop", True), ("wiki", True)]
    assert "9 of 9 guests run on alpha again" in ended.out
    assert left_over(pid) == []


@pytest.mark.parametrize(
    "when", ["guests are there", pytest.param("guests are on their way", marks=pytest.mark.matrix)]
)
async def test_interrupted_it_leaves_nothing(when: str) -> None:
    async with started("demo", "--link", "20MiB/s") as command:
        pid = command.pid
        # The service starts one with that for a guest to move into.
        shown = "-incoming" if when == "guests are on their way" else "qemu-system"
        await until(lambda: any(shown in line for line in left_over(pid)), what=when, within=60)
        command.signal(signal.SIGINT)
        ended = await command.ended(within=30)
    assert ended.code == 4
    assert "interrupted" in ended.out
    assert left_over(pid) == []


@pytest.mark.matrix
async def test_killed_it_leaves_nothing() -> None:
    async with started("demo", "--link", "20MiB/s") as command:
        pid = command.pid
        moving = "guests of the demo on their way"
        await until(lambda: any("-incoming" in line for line in left_over(pid)), what=moving, within=60)
        command.signal(signal.SIGKILL)
        await until(lambda: left_over(pid) == [], what="its service and its guests to be gone", within=20)
        await until(
            lambda: not list(Path(tempfile.gettempdir()).glob(f"migrator-{pid}-*")),
            what="its files",
            within=20,
        )


async def test_a_link_that_is_no_rate_is_refused_in_one_line() -> None:
    ended = await run("demo", "--link", "fast")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
    assert "fast" in ended.err
