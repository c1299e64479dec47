"""``check``, ``plan`` and ``migrate`` say the same of the same obstacle, whatever it is and whoever knows of it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import migrator
from migrator.api.commands import Check, Evacuate, Migrate, Plan
from migrator.api.plan_documents import PlanDocument
from migrator.api.replies import Refusal
from migrator.core.drain.states import GuestStanding
from migrator.core.findings import CATALOGUE, accept, finding
from migrator.core.inventory import HostState
from migrator.core.model import RunState, Severity, State
from migrator.core.policy import LastResort, builtin
from migrator.engine.controller import Engine
from migrator.engine.rules import Rules
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB

pytestmark = pytest.mark.looptime

#: Errors that a look before the start can find; the others are about a QEMU that waits.
EARLY = [
    code
    for code, entry in CATALOGUE.items()
    if entry.severity is Severity.ERROR and entry.about not in ("The waiting destination", "On the way")
]


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path, accept=accept)
    service.site.add_host("a")
    service.site.add_host("b", memory_bytes=4096 * MIB)
    service.site.add_guest("vm", host="a", memory_bytes=1024 * MIB)
    return service


async def by_check(running: RunningEngine, codes: list[str]) -> tuple[bool, list[str]]:
    found = await running.ask(Check(guest="vm", to="b", accept=codes))
    return found.possible, _errors(found.findings)


async def by_plan(running: RunningEngine, codes: list[str]) -> tuple[bool, list[str]]:
    plan: PlanDocument = await running.ask(Plan(host="a", accept=codes))
    (guest,) = plan.guests
    assert plan.cannot_move == (not guest.possible)
    assert guest.possible or guest.reason
    if guest.possible:
        assert guest.target == "b"
    return guest.possible, _errors(guest.findings)


async def by_migrate(running: RunningEngine, codes: list[str], to: str | None) -> tuple[bool, list[str]]:
    try:
        begun = await running.ask(Migrate(guest="vm", to=to, accept=codes))
    except Refusal as refusal:
        return False, [each["code"] for each in refusal.findings] if refusal.code == "preflight" else []
    await running.until(lambda: not running.queries.active_migrations())
    ended = await running.queries.migration(begun.id)
    assert ended.refused is (ended.state is not State.COMPLETED)
    return ended.state is State.COMPLETED, _errors(ended.findings)


def _errors(findings: Any) -> list[str]:
    return [each.code for each in findings if each.severity is Severity.ERROR]


async def agree(
    service: SimulatedService, running: RunningEngine, *, possible: bool, accepted: list[str] | None = None
) -> list[str]:
    """What all of them say; the codes that check gives."""
    codes = accepted or []
    checked = await by_check(running, codes)
    planned = await by_plan(running, codes)
    assert checked[0] is planned[0] is possible
    for to in ("b", None):
        if possible and to is None:
            break  # it has moved
        moved = await by_migrate(running, codes, to)
        assert moved[0] is possible
        assert set(moved[1]) == set(checked[1])
    (machine,) = (each for each in service.site.machines.values() if each.name == "vm")
    assert machine.host == ("b" if possible else "a")
    assert service.site.running("vm") == ([machine.host] if machine.run is RunState.RUNNING else [])
    assert sum(service.site.started.values()) == possible, (
        "what is refused is refused before anything is started"
    )
    return checked[1]


@pytest.mark.parametrize("code", EARLY)
async def test_of_every_finding_that_hosts_can_have(service: SimulatedService, code: str) -> None:
    service.site.findings["vm", "b"] = (finding(code, f"{code} it is"), finding("no-postcopy", "a warning"))
    async with service.running() as running:
        assert await agree(service, running, possible=False) == [code]


@pytest.mark.parametrize("code", [code for code in EARLY if CATALOGUE[code].overridable])
async def test_of_every_finding_that_is_accepted(service: SimulatedService, code: str) -> None:
    service.site.findings["vm", "b"] = (finding(code, f"{code} it is"),)
    async with service.running() as running:
        assert await agree(service, running, possible=True, accepted=[code]) == []


async def test_of_nothing_at_all(service: SimulatedService) -> None:
    async with service.running() as running:
        assert await agree(service, running, possible=True) == []


def _maintenance(service: SimulatedService, engine: Engine) -> None:
    engine.evacuations.set_host("b", HostState.MAINTENANCE)


def _full(service: SimulatedService, engine: Engine) -> None:
    service.site.add_guest("other", host="b", memory_bytes=3500 * MIB)


def _label(service: SimulatedService, engine: Engine) -> None:
    service.requires = {"zone": "north"}
    _reload(service, engine)


def _reload(service: SimulatedService, engine: Engine) -> None:
    engine.inventory.configure(engine.inventory.hosts(), rules=service.configured)


def _apart(service: SimulatedService, engine: Engine) -> None:
    service.site.add_guest("other", host="b")
    service.anti_affinity = "database"
    _reload(service, engine)


def _down(service: SimulatedService, engine: Engine) -> None:
    service.site.hosts["b"].down = True


@pytest.mark.parametrize("obstacle", [_maintenance, _full, _label, _apart, _down])
async def test_of_everything_that_placement_asks(
    service: SimulatedService, obstacle: Callable[[SimulatedService, Engine], None]
) -> None:
    async with service.running() as running:
        obstacle(service, running.engine)
        await running.engine.inventory.look_at_all()
        checked = await by_check(running, [])
        planned = await by_plan(running, [])
        assert checked == (False, ["placement"])
        assert planned[0] is False
        for to in ("b", None):
            assert await by_migrate(running, [], to) == (False, ["placement"])
        assert service.site.running("vm") == ["a"]
        assert not service.site.started


async def test_of_an_obstacle_of_the_guest(tmp_path: Path) -> None:
    service = SimulatedService(tmp_path, accept=accept)
    service.site.add_host("a")
    service.site.add_host("b")
    service.site.add_guest("vm", host="a", obstacle="its monitor is held by somebody")
    async with service.running() as running:
        assert await agree(service, running, possible=False) == ["not-movable"]


@pytest.mark.parametrize(
    "ask", [by_check, lambda running, codes: by_migrate(running, codes, "b")], ids=["check", "migrate"]
)
async def test_of_an_obstacle_that_is_gone_since_the_last_look_neither_speaks_any_more(
    tmp_path: Path, ask: Callable[[RunningEngine, list[str]], Awaitable[tuple[bool, list[str]]]]
) -> None:
    service = SimulatedService(tmp_path, accept=accept)
    service.site.add_host("a")
    service.site.add_host("b")
    identity = service.site.add_guest("vm", host="a", obstacle="another controller left it in a migration")
    async with service.running() as running:
        service.site.machines[identity].obstacle = ""
        assert running.queries.guest("vm").obstacle
        assert await ask(running, []) == (True, [])


def with_ceiling(service: SimulatedService, seconds: float, **more: Any) -> None:
    service.rules = Rules(policy=lambda name: builtin(name).but(max_downtime_seconds=seconds, **more))


@pytest.mark.parametrize("seconds", [20e-6, 0.008], ids=["at no speed", "not at the speed of these links"])
async def test_of_a_ceiling_that_cannot_be_kept(service: SimulatedService, seconds: float) -> None:
    for host in ("a", "b"):
        service.site.add_host(host, link=100 * MIB)
    with_ceiling(service, seconds)
    async with service.running() as running:
        assert await agree(service, running, possible=False) == ["ceiling-infeasible"]
        (planned,) = (await running.ask(Plan(host="a"))).guests
        assert [each.code for each in planned.findings] == ["ceiling-infeasible"]
        assert (planned.order, planned.starts_in_seconds, planned.takes_p50_seconds) == (None, None, None)
        end = await running.end_of(await running.ask(Evacuate(host="a")))
        assert end.guests[0].standing in (GuestStanding.NO_TARGET, GuestStanding.SET_ASIDE)
        assert not service.site.started


async def test_of_a_ceiling_that_a_faster_link_can_keep(service: SimulatedService) -> None:
    with_ceiling(service, 0.009)
    async with service.running() as running:
        assert await agree(service, running, possible=True) == []


async def test_of_a_ceiling_that_somebody_accepts_will_not_be_kept(service: SimulatedService) -> None:
    with_ceiling(service, 20e-6)
    async with service.running() as running:
        (planned,) = (await running.ask(Plan(host="a", accept=["ceiling-infeasible"]))).guests
        assert (planned.order, planned.verdict) == (1, "converges-if")
        await agree(service, running, possible=True, accepted=["ceiling-infeasible"])


async def test_of_a_ceiling_that_the_policy_may_exceed(service: SimulatedService) -> None:
    with_ceiling(service, 20e-6, last_resort=LastResort.PAUSE)
    async with service.running() as running:
        found = await running.ask(Check(guest="vm", to="b"))
        assert [each.code for each in found.findings] == ["ceiling-exceeded"]
        assert await agree(service, running, possible=True) == []


async def test_of_a_guest_that_stands_still_and_has_no_downtime(tmp_path: Path) -> None:
    service = SimulatedService(tmp_path, accept=accept)
    service.site.add_host("a")
    service.site.add_host("b")
    service.site.add_guest("vm", host="a", run=RunState.PAUSED)
    with_ceiling(service, 20e-6)
    async with service.running() as running:
        assert await agree(service, running, possible=True) == []


async def test_of_ends_that_cannot_be_asked(service: SimulatedService) -> None:
    service.site.unasked["b"] = "its files cannot be read: out of memory"
    async with service.running() as running:
        assert await agree(service, running, possible=False) == ["not-checked"]


async def test_of_the_policy_that_is_asked_for(service: SimulatedService) -> None:
    async with service.running() as running:
        await running.ask(Check(guest="vm", to="b", policy="gentle"))
        await running.ask(Plan(host="a", policy="must-finish"))
        await running.ask(Migrate(guest="vm", to="b", policy="postcopy-first"))
        await running.until(lambda: not running.queries.active_migrations())
        assert service.site.policies == ["gentle", "must-finish", "postcopy-first"]
        with pytest.raises(Refusal, match="no-such"):
            await running.ask(Plan(host="a", policy="no-such"))


async def test_a_plan_goes_where_the_evacuation_will(service: SimulatedService) -> None:
    service.site.add_host("c", memory_bytes=2048 * MIB)
    service.site.findings["vm", "b"] = (finding("bridge-missing", "no br0"),)
    async with service.running() as running:
        (planned,) = (await running.ask(Plan(host="a"))).guests
        assert (planned.target, planned.possible, planned.findings) == ("c", True, [])
        service.site.findings["vm", "c"] = (finding("tap-missing", "no tap"),)
        plan = await running.ask(Plan(host="a"))
        assert plan.cannot_move == 1
        assert {each.code for each in plan.guests[0].findings} == {"bridge-missing", "tap-missing"}
        end = await running.end_of(await running.ask(Evacuate(host="a")))
        assert end.guests[0].standing in (GuestStanding.NO_TARGET, GuestStanding.SET_ASIDE)
        assert not service.site.started


async def test_a_host_that_does_not_answer_cannot_be_planned_for_as_it_cannot_be_emptied(
    service: SimulatedService,
) -> None:
    async with service.running() as running:
        service.site.hosts["a"].down = True
        for command in (Plan(host="a"), Evacuate(host="a")):
            with pytest.raises(Refusal, match="cannot be emptied") as refused:
                await running.ask(command)
            assert refused.value.code == "not-now"


#: Modules of the engine that have something checked.
ASKING = (
    "commands/migrations.py",
    "commands/evacuations.py",
    "commands/lookups.py",
    "preview.py",
    "reconciler.py",
    "migration/session.py",
)


def test_there_is_one_place_that_asks() -> None:
    """A check that one of the commands makes by itself is one that the others do not know of."""
    engine = Path(inspect.getfile(migrator)).parent / "engine"
    asking = {
        path.name
        for path in engine.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "check"
        and "site" in ast.unparse(node.func.value)
    }
    assert asking == {"preflight.py"}
    before_the_start = {"finding", "Finding"}
    for name in ASKING:
        made = [
            ast.unparse(node)
            for node in ast.walk(ast.parse((engine / name).read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in before_the_start
            # What a plan foretells of time, and what a journal has.
            and "does-not-converge" not in ast.unparse(node)
            and "model_dump" not in ast.unparse(node)
        ]
        assert made == [], (name, made)
