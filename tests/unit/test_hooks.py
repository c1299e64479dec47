"""Hooks of the site: when they are run, what they may decide, and what they may never delay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Cancel, Evacuate, Migrate
from migrator.core.hooks import Hook, HookPlace, HookPoint, HookResult, shown_output
from migrator.core.inventory import Guest
from migrator.core.model import State
from migrator.engine.migration.session_hooks import SessionHooks
from migrator.settings import load
from migrator.testing.simulated_service import SimulatedService
from migrator.testing.workload import MIB, steady
from tests.unit.test_engine import fill

pytestmark = pytest.mark.looptime

FINE = HookResult(status=0)


class ScriptedHooks:
    """A hook at each of some points, whose answers are a test's; what each was told is kept."""

    def __init__(self, *points: HookPoint, answer: Callable[[str], HookResult] = lambda point: FINE) -> None:
        self.points, self.answer = points or tuple(HookPoint), answer
        self.told: list[Mapping[str, Any]] = []
        self.takes_seconds: dict[str, float] = {}

    def due(self, point: HookPoint, guest: Guest) -> Sequence[Hook]:
        if point not in self.points:
            return []
        return [Hook(name="it", point=point, command=["/it"], place=HookPlace.SOURCE, timeout_seconds=10.0)]

    async def run(self, hook: Hook, host: str, document: Mapping[str, Any]) -> HookResult:
        self.told.append(document)
        await asyncio.sleep(self.takes_seconds.get(hook.point, 0.0))
        return self.answer(hook.point)

    @property
    def seen(self) -> list[str]:
        return [each["point"] for each in self.told]


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for name in ("a", "b", "c"):
        service.site.add_host(name)
    return service


async def move(service: SimulatedService, hooks: ScriptedHooks) -> Any:
    service.hooks = hooks
    (name,) = fill(service, 1)
    async with service.running() as running:
        one = await running.ask(Migrate(guest=name, to="b"))
        job = running.engine.registry.migrations[one.id]
        await running.until(lambda: job.ended)
        return job.document()


class TestAtEachPoint:
    async def test_hooks_are_told_in_order_of_a_migration_that_completes(
        self, service: SimulatedService
    ) -> None:
        hooks = ScriptedHooks()
        document = await move(service, hooks)
        assert document.state is State.COMPLETED
        assert hooks.seen == ["before-plan", "before", "at-switch", "after"]
        first, last = hooks.told[0], hooks.told[-1]
        assert first["version"] == 1
        assert first["where"] == "source"
        assert first["host"] == first["source"]["host"] == "a"
        assert first["destination"] == {"host": "b", "socket": "", "pid": None}
        assert first["guest"]["id"] == document.guest
        assert last["migration"]["id"] == document.id
        assert last["migration"]["state"] == "completed"
        said = [each.reason for each in document.decisions if each.action == "hook"]
        assert len(said) == 4
        assert "(before, at the source a) ended well" in said[1]

    async def test_the_switch_waits_for_no_hook(self, service: SimulatedService) -> None:
        plain = await move(service, ScriptedHooks(HookPoint.AFTER))
        again = SimulatedService(service.directory / "again")
        for name in ("a", "b"):
            again.site.add_host(name)
        hooks = ScriptedHooks(HookPoint.AT_SWITCH)
        hooks.takes_seconds[HookPoint.AT_SWITCH] = 9.0
        slow = await move(again, hooks)
        assert hooks.seen == ["at-switch"]
        assert slow.duration_seconds == pytest.approx(plain.duration_seconds, abs=0.5)
        assert slow.downtime_seconds == pytest.approx(plain.downtime_seconds, abs=0.01)

    async def test_failure_after_the_switch_is_shown_and_changes_nothing(
        self, service: SimulatedService
    ) -> None:
        bad = HookResult(status=3, output="no such table")
        document = await move(
            service, ScriptedHooks(HookPoint.AT_SWITCH, HookPoint.AFTER, answer=lambda point: bad)
        )
        assert document.state is State.COMPLETED
        assert service.site.running(document.guest_name) == ["b"]
        said = [each.message for each in document.findings if each.code == "hook-failed"]
        assert len(said) == 2
        assert said[1] == "hook it (after, at the source a) failed with status 3: no such table"


class TestVeto:
    @pytest.mark.parametrize("point", ["before-plan", "before"])
    async def test_no_keeps_the_guest_where_it_is_with_the_hooks_reason(
        self, service: SimulatedService, point: str
    ) -> None:
        def answer(asked: str) -> HookResult:
            return HookResult(status=1, output="a backup runs") if asked == point else FINE

        hooks = ScriptedHooks(answer=answer)
        document = await move(service, hooks)
        assert document.state is State.FAILED
        assert document.refused
        assert document.error == (
            f"refused by preflight: hook-veto: hook it ({point}, at the source a) says no (status 1): a backup runs"
        )
        assert service.site.running(document.guest_name) == ["a"]
        started = sum(service.site.started.values())
        assert started == (0 if point == "before-plan" else 1)
        # Who was asked to make ready is told that it came to nothing.
        assert hooks.seen == (
            ["before-plan"] if point == "before-plan" else ["before-plan", "before", "failed"]
        )
        assert hooks.told[-1]["migration"]["state"] == ("failed" if point == "before" else "preparing")

    async def test_hook_that_cannot_be_run_keeps_it_too(self, service: SimulatedService) -> None:
        gone = HookResult(status=None, output="it did not end within 10 s; it was killed")
        document = await move(service, ScriptedHooks(HookPoint.BEFORE, answer=lambda point: gone))
        assert document.state is State.FAILED
        assert "hook-not-run" in (document.error or "")
        assert "did not end within 10 s" in (document.error or "")
        assert service.site.running(document.guest_name) == ["a"]

    async def test_evacuation_tries_another_target_after_a_no(self, service: SimulatedService) -> None:
        (name,) = fill(service, 1)
        hooks = service.hooks = ScriptedHooks(HookPoint.BEFORE_PLAN)
        hooks.answer = lambda point: (
            FINE if len({each["destination"]["host"] for each in hooks.told}) > 1 else HookResult(status=1)
        )
        async with service.running() as running:
            done = await running.end_of(await running.ask(Evacuate(host="a")))
        assert done.state == "completed"
        first, second = (each["destination"]["host"] for each in hooks.told)
        assert first != second
        assert service.site.running(name) == [second]


class TestEnds:
    async def test_cancelled_one_tells_its_hooks_that_it_failed(self, service: SimulatedService) -> None:
        hooks = service.hooks = ScriptedHooks()
        (name,) = fill(service, 1)
        for machine in service.site.machines.values():
            machine.workload = steady(64 * MIB, 30 * MIB)
        async with service.running() as running:
            one = await running.ask(Migrate(guest=name, to="b"))
            job = running.engine.registry.migrations[one.id]
            await running.until(lambda: job.state is State.PRECOPY)
            await running.ask(Cancel(target=one.id))
            await running.until(lambda: job.ended)
        assert job.state is State.CANCELLED
        assert hooks.seen[-1] == "failed"
        assert hooks.told[-1]["migration"]["state"] == "cancelled"

    async def test_hooks_that_were_asked_are_told_by_the_next_controller(
        self, service: SimulatedService
    ) -> None:
        hooks = service.hooks = ScriptedHooks()
        hooks.takes_seconds[HookPoint.BEFORE] = 5.0
        (name,) = fill(service, 1)
        async with service.running(killed=True) as running:
            one = await running.ask(Migrate(guest=name, to="b"))
            await running.until(lambda: hooks.seen == ["before-plan", "before"])
        hooks.answer = lambda point: HookResult(status=1) if point == "before" else FINE
        async with service.running() as running:
            job = running.engine.registry.migrations[one.id]
            await running.until(lambda: job.ended)
        assert hooks.seen == ["before-plan", "before", "before-plan", "before", "failed"]

    async def test_one_that_was_left_after_before_and_cancelled_still_tells_them(
        self, service: SimulatedService
    ) -> None:
        hooks = service.hooks = ScriptedHooks()
        hooks.takes_seconds[HookPoint.BEFORE] = 5.0
        (name,) = fill(service, 1)
        async with service.running(killed=True) as running:
            one = await running.ask(Migrate(guest=name, to="b"))
            await running.until(lambda: hooks.seen == ["before-plan", "before"])
        async with service.running() as running:
            job = running.engine.registry.migrations[one.id]
            await running.ask(Cancel(target=one.id))
            await running.until(lambda: job.ended)
        assert job.state is State.CANCELLED
        assert hooks.seen[-1] == "failed"
        assert service.site.running(name) == ["a"]


class TestAttempts:
    async def test_switch_of_another_attempt_is_told_as_well_and_what_ran_for_the_first_is_ended(
        self,
    ) -> None:
        scripted = ScriptedHooks(HookPoint.AT_SWITCH)
        scripted.takes_seconds[HookPoint.AT_SWITCH] = 60.0
        hooks = SessionHooks(
            scripted,
            guest=Guest(key="g", uuid="", name="g", host="a", socket="/s"),
            hosts={HookPlace.SOURCE: "a", HookPlace.DESTINATION: "b"},
            document=dict,
            tell=lambda what: None,
        )
        hooks.tell_switch()
        hooks.tell_switch()
        await asyncio.sleep(0.1)
        hooks.forget()
        scripted.takes_seconds.clear()
        hooks.tell_switch()
        began = asyncio.get_running_loop().time()
        assert await hooks.end(HookPoint.AFTER) == []
        assert asyncio.get_running_loop().time() - began < 1.0
        assert scripted.seen == ["at-switch", "at-switch"]


class TestConfiguration:
    def test_is_for_the_guests_that_it_names_at_its_point(self, tmp_path: Path) -> None:
        file = tmp_path / "m.toml"
        file.write_text(
            '[[hooks]]\npoint = "after"\ncommand = ["/bin/x", "1"]\nmatch = ["db-*", "a/web"]\ntimeout = "2s"\n'
        )
        (hook,) = load(file, environ={}).hooks
        assert hook.as_hook() == Hook(
            name="x",
            point=HookPoint.AFTER,
            command=("/bin/x", "1"),
            place=HookPlace.CONTROLLER,
            timeout_seconds=2.0,
        )
        guests = [
            Guest(key=name, uuid="", name=name, host="a", socket="/s") for name in ("db-1", "web", "mail")
        ]
        assert [hook.wants(guest) for guest in guests] == [True, True, False]


def test_what_a_hook_prints_is_shown_in_one_safe_line() -> None:
    assert shown_output("", "a\x1b[31m b\n\n c ") == "a\ufffd[31m b c"
    assert shown_output("no\n", "why") == "no"
    assert len(shown_output("x" * 10_000_000, "")) == 300
