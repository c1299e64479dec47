"""Held migrations in the engine: one thing at a time is done with each, and a word that is refused changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Evacuate, Refusal, Resolve
from migrator.core.model import MigrationStatus, ProcessState, RunState, State, View
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.testing.workload import MIB, steady
from tests.unit.test_engine import Driver, World

pytestmark = pytest.mark.looptime


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    for name in ("a", "b"):
        world.site.add_host(name, link=20 * MIB)
    world.site.add_guest("db", host="a", workload=steady(256 * MIB, 1 * MIB))
    return world


async def held(driver: Driver, world: World) -> JournalledSession:
    """Its source's host is gone in the middle."""
    await driver.ask(Evacuate(host="a"), key="e1")
    await driver.until(lambda: any(job.state is State.PRECOPY for job in driver.sessions()))
    world.site.hosts["a"].down = True
    (job,) = driver.engine.registry.migrations.values()
    await driver.until(lambda: job.state is State.HELD, 200)
    return job


async def test_says_what_it_waits_for_and_goes_on_by_itself(world: World) -> None:
    async with world.engine() as driver:
        job = await held(driver, world)
        assert "the source's QEMU to answer" in str(job.document().held_until)
        world.site.hosts["a"].down = False
        await driver.until(lambda: job.ended, 300)
        assert job.document().held_until is None


async def test_words_and_looks_at_once_never_meet(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, inside, most = world.site.open, set[str](), 0

    async with world.engine() as driver:
        job = await held(driver, world)

        async def counted(host: str, socket: str, **how: Any) -> Any:
            nonlocal most
            task = asyncio.current_task()
            assert task is not None
            inside.add(task.get_name())
            most = max(most, len({driver.engine.registry.task(job)} | {task}))
            assert driver.engine.registry.task(job) is task
            return await plain(host, socket, **how)

        monkeypatch.setattr(world.site, "open", counted)
        words = [
            driver.ask(Resolve(migration=job.id, guest_at=where, dry_run=dry))
            for where in ("source", "lost")
            for dry in (True, False)
        ]
        driver.engine.held.wake()
        said = await asyncio.gather(*words, return_exceptions=True)
        monkeypatch.undo()
        assert inside == {f"migration {job.id}"}
        assert most == 1
        refused = [each for each in said if isinstance(each, Refusal)]
        assert [each.code for each in refused] == ["conflict", "conflict"], said
        assert all("does not answer" in str(each) for each in refused)
        answers = [each for each in said if not isinstance(each, BaseException)]
        assert [each.accepted for each in answers] == [False, False]
        assert job.state is State.HELD
        world.site.hosts["a"].down = False
        await driver.until(lambda: job.ended, 300)


async def test_one_that_is_not_held_takes_no_word(world: World) -> None:
    async with world.engine() as driver:
        job = await held(driver, world)
        world.site.hosts["a"].down = False
        await driver.until(lambda: job.state is not State.HELD, 300)
        with pytest.raises(Refusal) as refusal:
            await driver.ask(Resolve(migration=job.id, guest_at="source"))
        assert refusal.value.code in ("not-now", "not-found")


async def test_one_that_is_being_looked_at_says_so_and_takes_the_word_later(world: World) -> None:
    async with world.engine() as driver:
        job = await held(driver, world)
        await driver.until(lambda: driver.engine.registry.task(job) is None)
        over = asyncio.Event()

        async def looked_at() -> None:
            await over.wait()

        driver.engine.registry.start(job, looked_at())
        with pytest.raises(Refusal) as refusal:
            await driver.ask(Resolve(migration=job.id, guest_at="source"))
        assert str(refusal.value) == (
            f"migration {job.id} is held, and is being looked at just now; ask again in a moment"
        )
        over.set()
        world.site.hosts["a"].down = False
        await driver.until(lambda: job.ended, 300)


async def test_a_host_that_is_away_while_a_migration_is_held_is_known_to_be_down_soon(world: World) -> None:
    async with world.engine() as driver:
        await driver.ask(Evacuate(host="a"))
        await driver.until(lambda: any(job.state is State.PRECOPY for job in driver.sessions()))
        (job,) = driver.engine.registry.migrations.values()
        world.site.hosts["a"].down = world.site.hosts["b"].down = True
        await driver.until(lambda: job.state is State.HELD, 200)
        # MigratorHostUnreachable takes at most 40 s from then on.
        await driver.until(lambda: not any(host.up for host in driver.queries.hosts()), 5)
        world.site.hosts["a"].down = world.site.hosts["b"].down = False
        await driver.until(lambda: job.ended, 300)


async def test_what_is_left_of_a_source_goes_once_its_host_is_back(world: World) -> None:
    async with world.engine() as driver:
        await driver.ask(Evacuate(host="a"))
        plain = world.site.clear

        async def away(guest: Any) -> None:
            world.site.hosts["a"].down = True
            await plain(guest)

        world.site.clear = away  # type: ignore[method-assign]
        driver.engine.leftovers._clear_source = plain
        await driver.until(lambda: any(job.ended for job in driver.engine.registry.migrations.values()), 300)
        (job,) = driver.engine.registry.migrations.values()
        assert (job.state, world.site.cleared) == (State.COMPLETED, [])
        assert [each.code for each in job.document().findings] == ["left-over"]
        world.site.hosts["a"].down = False
        await driver.until(lambda: bool(world.site.cleared), 200)


async def test_hosts_are_swept_of_what_guests_leave_that_end_by_themselves(world: World) -> None:
    async with world.engine() as driver:
        await driver.until(lambda: {"a", "b"} <= set(world.site.swept), 400)


async def test_one_that_broke_an_invariant_is_held_until_a_person_answers(world: World) -> None:
    complete = View(
        process=ProcessState.ALIVE,
        answers=True,
        run=RunState.PAUSED,
        status=MigrationStatus.COMPLETED,
        can_fence=True,
    )

    async def observe(*, timeout: float = 1.0) -> View:
        await asyncio.sleep(timeout / 1000)
        return complete

    async with world.engine() as driver:
        await driver.ask(Evacuate(host="a"), key="e1")
        await driver.until(lambda: any(job.state is State.PRECOPY for job in driver.sessions()))
        (job,) = driver.engine.registry.migrations.values()
        world.site.made[job.id][-1].observe = observe  # type: ignore[method-assign]
        await driver.until(lambda: job.state is State.HELD, 200)
        assert job.result.held_code == "intent-first"
        await asyncio.sleep(60)  # both ends are looked at meanwhile, and show nothing strange any more
        assert (job.state, job.result.held_code) == (State.HELD, "intent-first")
        await driver.ask(Resolve(migration=job.id, guest_at="source"))
        await driver.until(lambda: job.ended, 300)
        assert job.state is State.FAILED
        assert world.site.running("db") == ["a"]
