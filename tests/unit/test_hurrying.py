"""A guest in haste goes to postcopy after a full first pass, where others wait for its link and its policy lets it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from migrator.core.drain.actions import StartPostcopy
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.plan import make_plan
from migrator.core.drain.snapshot import SiteSnapshot
from migrator.core.drain.transfers import Transfers
from migrator.core.model import State
from migrator.core.policy import Policy, PostcopyMode, Preference, builtin
from tests.unit.test_drain_plan import GIB, NOW, emptying, guest, migration, of, site

IN_HASTE = builtin("default").but(prefer=Preference.TIME)


def moving(policy: Policy = IN_HASTE, *, others: int = 3, at_risk: bool = False, **how: Any) -> SiteSnapshot:
    """A guest that writes much, and others of the same host that wait."""
    one = guest("busy", memory_bytes=4 * GIB, dirty_rate_bytes_per_second=0.6e9)
    waiting = [guest(f"vm-{number}") for number in range(others)]
    going = migration(
        one,
        State.PRECOPY,
        **{
            "policy": policy,
            "started": True,
            "round": 2,
            "remaining_bytes": GIB,
            "seconds_left": 4.0,
            "dirty_rate_bytes_per_second": 0.6e9,
            **how,
        },
    )
    run: Evacuation = replace(emptying(*waiting, one), at_risk=at_risk)
    run = run.begun("busy", going.id, "b", "")
    return site(*waiting, one, evacuations=(run,), migrations=(going,))


def sent(snapshot: SiteSnapshot) -> list[StartPostcopy]:
    return of(make_plan(snapshot), StartPostcopy)


def test_goes_to_postcopy_with_the_reason() -> None:
    (found,) = sent(moving())
    assert found.migration == "m-busy"
    assert "others wait for its link" in found.reason


def test_so_does_any_whose_evacuation_would_miss_its_deadline() -> None:
    assert sent(moving(builtin("default"), at_risk=True))
    assert not sent(moving(builtin("default")))


@pytest.mark.parametrize(
    "snapshot",
    [
        moving(others=0),
        moving(round=1),
        moving(remaining_bytes=3 * GIB),
        moving(seconds_left=1.2),
        moving(IN_HASTE.but(postcopy=PostcopyMode.NEVER)),
    ],
    ids=["nobody waits", "first pass", "long stall", "little gained", "not allowed"],
)
def test_nobody_goes_for_whom_it_is_not_worth_it_or_not_allowed(snapshot: SiteSnapshot) -> None:
    assert not sent(snapshot)


def test_a_plan_reckons_that_a_guest_in_haste_sends_what_it_dirties_once_more() -> None:
    one = guest("busy", memory_bytes=4 * GIB, dirty_rate_bytes_per_second=0.6e9)
    transfers = Transfers(site(one), deadlines_from=NOW)
    patient, hasty = (transfers.waiting(one, "b", policy) for policy in (builtin("default"), IN_HASTE))
    assert patient.bytes_left == 4 * GIB
    assert patient.dirty_rate_bytes_per_second == 0.6e9
    assert 4 * GIB * 1.5 < hasty.bytes_left < 4 * GIB * 1.8
    assert hasty.dirty_rate_bytes_per_second == 0


def test_a_plan_reckons_the_same_for_one_in_haste_that_dirties_little() -> None:
    one = guest("busy", memory_bytes=4 * GIB, dirty_rate_bytes_per_second=0.2e9)
    transfers = Transfers(site(one), deadlines_from=NOW)
    patient, hasty = (transfers.waiting(one, "b", policy) for policy in (builtin("default"), IN_HASTE))
    assert hasty == patient
