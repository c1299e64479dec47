"""The service is killed, or asked to stop, at every instant of a migration: the next one brings it to the right end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from migrator.api.commands import Evacuate, Migrate, Role
from migrator.api.requests import Caller
from migrator.core.drain.states import EvacuationState
from migrator.core.model import State
from migrator.engine.controller import Engine
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.workload import MIB, steady
from tests.stops import Life, Lives

pytestmark = pytest.mark.looptime

OPERATOR = Caller(user="unix:0", role=Role.OPERATOR, interface="http")
_WITHIN_SECONDS = 600.0


def lives(directory: Path, guests: int = 1) -> Lives:
    site = SimulatedSite()
    for name in ("a", "b", "c"):
        site.add_host(name, link=1000 * MIB)
    for number in range(guests):
        site.add_guest(f"vm-{number}", host="a", workload=steady(16 * MIB, 2 * MIB), memory_bytes=256 * MIB)
    return Lives(directory, site)


@asynccontextmanager
async def never_two(world: Lives) -> AsyncIterator[None]:
    """Looks again and again while the block lasts."""
    seen: list[str] = []

    async def look() -> None:
        while True:
            for machine in world.site.machines.values():
                where = world.site.running(machine.name)
                if len(where) > 1:
                    seen.append(f"{machine.name} on {where}")
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look(), name="look")
    try:
        yield
    finally:
        looking.cancel()
        assert seen == []


async def begin(world: Lives, life: Life, command: Migrate | Evacuate) -> str | None:
    """One life, from the command until it ends or is ended; the id of what was accepted."""
    begun: str | None = None
    with suppress(asyncio.CancelledError):
        async with world.engine(life) as engine:
            asked = asyncio.create_task(engine.handlers.carry_out(command, OPERATOR, key="k"), name="ask")
            stop = asyncio.create_task(life.asked.wait(), name="asked to stop")
            done = asyncio.create_task(settled(engine, asked), name="ended")
            await asyncio.wait({stop, done}, return_when=asyncio.FIRST_COMPLETED)
            for task in (stop, done):
                task.cancel()
            if not asked.done():
                if life.kill:
                    asked.cancel()
                await asyncio.wait({asked}, timeout=5)
            if asked.done() and not asked.cancelled() and asked.exception() is None:
                begun = asked.result().id  # type: ignore[union-attr]
    return begun


async def settled(engine: Engine, asked: asyncio.Task[object]) -> None:
    await asyncio.wait({asked})
    while any(not job.ended for job in engine.registry.migrations.values()) or any(
        not run.ended for run in engine.registry.evacuations.values()
    ):
        await asyncio.sleep(0.05)


async def go_on(world: Lives) -> None:
    """Another life, until nothing is under way any more."""
    async with world.engine(Life()) as engine, asyncio.timeout(_WITHIN_SECONDS):
        while True:
            left = [
                job
                for job in engine.registry.migrations.values()
                if not job.ended and job.state is not State.HELD
            ]
            left += [run for run in engine.registry.evacuations.values() if not run.ended]  # type: ignore[misc]
            if not left:
                return
            await asyncio.sleep(0.05)


async def whole(directory: Path, command: Migrate | Evacuate) -> list[str]:
    """The instants of a life that nobody disturbs."""
    world, life = lives(directory), Life()
    async with never_two(world):
        await begin(world, life, command)
    assert world.site.running("vm-0") == ["b"]
    return life.instants


async def outcome(world: Lives) -> str:
    """In words, so that what is wrong can be read; empty where all is right."""
    try:
        await go_on(world)
    except TimeoutError:
        return f"never ends: {[each['state'] for each in await world.journal.page('migration', limit=9)]}"
    ended = await world.journal.page("migration", limit=9)
    where = world.site.running("vm-0")
    states = [each["state"] for each in ended]
    waiting = [end for made in world.site.made.values() for end in made if not end.dead and end.waits]
    if waiting:
        return f"{len(waiting)} left over"
    if (states, where) in ((["completed"], ["b"]), ([], ["a"])):
        return ""
    return f"{states} {where} {[each['error'] for each in ended]}"


def preparing(instants: list[str]) -> range:
    """From when the journal has it until both ends have been told to begin, with what is heard of that."""
    return range(instants.index("site.open") - 3, instants.index("qemu.migrate, done") + 4)


@pytest.mark.parametrize("how", ["killed", "asked to stop"])
@pytest.mark.parametrize("part", ["preparing", pytest.param("all", marks=pytest.mark.matrix)])
async def test_migration_stopped_once_is_gone_on_with_or_begun_anew(
    tmp_path: Path, how: str, part: str
) -> None:
    command = Migrate(guest="vm-0", to="b")
    instants = await whole(tmp_path / "whole", command)
    numbers = preparing(instants) if part == "preparing" else range(1, len(instants) + 1)
    wrong = []
    for number in numbers:
        world, life = lives(tmp_path / str(number)), Life(number, kill=how == "killed")
        async with never_two(world):
            await begin(world, life, command)
            if said := await outcome(world):
                wrong.append((number, life.instants[-1], said))
    assert len(numbers) > 30
    assert wrong == []


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(n, marks=pytest.mark.matrix) for n in range(3, 12))])
async def test_migration_stopped_again_and_again_comes_to_its_end(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    command = Migrate(guest="vm-0", to="b")
    wrong = []
    for turn in range(8):
        world, stops = lives(tmp_path / str(turn)), []
        async with never_two(world):
            for _ in range(5):
                life = Life(chance.randint(15, 70), kill=chance.random() < 0.6)
                await begin(world, life, command)
                stops.append((len(life.instants), life.instants[-1], life.kill))
            if said := await outcome(world):
                wrong.append((stops, said))
    assert wrong == []


@pytest.mark.parametrize("how", ["killed", "asked to stop"])
async def test_evacuation_stopped_while_its_guests_are_prepared_empties_its_host(
    tmp_path: Path, how: str
) -> None:
    life, world = Life(), lives(tmp_path / "whole", guests=2)
    await begin(world, life, Evacuate(host="a"))
    first = life.instants.index("site.start_destination")
    wrong = []
    for number in range(first - 8, first + 60, 6):
        world, life = lives(tmp_path / str(number), guests=2), Life(number, kill=how == "killed")
        async with never_two(world):
            await begin(world, life, Evacuate(host="a"))
            await go_on(world)
        states = [each["state"] for each in await world.journal.page("evacuation", limit=9)]
        if states != [EvacuationState.COMPLETED] or "a" in (
            where := [*world.site.running("vm-0"), *world.site.running("vm-1")]
        ):
            wrong.append((number, life.instants[-1], states, where))
    assert wrong == []
