"""The objective of the switch: downtime first, then time, inside the ceiling."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from migrator.core.migration.objective import DOWNTIME_WORTH, MOST_EXTRA_RATIO, Ending, best_ending
from migrator.core.policy import Preference


def ending(seconds: float, downtime: float, *, limit: float = 0.1) -> Ending:
    return Ending(limit_seconds=limit, seconds=seconds, downtime_seconds=downtime)


def best(*endings: Ending, **how: object) -> Ending | None:
    given = {"ceiling_seconds": 0.3, "elapsed_seconds": 3.0, "left_seconds": math.inf} | how
    return best_ending(endings, **given)  # type: ignore[arg-type]


_ENDINGS = st.lists(st.builds(ending, st.floats(0.0, 1e4), st.floats(0.0, 10.0)), min_size=1, max_size=12)
_HOW = st.fixed_dictionaries(
    {
        "ceiling_seconds": st.floats(0.01, 5.0),
        "elapsed_seconds": st.floats(0.0, 1e4),
        "soonest_seconds": st.one_of(st.none(), st.floats(0.0, 1e4)),
        "left_seconds": st.one_of(st.just(math.inf), st.floats(-10.0, 1e4)),
        "prefer": st.sampled_from(Preference),
    }
)


def test_a_shorter_downtime_is_worth_ten_times_as_much_copying() -> None:
    soon, later = ending(1.0, 0.1), ending(1.39, 0.06)
    assert best(soon, later) is later
    assert best(soon, ending(1.42, 0.06)) is soon


def test_no_more_than_a_tenth_of_the_whole_time_is_spent_on_it() -> None:
    soon = ending(1.0, 0.29)
    assert best(soon, ending(1.39, 0.01)) is not soon
    assert best(soon, ending(1.41, 0.01)) is soon


def test_what_is_above_the_ceiling_is_not_chosen_however_soon() -> None:
    later = ending(50.0, 0.29)
    assert best(ending(0.0, 0.31), later) is later
    assert best(ending(0.0, 0.31)) is None


def test_who_prefers_time_gets_the_soonest_inside_the_ceiling() -> None:
    soon = ending(1.0, 0.3)
    assert best(soon, ending(1.01, 0.001), ending(0.5, 0.4), prefer=Preference.TIME) is soon


def test_who_promises_less_again_and_again_is_not_waited_for() -> None:
    now, soon = ending(0.1, 0.2), ending(0.3, 0.02)
    assert best(now, soon, elapsed_seconds=10.0, soonest_seconds=9.4) is soon
    assert best(now, soon, elapsed_seconds=10.0, soonest_seconds=9.0) is now


@given(endings=_ENDINGS, how=_HOW)
def test_it_is_under_the_ceiling_and_none_is_better_in_both(
    endings: list[Ending], how: dict[str, Any]
) -> None:
    chosen = best(*endings, **how)
    allowed = [each for each in endings if each.downtime_seconds <= how["ceiling_seconds"]]
    assert (chosen is None) == (not allowed)
    for each in allowed:
        assert chosen is not None
        better = each.seconds < chosen.seconds and each.downtime_seconds <= chosen.downtime_seconds
        assert not better


@given(endings=_ENDINGS, how=_HOW)
def test_no_bound_on_time_is_passed_but_by_the_soonest(endings: list[Ending], how: dict[str, Any]) -> None:
    chosen = best(*endings, **how)
    assume(chosen is not None)
    assert chosen is not None
    soonest = min(each.seconds for each in endings if each.downtime_seconds <= how["ceiling_seconds"])
    if chosen.seconds > soonest:
        whole = how["elapsed_seconds"] + soonest
        assert chosen.seconds <= how["left_seconds"]
        assert chosen.seconds - soonest <= MOST_EXTRA_RATIO * whole * (1 + 1e-9) + 1e-9
        assert how["prefer"] is Preference.DOWNTIME


@given(endings=_ENDINGS, how=_HOW)
def test_what_is_paid_in_time_is_worth_it(endings: list[Ending], how: dict[str, Any]) -> None:
    chosen = best(*endings, **how)
    assume(chosen is not None)
    assert chosen is not None
    soonest = min(
        (each for each in endings if each.downtime_seconds <= how["ceiling_seconds"]),
        key=lambda each: (each.seconds, each.downtime_seconds),
    )
    paid = chosen.seconds - soonest.seconds
    bought = soonest.downtime_seconds - chosen.downtime_seconds
    assert paid <= DOWNTIME_WORTH * bought + 1e-6 * (1 + chosen.seconds)
