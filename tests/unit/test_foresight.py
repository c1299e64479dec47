"""What is said of a guest before it is moved is what the controller will find."""

from __future__ import annotations

import pytest

from migrator.core.migration.advance_forecast import AdvanceForecast, forecast_in_advance
from migrator.core.migration.downtime_floor import ceiling_findings
from migrator.core.migration.forecast import Verdict
from migrator.core.policy import LastResort, Policy, builtin

MIB = 1 << 20


def seen(
    policy: Policy, dirty: float | None, *, left: float = 192 * MIB, speed: float = 29 * MIB
) -> AdvanceForecast:
    return forecast_in_advance(
        policy,
        left_bytes=left,
        bytes_per_second=speed,
        dirty_rate_bytes_per_second=dirty,
        probe_seconds=1.0,
    )


def test_a_guest_that_dirties_more_than_its_link_carries_does_not_leave_by_a_policy_that_only_waits() -> None:
    assert seen(builtin("gentle"), 90 * MIB) == AdvanceForecast(verdict=Verdict.CANNOT)


def test_a_policy_that_may_do_more_lets_the_same_guest_go_and_says_what_it_costs() -> None:
    found = seen(builtin("must-finish"), 90 * MIB)
    assert found.verdict is Verdict.CONVERGES_IF
    assert found.downtime_seconds is not None
    assert found.downtime_seconds <= builtin("must-finish").max_downtime_seconds


@pytest.mark.parametrize("dirty", [0.0, 1 * MIB, 4 * MIB])
@pytest.mark.parametrize("policy", ["default", "gentle", "must-finish"])
def test_a_quiet_guest_converges_below_its_ceiling(policy: str, dirty: float) -> None:
    found = seen(builtin(policy), dirty)
    assert found.verdict is Verdict.CONVERGES
    assert found.downtime_seconds is not None
    assert 0 < found.downtime_seconds <= builtin(policy).max_downtime_seconds


def test_a_ceiling_below_what_device_state_takes_is_refused_with_the_smallest_that_can_be_kept() -> None:
    found = seen(builtin("default").but(max_downtime_seconds=0.02), 0.0, speed=7.5e6)
    assert found.verdict is Verdict.CANNOT
    assert found.downtime_seconds == pytest.approx(0.047, abs=0.005)
    assert (
        seen(builtin("default").but(max_downtime_seconds=0.05), 0.0, speed=7.5e6).verdict is Verdict.CONVERGES
    )


def test_a_policy_that_may_stop_the_guest_lets_it_go_above_its_ceiling_and_says_so() -> None:
    found = seen(builtin("must-finish").but(max_downtime_seconds=0.02), 0.0, speed=7.5e6)
    assert found.verdict is Verdict.CONVERGES_IF
    assert found.downtime_seconds is not None
    assert found.downtime_seconds > 0.02


def test_without_a_probe_nothing_is_claimed() -> None:
    assert seen(builtin("default"), None) == AdvanceForecast(verdict=Verdict.UNKNOWN)
    assert seen(builtin("default"), 1.0, speed=0.0) == AdvanceForecast(verdict=Verdict.UNKNOWN)


def test_offline_stands_still_for_the_whole_copy_and_postcopy_hardly_at_all() -> None:
    offline = seen(builtin("offline"), None, left=290 * MIB)
    assert offline.downtime_seconds == pytest.approx(10, rel=0.05)
    first = seen(builtin("postcopy-first"), None)
    assert first.downtime_seconds is not None
    assert first.downtime_seconds < 0.2


def test_preflight_names_the_smallest_ceiling_at_the_share_of_the_link_and_the_policy_decides() -> None:
    tight = builtin("gentle").but(max_downtime_seconds=0.02)
    [refused] = ceiling_findings(tight, 7_500_000, 0.001)
    assert refused.code == "ceiling-infeasible"
    assert "50 ms" in refused.message
    [warned] = ceiling_findings(tight.but(last_resort=LastResort.PAUSE), 7_500_000, 0.001)
    assert warned.code == "ceiling-exceeded"
    assert ceiling_findings(builtin("gentle"), 7_500_000, 0.001) == []
    assert ceiling_findings(tight, None, 0.001) == []
