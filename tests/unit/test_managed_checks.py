"""What a policy may ask for that a move by libvirt has not."""

from __future__ import annotations

from typing import Any

import pytest

from migrator.core.policy import CopiedDisks, Policy, PostcopyMode, StreamRoute
from migrator.site.managed_checks import refused_wishes


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"stream": StreamRoute.SSH}, "ssh"),
        ({"disks": CopiedDisks.ALL}, "disks"),
    ],
)
def test_what_it_has_not_is_refused_and_named(wish: dict[str, Any], named: str) -> None:
    (said,) = refused_wishes(Policy(name="own", max_downtime_seconds=0.3, **wish))
    assert said.code == "libvirt-policy"
    assert named in said.message


def test_a_usual_policy_is_taken() -> None:
    assert list(refused_wishes(Policy(name="own", max_downtime_seconds=0.3))) == []
    early = Policy(name="own", max_downtime_seconds=0.3, postcopy=PostcopyMode.IMMEDIATE)
    assert list(refused_wishes(early)) == []
    still = Policy(name="own", max_downtime_seconds=0.3, offline=True)
    assert list(refused_wishes(still)) == []
