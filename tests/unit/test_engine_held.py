"""Held migrations in the engine: one thing at a time is done with each, and a word that is refused changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Evacuate, Resolve
from migrator.api.replies import Refusal
from migrator.core.model import MigrationStatus, ProcessState, RunState, State, View
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB, steady

pytestmark = pytest.mark.looptime


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b"):
        service.site.add_host(name, link=20 * MIB)
    service.site.add_guest("db", host="a", workload=steady(256 * MIB, 1 * MIB))
    return service


async def held(running: RunningEngine, service: SimulatedService) -> JournalledSession:
    """Its source's host is gone in the middle."""
    await running.ask(Evacuate(host="a"), key="e1")
    await running.until(lambda: any(job.state is State.PRECOPY for job in running.sessions()))
    service.site.hosts["a"].down = True
    (job,) = running.engine.registry.migrations.values()
    await running.until(lambda: job.state is State.HELD, 200)
    return job


async def test_says_what_it_waits_for_and_goes_on_by_itself(service: SimulatedService) -> None:
    async with service.running() as running:
        job = await held(running, service)
        assert "the source's QEMU to answer" in str(job.document().held_until)
        service.site.hosts["a"].down = False
        await running.until(lambda: job.ended, 300)
        assert job.document().held_until is None


async def test_words_and_looks_at_once_never_meet(
    service: SimulatedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, inside, most = service.site.open, set[str](), 0

    async with service.running() as running:
        job = await held(running, service)

        async def counted(host: str, socket: str, **how: Any) -> Any:
            nonlocal most
            task = asyncio.current_task()
            assert task is not None
            inside.add(task.get_name())
            most = max(most, len({running.engine.registry.task(job)} | {task}))
            assert running.engine.registry.task(job) is task
            return await plain(host, socket, **how)

        monkeypatch.setattr(service.site, "open", counted)
        words = [
            running.ask(Resolve(migration=job.id, guest_at=where, dry_run=dry))
            for where in ("source", "lost")
            for dry in (True, False)
        ]
        running.engine.held.wake()
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
        service.site.hosts["a"].down = False
        await running.until(lambda: job.ended, 300)


async def test_one_that_is_not_held_takes_no_word(service: SimulatedService) -> None:
    async with service.running() as running:
        job = await held(running, service)
        service.site.hosts["a"].down = False
        await running.until(lambda: job.state is not State.HELD, 300)
        with pytest.raises(Refusal) as refusal:
            await running.ask(Resolve(migration=job.id, guest_at="source"))
        assert refusal.value.code in ("not-now", "not-found")


async def test_one_that_is_being_looked_at_says_so_and_takes_the_word_later(
    service: SimulatedService,
) -> None:
    async with service.running() as running:
        job = await held(running, service)
        await running.until(lambda: running.engine.registry.task(job) is None)
        over = asyncio.Event()

        async def looked_at() -> None:
            await over.wait()

        running.engine.registry.start(job, looked_at())
        with pytest.raises(Refusal) as refusal:
            await running.ask(Resolve(migration=job.id, guest_at="source"))
        assert str(refusal.value) == (
            f"migration {job.id} is held, and is being looked at just now; ask again in a moment"
        )
        over.set()
        service.site.hosts["a"].down = False
        await running.until(lambda: job.ended, 300)


async def test_a_host_that_is_away_while_a_migration_is_held_is_known_to_be_down_soon(
    service: SimulatedService,
) -> None:
    async with service.running() as running:
        await running.ask(Evacuate(host="a"))
        await running.until(lambda: any(job.state is State.PRECOPY for job in running.sessions()))
        (job,) = running.engine.registry.migrations.values()
        service.site.hosts["a"].down = service.site.hosts["b"].down = True
        await running.until(lambda: job.state is State.HELD, 200)
        # MigratorHostUnreachable takes at most 40 s from then on.
        await running.until(lambda: not any(host.up for host in running.queries.hosts()), 5)
        service.site.hosts["a"].down = service.site.hosts["b"].down = False
        await running.until(lambda: job.ended, 300)


async def test_what_is_left_of_a_source_goes_once_its_host_is_back(service: SimulatedService) -> None:
    async with service.running() as running:
        await running.ask(Evacuate(host="a"))
        plain = service.site.clear

        async def away(guest: Any) -> None:
            service.site.hosts["a"].down = True
            await plain(guest)

        service.site.clear = away  # type: ignore[method-assign]
        running.engine.leftovers._clear_source = plain
        await running.until(
            lambda: any(job.ended for job in running.engine.registry.migrations.values()), 300
        )
        (job,) = running.engine.registry.migrations.values()
        assert (job.state, service.site.cleared) == (State.COMPLETED, [])
        assert [each.code for each in job.document().findings] == ["left-over"]
        service.site.hosts["a"].down = False
        await running.until(lambda: bool(service.site.cleared), 200)


async def test_hosts_are_swept_of_what_guests_leave_that_end_by_themselves(service: SimulatedService) -> None:
    async with service.running() as running:
        await running.until(lambda: {"a", "b"} <= set(service.site.swept), 400)


async def test_one_that_broke_an_invariant_is_held_until_a_person_answers(service: SimulatedService) -> None:
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

    async with service.running() as running:
        await running.ask(Evacuate(host="a"), key="e1")
        await running.until(lambda: any(job.state is State.PRECOPY for job in running.sessions()))
        (job,) = running.engine.registry.migrations.values()
        service.site.made[job.id][-1].observe = observe  # type: ignore[method-assign]
        await running.until(lambda: job.state is State.HELD, 200)
        assert job.result.held_code == "intent-first"
        await asyncio.sleep(60)  # both ends are looked at meanwhile, and show nothing strange any more
        assert (job.state, job.result.held_code) == (State.HELD, "intent-first")
        await running.ask(Resolve(migration=job.id, guest_at="source"))
        await running.until(lambda: job.ended, 300)
        assert job.state is State.FAILED
        assert service.site.running("db") == ["a"]
