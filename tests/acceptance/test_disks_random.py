"""Disks are copied while something goes wrong at a random instant: no write is lost, and nothing is left over.

What goes wrong: the command is killed and typed again, either QEMU is killed, the destination is frozen, the network is
cut, for a while or for good, the file system of the target is full, somebody cancels. Plainly, and through a tunnel.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from migrator.testing.lab import Lab, LabQemu
from tests import outcomes
from tests.command import Command, Ended, direct, running
from tests.disks import MIB, WritingGuest, writing_guest
from tests.invariants import records
from tests.tunnel_site import Site, site

__all__ = ["site"]  # a fixture

#: The disk and then the memory take about a second each.
_PACE = ("--max-bandwidth", "16MiB/s")
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.7, 4.0
_FROZEN_SECONDS, _FOR_GOOD_SECONDS = 0.5, 45.0
_FAULTS = ("controller", "controller", "destination", "source", "freeze", "cancel")
#: ... of two hosts, where the target's file system holds so much.
_FAULTS_OF_HOSTS = ("controller", "controller", "destination", "source", "cut", "cut", "full")
_ROOM_BYTES = 17 * MIB


async def _left_nothing(guest: WritingGuest, owner: LabQemu) -> int:
    """Assert that nothing of a move is left in the QEMU that has the guest, and that no write was lost; return how many
    there were.
    """
    await guest.goes_on(owner)
    assert await owner.query("query-jobs") == []
    assert await owner.query("query-block-exports") == []
    nodes = await owner.query("query-named-block-nodes", flat=True)
    assert [node["node-name"] for node in nodes if node["node-name"].startswith("migrator-")] == []
    assert records() == []
    count = await guest.check(owner)
    assert count > 0
    return count


class Place:
    """Two QEMUs on one machine, and what can go wrong there."""

    #: What is said of it beside what became of its moves.
    name = "direct, on one machine"

    #: How QEMUs are started, and the command.
    prefixes: Mapping[str, Any] = {}
    options: tuple[str, ...] = ()

    def running(self, guest: WritingGuest) -> contextlib.AbstractAsyncContextManager[Command]:
        """Begin a move."""
        return running(guest.pair, *_PACE, *self.options)

    async def again(self, guest: WritingGuest) -> Ended:
        """Type the command again after it was killed."""
        return await direct(guest.pair, *self.options, within=90)

    async def harm(self, fault: str, guest: WritingGuest, chance: random.Random) -> None:
        """Let something go wrong; returns once that is over."""
        match fault:
            case "destination":
                guest.pair.destination.kill()
            case "source":
                guest.pair.source.kill()
            case "freeze":
                guest.pair.destination.sigstop()
                await asyncio.sleep(_FROZEN_SECONDS)
                guest.pair.destination.sigcont()

    async def mend(self, guest: WritingGuest) -> None:
        """Undo what would be in the way of looking at what is left."""


class TwoHosts(Place):
    """Two hosts with a link that can be cut, the second with little room."""

    def __init__(self, site: Site, *, tunnel: bool) -> None:
        self.site, self.prefixes = site, site.prefixes
        self.options = ("--stream", "ssh") if tunnel else ()
        self.name = f"direct, between hosts, {'through a tunnel' if tunnel else 'plainly'}"
        self.room = Path(tempfile.mkdtemp(prefix="migrator-room-"))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_ROOM_BYTES}", "room", self.room], check=True)

    def running(self, guest: WritingGuest) -> contextlib.AbstractAsyncContextManager[Command]:
        return self.site.running(guest.pair, *_PACE, *self.options)

    async def again(self, guest: WritingGuest) -> Ended:
        async with self.site.running(guest.pair, *self.options) as command:
            return await command.ended(within=90)

    async def harm(self, fault: str, guest: WritingGuest, chance: random.Random) -> None:
        match fault:
            case "cut":
                self.site.beta.black_hole()
                await asyncio.sleep(chance.choice((0.3, 1.0, 4.0, _FOR_GOOD_SECONDS)))
                self.site.beta.heal()
            case "full":
                with contextlib.suppress(OSError), (self.room / "filler").open("wb") as filler:
                    while True:
                        filler.write(bytes(MIB // 8))
                        filler.flush()
            case _:
                await super().harm(fault, guest, chance)

    async def mend(self, guest: WritingGuest) -> None:
        self.site.beta.heal()
        (self.room / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.room], check=True)
        self.room.rmdir()


async def _with_fault(
    place: Place, guest: WritingGuest, fault: str, after: float, chance: random.Random
) -> Ended | None:
    """Begin a move, do something to it, and return what the command said in the end; ``None``: it was killed."""
    async with place.running(guest) as command:
        await asyncio.sleep(after)
        if not command.runs:
            return await command.ended()
        match fault:
            case "controller":
                await command.kill()
                return None
            case "cancel":
                command.signal(signal.SIGINT)
            case _:
                await place.harm(fault, guest, chance)
        return await command.ended(within=90)


async def _one(
    lab: Lab,
    crossing: tuple[Path, Path],
    seed: int,
    *,
    place: Place | None = None,
    faults: Sequence[str] = _FAULTS,
    room: Path | None = None,
) -> str:
    chance, place = random.Random(seed), place or Place()
    fault, after = chance.choice(faults), chance.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS)
    guest = await writing_guest(
        lab,
        size_bytes=16 * MIB,
        filled=True,
        source=crossing[0],
        destination=crossing[1],
        there=room / "there.img" if room is not None else None,
        **place.prefixes,
    )
    await guest.goes_on(guest.pair.source)
    ended = await _with_fault(place, guest, fault, after, chance)
    if ended is None:
        ended = await place.again(guest)
    await place.mend(guest)
    if ended.code == 130 and not ended.out:  # it had not come so far that it could tell
        writes = await _left_nothing(guest, guest.pair.source)
        outcomes.note(by=place.name, fault=fault, ended="cancelled", writes=writes)
        return f"cancelled before it began (seed {seed})"
    told, writes = f"{fault} after {after:.3f} s (seed {seed}): {ended.state}: {ended.error}", 0
    if ended.state == "completed":
        writes = await _left_nothing(guest, guest.pair.destination)
    elif fault == "source" and not guest.pair.source.alive:
        assert ended.state in ("held", "failed"), told
    elif ended.state in ("failed", "cancelled"):
        # One that was killed as it ended had moved the guest.
        moved = fault == "controller" and not guest.pair.source.alive
        writes = await _left_nothing(guest, guest.pair.destination if moved else guest.pair.source)
    else:
        # Only where the process that had the guest was killed.
        assert (ended.state, fault) == ("held", "destination"), told
    outcomes.note(by=place.name, fault=fault, ended=ended.state, writes=writes)
    return told


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.matrix) for seed in (1, 2))])
async def test_at_a_random_instant(lab: Lab, one_crossing: tuple[Path, Path], seed: int) -> None:
    print(await _one(lab, one_crossing, seed))  # noqa: T201 - pytest shows it with a failed test


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 200))
async def test_at_a_hundred_random_instants(lab: Lab, each_crossing: tuple[Path, Path], seed: int) -> None:
    print(await _one(lab, each_crossing, seed))  # noqa: T201 - pytest shows it with a failed test


@pytest.mark.soak
@pytest.mark.parametrize("route", ["plain", "tunnel"])
@pytest.mark.parametrize("seed", range(300, 350))
async def test_between_hosts_at_a_random_instant(
    lab: Lab, one_crossing: tuple[Path, Path], site: Site, seed: int, route: str
) -> None:
    place = TwoHosts(site, tunnel=route == "tunnel")
    try:
        print(  # noqa: T201 - pytest shows it with a failed test
            await _one(lab, one_crossing, seed, place=place, faults=_FAULTS_OF_HOSTS, room=place.room)
        )
        await site.nothing_left()
    finally:
        site.beta.heal()
        for qemu in lab.qemus:
            qemu.kill()
        place.close()
