"""Guests of one group are switched together: who may be switched when, and what becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import pytest

from migrator.api import received
from migrator.api.commands import Cancel, Evacuate, Migrate, Role
from migrator.api.replies import Refusal
from migrator.api.requests import Caller, Envelope
from migrator.core.drain.actions import AllowSwitch, Begin, CancelMigration, Change
from migrator.core.drain.groups import TOGETHER_SECONDS, GroupDecision, Member, judge
from migrator.core.drain.limits import GroupRules, Otherwise
from migrator.core.drain.plan import make_plan
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.model import State
from migrator.core.policy import builtin
from migrator.engine.migration.group_hold import GROUP, GroupHold
from migrator.engine.migration.intent_log import IntentLog
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.requests import MigrationRequests
from migrator.engine.rules import Rules
from migrator.ports import Record
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB, Workload, idle, steady
from tests.unit.test_drain_plan import emptying, guest, migration, site
from tests.unit.test_drain_plan import of as of_kind

OPERATOR = Caller(user="unix:0", role=Role.OPERATOR, interface="http")
NOT_YET = Member(guest="")
SOON = Member(guest="", switch_in_seconds=0.1, since=0.0)
LATER = Member(guest="", switch_in_seconds=4.0, since=0.0)
ALLOWED = Member(guest="", switch_in_seconds=1.0, since=0.0, allowed=True)
SWITCHED = Member(guest="", allowed=True, switched=True)
STAYS = Member(guest="", stays="it failed")
DOUBTFUL = Member(guest="", in_doubt=True)
STATES = (NOT_YET, SOON, LATER, ALLOWED, SWITCHED, STAYS, DOUBTFUL)


def of(*states: Member) -> list[Member]:
    return [replace(state, guest=f"vm-{number}") for number, state in enumerate(states)]


class TestRule:
    @pytest.mark.parametrize("otherwise", list(Otherwise))
    def test_keeps_to_itself_whatever_three_guests_are_up_to(self, otherwise: Otherwise) -> None:
        rules = GroupRules(wait_seconds=60.0, otherwise=otherwise)
        for states, now in product(product(STATES, repeat=3), (1.0, 100.0)):
            members = of(*states)
            verdict = judge("shop", members, rules, now=now)
            self.check(members, verdict, rules, late=now > 60.0)

    def check(self, members: list[Member], verdict: GroupDecision, rules: GroupRules, *, late: bool) -> None:
        held = {each.guest: each for each in members if not (each.allowed or each.switched or each.stays)}
        switched = any(each.switched for each in members)
        begun = switched or any(each.allowed for each in members)
        assert verdict.switch.keys() <= held.keys(), members
        assert not (verdict.switch and verdict.stay)
        if verdict.stay:
            assert rules.otherwise is Otherwise.STAY, members
            assert not begun, "a part of it moves already"
        for key in verdict.switch:
            assert switched or held[key].switch_in_seconds is not None, "it could not be switched"
        ready = {key for key, each in held.items() if each.switch_in_seconds is not None}
        if late and ready:
            assert verdict.stay or ready <= verdict.switch.keys(), "one waits for ever"
        if held and switched:
            assert verdict.switch.keys() == held.keys(), "the others have gone"
        if ready and ready == held.keys() and not begun and not verdict.stay:
            assert verdict.switch, "all of them are due"

    def test_the_one_that_takes_longest_goes_first_and_each_other_when_it_would_stop_with_it(self) -> None:
        rules = GroupRules()
        first = judge("shop", of(SOON, LATER), rules, now=1.0)
        assert first.switch.keys() == {"vm-1"}
        near = replace(ALLOWED, switch_in_seconds=TOGETHER_SECONDS)
        assert judge("shop", of(SOON, near), rules, now=4.0).switch.keys() == {"vm-0"}

    def test_one_that_is_alone_waits_for_nobody(self) -> None:
        assert judge("shop", of(SOON), GroupRules(), now=0.0).switch.keys() == {"vm-0"}


pytestmark = pytest.mark.looptime


def group_site(
    directory: Path, guests: Mapping[str, Workload], *, link: float = 60 * MIB, **rules: object
) -> SimulatedService:
    service = SimulatedService(directory)
    service.group = "shop"
    narrow = builtin("gentle").but(max_bandwidth_bytes_per_second=50 * MIB)
    service.rules = Rules(
        policy=lambda name: narrow if name == "narrow" else builtin(name),
        groups={"shop": GroupRules(**rules)},  # type: ignore[arg-type]
    )
    for name in ("a", "b"):
        service.site.add_host(name, link=link)
    for name, workload in guests.items():
        service.site.add_guest(
            name,
            host="a",
            workload=workload,
            memory_bytes=256 * MIB,
            resident_bytes=20 * MIB + workload.working_bytes + workload.constant_bytes,
        )
    return service


THREE = {"front": idle(), "web": steady(16 * MIB, 4 * MIB), "db": steady(48 * MIB, 16 * MIB)}


class Switches:
    """When each guest came to its destination, on the loop's clock."""

    def __init__(self, service: SimulatedService, running: RunningEngine) -> None:
        self._service, self._running = service, running
        self.at: dict[str, float] = {}

    async def watch(self) -> None:
        while True:
            for session in self._running.sessions():
                done = [each for each in session.result.decisions if each.action == "hand-over"]
                if done:
                    self.at.setdefault(session.guest.name, asyncio.get_running_loop().time())
            await asyncio.sleep(0.01)

    @property
    def spread(self) -> float:
        return max(self.at.values()) - min(self.at.values())


async def test_an_evacuation_switches_the_guests_of_a_group_within_a_second(tmp_path: Path) -> None:
    service = group_site(tmp_path, THREE)
    async with service.running() as running:
        switches = Switches(service, running)
        task = asyncio.create_task(switches.watch())
        end = await running.end_of(await running.ask(Evacuate(host="a")))
        task.cancel()
        assert end.state is EvacuationState.COMPLETED
        assert len(switches.at) == 3
        assert switches.spread < 1.0, switches.at
        for session in running.sessions():
            document = session.document()
            assert document.moved_with == "shop"
            assert document.downtime_seconds is not None
            assert document.downtime_seconds < 0.35, document.decisions
            assert GROUP in {each.action for each in document.decisions}


async def test_guests_go_alone_where_their_group_is_told_to(tmp_path: Path) -> None:
    service = group_site(tmp_path, THREE, together=False)
    async with service.running() as running:
        await running.end_of(await running.ask(Evacuate(host="a")))
        assert {each.moved_with for each in running.sessions()} == {""}


FAST = 1000 * MIB
#: Under a policy that leaves it 50 MiB/s.
GREEDY = steady(200 * MIB, 400 * MIB)


async def test_one_that_never_converges_is_waited_for_so_long_and_no_guest_stands_still(
    tmp_path: Path,
) -> None:
    service = group_site(tmp_path, {"web": THREE["web"], "greedy": GREEDY}, link=FAST, wait_seconds=8.0)
    async with service.running() as running:
        run = await running.ask(Evacuate(host="a", policy="narrow"))
        began = asyncio.get_running_loop().time()
        await running.until(lambda: service.site.running("web") == ["b"], seconds=60)
        assert 8.0 < asyncio.get_running_loop().time() - began < 16.0
        (web,) = [each for each in running.sessions() if each.guest.name == "web"]
        assert (web.result.standstill_seconds or 0.0) < 0.2
        assert service.site.running("greedy") == ["a"]
        await running.ask(Cancel(target=run.id))


async def test_the_others_stay_where_that_is_what_their_group_does(tmp_path: Path) -> None:
    service = group_site(
        tmp_path,
        {"web": THREE["web"], "greedy": GREEDY},
        link=FAST,
        wait_seconds=8.0,
        otherwise=Otherwise.STAY,
    )
    async with service.running() as running:
        end = await running.end_of(await running.ask(Evacuate(host="a", policy="narrow")))
        assert end.state is EvacuationState.INCOMPLETE
        assert service.site.running("web") == ["a"]
        assert service.site.running("greedy") == ["a"]
        for each in running.sessions():
            assert (each.result.standstill_seconds or 0.0) < 0.2


async def test_one_that_is_cancelled_lets_the_others_go(tmp_path: Path) -> None:
    service = group_site(tmp_path, {"web": THREE["web"], "greedy": GREEDY}, link=FAST)
    async with service.running() as running:
        run = await running.ask(Evacuate(host="a", policy="narrow"))
        await running.until(lambda: any(each.waits_for_group for each in running.sessions()), seconds=60)
        (greedy,) = [each for each in running.sessions() if each.guest.name == "greedy"]
        await running.ask(Cancel(target=greedy.id))
        end = await running.end_of(run)
        assert {each.guest_name: each.standing for each in end.guests} == {
            "web": GuestStanding.MOVED,
            "greedy": GuestStanding.SET_ASIDE,
        }


async def test_a_controller_that_is_killed_while_they_wait_leaves_them_to_the_next(tmp_path: Path) -> None:
    service = group_site(tmp_path, THREE)
    async with service.running(killed=True) as running:
        run = await running.ask(Evacuate(host="a"))
        await running.until(lambda: any(each.waits_for_group for each in running.sessions()), seconds=60)
    assert all(service.site.running(name) == ["a"] for name in THREE)
    async with service.running() as running:
        end = await running.end_of(run)
        assert end.state is EvacuationState.COMPLETED, end
    assert all(service.site.running(name) == ["b"] for name in THREE)


async def test_a_group_is_moved_by_its_name_and_brought_back(tmp_path: Path) -> None:
    service = group_site(tmp_path, THREE, together=False)
    async with service.running() as running:
        switches = Switches(service, running)
        task = asyncio.create_task(switches.watch())
        run = await running.ask(Migrate(group="shop", to="b"), key="k")
        assert (run.kind, run.group, run.target, run.host) == ("group", "shop", "b", "")
        assert await running.ask(Migrate(group="shop", to="b"), key="k") == await running.queries.evacuation(
            run.id
        )
        with pytest.raises(Refusal, match="already"):
            await running.ask(Migrate(group="shop", to="b"))
        end = await running.end_of(run)
        task.cancel()
        assert end.state is EvacuationState.COMPLETED
        assert all(service.site.running(name) == ["b"] for name in THREE)
        assert switches.spread < 1.0, switches.at
        assert {each.state for each in running.queries.hosts()} == {"active"}
        with pytest.raises(Refusal, match="all guests of the group shop are on b already"):
            await running.ask(Migrate(group="shop", to="b"))
        with pytest.raises(Refusal, match="no guest that is known has the group other"):
            await running.ask(Migrate(group="other"))


async def test_a_group_that_was_asked_for_goes_on_after_a_crash(tmp_path: Path) -> None:
    service = group_site(tmp_path, THREE)
    async with service.running(killed=True) as running:
        run = await running.ask(Migrate(group="shop"))
    async with service.running() as running:
        end = await running.end_of(run)
        assert (end.state, end.kind) == (EvacuationState.COMPLETED, "group")


def test_a_command_for_one_guest_is_what_it_always_was() -> None:
    assert Migrate(guest="vm").model_dump(mode="json") == {
        "guest": "vm",
        "to": None,
        "policy": None,
        "accept": [],
    }
    assert "guest" not in Migrate(group="shop").model_dump(mode="json")


@pytest.mark.parametrize("body", [{}, {"guest": "vm", "group": "shop"}])
def test_a_command_takes_a_guest_or_a_group(body: dict[str, str]) -> None:
    envelope = Envelope(verb="migrate", body=body, caller=OPERATOR)
    with pytest.raises(Refusal, match="the command takes either guest or group"):
        received.parse(envelope)


async def test_a_service_that_finishes_what_moves_before_it_stops_waits_for_no_group(tmp_path: Path) -> None:
    service = group_site(tmp_path, {"db": THREE["db"], "greedy": GREEDY}, link=FAST)
    async with service.running(killed=True) as running:
        await running.ask(Evacuate(host="a", policy="narrow"))
        await running.until(lambda: any(each.waits_for_group for each in running.sessions()), seconds=60)
        async with asyncio.timeout(120):
            await running.engine.stop(drain=True)
        assert service.site.running("db") == ["b"]


def test_nobody_waits_for_a_group_whose_evacuation_is_gone() -> None:
    alone = replace(
        migration(guest("vm", group="shop"), State.PRECOPY), evacuation="other", moved_with="shop"
    )
    plan = make_plan(site(alone.guest, migrations=(alone,)))
    assert [each.migration for each in of_kind(plan, AllowSwitch)] == [alone.id]


def test_time_that_a_guest_waited_is_not_its_own_when_it_cannot_be_switched_any_more() -> None:
    log = IntentLog(
        cast(Record, None),
        result=MigrationOutcome(id="m", state=State.PRECOPY),
        on_decision=lambda decision: None,
    )
    hold = GroupHold("shop", requests=MigrationRequests(), intent_log=log)
    policy = builtin("gentle").but(max_duration_seconds=60.0)
    assert hold.policy(policy).max_duration_seconds == 60.0
    hold.note(0.1)
    log.began -= 100.0
    hold.note(0.1)
    assert (hold.policy(policy).max_duration_seconds or 0.0) > 1000.0
    hold.note(None)
    log.began -= 10.0
    hold.note(None)
    assert hold.policy(policy).max_duration_seconds == pytest.approx(160.0, abs=1.0)


def test_the_others_are_waited_for_only_so_long_by_one_that_can_be_switched_now_and_then() -> None:
    flaps = Member(guest="", since=0.0)
    rules = GroupRules(wait_seconds=60.0)
    assert judge("shop", of(flaps, NOT_YET), rules, now=70.0).switch == {}
    again = replace(flaps, switch_in_seconds=0.1)
    assert judge("shop", of(again, NOT_YET), rules, now=71.0).switch.keys() == {"vm-0"}


def test_nobody_waits_for_one_whose_state_is_in_a_file() -> None:
    gone, vm = guest("gone", group="shop"), guest("vm", group="shop")
    under_way = replace(
        migration(vm, State.PRECOPY), evacuation="e1", moved_with="shop", switch_in_seconds=0.1
    )
    run = emptying(gone, vm).begun("vm", under_way.id, "b", "")
    run = run.marked({"gone": replace(run.entries["gone"], standing=GuestStanding.SAVED)})
    plan = make_plan(site(vm, evacuations=(run,), migrations=(under_way,)))
    assert [each.migration for each in of_kind(plan, AllowSwitch)] == [under_way.id]


def test_one_that_failed_does_not_go_alone_where_its_group_has_stayed() -> None:
    other, vm = guest("other", group="shop"), guest("vm", group="shop")
    run = emptying(other, vm)
    aside = replace(run.entries["other"], standing=GuestStanding.SET_ASIDE, reason="it was cancelled")
    run = run.marked({"other": aside})
    rules = {"shop": GroupRules(otherwise=Otherwise.STAY)}
    snapshot = site(other, vm, evacuations=(run,))
    plan = make_plan(replace(snapshot, limits=replace(snapshot.limits, groups=rules)))
    assert of_kind(plan, Begin) == []
    (changed,) = [each.after.entries["vm"] for each in of_kind(plan, Change)]
    assert changed.standing is GuestStanding.SET_ASIDE
    assert "its group shop stays: other does not move" in changed.reason


class TestOneThatIsHeld:
    """Nobody knows where it will be: the others wait, and part from it only as their group says."""

    def site(self, directory: Path, **rules: Any) -> SimulatedService:
        """One guest that is soon ready on one host, and one that takes ten seconds on another."""
        service = group_site(directory, {"front": THREE["front"]}, **rules)
        service.site.add_host("c", link=60 * MIB)
        service.site.add_guest(
            "db",
            host="c",
            workload=steady(600 * MIB, MIB),
            memory_bytes=1024 * MIB,
            resident_bytes=640 * MIB,
        )
        return service

    async def held(self, running: RunningEngine, service: SimulatedService, *, down: str = "c") -> None:
        """The controller does not reach one host any more, while the other guest waits for the one there."""
        front, db = (
            next(each for each in running.sessions() if each.guest.name == name) for name in ("front", "db")
        )
        await running.until(lambda: front.waits_for_group and db.state is State.PRECOPY, 60)
        service.site.hosts[down].down = True
        await running.until(lambda: db.state is State.HELD, 200)

    async def test_is_waited_for_and_moves_with_the_others_once_its_host_is_back(
        self, tmp_path: Path
    ) -> None:
        service = self.site(tmp_path, otherwise=Otherwise.STAY)
        async with service.running() as running:
            run = await running.ask(Migrate(group="shop", to="b"))
            switches = Switches(service, running)
            task = asyncio.create_task(switches.watch())
            await running.until(lambda: len(running.sessions()) == 2)
            await self.held(running, service)
            await asyncio.sleep(2)
            assert service.site.running("front") == ["a"]
            service.site.hosts["c"].down = False
            end = await running.end_of(run)
            task.cancel()
            assert end.state is EvacuationState.COMPLETED, end
            assert [service.site.running(name) for name in ("front", "db")] == [["b"], ["b"]]
            assert switches.spread < 1.0, switches.at

    @pytest.mark.parametrize("otherwise", list(Otherwise))
    def test_is_waited_for_only_so_long(self, otherwise: Otherwise) -> None:
        rules = GroupRules(wait_seconds=60.0, otherwise=otherwise)
        members = of(SOON, replace(DOUBTFUL, label="db"))
        assert judge("shop", members, rules, now=59.0) == GroupDecision(switch={})
        late = judge("shop", members, rules, now=61.0)
        why = late.switch.get("vm-0", "") or late.stay
        waited = "db, whose migration is held, was not switched in the 60.0 s that its group shop waits"
        assert why.startswith(waited), late
        assert bool(late.stay) is (otherwise is Otherwise.STAY)

    def test_it_does_not_move_alone_when_it_is_tried_again_where_the_others_stayed(self) -> None:
        other, vm = guest("other", group="shop"), guest("vm", group="shop")
        run = emptying(other, vm)
        why = "db, whose migration is held, was not switched"
        aside = replace(run.entries["other"], standing=GuestStanding.SET_ASIDE, reason=why, stays=why)
        rules = {"shop": GroupRules(otherwise=Otherwise.STAY)}
        snapshot = site(other, vm, evacuations=(run.marked({"other": aside}),))
        plan = make_plan(replace(snapshot, limits=replace(snapshot.limits, groups=rules)))
        (changed,) = [each.after.entries["vm"] for each in of_kind(plan, Change)]
        assert (changed.standing, changed.reason) == (GuestStanding.SET_ASIDE, why)

    def test_a_guest_whose_turn_comes_meanwhile_waits_for_it_too(self) -> None:
        held, vm = guest("held", group="shop"), guest("vm", group="shop")
        run = emptying(held, vm)
        doubt = replace(run.entries["held"], standing=GuestStanding.HELD, attempts=1, reason="nobody knows")
        run = run.marked({"held": doubt})
        plan = make_plan(site(held, vm, evacuations=(run,)))
        assert [each.moved_with for each in of_kind(plan, Begin)] == ["shop"]

    @pytest.mark.parametrize("state", [State.PRECOPY, State.HELD])
    def test_it_does_not_move_alone_once_its_evacuation_has_ended_where_the_others_stayed(
        self, state: State
    ) -> None:
        alone = replace(migration(guest("vm", group="shop"), state), evacuation="other", moved_with="shop")
        snapshot = site(alone.guest, migrations=(alone,))
        rules = {"shop": GroupRules(otherwise=Otherwise.STAY)}
        plan = make_plan(replace(snapshot, limits=replace(snapshot.limits, groups=rules)))
        assert of_kind(plan, AllowSwitch) == []
        cancelled = [each.migration for each in of_kind(plan, CancelMigration)]
        assert cancelled == ([alone.id] if state is State.PRECOPY else []), "a person has to say"

    @pytest.mark.parametrize("stayed", [True, False])
    def test_those_that_stayed_with_it_follow_where_it_has_moved_after_all(self, stayed: bool) -> None:
        moved, vm = guest("moved", group="shop"), guest("vm", group="shop")
        run = emptying(moved, vm)
        why = "its group shop stays" if stayed else ""
        entries = {
            "moved": replace(run.entries["moved"], standing=GuestStanding.MOVED),
            "vm": replace(
                run.entries["vm"],
                standing=GuestStanding.SET_ASIDE,
                attempts=1,
                reason=why or "its migration was cancelled",
                stays=why,
            ),
        }
        rules = {"shop": GroupRules(otherwise=Otherwise.STAY)}
        snapshot = site(vm, evacuations=(run.marked(entries),))
        plan = make_plan(replace(snapshot, limits=replace(snapshot.limits, groups=rules)))
        assert [each.guest.key for each in of_kind(plan, Begin)] == (["vm"] if stayed else [])

    async def test_where_it_is_found_to_have_moved_when_all_is_over_that_is_told(
        self, tmp_path: Path
    ) -> None:
        service = self.site(tmp_path, wait_seconds=1.0)
        async with service.running() as running:
            run = await running.ask(Migrate(group="shop", to="b"))
            await running.until(lambda: len(running.sessions()) == 2)
            front, db = (
                next(each for each in running.sessions() if each.guest.name == name)
                for name in ("front", "db")
            )
            await running.until(lambda: front.waits_for_group, 60)
            await running.ask(Cancel(target=front.id))
            past = (State.SWITCHOVER, State.FINISHING)
            async with asyncio.timeout(120):
                while db.state not in past:
                    await asyncio.sleep(0.001)
            service.site.hosts["b"].down = True
            await running.until(lambda: db.state is State.HELD, 200)
            await running.ask(Cancel(target=run.id))
            await running.end_of(run)
            service.site.hosts["b"].down = False
            await running.until(lambda: db.ended, 300)
            if db.state is State.COMPLETED:
                told = [each.reason for each in db.result.decisions if each.action == GROUP]
                assert "its group shop is apart" in told[-1]
                assert "front is on a; migrator migrate --group shop --to b" in told[-1]
