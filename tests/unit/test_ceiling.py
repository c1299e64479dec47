"""Whether the downtime ceiling can be kept so far from both ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from migrator.core.policy import Policy
from migrator.engine.migration.ceiling import against_ceiling
from migrator.qemu import address
from migrator.qemu.endpoint import Endpoint
from migrator.testing.fake_qemu import FakeQemu

POLICY = Policy(name="mine", max_downtime_seconds=0.2)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("lasts", [True, False])
async def test_only_a_round_trip_that_stays_long_speaks_against_the_ceiling(lasts: bool) -> None:
    async with FakeQemu() as qemu:
        end = Endpoint(address.parse(f"unix:{qemu.qmp}"), role="source")
        try:
            await end.connect()
            qemu.answer_late(0.15)
            await end.observe()
            assert end.least_round_trip_seconds > 0.1
            if not lasts:
                asyncio.get_running_loop().call_later(0.1, qemu.answer_late, 0.0)
            found = await against_ceiling(POLICY, None, end)
        finally:
            await end.close()
    assert [each.code for each in found] == (["ceiling-infeasible"] if lasts else [])
