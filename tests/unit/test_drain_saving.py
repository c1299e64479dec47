"""Guests that an evacuation saves into files as a last resort, said of a snapshot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from migrator.core.drain.actions import Begin, End, SaveGuest
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Ended, Evacuation
from migrator.core.drain.limits import LOST_SECONDS, SiteLimits
from migrator.core.drain.plan import DrainPlan, make_plan
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.inventory import Guest, HostState
from migrator.core.model import State
from tests.unit.test_drain_plan import GIB, after, emptying, guest, host, of, site

SAVED_DIR = "/srv/saved"
FILE = "/srv/saved/vm-e1.state"


def nowhere(**how: Any) -> dict[str, Any]:
    """No other host takes guests."""
    closed = {name: host(name, state=HostState.MAINTENANCE) for name in ("b", "c")}
    return closed | {"a": host("a", saved_dir=SAVED_DIR, **how)}


def idle(one: Guest, run: Evacuation, *, seconds: float, hosts: dict[str, Any]) -> DrainPlan:
    """The plan after so long in which nothing happened."""
    first = make_plan(site(one, evacuations=(run,), hosts=hosts))
    if of(first, End):
        return first
    second = make_plan(site(one, evacuations=(after(first),), hosts=hosts))
    later = replace(site(one, evacuations=(after(second),), hosts=hosts), clock=100.0 + seconds)
    return make_plan(later)


def test_a_guest_that_no_host_takes_is_saved_once_nothing_else_is_left() -> None:
    one = guest("vm")
    run = emptying(one, policy="save")
    assert of(idle(one, run, seconds=LOST_SECONDS / 2, hosts=nowhere()), SaveGuest) == []
    plan = idle(one, run, seconds=LOST_SECONDS, hosts=nowhere())
    (saved,) = of(plan, SaveGuest)
    assert (saved.guest, saved.path) == (one, FILE)
    assert of(plan, End) == []


@pytest.mark.parametrize(
    ("policy", "hosts", "how"),
    [
        ("default", nowhere(), {}),
        ("save", nowhere() | {"a": host("a")}, {}),
        ("save", nowhere(), {"obstacle": "libvirt has it", "obstacle_code": "libvirt"}),
        ("save", nowhere(), {"managed_by": "libvirt"}),
    ],
    ids=["another policy", "no directory", "not to be touched", "libvirt's"],
)
def test_others_are_left(policy: str, hosts: dict[str, Any], how: dict[str, Any]) -> None:
    one = guest("vm", **how)
    plan = idle(one, emptying(one, policy=policy), seconds=3600.0, hosts=hosts)
    assert of(plan, SaveGuest) == []
    assert [each.state for each in of(plan, End)] == [EvacuationState.INCOMPLETE]


def test_nobody_is_saved_while_another_moves() -> None:
    stuck, moving = guest("vm", memory_bytes=1000 * GIB), guest("other")
    run = emptying(stuck, moving, policy="save")
    hosts = {"a": host("a", saved_dir=SAVED_DIR)}
    plan = make_plan(site(stuck, moving, evacuations=(run,), hosts=hosts))
    assert of(plan, Begin)
    assert of(plan, SaveGuest) == []


class TestEnd:
    def saving(self) -> Evacuation:
        return emptying(guest("vm"), policy="save").begun("vm", "m1", "a", "nowhere to go", saving=True)

    def ended(self, how: Ended) -> Entry:
        return self.saving().one_ended("vm", how, now=0.0, limits=SiteLimits()).entries["vm"]

    def test_one_that_was_saved_has_left_and_its_file_is_said(self) -> None:
        entry = self.ended(Ended(state=State.COMPLETED, saved=FILE))
        assert (entry.standing, entry.done) == (GuestStanding.SAVED, True)
        assert f"migrator load {FILE}" in entry.reason

    @pytest.mark.parametrize(
        "how", [Ended(state=State.FAILED, error="full", refused=refused) for refused in (False, True)]
    )
    def test_one_that_cannot_be_saved_is_left_and_not_tried_again(self, how: Ended) -> None:
        entry = self.ended(how)
        assert entry.standing is GuestStanding.SET_ASIDE
        assert entry.reason == "it cannot be saved either: full"
        run = self.saving().one_ended("vm", how, now=0.0, limits=SiteLimits())
        plan = make_plan(site(guest("vm"), evacuations=(run,), hosts=nowhere()))
        assert of(plan, SaveGuest) == []
        assert [each.state for each in of(plan, End)] == [EvacuationState.INCOMPLETE]


def test_the_key_of_a_guest_without_a_uuid_is_no_path() -> None:
    one = guest("../../etc/x")
    (saved,) = of(idle(one, emptying(one, policy="save"), seconds=60.0, hosts=nowhere()), SaveGuest)
    assert saved.path == "/srv/saved/.._.._etc_x-e1.state"
