"""Rolling evacuations: the table of what a host comes to, and whole rolls over a simulated site."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Activate, Cancel, Cordon, Evacuate, Roll
from migrator.api.replies import Refusal
from migrator.core.drain.roll import (
    CancelRun,
    Empty,
    HostObservation,
    LookAt,
    Refill,
    RollAction,
    RollHost,
    RollProgress,
    RollStage,
    RunHooks,
    outcome,
    step,
)
from migrator.core.drain.states import EvacuationState
from migrator.core.hooks import Hook, HookPlace, HookResult, RollPoint
from migrator.core.inventory import HostState
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB

NOW = 1000.0
WELL, NOT_WELL = HookResult(status=0), HookResult(status=1, output="no")
AFTER_DRAIN, READY = RollPoint.AFTER_DRAIN, RollPoint.READY


def a_host(stage: RollStage, **fields: Any) -> RollHost:
    return RollHost(host="a", stage=stage, since=NOW - 5, boot_id="one", **fields)


@pytest.mark.parametrize(
    ("one", "seen", "cancelled", "stage", "actions"),
    [
        pytest.param(*each[1:], id=each[0])
        for each in (
            (
                "its turn",
                a_host(RollStage.WAITING),
                HostObservation(),
                False,
                RollStage.EMPTYING,
                [Empty(host="a")],
            ),
            (
                "cancelled before its turn",
                a_host(RollStage.WAITING),
                HostObservation(),
                True,
                RollStage.LEFT,
                [],
            ),
            (
                "not begun yet",
                a_host(RollStage.EMPTYING),
                HostObservation(),
                False,
                RollStage.EMPTYING,
                [Empty(host="a")],
            ),
            (
                "its evacuation is refused",
                a_host(RollStage.EMPTYING),
                HostObservation(refused="no"),
                False,
                RollStage.FAILED,
                [],
            ),
            (
                "is being emptied",
                a_host(RollStage.EMPTYING, evacuation="e"),
                HostObservation(),
                False,
                RollStage.EMPTYING,
                [],
            ),
            (
                "is being emptied and cancelled",
                a_host(RollStage.EMPTYING, evacuation="e"),
                HostObservation(),
                True,
                RollStage.EMPTYING,
                [CancelRun(evacuation="e")],
            ),
            (
                "is empty",
                a_host(RollStage.EMPTYING, evacuation="e"),
                HostObservation(evacuation=EvacuationState.COMPLETED),
                False,
                RollStage.HANDED_OVER,
                [RunHooks(host="a", point=AFTER_DRAIN)],
            ),
            (
                "guests are left",
                a_host(RollStage.EMPTYING, evacuation="e"),
                HostObservation(evacuation=EvacuationState.INCOMPLETE),
                False,
                RollStage.FAILED,
                [],
            ),
            (
                "its hooks run",
                a_host(RollStage.HANDED_OVER),
                HostObservation(hooks_run=True),
                False,
                RollStage.HANDED_OVER,
                [],
            ),
            (
                "its hooks run and it is cancelled",
                a_host(RollStage.HANDED_OVER),
                HostObservation(hooks_run=True),
                True,
                RollStage.HANDED_OVER,
                [],
            ),
            (
                "its hooks are run again after a restart",
                a_host(RollStage.HANDED_OVER),
                HostObservation(),
                False,
                RollStage.HANDED_OVER,
                [RunHooks(host="a", point=AFTER_DRAIN)],
            ),
            (
                "its hooks agree",
                a_host(RollStage.HANDED_OVER),
                HostObservation(hooks=WELL),
                False,
                RollStage.AWAITED,
                [LookAt(host="a")],
            ),
            (
                "its hooks say no",
                a_host(RollStage.HANDED_OVER),
                HostObservation(hooks=NOT_WELL),
                False,
                RollStage.FAILED,
                [],
            ),
            (
                "its hooks ended and it is cancelled",
                a_host(RollStage.HANDED_OVER),
                HostObservation(hooks=WELL),
                True,
                RollStage.LEFT,
                [],
            ),
            (
                "does not answer",
                a_host(RollStage.AWAITED),
                HostObservation(up=False),
                False,
                RollStage.AWAITED,
                [LookAt(host="a")],
            ),
            (
                "answered before it was handed over",
                a_host(RollStage.AWAITED),
                HostObservation(up=True, looked_at=NOW - 6),
                False,
                RollStage.AWAITED,
                [LookAt(host="a")],
            ),
            (
                "answers",
                a_host(RollStage.AWAITED),
                HostObservation(up=True, looked_at=NOW),
                False,
                RollStage.AWAITED,
                [RunHooks(host="a", point=READY)],
            ),
            (
                "said no a moment ago",
                a_host(RollStage.AWAITED),
                HostObservation(up=True, looked_at=NOW, hooks=NOT_WELL, hooks_at=NOW - 9),
                False,
                RollStage.AWAITED,
                [],
            ),
            (
                "said no a while ago",
                a_host(RollStage.AWAITED),
                HostObservation(up=True, looked_at=NOW, hooks=NOT_WELL, hooks_at=NOW - 10),
                False,
                RollStage.AWAITED,
                [RunHooks(host="a", point=READY)],
            ),
            (
                "is ready",
                a_host(RollStage.AWAITED),
                HostObservation(up=True, looked_at=NOW, hooks=WELL),
                False,
                RollStage.RESTORING,
                [Refill(host="a")],
            ),
            (
                "was ready and is down again",
                a_host(RollStage.AWAITED),
                HostObservation(up=False, hooks=WELL),
                False,
                RollStage.AWAITED,
                [LookAt(host="a")],
            ),
            (
                "is awaited and cancelled",
                a_host(RollStage.AWAITED),
                HostObservation(up=True),
                True,
                RollStage.LEFT,
                [],
            ),
            (
                "its restore is not begun yet",
                a_host(RollStage.RESTORING),
                HostObservation(),
                False,
                RollStage.RESTORING,
                [Refill(host="a")],
            ),
            (
                "is restored though it is cancelled",
                a_host(RollStage.RESTORING, restore="r"),
                HostObservation(),
                True,
                RollStage.RESTORING,
                [],
            ),
            (
                "is home",
                a_host(RollStage.RESTORING, restore="r"),
                HostObservation(restore=EvacuationState.COMPLETED),
                False,
                RollStage.DONE,
                [],
            ),
            (
                "guests are not home",
                a_host(RollStage.RESTORING, restore="r"),
                HostObservation(restore=EvacuationState.INCOMPLETE),
                False,
                RollStage.FAILED,
                [],
            ),
            ("is done", a_host(RollStage.DONE), HostObservation(up=False), False, RollStage.DONE, []),
        )
    ],
)
def test_what_a_host_comes_to(
    one: RollHost, seen: HostObservation, cancelled: bool, stage: RollStage, actions: list[RollAction]
) -> None:
    roll, found = step(RollProgress(hosts=(one,)), {"a": seen}, now=NOW, cancelled=cancelled)
    assert (roll.hosts[0].stage, list(found)) == (stage, actions)


def test_host_that_reboots_is_ready_only_with_another_boot_id() -> None:
    roll = RollProgress(hosts=(a_host(RollStage.AWAITED),), reboots=True)
    for boot_id, action in (("one", LookAt(host="a")), ("two", RunHooks(host="a", point=READY))):
        _, found = step(roll, {"a": HostObservation(up=True, looked_at=NOW, boot_id=boot_id)}, now=NOW)
        assert list(found) == [action]


@pytest.mark.parametrize(
    ("shut_off", "how_empty"),
    [
        (0, "it is empty"),
        (1, "it is empty but for 1 guest that libvirt has shut off"),
        (2, "it is empty but for 2 guests that libvirt has shut off"),
        (None, "it is empty, but its libvirt could not be asked which guests it has shut off"),
    ],
)
def test_host_that_is_not_ready_in_time_is_not_well(shut_off: int | None, how_empty: str) -> None:
    roll = RollProgress(hosts=(a_host(RollStage.AWAITED),), ready_timeout_seconds=5.0)
    roll, found = step(roll, {"a": HostObservation(up=False, error="no route", shut_off=shut_off)}, now=NOW)
    assert not found
    assert roll.hosts[0].stage is RollStage.FAILED
    assert roll.hosts[0].reason.endswith(f"it does not answer: no route; {how_empty}")


def test_no_more_hosts_are_away_than_allowed_and_none_is_begun_after_one_is_not_well() -> None:
    hosts = tuple(RollHost(host=name) for name in "abcd")
    roll, found = step(RollProgress(hosts=hosts, max_unavailable=2), {}, now=NOW)
    assert list(found) == [Empty(host="a"), Empty(host="b")]
    roll, found = step(roll, {"a": HostObservation(refused="no")}, now=NOW)
    assert [each.stage for each in roll.hosts] == ["failed", "emptying", "left", "left"]
    assert not roll.ended
    assert list(found) == [Empty(host="b")]
    done = replace(roll, hosts=(*roll.hosts[:1], RollHost(host="b", stage=RollStage.DONE), *roll.hosts[2:]))
    assert outcome(done, cancelled=False) == (
        EvacuationState.INCOMPLETE,
        "a: no; not begun: c, d; once it is well: migrator roll c d",
    )


# whole rolls


class ScriptedRollHooks:
    """A hook at both points, whose answers are a test's; what each was told is kept."""

    def __init__(self, answer: Callable[[RollPoint, str, int], HookResult]) -> None:
        self.answer = answer
        self.told: list[tuple[str, str]] = []
        self.takes_seconds = 0.0

    def for_roll(self, point: RollPoint) -> Sequence[Hook]:
        place = HookPlace.CONTROLLER
        return [Hook(name=f"my-{point}", point=point, command=["/it"], place=place, timeout_seconds=10.0)]

    async def run(self, hook: Hook, host: str, document: Mapping[str, Any]) -> HookResult:
        assert document["host"] == host
        assert isinstance(hook.point, RollPoint)
        self.told.append((str(hook.point), host))
        await asyncio.sleep(self.takes_seconds)
        return self.answer(hook.point, host, document["attempt"])


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b", "c"):
        service.site.add_host(name, link=1000 * MIB)
    for number, name in enumerate("ab"):
        service.site.add_guest(f"vm-{number}", host=name)
    service.roll_hooks = ScriptedRollHooks(lambda point, host, attempt: WELL)
    return service


def _first(running: RunningEngine, roll: str) -> RollStage:
    progress = running.run(roll).roll
    assert progress is not None
    return progress.hosts[0].stage


@pytest.mark.looptime
class TestWhole:
    async def test_hosts_are_rolled_through_one_after_the_other(self, service: SimulatedService) -> None:
        hooks = service.roll_hooks
        async with service.running() as running:
            asked = await running.ask(Roll(hosts=["a", "b"]))
            assert (asked.kind, asked.max_unavailable) == ("roll", 1)
            end = await running.end_of(asked)
            assert end.state is EvacuationState.COMPLETED
            assert [each.stage for each in end.hosts] == ["done", "done"]
            assert service.site.running("vm-0") == ["a"]
            assert service.site.running("vm-1") == ["b"]
            assert hooks.told == [("after-drain", "a"), ("ready", "a"), ("after-drain", "b"), ("ready", "b")]
            hosts = [running.queries.host(name) for name in "ab"]
            assert [each.state for each in hosts] == [HostState.ACTIVE, HostState.ACTIVE]

    async def test_only_guests_that_it_moved_come_home(self, service: SimulatedService) -> None:
        async with service.running() as running:
            await running.end_of(await running.ask(Evacuate(host="a")))
            await running.ask(Activate(host="a"))
            [away] = service.site.running("vm-0")
            assert away != "a"
            end = await running.end_of(await running.ask(Roll(hosts=["a"])))
            assert end.state is EvacuationState.COMPLETED
            assert service.site.running("vm-0") == [away]
            assert running.queries.host("a").state is HostState.ACTIVE

    async def test_a_hook_that_says_no_stops_it_and_says_where(self, service: SimulatedService) -> None:
        service.roll_hooks = ScriptedRollHooks(
            lambda point, host, attempt: NOT_WELL if host == "a" and point is AFTER_DRAIN else WELL
        )
        async with service.running() as running:
            end = await running.end_of(await running.ask(Roll(hosts=["a", "b"])))
            assert end.state is EvacuationState.INCOMPLETE
            assert [each.stage for each in end.hosts] == ["failed", "left"]
            assert (
                "hook my-after-drain (after-drain, at the controller) failed with status 1: no" in end.error
            )
            assert "migrator roll b" in end.error
            assert running.queries.host("a").state is HostState.MAINTENANCE
            assert service.site.running("vm-1") == ["b"]

    async def test_a_host_that_is_not_ready_yet_is_asked_again(self, service: SimulatedService) -> None:
        answers = iter([NOT_WELL, NOT_WELL, WELL])
        service.roll_hooks = ScriptedRollHooks(
            lambda point, host, attempt: next(answers) if point is READY else WELL
        )
        async with service.running() as running:
            end = await running.end_of(await running.ask(Roll(hosts=["a"])))
            assert end.state is EvacuationState.COMPLETED
            assert service.roll_hooks.told.count(("ready", "a")) == 3

    async def test_a_cordoned_host_stops_it_as_nobody_can_come_home(self, service: SimulatedService) -> None:
        async with service.running() as running:
            await running.ask(Cordon(host="a"))
            end = await running.end_of(await running.ask(Roll(hosts=["a"])))
            assert end.state is EvacuationState.INCOMPLETE
            assert "a is cordoned" in end.error

    async def test_it_goes_on_after_a_restart_and_begins_nothing_twice(
        self, service: SimulatedService
    ) -> None:
        hooks = service.roll_hooks
        hooks.takes_seconds = 30.0
        async with service.running(killed=True) as running:
            asked = await running.ask(Roll(hosts=["a", "b"]))
            await running.until(lambda: bool(hooks.told))
        async with service.running() as running:
            end = await running.end_of(asked)
            assert end.state is EvacuationState.COMPLETED
            runs = [each for each in await running.queries.evacuations(limit=99) if each.kind != "roll"]
            assert sorted((each.kind, each.host) for each in runs) == [
                ("evacuate", "a"),
                ("evacuate", "b"),
                ("restore", "a"),
                ("restore", "b"),
            ]
        assert hooks.told[:2] == [("after-drain", "a")] * 2

    async def test_cancelled_it_leaves_a_host_that_was_handed_over_as_it_is(
        self, service: SimulatedService
    ) -> None:
        hooks = service.roll_hooks
        hooks.takes_seconds = 30.0
        service.site.hosts["a"].shut_off_guests = 2
        async with service.running() as running:
            asked = await running.ask(Roll(hosts=["a", "b"]))
            await running.until(lambda: bool(hooks.told))
            await running.ask(Cancel(target=asked.id))
            end = await running.end_of(asked)
            assert end.state is EvacuationState.CANCELLED
            assert [each.reason for each in end.hosts] == [
                "it is empty but for 2 guests that libvirt has shut off: migrator restore a fills it again",
                "it was not begun",
            ]
            assert running.queries.host("a").state is HostState.MAINTENANCE

    @pytest.mark.parametrize("stage", [RollStage.EMPTYING, RollStage.AWAITED, RollStage.RESTORING])
    async def test_killed_in_any_stage_it_goes_on_and_begins_nothing_twice(
        self, service: SimulatedService, stage: RollStage
    ) -> None:
        service.roll_hooks.takes_seconds = 5.0
        async with service.running(killed=True) as running:
            asked = await running.ask(Roll(hosts=["a"]))
            await running.until(lambda: _first(running, asked.id) is stage)
        async with service.running() as running:
            end = await running.end_of(asked)
            assert (end.state, end.hosts[0].stage) == (EvacuationState.COMPLETED, "done")
            runs = [each for each in await running.queries.evacuations(limit=99) if each.kind != "roll"]
            assert sorted(each.kind for each in runs) == ["evacuate", "restore"]
            assert service.site.running("vm-0") == ["a"]

    @pytest.mark.parametrize(
        ("stage", "becomes", "home"),
        [
            (RollStage.EMPTYING, "left", None),
            (RollStage.AWAITED, "left", False),
            (RollStage.RESTORING, "done", True),
        ],
    )
    async def test_cancelled_in_any_stage_it_begins_nothing_more(
        self, service: SimulatedService, stage: RollStage, becomes: str, home: bool | None
    ) -> None:
        service.roll_hooks.takes_seconds = 5.0
        async with service.running() as running:
            asked = await running.ask(Roll(hosts=["a", "b"]))
            await running.until(lambda: _first(running, asked.id) is stage)
            await running.ask(Cancel(target=asked.id))
            end = await running.end_of(asked)
            assert end.state is EvacuationState.CANCELLED
            assert [each.stage for each in end.hosts] == [becomes, "left"]
            assert service.site.running("vm-1") == ["b"]
            (where,) = service.site.running("vm-0")
            assert home is None or (where == "a") is home

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"hosts": ["a", "x"]}, "there is no host x"),
            ({"hosts": ["a"], "hooks": {"ready": ["mine"]}}, "has the name mine; there are my-ready"),
            ({"hosts": ["a"], "policy": "x"}, "x"),
        ],
    )
    async def test_wrong_words_are_refused(
        self, service: SimulatedService, fields: dict[str, Any], why: str
    ) -> None:
        async with service.running() as running:
            with pytest.raises(Refusal, match=why):
                await running.ask(Roll.model_validate(fields))

    async def test_a_host_is_in_one_roll_at_a_time(self, service: SimulatedService) -> None:
        async with service.running() as running:
            asked = await running.ask(Roll(hosts=["b", "a"]))
            with pytest.raises(Refusal, match=f"a is in the roll {asked.id} already"):
                await running.ask(Roll(hosts=["a"]))
            await running.end_of(asked)
