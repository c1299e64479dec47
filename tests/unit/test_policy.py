"""Policies: the built-in ones as they are promised, and contradictions refused with both sides named."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from migrator.core.policy import (
    Backing,
    BlockJobs,
    Compression,
    CopiedDisks,
    LastResort,
    Policy,
    PostcopyMode,
    Preference,
    SourceImages,
    Start,
    TlsUse,
    builtin,
    from_fields,
)
from migrator.core.policy_words import allowed
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


class TestInWords:
    """Sentences that a person is told of what a policy allows."""

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("default", "The guest stands still for 300 ms at most."),
            ("default", "Where it writes too fast it is slowed down, by 50% at most."),
            ("gentle", "It is never slowed down."),
            ("gentle", "No postcopy: until the switch all of it is at its source."),
            ("must-finish", "The guest stands still for 2 s at most."),
            ("must-finish", "Where nothing else helps it is stopped until its memory has arrived."),
            ("cold", "One that takes longer than 2 min to shut down stays."),
            ("save", "saved into a file, and runs nowhere until it is loaded."),
        ],
    )
    def test_says_what_is_promised(self, name: str, says: str) -> None:
        assert any(each.endswith(says) for each in allowed(builtin(name)))

    def test_of_one_that_stops_the_guest_promises_no_short_downtime(self) -> None:
        assert allowed(builtin("offline")) == [
            "The guest is stopped first and stands still until all of it has been copied."
        ]

    def test_says_everything_that_is_different_from_the_default(self) -> None:
        changes = {
            "max_duration_seconds": 3600.0,
            "max_bandwidth_bytes_per_second": 100 << 20,
            "block_jobs": BlockJobs.REFUSE,
            "prefer": Preference.TIME,
            "start": Start.QUIET,
            "disks": CopiedDisks.NONE,
            "source_images": SourceImages.REMOVE,
            "backing": Backing.KEEP,
            "tls": TlsUse.REQUIRE,
            "streams": 4,
            "compress": Compression.ZSTD,
        }
        plain = allowed(builtin("default"))
        for name, value in changes.items():
            changed = allowed(replace(builtin("default"), **{name: value}))  # type: ignore[arg-type] # of any field
            assert len(changed) == len(plain) + 1, name
