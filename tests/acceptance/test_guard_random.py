"""Controllers killed, or cut off from the source's host, at random moments: no guest stands still for long."""

from __future__ import annotations

import random
import statistics

import pytest

from bench.guard import measure
from migrator.testing.lab import binaries
from tests.conftest import missing


@pytest.mark.parametrize(
    ("runs", "longest", "median"),
    [
        # A busy machine delays the guard as it does everything.
        pytest.param(1, 8.0, 8.0, id="short", marks=pytest.mark.matrix),
        pytest.param(25, 1.5, 0.5, id="long", marks=pytest.mark.soak),
    ],
)
async def test_no_guest_stands_still_for_long_whenever_its_controller_goes(
    runs: int, longest: float, median: float
) -> None:
    if not binaries():
        missing("there is no QEMU here")
    seed = random.randrange(1 << 30)  # every run looks elsewhere
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with a failed test
    versions = list(binaries()) if runs > 1 else list(binaries())[:1]
    found = await measure(runs, versions=versions, seed=seed)
    before = [each for runs in found.values() for each in runs if not each.past]
    assert all(each.runs for each in before), found
    stood = [each.stood_seconds for each in before if each.stood_seconds > 0]
    assert max(stood, default=0.0) <= longest, found
    assert not stood or statistics.median(stood) <= median, found
