"""Three controllers of one site, whatever befalls them: no guest twice or nowhere, and each command once."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Sequence
from typing import Any

import pytest

from migrator.core.policy import Start, builtin
from migrator.engine import guest_experiences, handing_over, pair_overheads
from migrator.engine.assigned_migrations import AssignedMigrations
from migrator.engine.spreading import Spreading
from migrator.errors import JournalError
from migrator.ports.assignments import Assignment
from migrator.qemu.claim import DriverClaim
from migrator.testing import journal_view, memory_step_records, shared_store
from tests import three_controllers
from tests.three_controllers import Misfortune, ThreeControllers, Violated, Weakness, emptying, explore

# Of a process that was killed nothing is awaited any more, nor ended in order.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

#: So many runs are thousands of steps.
_RUNS = 2
#: In ``make soak``.
_SOAK_STEPS = 1_000_000


# At 320 one that was cut off from everything comes back to its hosts while a successor has finished its migration.
@pytest.mark.parametrize("seed", [*range(1, _RUNS + 1), 320])
def test_no_invariant_is_broken_whatever_befalls_them(seed: int) -> None:
    assert explore(seed).loop.steps > 500


@pytest.mark.parametrize("command", [16, pytest.param(24, marks=pytest.mark.matrix)])
@pytest.mark.parametrize("what", ["freeze", "kill", "no store", "alone", "outage"])
def test_one_that_acts_is_followed_in_the_middle_of_a_migration(what: str, command: int) -> None:
    world = ThreeControllers(seed=command, misfortunes=[Misfortune(what=what, command=command, seconds=30.0)])
    world.run(emptying)
    assert world.happened


@pytest.mark.parametrize("what", ["freeze", "kill", "no store", "alone"])
def test_one_that_drives_for_another_is_followed_in_the_middle_of_a_migration(what: str) -> None:
    befalls = [Misfortune(what=what, command=20, seconds=30.0, driver=True)]
    world = ThreeControllers(seed=20, misfortunes=befalls)
    world.run(emptying)
    assert world.commands_of_drivers
    assert world.takeovers or what == "no store", "one that is only cut off lets go by itself"


def test_a_guest_that_its_guard_had_go_on_is_moved_again_by_whoever_takes_over() -> None:
    """Its record is read as if it had been handed over, and its destination has ended with the stream."""
    befalls = [Misfortune(what="kill", command=28, driver=True)]
    moved: list[tuple[str, int]] = []

    async def scenario(world: ThreeControllers) -> None:
        await emptying(world)
        await world.quiet()
        found = await world.store.journal.page("migration", limit=9)
        moved.extend((str(each["state"]), each["_private"]["attempt"]) for each in found)

    ThreeControllers(seed=28, misfortunes=befalls).run(scenario)
    assert sorted(moved) == [("completed", 1), ("completed", 1), ("completed", 2)]


def answer_late(monkeypatch: pytest.MonkeyPatch, read: str) -> None:
    """Have the answers of the journal about assignments come so late that much has happened meanwhile."""
    read_now = getattr(journal_view._Assignments, read)

    async def read_late(self: object, *about: object) -> object:
        found = await read_now(self, *about)
        await asyncio.sleep(0.4)
        return found

    monkeypatch.setattr(journal_view._Assignments, read, read_late)


def test_what_was_just_given_is_not_missed_by_an_answer_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_late(monkeypatch, "find")
    world = ThreeControllers(seed=1)
    world.run(emptying)
    assert world.commands_of_drivers
    assert world.takeovers == 0, "nobody is gone"


def test_what_a_driver_let_go_of_is_not_begun_again_by_an_answer_from_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[int] = []
    begin = AssignedMigrations._begin

    def begin_and_count(self: AssignedMigrations, assignment: Assignment) -> None:
        begun.append(assignment.number)
        begin(self, assignment)

    answer_late(monkeypatch, "of")
    answer_late(monkeypatch, "requests_of")
    monkeypatch.setattr(AssignedMigrations, "_begin", begin_and_count)
    ThreeControllers(seed=1).run(emptying)
    assert begun
    assert len(begun) == len(set(begun)), "an assignment is begun once"


@pytest.mark.parametrize("command", [4, 12])
def test_a_journal_that_does_not_answer_for_a_moment_leaves_no_take_over_to_a_person(
    command: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = memory_step_records.MemoryStepRecords._read
    failed: list[str] = []

    async def fail_once(self: memory_step_records.MemoryStepRecords, migration: str) -> Any:
        if failed:
            return await read(self, migration)
        failed.append(migration)
        wire = self._view.wire
        wire.cut[shared_store.PLACE] = "refused"
        try:
            return await read(self, migration)
        finally:
            wire.heal(shared_store.PLACE)

    monkeypatch.setattr(memory_step_records.MemoryStepRecords, "_read", fail_once)
    ThreeControllers(seed=1, misfortunes=[Misfortune(what="kill", command=command)]).run(emptying)
    assert failed


def test_a_guest_that_waits_for_quiet_stays_with_the_planner_which_knows_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(three_controllers, "builtin", lambda name: builtin(name).but(start=Start.QUIET))
    driven: list[int] = []

    async def scenario(world: ThreeControllers) -> None:
        replies = [
            await world.ask("migrate", f"k-{guest}", guest=guest, to="b")
            for guest in ("vm-0", "vm-1", "vm-2")
        ]
        await asyncio.sleep(2)
        driven.extend(each.assigned.count for each in world.controllers if each.assigned is not None)
        for reply in replies:
            await world.ask("cancel", f"k-cancel-{reply.subject_id}", target=reply.subject_id)

    ThreeControllers(seed=1).run(scenario)
    assert driven == [0, 0, 0]


def test_what_a_driver_learns_of_a_guest_the_planner_knows_at_once_and_tells_the_next_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    begin = AssignedMigrations._begin

    def noted(self: AssignedMigrations, assignment: Assignment) -> None:
        given.append(dict(assignment.session))
        begin(self, assignment)

    async def scenario(world: ThreeControllers) -> None:
        for target in ("b", "a"):
            for guest in ("vm-0", "vm-1", "vm-2"):
                await world.ask("migrate", f"k-{guest}-{target}", guest=guest, to=target)
            await world.quiet()
        kept.extend(await world.store.journal.unfinished(guest_experiences.KIND))
        pairs.extend(await world.store.journal.unfinished(pair_overheads.KIND))

    monkeypatch.setattr(AssignedMigrations, "_begin", noted)
    ThreeControllers(seed=1).run(scenario)
    driven = {each["guest"] for each in given if each["destination"] == "b"}
    assert driven
    known = {each["id"]: each for each in kept}
    for guest in driven:
        assert known[guest]["last_move"]["destination"] == "a"
        assert known[guest]["watched_seconds"] > 0
    again = [each for each in given if each["destination"] == "a" and each["guest"] in driven]
    assert again
    assert all(each["_private"]["prior"]["watched_seconds"] > 0 for each in again)
    assert [len(each["seconds"]) for each in pairs] == [6], "of every one of six migrations, whoever drove it"
    [known_pair] = {tuple(each["_private"]["overheads"]) for each in again}
    assert known_pair == (pairs[0]["id"],)


def test_a_driver_that_cannot_reach_the_hosts_does_not_keep_them_from_being_emptied() -> None:
    cut = [Misfortune(what="no hosts", step=1, who=who, seconds=30.0, how="refused") for who in (1, 2)]
    ended: list[str] = []

    async def scenario(world: ThreeControllers) -> None:
        await emptying(world)
        await world.quiet()
        ended.extend(each["state"] for each in await world.store.journal.page("evacuation", limit=9))

    ThreeControllers(seed=1, misfortunes=cut).run(scenario)
    assert ended == ["completed"]


def test_a_driver_that_drains_does_not_wait_for_a_turn_that_nobody_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nobody_plans(self: journal_view._Assignments, *about: Any) -> None:
        """Tell the driver nothing."""

    monkeypatch.setattr(
        handing_over, "choose_driver", lambda own, loads, hosts, needs, **how: next(iter(hosts), own)
    )
    stopped: list[bool] = []

    async def scenario(world: ThreeControllers) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(journal_view._Assignments, "request", nobody_plans)
            await world.ask("migrate", "k-second", guest="vm-1", to="b")
            while not (drivers := world.drivers()):
                await asyncio.sleep(0.01)
            await asyncio.sleep(3)
            assigned = drivers[0].assigned
            assert assigned is not None
            stopping = drivers[0].process.start(assigned.stop(drain=True))
            done, _ = await asyncio.wait({stopping}, timeout=60)
            stopped.append(bool(done))
        world.kill(drivers[0])

    ThreeControllers(seed=1).run(scenario)
    assert stopped == [True]


async def one_of_two_is_cancelled(world: ThreeControllers) -> None:
    """Move two guests, and have the one that another controller drives stay where it is."""
    await world.ask("migrate", "k-first", guest="vm-0", to="b")
    reply = await world.ask("migrate", "k-second", guest="vm-1", to="b")
    await world.ask("cancel", "k-cancel", target=reply.subject_id)


async def state_of_second(world: ThreeControllers) -> str:
    """Return what became of it."""
    found = await world.store.journal.page("migration", limit=9)
    return next(str(saved["state"]) for saved in found if saved["id"] == world.keys["k-second"].subject_id)


def test_a_cancel_while_a_migration_is_being_given_away_reaches_its_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give, save = journal_view._Assignments.give, journal_view.JournalView.save

    async def give_slowly(self: journal_view._Assignments, assignment: Assignment) -> bool:
        await asyncio.sleep(0.3)
        return await give(self, assignment)

    async def save_slowly(self: journal_view.JournalView, *documents: Any, **how: Any) -> list[int]:
        if any(document.get("_private", {}).get("cancelled") for _, document in documents):
            await asyncio.sleep(1.0)
        return await save(self, *documents, **how)

    monkeypatch.setattr(journal_view._Assignments, "give", give_slowly)
    monkeypatch.setattr(journal_view.JournalView, "save", save_slowly)
    ended: list[str] = []

    async def scenario(world: ThreeControllers) -> None:
        await one_of_two_is_cancelled(world)
        await world.quiet()
        ended.append(await state_of_second(world))

    ThreeControllers(seed=1).run(scenario)
    assert ended == ["cancelled"]


@pytest.mark.parametrize(("verb", "spread"), [("cancel", True), ("postcopy", True), ("postcopy", False)])
def test_what_was_accepted_outlives_the_planner_that_could_do_nothing_about_it_any_more(
    verb: str, spread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = ThreeControllers(seed=1, spread=spread)

    async def tell_nobody(self: journal_view._Assignments, *about: Any) -> None:
        if about[-1][verb] and not killed:
            await asyncio.sleep(60)
        await request(self, *about)

    request = journal_view._Assignments.request
    monkeypatch.setattr(journal_view._Assignments, "request", tell_nobody)
    if spread:
        monkeypatch.setattr(
            handing_over, "choose_driver", lambda own, loads, hosts, needs, **how: next(iter(hosts), own)
        )
    # The next one plans while it is still copied.
    monkeypatch.setattr(three_controllers, "LEASE_SECONDS", 1.5)
    killed: list[str] = []
    ended: list[tuple[str, str]] = []

    async def scenario(world: ThreeControllers) -> None:
        reply = await world.ask("migrate", "k-second", guest="vm-1", to="b")
        while await state_of_second(world) != "precopy":
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        about = {"target" if verb == "cancel" else "migration": reply.subject_id}
        accepted = await world.ask(verb, f"k-{verb}", **about)
        assert accepted.kind == "accepted"
        [acting] = [each for each in world.controllers if each.sole_use is not None]
        world.kill(acting)
        killed.append(acting.name)
        await world.quiet()
        [saved] = await world.store.journal.page("migration", limit=9)
        ended.append((str(saved["state"]), str(saved["mode"])))

    world.run(scenario)
    assert ended == [("cancelled", "precopy") if verb == "cancel" else ("completed", "postcopy")]


def spoil(monkeypatch: pytest.MonkeyPatch, world: ThreeControllers, call: str, how: str) -> list[str]:
    """Have the one that acts not hear that such a call about assignments was carried out, once; or die of it."""
    befallen: list[str] = []
    carry_out = getattr(journal_view._Assignments, call)

    async def carry_out_unheard(self: journal_view._Assignments, *about: Any) -> Any:
        done = await carry_out(self, *about)
        if not befallen:
            [acting] = [
                each for each in world.controllers if each.sole_use is not None and not each.process.dead
            ]
            befallen.append(acting.name)
            if how == "unheard":
                raise JournalError("the journal does not answer")
            world.kill(acting)
            await asyncio.sleep(60)
        return done

    monkeypatch.setattr(journal_view._Assignments, call, carry_out_unheard)
    return befallen


@pytest.mark.parametrize(("call", "how"), [("fence", "dies"), ("remove", "dies"), ("remove", "unheard")])
def test_what_a_driver_said_last_counts_whatever_befalls_the_planner_that_takes_its_migration_back(
    call: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = journal_view.JournalView.save

    async def save_slowly(self: journal_view.JournalView, *documents: Any, **how: Any) -> list[int]:
        if any(kind == "migration" and its["state"] != "queued" for kind, its in documents):
            await asyncio.sleep(9.0)  # its driver is gone when the journal has what that said first
        return await save(self, *documents, **how)

    monkeypatch.setattr(journal_view.JournalView, "save", save_slowly)
    monkeypatch.setattr(
        handing_over, "choose_driver", lambda own, loads, hosts, needs, **how: next(iter(hosts), own)
    )
    world = ThreeControllers(seed=8, guests=2, misfortunes=[Misfortune(what="kill", command=8, driver=True)])
    befallen = spoil(monkeypatch, world, call, how)
    ended: list[tuple[str, Any]] = []

    async def scenario(world: ThreeControllers) -> None:
        await world.ask("migrate", "k-second", guest="vm-1", to="b")
        await world.quiet()
        found = await world.store.journal.page("migration", limit=9)
        ended.extend((str(saved["state"]), saved["error"]) for saved in found)

    world.run(scenario)
    assert befallen
    assert ended == [("completed", None)]


def test_what_was_given_unheard_and_is_then_refused_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give, find = journal_view._Assignments.give, journal_view._Assignments.find
    answers: list[bool] = []
    left: list[int] = []

    async def give_unheard(self: journal_view._Assignments, assignment: Assignment) -> bool:
        answers.append(await give(self, assignment))
        if len(answers) > 1:
            return answers[-1]
        [driver] = [each for each in world.controllers if each.name == assignment.driver]
        world.kill(driver)
        raise JournalError("the journal does not answer")

    async def find_later(self: journal_view._Assignments, about: Any = None) -> Any:
        if answers == [True]:
            raise JournalError("the journal does not answer")
        return await find(self, about)

    monkeypatch.setattr(journal_view._Assignments, "give", give_unheard)
    monkeypatch.setattr(journal_view._Assignments, "find", find_later)
    monkeypatch.setattr(
        handing_over, "choose_driver", lambda own, loads, hosts, needs, **how: next(iter(hosts), own)
    )

    async def scenario(world: ThreeControllers) -> None:
        await world.ask("migrate", "k-second", guest="vm-1", to="b")
        while await state_of_second(world) != "precopy":
            await asyncio.sleep(0.01)
        if not world.drivers():
            left.append(len(world.store.journal.assignments._rows))
        await world.quiet()

    world = ThreeControllers(seed=1)
    world.run(scenario)
    assert answers[:2] == [True, False]
    assert left == [0], "it is driven by the planner, and nobody else has it"


def test_what_a_driver_cannot_read_another_drives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = AssignedMigrations._begin
    refused: list[AssignedMigrations] = []
    begun: list[str] = []

    def begin_what_it_knows(self: AssignedMigrations, assignment: Assignment) -> None:
        if not refused or self is refused[0]:
            refused.append(self)
            raise TypeError("Policy.__init__() got an unexpected keyword argument")
        begun.append(assignment.migration)
        begin(self, assignment)

    monkeypatch.setattr(AssignedMigrations, "_begin", begin_what_it_knows)
    ended: list[str] = []

    async def scenario(world: ThreeControllers) -> None:
        for number in range(4):
            await world.ask("migrate", f"k-{number}", guest=f"vm-{number}", to="b")
        await world.quiet()
        ended.extend(str(each["state"]) for each in await world.store.journal.page("migration", limit=9))

    ThreeControllers(seed=1, guests=4).run(scenario)
    assert len(refused) == 1, "nothing more is given to the one that could not read it"
    assert begun
    assert ended == ["completed"] * 4


def test_what_a_planner_cannot_read_its_driver_goes_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        handing_over, "choose_driver", lambda own, loads, hosts, needs, **how: next(iter(hosts), own)
    )
    monkeypatch.setattr(three_controllers, "LEASE_SECONDS", 1.5)
    adopt, fence = Spreading.adopt, journal_view._Assignments.fence
    unread: list[str] = []
    fenced: list[str] = []
    ended: list[str] = []

    def adopt_what_it_knows(self: Spreading, saved: Any, assignment: Assignment) -> Any:
        if not unread:
            unread.append(saved["id"])
            raise TypeError("Policy.__init__() got an unexpected keyword argument")
        return adopt(self, saved, assignment)

    async def fence_and_note(self: journal_view._Assignments, migration: str, number: int) -> Any:
        fenced.append(migration)
        return await fence(self, migration, number)

    monkeypatch.setattr(Spreading, "adopt", adopt_what_it_knows)
    monkeypatch.setattr(journal_view._Assignments, "fence", fence_and_note)

    def acting(world: ThreeControllers) -> three_controllers.Controller:
        return next(each for each in world.controllers if each.sole_use and not each.process.dead)

    async def scenario(world: ThreeControllers) -> None:
        await world.ask("migrate", "k-second", guest="vm-1", to="b")
        while await state_of_second(world) != "precopy":
            await asyncio.sleep(0.01)
        world.kill(acting(world))
        while not unread:
            await asyncio.sleep(0.05)
        assert world.drivers()
        await asyncio.sleep(1.5)
        assert acting(world) not in world.drivers(), "who took over is not its driver"
        world.kill(acting(world))  # the next one can read it
        await world.quiet()
        ended.append(await state_of_second(world))

    ThreeControllers(seed=2, guests=2).run(scenario)
    assert fenced == []
    assert ended == ["completed"]


@pytest.mark.soak
def test_no_invariant_is_broken_in_a_million_steps() -> None:
    first = int(os.environ.get("SEED", time.time_ns() // 1_000_000_000))
    steps = 0
    for seed in itertools.count(first):
        steps += explore(seed).loop.steps
        if steps >= _SOAK_STEPS:
            return


# --- it is able to fail ----------------------------------------------------------------------------------------------


def found(
    weakness: Weakness,
    *whats: str,
    successor_dies_after: float | None = None,
    commands: Sequence[int] = range(8, 40, 4),
    drivers: bool = False,
) -> str:
    """Return the first violation that controllers with this weakness come to; empty where there is none.

    :param commands: it befalls them at one of these after the other.
    :param successor_dies_after: so many seconds later the one that acts then is killed.
    :param drivers: it befalls one that drives for the one that acts; else that one drives everything itself.
    """
    for what, command in itertools.product(whats, commands):
        befalls = [Misfortune(what=what, command=command, seconds=30.0, driver=drivers)]
        if successor_dies_after is not None:
            befalls.append(Misfortune(what="kill", command=command, later=successor_dies_after))
        try:
            ThreeControllers(seed=command, misfortunes=befalls, weakness=weakness, spread=drivers).run(
                emptying
            )
        except Violated as error:
            return str(error)
    return ""


def test_it_finds_a_journal_that_does_not_check_the_lease() -> None:
    assert "whose lease is over" in found(Weakness(no_fencing=True), "freeze")


# One that is cut off from the journal meets QEMUs that a successor has marked which is dead by now.


def test_it_finds_a_controller_that_does_not_look_at_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    async def verify(self: DriverClaim, *, timeout: float = 5.0) -> None:
        """Believe that the mark is ours."""

    monkeypatch.setattr(DriverClaim, "verify", verify)
    violated = found(Weakness(no_suspension=True), "no store", successor_dies_after=7.0)
    assert "has taken over" in violated


def test_it_finds_a_controller_that_acts_after_the_end_of_its_lease() -> None:
    assert "has taken over" in found(Weakness(acts_on=True), "no store", successor_dies_after=7.0)


def test_it_finds_a_driver_that_acts_after_the_end_of_its_lease() -> None:
    violated = found(
        Weakness(drives_on=True), "no store", successor_dies_after=9.5, commands=[12, 17], drivers=True
    )
    assert "has taken over" in violated


def test_it_finds_a_journal_that_does_not_check_the_right_of_a_driver() -> None:
    violated = found(Weakness(no_driver_fencing=True), "freeze", "no store", commands=[12, 17], drivers=True)
    assert "whose assignment is over" in violated


def test_a_driver_that_is_cut_off_leaves_everything_to_others() -> None:
    assert found(Weakness(), "no store", successor_dies_after=9.5, commands=[12, 17], drivers=True) == ""


def test_a_controller_that_is_cut_off_leaves_everything_to_others() -> None:
    assert found(Weakness(), "no store", successor_dies_after=7.0, commands=[8, 12]) == ""
