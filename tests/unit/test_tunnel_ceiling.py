"""What a tunnel may hold, beside the downtime ceiling."""

from __future__ import annotations

import pytest

from migrator.core.migration.downtime_floor import tunnel_findings
from migrator.core.policy import builtin

MBIT = 1e6 / 8


@pytest.mark.parametrize(
    ("policy", "speed", "warned"),
    [
        ("default", 60 * MBIT, True),
        ("default", 300 * MBIT, False),
        ("must-finish", 60 * MBIT, False),
        ("offline", 60 * MBIT, False),
        ("default", None, False),
    ],
)
def test_tunnel_over_a_narrow_link_is_warned_of(policy: str, speed: float | None, warned: bool) -> None:
    assert [each.code for each in tunnel_findings(builtin(policy), speed)] == ["tunnel-ceiling"] * warned
