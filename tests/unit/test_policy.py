"""Policies: the built-in ones as they are promised, and contradictions refused with both sides named."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from migrator.core.policy import LastResort, Policy, PostcopyMode, builtin, from_fields
from migrator.errors import UsageError

PROMISED = {
    "default": (0.3, 0.5, PostcopyMode.ALLOW, LastResort.ABORT, False),
    "gentle": (0.1, 0.0, PostcopyMode.NEVER, LastResort.ABORT, False),
    "must-finish": (2.0, 0.9, PostcopyMode.ALLOW, LastResort.PAUSE, False),
    "postcopy-first": (0.3, 0.0, PostcopyMode.IMMEDIATE, LastResort.ABORT, False),
    "offline": (0.3, 0.0, PostcopyMode.NEVER, LastResort.PAUSE, True),
    "save": (0.3, 0.5, PostcopyMode.ALLOW, LastResort.ABORT, False),
}


@pytest.mark.parametrize(("name", "values"), PROMISED.items(), ids=PROMISED)
def test_builtin_is_what_is_promised(name: str, values: tuple[object, ...]) -> None:
    policy = builtin(name)
    assert policy.name == name
    assert values == (
        *(policy.max_downtime_seconds, policy.max_throttle_ratio, policy.postcopy),
        *(policy.last_resort, policy.offline),
    )
    assert policy.max_bandwidth_bytes_per_second is None
    assert policy.max_duration_seconds is None


def test_unknown_one_is_refused_with_those_that_exist() -> None:
    with pytest.raises(
        UsageError, match="no policy 'fast'; there are default, gentle, must-finish, postcopy-first"
    ):
        builtin("fast")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"max_downtime_seconds": 0.0}, "max_downtime is 0 s"),
        ({"max_downtime_seconds": 2001.0}, "at most 2000 s"),
        ({"max_bandwidth_bytes_per_second": 1000}, "at least 1MiB/s, or auto"),
        ({"max_throttle_ratio": 1.0}, "max_throttle must lie between 0 and 99%"),
        ({"max_throttle_ratio": -0.1}, "max_throttle must lie between 0 and 99%"),
        ({"max_duration_seconds": 0.0}, "max_duration must be more than 0"),
        (
            {"offline": True, "postcopy": PostcopyMode.ALLOW},
            "offline and postcopy=allow contradict each other",
        ),
        (
            {"postcopy": PostcopyMode.IMMEDIATE, "max_throttle_ratio": 0.5},
            "postcopy=immediate and max_throttle=50% contradict",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused(fields: dict[str, object], complaint: str) -> None:
    given = {"name": "mine", "max_downtime_seconds": 0.3, **fields}
    with pytest.raises(UsageError, match=f"policy mine: .*{complaint}"):
        Policy(**given)  # type: ignore[arg-type]


class TestOverriding:
    def test_changes_what_is_given_and_nothing_else(self) -> None:
        changed = builtin("default").but(max_downtime_seconds=0.05, last_resort=LastResort.PAUSE)
        assert asdict(changed) == asdict(builtin("default")) | {
            "max_downtime_seconds": 0.05,
            "last_resort": LastResort.PAUSE,
        }
        assert builtin("default").but() == builtin("default")

    def test_by_zero_is_a_change(self) -> None:
        assert builtin("default").but(max_throttle_ratio=0.0).max_throttle_ratio == 0

    def test_with_postcopy_at_once_drops_a_throttle_that_came_with_the_policy(self) -> None:
        assert builtin("default").but(postcopy=PostcopyMode.IMMEDIATE).max_throttle_ratio == 0

    def test_with_postcopy_at_once_refuses_a_throttle_that_was_asked_for(self) -> None:
        with pytest.raises(UsageError, match="contradict each other"):
            builtin("default").but(postcopy=PostcopyMode.IMMEDIATE, max_throttle_ratio=0.2)

    def test_of_the_offline_policy_refuses_postcopy(self) -> None:
        with pytest.raises(UsageError, match="set postcopy=never"):
            builtin("offline").but(postcopy=PostcopyMode.ALLOW)


@pytest.mark.parametrize("name", PROMISED)
def test_survives_json(name: str) -> None:
    policy = builtin(name).but(max_bandwidth_bytes_per_second=1 << 30, max_duration_seconds=60.0)
    assert from_fields(json.loads(json.dumps(asdict(policy)))) == policy
