"""What a tunnel may hold, beside the downtime ceiling."""

from __future__ import annotations

import pytest

from migrator.core.migration.downtime_floor import tunnel_findings
from migrator.core.policy import builtin

MBIT = 1e6 / 8


@pytest.mark.parametrize(
    ("policy", "speed", "shaped", "warned"),
    [
        ("default", 60 * MBIT, False, True),
        ("default", 60 * MBIT, True, False),
        ("default", 20 * MBIT, True, True),
        ("default", 300 * MBIT, False, False),
        ("must-finish", 60 * MBIT, False, False),
        ("offline", 60 * MBIT, False, False),
        ("default", None, False, False),
    ],
)
def test_tunnel_over_a_narrow_link_is_warned_of(
    policy: str, speed: float | None, *, shaped: bool, warned: bool
) -> None:
    found = tunnel_findings(builtin(policy), speed, shaped=shaped)
    assert [each.code for each in found] == ["tunnel-ceiling"] * warned
