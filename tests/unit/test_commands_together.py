"""Commands that come at the same time, in every order in which the journal may answer them; over a simulated site."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import COMMANDS, Activate, Cancel, Command, Evacuate, Migrate, Restore
from migrator.api.replies import Reply
from migrator.api.requests import Envelope
from migrator.core.inventory import HostState
from migrator.core.model import State
from migrator.engine.commands.dispatcher import Dispatcher
from migrator.engine.commands.settlement import Settlement
from migrator.engine.controller import Engine
from migrator.testing.simulated_service import OPERATOR
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.workload import MIB, steady
from tests.stops import Life, Lives
from tests.turns import Turns, in_every_order
from tests.unit.test_stopped_anywhere import go_on

pytestmark = pytest.mark.looptime


def small_site(guests: int = 1, *, memory_bytes: int = 64 << 30) -> SimulatedSite:
    site = SimulatedSite()
    for name in ("a", "b"):
        site.add_host(name, link=1000 * MIB, memory_bytes=memory_bytes)
    for number in range(guests):
        site.add_guest(f"vm-{number}", host="a", memory_bytes=256 * MIB, workload=steady(16 * MIB, 2 * MIB))
    return site


def ask(dispatcher: Dispatcher, command: Command, key: str | None = None) -> Any:
    body = command.model_dump(mode="json", exclude_none=True)
    assert COMMANDS[command.verb] is type(command)
    return dispatcher.execute(Envelope(verb=command.verb, body=body, caller=OPERATOR, id=key))


Checks = Callable[[Lives, Engine, list[Reply]], None]


@pytest.fixture(params=[3, pytest.param(4, marks=pytest.mark.matrix)])
def depth(request: pytest.FixtureRequest) -> int:
    """For so many calls every order is tried."""
    return int(request.param)


async def together(
    directory: Path,
    depth: int,
    commands: Callable[[Engine], Sequence[tuple[Command, str | None]]],
    holds: Checks,
    *,
    before: Sequence[Command] = (),
    guests: int = 1,
    memory_bytes: int = 64 << 30,
    planning: int | None = None,
) -> int:
    """Ask for `commands` together in every order, check each, and go on to the end of each after a restart too.

    :param planning: the planner takes a turn too, and the first command comes when so many of its calls were answered.
    """
    numbers = itertools.count()

    async def scenario(choices: tuple[int, ...]) -> Turns:
        world = Lives(directory / str(next(numbers)), small_site(guests, memory_bytes=memory_bytes))
        turns = Turns(world.journal, choices)
        async with world.engine(Life()) as engine:
            dispatcher = Dispatcher(controller=engine.handlers, log=world.journal)
            for command in before:
                assert (await ask(dispatcher, command)).kind == "accepted"
            asked = [ask(dispatcher, command, key) for command, key in commands(engine)]
            count = len(asked)
            if planning is not None:
                for run in engine.registry.evacuations:
                    engine.registry.change(run, lambda run: replace(run, not_before=0.0))
                asked.append(engine.reconciler.turn())
            replies = (await turns.all(*asked, late=planning or 0))[:count]
            assert all(isinstance(each, Reply) for each in replies), replies
            holds(world, engine, replies)
            await engine.journal_writer.flush(5.0)
            await as_journalled(world, engine)
        await go_on(world)
        for machine in world.site.machines.values():
            assert len(world.site.running(machine.name)) == 1
        return turns

    return await in_every_order(scenario, depth=depth)


async def as_journalled(world: Lives, engine: Engine) -> None:
    """Nothing is in the journal that memory does not know, and the other way round."""
    jobs = {each["id"]: each["_private"]["cancelled"] for each in await world.journal.unfinished("migration")}
    assert jobs == {job.id: job.cancelled for job in engine.registry.migrations.values() if not job.ended}
    runs = {each["id"]: each["_private"]["closing"] for each in await world.journal.unfinished("evacuation")}
    assert runs == {run.id: run.closing for run in engine.registry.evacuations.values() if not run.ended}
    for saved in await world.journal.unfinished("host"):
        host = engine.inventory.host(saved["id"])
        assert host is not None
        assert saved["state"] == host.state


def kinds(replies: list[Reply]) -> list[str]:
    return sorted(each.code or each.kind for each in replies)


async def test_of_two_evacuations_of_a_host_one_is_begun(tmp_path: Path, depth: int) -> None:
    def holds(world: Lives, engine: Engine, replies: list[Reply]) -> None:
        assert kinds(replies) == ["accepted", "conflict"]
        (begun,) = [each.subject_id for each in replies if each.kind == "accepted"]
        (refused,) = [each.message or "" for each in replies if each.kind == "refused"]
        assert f"evacuation {begun}" in refused
        assert len(engine.registry.evacuations) == 1

    orders = await together(
        tmp_path, depth, lambda engine: [(Evacuate(host="a"), "1"), (Evacuate(host="a"), "2")], holds
    )
    assert orders > 3


async def test_of_two_migrations_of_a_guest_one_is_begun(tmp_path: Path, depth: int) -> None:
    def holds(world: Lives, engine: Engine, replies: list[Reply]) -> None:
        assert kinds(replies) == ["accepted", "conflict"]
        assert sum(world.site.started.values()) <= 1

    await together(
        tmp_path,
        depth,
        lambda engine: [(Migrate(guest="vm-0"), "1"), (Migrate(guest="vm-0", to="b"), "2")],
        holds,
    )


async def test_a_guest_that_is_migrated_while_its_host_is_emptied_has_one_migration(
    tmp_path: Path, depth: int
) -> None:
    def holds(world: Lives, engine: Engine, replies: list[Reply]) -> None:
        assert [each.kind for each in replies][1] == "accepted"
        assert len([job for job in engine.registry.migrations.values() if not job.ended]) <= 1

    await together(
        tmp_path,
        depth,
        lambda engine: [(Migrate(guest="vm-0"), "1"), (Evacuate(host="a"), "2")],
        holds,
    )


async def test_nobody_is_sent_to_a_host_whose_evacuation_was_accepted_before(
    tmp_path: Path, depth: int
) -> None:
    def holds(world: Lives, engine: Engine, replies: list[Reply]) -> None:
        migrated, emptied = replies
        assert emptied.kind == "accepted"
        if migrated.kind == "accepted":
            (job,) = engine.registry.migrations.values()
            (run,) = engine.registry.evacuations.values()
            assert job.created_at <= run.created_at or job.ended

    await together(
        tmp_path,
        depth,
        lambda engine: [(Migrate(guest="vm-0", to="b"), "1"), (Evacuate(host="b"), "2")],
        holds,
    )


async def test_room_for_one_is_not_given_to_two(tmp_path: Path, depth: int) -> None:
    def holds(world: Lives, engine: Engine, replies: list[Reply]) -> None:
        assert kinds(replies) == ["accepted", "preflight"]

    commands = [(Migrate(guest=f"vm-{number}", to="b"), str(number)) for number in range(2)]
    await together(tmp_path, depth, lambda engine: commands, holds, guests=2, memory_bytes=500 * MIB)


async def test_activating_a_host_and_emptying_it_come_one_after_the_other(tmp_path: Path, depth: int) -> None:
    def holds(world: Lives, engine: Engine, replies: list[Reply]) -> None:
        emptied, activated = replies
        assert emptied.kind == "accepted"
        assert activated.kind == "accepted" or activated.code == "conflict"
        assert engine.inventory.hosts()[0].state is HostState.DRAINING

    await together(
        tmp_path, depth, lambda engine: [(Evacuate(host="a"), "1"), (Activate(host="a"), "2")], holds
    )


async def test_a_host_is_not_emptied_and_filled_again_at_once(tmp_path: Path, depth: int) -> None:
    def holds(world: Lives, engine: Engine, replies: list[Reply]) -> None:
        assert "accepted" in kinds(replies)
        assert (
            len([run for run in engine.registry.evacuations.values() if run.host == "a" and not run.ended])
            == 1
        )

    await together(
        tmp_path,
        depth,
        lambda engine: [(Evacuate(host="a"), "1"), (Restore(host="a"), "2")],
        holds,
    )


async def test_the_same_id_is_carried_out_once_however_often_it_comes(tmp_path: Path, depth: int) -> None:
    def holds(world: Lives, engine: Engine, replies: list[Reply]) -> None:
        assert {each.kind for each in replies} == {"accepted"}
        assert len({each.subject_id for each in replies}) == 1
        assert len(engine.registry.migrations) == 1

    await together(tmp_path, depth, lambda engine: [(Migrate(guest="vm-0"), "same")] * 3, holds)


async def test_a_second_command_under_an_id_in_use_is_refused(tmp_path: Path, depth: int) -> None:
    def holds(world: Lives, engine: Engine, replies: list[Reply]) -> None:
        assert kinds(replies) == ["accepted", "id-reused"]

    await together(
        tmp_path, depth, lambda engine: [(Migrate(guest="vm-0"), "same"), (Evacuate(host="a"), "same")], holds
    )


async def test_what_is_cancelled_while_its_guests_are_begun_begins_nobody_more(
    tmp_path: Path, depth: int
) -> None:
    def holds(world: Lives, engine: Engine, replies: list[Reply]) -> None:
        assert kinds(replies) == ["accepted"]
        assert all(
            job.cancelled or job.ended or not job.can_cancel for job in engine.registry.migrations.values()
        )

    def cancel(engine: Engine) -> Sequence[tuple[Command, str | None]]:
        (run,) = engine.registry.evacuations
        return [(Cancel(target=run), None)]

    for late in range(6):
        await together(
            tmp_path / str(late), depth, cancel, holds, before=[Evacuate(host="a")], guests=3, planning=late
        )


async def test_a_migration_and_its_evacuation_are_cancelled_together(tmp_path: Path, depth: int) -> None:
    def holds(world: Lives, engine: Engine, replies: list[Reply]) -> None:
        assert replies[0].kind == "accepted"

    def cancel(engine: Engine) -> Sequence[tuple[Command, str | None]]:
        (run,) = engine.registry.evacuations
        return [
            (Cancel(target=run), None),
            *((Cancel(target=job), None) for job in engine.registry.migrations),
        ]

    await together(tmp_path, depth, cancel, holds, before=[Evacuate(host="a")], planning=1)


_REFUSED = [
    ([], Evacuate(host="a")),
    ([], Migrate(guest="vm-0", to="b")),
    ([Evacuate(host="b")], Activate(host="b")),
    ([Migrate(guest="vm-0", to="b")], "cancel the migration"),
    ([Evacuate(host="a")], "cancel the evacuation"),
]


@pytest.mark.parametrize(("before", "what"), _REFUSED, ids=lambda value: getattr(value, "verb", None))
async def test_what_is_refused_because_the_journal_failed_leaves_nothing(
    tmp_path: Path, before: list[Command], what: Command | str
) -> None:
    world = Lives(tmp_path, small_site())
    async with world.engine(Life()) as engine:
        handlers = engine.handlers
        dispatcher = Dispatcher(controller=handlers, log=world.journal)
        replies = [await ask(dispatcher, command) for command in before]
        if what == Activate(host="b"):
            while engine.inventory.hosts()[1].state is not HostState.MAINTENANCE:
                await asyncio.sleep(0.05)
        command = what if isinstance(what, Command) else Cancel(target=replies[-1].subject_id)
        seen = state(engine)
        world.journal.broken = "disk full"
        refused = await ask(dispatcher, command)
        assert (refused.kind, refused.code) == ("refused", "unavailable")
        assert state(engine) == seen
        world.journal.broken = ""
        await world.journal.probe()
    await go_on(world)
    if isinstance(what, str):
        assert world.site.running("vm-0") == ["b"]  # nobody cancelled it
    elif not before:
        assert world.site.running("vm-0") == ["a"]


def state(engine: Engine) -> Any:
    return (
        {job.id: job.cancelled for job in engine.registry.migrations.values()},
        {run.id: run.closing for run in engine.registry.evacuations.values()},
        {host.name: host.state for host in engine.inventory.hosts()},
    )


async def test_a_queued_migration_that_is_cancelled_ends_at_once_and_stays_so_after_a_restart(
    tmp_path: Path,
) -> None:
    world = Lives(tmp_path, small_site(2))
    async with world.engine(Life()) as engine:
        dispatcher = Dispatcher(controller=engine.handlers, log=world.journal)
        engine.reconciler.wake = lambda: None  # type: ignore[method-assign]  # it waits for its turn
        begun = await ask(dispatcher, Migrate(guest="vm-0", to="b"))
        ended = await ask(dispatcher, Cancel(target=begun.subject_id))
        assert ended.body["state"] == State.CANCELLED
        assert ended.body["ended_at"] is not None
    await go_on(world)
    assert world.site.running("vm-0") == ["a"]
    assert world.site.started == {}


async def test_a_cancel_that_was_accepted_holds_after_a_kill(tmp_path: Path) -> None:
    world = Lives(tmp_path, small_site())
    world.site.hosts["b"].start_seconds = 30.0
    life = Life()
    async with world.engine(life) as engine:
        dispatcher = Dispatcher(controller=engine.handlers, log=world.journal)
        begun = await ask(dispatcher, Migrate(guest="vm-0", to="b"))
        while not world.site.started:
            await asyncio.sleep(0.01)
        assert (await ask(dispatcher, Cancel(target=begun.subject_id))).kind == "accepted"
        life.dead = True
    await go_on(world)
    (ended,) = await world.journal.page("migration", limit=9)
    assert ended["state"] == State.CANCELLED
    assert world.site.running("vm-0") == ["a"]


async def test_whoever_goes_away_in_the_middle_of_a_command_leaves_nothing_half_done(tmp_path: Path) -> None:
    world = Lives(tmp_path, small_site())
    async with world.engine(Life()) as engine:
        dispatcher = Dispatcher(controller=engine.handlers, log=world.journal)
        release = asyncio.Event()

        async def slowly(call: str) -> None:
            await release.wait()

        world.journal.pause = slowly
        asking = asyncio.create_task(ask(dispatcher, Migrate(guest="vm-0", to="b"), "1"), name="ask")
        await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.sleep(0.1)
        release.set()
        again = await ask(dispatcher, Migrate(guest="vm-0", to="b"), "1")
        assert again.kind == "accepted"
        assert list(engine.registry.migrations) == [again.subject_id]


async def test_an_evacuation_whose_migration_is_held_at_a_restart_says_so(tmp_path: Path) -> None:
    world = Lives(tmp_path, small_site())
    life = Life()
    async with world.engine(life) as engine:
        await ask(Dispatcher(controller=engine.handlers, log=world.journal), Evacuate(host="a"))
        while not any(job.state is State.PRECOPY for job in engine.registry.migrations.values()):
            await asyncio.sleep(0.01)
        await engine.journal_writer.flush(1.0)
        life.dead = True
    for record in tmp_path.glob("*.jsonl"):
        record.unlink()

    async def slowly(call: str) -> None:
        await asyncio.sleep(0.2)

    world.journal.pause = slowly
    async with world.engine(Life()) as engine, asyncio.timeout(60):
        (run,) = engine.registry.evacuations.values()
        while [entry.standing for entry in run.entries.values()] != ["held"]:
            await asyncio.sleep(0.1)


async def test_an_id_gets_the_outcome_once_what_it_began_has_ended(tmp_path: Path) -> None:
    world = Lives(tmp_path, small_site())
    async with world.engine(Life()) as engine, asyncio.timeout(60):
        dispatcher = Dispatcher(controller=engine.handlers, log=world.journal)
        settlement = Settlement(bus=engine.bus, journal=world.journal, dispatcher=dispatcher)
        running = asyncio.create_task(settlement.run(), name="settlement")
        for command, key in ((Migrate(guest="vm-0", to="b"), "1"), (Evacuate(host="b"), "2")):
            begun = await ask(dispatcher, command, key)
            assert (begun.kind, begun.status) == ("accepted", 202)
            while (again := await ask(dispatcher, command, key)).kind != "outcome":
                assert again.subject_id == begun.subject_id
                await asyncio.sleep(0.1)
            assert again.body["state"] == State.COMPLETED
            assert again.subject_id == begun.subject_id
        running.cancel()
        await asyncio.wait({running})
        # One that ended while nobody settled: the next start does.
        begun = await ask(dispatcher, Restore(host="b"), "3")
        while not engine.registry.evacuations[begun.subject_id].ended:
            await asyncio.sleep(0.1)
        await engine.journal_writer.flush(5.0)
        assert (await ask(dispatcher, Restore(host="b"), "3")).kind == "accepted"
        running = asyncio.create_task(
            Settlement(bus=engine.bus, journal=world.journal, dispatcher=dispatcher).run(), name="settlement"
        )
        while (await ask(dispatcher, Restore(host="b"), "3")).kind != "outcome":
            await asyncio.sleep(0.1)
        running.cancel()
        await asyncio.wait({running})
