"""What a plan costs: it goes by what has changed, and is the plan that one made of everything anew would be."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from migrator.core.drain.active_moves import ActiveMoves
from migrator.core.drain.entries import Entries
from migrator.core.drain.entry import Entry
from migrator.core.drain.snapshot import MigrationSnapshot
from migrator.core.drain.states import GuestStanding
from migrator.core.drain.tending import tend
from migrator.core.drain.wanting import find_placement_requests
from migrator.core.inventory import Guest
from migrator.core.model import State
from migrator.core.policy import builtin
from migrator.core.schedule.queues import partition, requeued
from migrator.core.schedule.transfers import Transfer
from tests.moving_site import GIB, MovingSite


def _calls(work: Callable[[], Any]) -> int:
    """Count how often a function of Python was called, or a generator gone on with."""
    count = 0

    def counted(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def _to_the_end(site: MovingSite, turns: int) -> int:
    """Calls that the plans took until everybody has moved."""
    calls = 0
    for _ in range(turns):
        calls += _calls(site.turn)
        site.finish()
        if site.run.left_count == 0:
            return calls
    raise AssertionError(f"{site.run.left_count} guests are left")


@pytest.mark.parametrize("kind", ["evacuate", "restore"])
def test_what_a_guest_costs_does_not_grow_with_those_beside_it(kind: str) -> None:
    def cost(count: int) -> float:
        site = MovingSite(kind=kind)
        site.fill(count, *("a" if kind == "evacuate" else "bcde"))
        return _to_the_end(site, 10 * count) / count

    few, many = cost(40), cost(400)
    # Placing everybody at the beginning, and once in a while, is all that goes through all of them.
    assert many <= 1.2 * few, f"{few:.0f} calls a guest with 40 guests, {many:.0f} with 400"


def _with_many_under_way(count: int, hosts: int) -> MovingSite:
    """Return a site that is at rest but for so many streams between so many hosts, each as far as no other."""
    site, names = MovingSite(), [f"h{number}" for number in range(hosts)]
    site.hosts = {name: replace(site.hosts["a"], name=name) for name in names}
    site.guests = dict.fromkeys(names, ())
    for number in range(count):
        source, target = names[number % hosts], names[(number + 1 + number // hosts) % hosts]
        guest = Guest(key=f"vm-{number}", host=source, memory_bytes=GIB, dirty_rate_bytes_per_second=1e6)
        site.guests[source] += (guest,)
        site.migrations[f"m-{number}"] = MigrationSnapshot(
            id=f"m-{number}",
            guest=guest,
            target=target,
            policy=builtin("default"),
            state=State.PRECOPY,
            driven=True,
            admitted=True,
            remaining_bytes=GIB - number * 1_000_000,
            share_bytes_per_second=1,
        )
    site.turn()
    return site


@pytest.mark.parametrize("streams_a_host", [1, 4])
def test_a_turn_costs_each_that_is_under_way_no_more_where_there_are_many(streams_a_host: int) -> None:
    def cost(count: int) -> float:
        site = _with_many_under_way(count, count // streams_a_host)
        return _calls(site.turn) / count

    few, many = cost(40), cost(400)
    assert many <= 1.2 * few, f"{few:.0f} calls a migration with 40 under way, {many:.0f} with 400"


def test_a_turn_does_not_work_out_the_migrations_of_which_nothing_has_changed() -> None:
    site = _with_many_under_way(100, 100)
    plan = site.turn()
    one = site.migrations["m-7"]
    site.migrations["m-7"] = replace(one, remaining_bytes=1_000_000)
    before = {move.transfer.guest: move for move in plan.under_way.begun}
    after = {move.transfer.guest: move for move in site.turn().under_way.begun}
    assert {guest for guest in after if after[guest] is not before[guest]} == {one.guest.key}


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_that_begins_from_the_one_before_finds_what_one_made_anew_finds(seed: int) -> None:
    mood = random.Random(seed)
    site = MovingSite(kind=mood.choice(["evacuate", "restore"]))
    site.fill(12, *("a" if site.kind == "evacuate" else "bcd"))
    for step in range(120):
        _something_happens(site, mood, step)
        site.seconds += 0.5
        snapshot, before = site.snapshot(), site.plan
        site.seconds -= 0.5
        if before is not None and not site.run.ended:
            known = before.tended.get(site.run.id)
            assert tend(site.run, snapshot, known).after.entries == tend(site.run, snapshot).after.entries
            running = {site.run.id: tend(site.run, snapshot, known).after}
            kept = find_placement_requests(snapshot, running, before.candidates)
            anew = find_placement_requests(snapshot, running)
            assert {key: each.entry for key, each in kept.wanting.items()} == {
                key: each.entry for key, each in anew.wanting.items()
            }
            assert kept.held_back == anew.held_back
        plan = site.turn()
        if plan.places is not None:
            waiting = [move for key, move in plan.places.moves.items() if key in plan.wanting]
            assert plan.queues == partition(waiting)[1]
            assert plan.waiting == requeued(plan.queues, add=plan.under_way.queued)
            found = ActiveMoves().brought_up_to_date(
                snapshot, plan.places.network, deadlines_from=plan.places.made_at
            )
            assert _told_of(plan.under_way) == _told_of(found)
        assert {entry.guest.key for entry in site.run.under_way} == {
            key for key, each in site.run.entries.items() if each.standing is GuestStanding.MIGRATING
        }


def _told_of(moves: ActiveMoves) -> tuple[list[Transfer], set[Transfer]]:
    return [each.transfer for each in moves.begun], {each.transfer for each in moves.queued}


def _something_happens(site: MovingSite, mood: random.Random, step: int) -> None:
    home = site.run.host
    match mood.randrange(9):
        case 0 | 1 | 2:
            site.finish()
        case 3:
            site.finish(State.FAILED)
        case 4:
            new = Guest(key=f"new-{step}", host=home, memory_bytes=GIB, dirty_rate_bytes_per_second=0.0)
            site.guests[home] += (new,)
        case 5 if site.guests[home]:
            one = mood.choice(site.guests[home])
            obstacle = "" if one.obstacle else "its monitor is held"
            code = "monitor-held" if obstacle else ""
            changed = replace(one, obstacle=obstacle, obstacle_code=code)
            site.guests[home] = tuple(changed if each is one else each for each in site.guests[home])
        case 6 if site.guests[home]:
            gone = mood.choice(site.guests[home])
            site.guests[home] = tuple(each for each in site.guests[home] if each is not gone)
        case 7:
            name = mood.choice("abcde")
            site.hosts = {**site.hosts, name: replace(site.hosts[name], up=not site.hosts[name].up)}
        case 8 if any(not entry.done and entry.wants_place for entry in site.run.entries.values()):
            # Somebody else has it on its way, and that is held.
            key = mood.choice([key for key, entry in site.run.entries.items() if entry.wants_place])
            name = f"other-{step}"
            state = mood.choice([State.HELD, State.PRECOPY, State.QUEUED, State.PREPARING])
            site.migrations[name] = MigrationSnapshot(
                id=name,
                guest=site.run.entries[key].guest,
                target="e",
                policy=builtin("default"),
                state=state,
                driven=True,
                admitted=False,
            )
            if mood.random() < 0.5:
                del site.migrations[name]


def test_entries_know_what_was_changed_since_any_version() -> None:
    mood = random.Random(1)
    versions = [Entries()]
    for step in range(60):
        before = mood.choice(versions[-3:])
        changes = {
            f"g{mood.randrange(20)}": Entry(
                guest=Guest(key=f"g{step}", host="a"), standing=mood.choice(list(GuestStanding))
            )
            for _ in range(mood.randrange(1, 4))
        }
        versions.append(before.changed(changes))
    for older in versions:
        for newer in versions:
            changed = newer.changed_since(older)
            if changed is None:
                continue
            differ = {key for key in newer if older.get(key) is not newer[key]}
            assert differ <= changed
            assert older.keys() <= newer.keys()
    for each in versions:
        for standing in GuestStanding:
            there = [entry for entry in each.values() if entry.standing is standing]
            assert sorted(map(id, each.at(standing))) == sorted(map(id, there))
            assert each.count(standing) == len(there)


def test_a_queue_changes_only_where_it_is_changed() -> None:
    site = MovingSite()
    site.fill(30, "a")
    queues = site.turn().queues
    links, moves = max(queues.items(), key=lambda item: len(item[1]))
    after = requeued(queues, remove=[moves[1]])
    assert [*after[links]] == [moves[0], *moves[2:]]
    assert all(after[each] is queues[each] for each in queues if each != links)
    assert requeued(after, add=[moves[1], moves[0]]) == queues
