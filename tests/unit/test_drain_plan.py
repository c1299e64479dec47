"""What is to be done at a site, said of a snapshot of it: no engine, no clock, no journal."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from migrator.core.drain.actions import Admit, Begin, CancelMigration, Change, Drive, End, LookAgain, SetShare
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Ended, Evacuation
from migrator.core.drain.limits import SiteLimits
from migrator.core.drain.plan import DrainPlan, make_plan
from migrator.core.drain.snapshot import MigrationSnapshot, PolicyRules, SiteSnapshot
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.inventory import Guest, Host, HostFacts, HostState
from migrator.core.model import State
from migrator.core.policy import builtin

GIB = 1 << 30
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def host(name: str, **how: Any) -> Host:
    facts = HostFacts(memory_total_bytes=64 * GIB, memory_free_bytes=64 * GIB, cpus=32)
    return Host(name=name, facts=facts, link_bytes_per_second=1.0e9, **how)


def guest(name: str, at: str = "a", **how: Any) -> Guest:
    how = {"memory_bytes": GIB, "dirty_rate_bytes_per_second": 0.0, **how}
    return Guest(key=name, name=name, host=at, **how)


def site(*guests: Guest, evacuations: tuple[Evacuation, ...] = (), **how: Any) -> SiteSnapshot:
    """Hosts a (which is emptied), b and c."""
    hosts = {name: host(name) for name in ("a", "b", "c")} | how.pop("hosts", {})
    return SiteSnapshot(
        now=NOW,
        clock=100.0,
        hosts=hosts,
        guests={name: tuple(each for each in guests if each.host == name) for name in hosts},
        evacuations=evacuations,
        **how,
    )


def emptying(*guests: Guest, **how: Any) -> Evacuation:
    return Evacuation(id="e1", host="a", created_at=NOW, **how).took_in(guests)


def migration(one: Guest, state: State, **how: Any) -> MigrationSnapshot:
    how = {"target": "b", "policy": builtin("default"), "evacuation": "e1", "driven": True, **how}
    return MigrationSnapshot(id=f"m-{one.key}", guest=one, state=state, **how)


def of(plan: DrainPlan, kind: type) -> list[Any]:
    return [each for each in plan.actions if isinstance(each, kind)]


def after(plan: DrainPlan) -> Evacuation:
    return plan.evacuations["e1"]


def test_a_guest_is_begun_where_it_has_a_place_with_the_reason_why_there() -> None:
    one = guest("vm")
    plan = make_plan(site(one, evacuations=(emptying(one),)))
    (begun,) = of(plan, Begin)
    assert (begun.evacuation, begun.guest, begun.target in ("b", "c")) == ("e1", one, True)
    assert begun.target in begun.reason
    assert after(plan).entries["vm"].target == begun.target


def test_the_same_snapshot_has_the_same_plan_and_nothing_of_it_is_changed() -> None:
    guests = [guest(f"vm-{number}") for number in range(5)]
    run = emptying(*guests)
    snapshot = site(*guests, evacuations=(run,))
    first = make_plan(snapshot)
    assert run.entries["vm-0"].target is None
    assert make_plan(snapshot).actions == first.actions


def test_what_was_planned_before_spares_work_and_changes_nothing() -> None:
    guests = [guest(f"vm-{number}") for number in range(8)]
    first = make_plan(site(*guests, evacuations=(emptying(*guests),)))
    later = site(*guests, evacuations=(after(first),))
    assert make_plan(later, first).actions == make_plan(later).actions
    assert make_plan(later, first).places is first.places


def test_a_place_that_is_gone_when_a_guest_is_to_be_begun_is_asked_for_anew() -> None:
    guests = [guest(f"vm-{number}") for number in range(20)]
    first = make_plan(site(*guests, evacuations=(emptying(*guests),)))
    target = of(first, Begin)[0].target
    other = next(name for name in ("b", "c") if name != target)
    gone = {target: host(target, state=HostState.MAINTENANCE)}
    plan = make_plan(site(*guests, evacuations=(after(first),), hosts=gone), first)
    assert {each.target for each in of(plan, Begin)} == {other}


def test_a_guest_that_no_host_can_take_is_left_with_the_reason() -> None:
    large = guest("large", memory_bytes=500 * GIB)
    plan = make_plan(site(large, evacuations=(emptying(large),)))
    assert of(plan, Begin) == []
    entry = after(plan).entries["large"]
    assert entry.standing is GuestStanding.NO_TARGET
    assert "too little memory" in entry.reason
    assert plan.stays() == {"large": entry.reason}
    (change,) = of(plan, Change)
    assert change.announce


def test_every_guest_that_stays_has_a_reason() -> None:
    guests = [guest(f"vm-{number}") for number in range(12)]
    obstructed = guest("held", obstacle="its monitor is held by somebody", obstacle_code="monitor-held")
    late = replace(Entry(guest=guest("late")), not_before=200.0, reason="tried again in 5 s: no space")
    run = emptying(*guests, obstructed)
    run = run.marked({"late": late})
    plan = make_plan(site(*guests, obstructed, late.guest, evacuations=(run,)))
    begun = {each.guest.key for each in of(plan, Begin)}
    stays = plan.stays()
    assert begun
    assert begun.isdisjoint(stays)
    assert begun | set(stays) == set(run.entries)
    assert all(stays.values())
    assert stays["held"] == "its monitor is held by somebody"
    assert "tried again" in stays["late"]
    assert any("waits for its turn" in reason for reason in stays.values())


def test_no_more_migrations_than_the_site_allows_are_begun_and_that_is_said() -> None:
    guests = [guest(f"vm-{number}") for number in range(3)]
    limits = SiteLimits(migrations_at_a_time=1)
    plan = make_plan(site(*guests, evacuations=(emptying(*guests),), limits=limits))
    assert len(of(plan, Begin)) == 1
    assert any("limits.migrations_at_a_time" in each for each in plan.stays().values())


@pytest.mark.parametrize("name", [("evacuation", "e1"), ("guest", "vm"), ("host", "b"), ("host", "c")])
def test_what_a_command_changes_just_now_is_not_begun(name: Any) -> None:
    one = guest("vm")
    hosts = {"host": {}, "guest": {}, "evacuation": {}}[name[0]]
    if name[0] == "host":
        other = "c" if name[1] == "b" else "b"
        hosts = {other: host(other, state=HostState.MAINTENANCE)}
    plan = make_plan(site(one, evacuations=(emptying(one),), reserved={name}, hosts=hosts))
    assert of(plan, Begin) == []
    assert "a command" in plan.stays()["vm"]


def test_a_guest_that_another_migration_moves_is_not_begun_again() -> None:
    one = guest("vm")
    moving = migration(one, State.PRECOPY, evacuation=None)
    plan = make_plan(site(one, evacuations=(emptying(one),), migrations=(moving,)))
    assert of(plan, Begin) == []
    plan = make_plan(site(one, evacuations=(emptying(one),), coming={"vm": "b"}))
    assert of(plan, Begin) == []


def test_a_migration_that_is_queued_is_driven_one_that_is_ready_has_its_links() -> None:
    first, second = guest("first"), guest("second")
    queued = migration(first, State.QUEUED, driven=False, evacuation=None)
    ready = migration(second, State.PREPARING, ready=True, evacuation=None)
    plan = make_plan(site(first, second, migrations=(queued, ready)))
    assert of(plan, Drive) == [Drive(migration="m-first")]
    assert of(plan, Admit) == [Admit(migration="m-second")]
    (share,) = of(plan, SetShare)
    assert share.migration == "m-second"
    assert 0 < share.bytes_per_second <= 1.0e9


def test_a_migration_that_somebody_else_drives_is_not_told_its_share_again() -> None:
    one = guest("vm")
    copying = migration(one, State.PRECOPY, admitted=True, remaining_bytes=GIB)
    (share,) = of(make_plan(site(one, migrations=(copying,))), SetShare)
    copying = replace(copying, share_bytes_per_second=share.bytes_per_second)
    assert of(make_plan(site(one, migrations=(copying,))), SetShare) == []


def test_a_host_is_called_empty_after_a_look_that_began_when_nobody_was_left() -> None:
    run = emptying(guest("vm"))
    run = run.begun("vm", "m1", "b", "why").one_ended(
        "vm", Ended(state=State.COMPLETED), now=90.0, limits=SiteLimits()
    )
    plan = make_plan(site(guest("vm", at="b"), evacuations=(run,), looks={"a": (50.0, 0.1)}))
    assert of(plan, LookAgain) == [LookAgain(host="a", awaited=True)]
    assert of(plan, End) == []
    again = site(guest("vm", at="b"), evacuations=(after(plan),), looks={"a": (50.0, 0.1)})
    assert of(make_plan(again, plan), End) == []
    seen = replace(again, looks={"a": (101.0, 0.1)}, clock=101.2)
    assert of(make_plan(seen, plan), End) == [End(evacuation="e1", state=EvacuationState.COMPLETED)]


def test_a_host_that_a_migration_may_still_bring_somebody_to_is_not_empty() -> None:
    coming = migration(guest("other", at="c"), State.PRECOPY, target="a", evacuation=None)
    run = replace(emptying(), empty_since=90.0)
    snapshot = site(evacuations=(run,), looks={"a": (95.0, 0.1)}, migrations=(coming,))
    plan = make_plan(snapshot)
    assert of(plan, End) == []
    assert "brings it here" in after(plan).entries["other"].reason


def test_at_a_deadline_that_stops_everything_under_way_is_cancelled_and_nothing_begun() -> None:
    first, second = guest("first"), guest("second")
    run = emptying(first, second, deadline=NOW - timedelta(seconds=1), on_deadline="stop")
    run = run.begun("first", "m-first", "b", "why")
    plan = make_plan(site(first, second, evacuations=(run,), migrations=(migration(first, State.PRECOPY),)))
    assert of(plan, CancelMigration) == [CancelMigration(migration="m-first")]
    assert of(plan, Begin) == []
    assert after(plan).late
    assert after(plan).closing is EvacuationState.STOPPED


def test_whom_a_migration_of_somebody_else_holds_is_left_to_a_person() -> None:
    one = guest("vm")
    held = migration(one, State.HELD, evacuation=None, driven=False)
    plan = make_plan(site(one, evacuations=(emptying(one),), migrations=(held,)))
    entry = plan.tended["e1"].after.entries["vm"]
    assert entry.standing is GuestStanding.HELD
    assert "migrator status m-vm" in entry.reason
    freed = site(one, evacuations=(plan.tended["e1"].after,))
    assert make_plan(freed, plan).tended["e1"].after.entries["vm"].standing is GuestStanding.WAITING


def test_where_it_failed_is_better_than_nowhere() -> None:
    one = guest("vm")
    failed = {"b": "it failed there: no space", "c": "refused by preflight: no bridge"}
    entry = Entry(guest=one, excluded=failed, attempts=1)
    plan = make_plan(site(one, evacuations=(emptying().marked({"vm": entry}),)))
    assert of(plan, Begin) == []
    assert dict(after(plan).entries["vm"].excluded) == {"c": "refused by preflight: no bridge"}
    assert plan.next_seconds == 0.0


def test_a_policy_that_a_reload_took_away_is_the_built_in_one() -> None:
    one = guest("vm", policy="gone")
    policies = PolicyRules(named=lambda name: None)
    (begun,) = of(make_plan(site(one, evacuations=(emptying(one),), policies=policies)), Begin)
    assert begun.policy.name == "default"


def test_nothing_is_begun_while_the_service_stops() -> None:
    one = guest("vm")
    assert of(make_plan(site(one, evacuations=(emptying(one),), stopping=True)), Begin) == []
