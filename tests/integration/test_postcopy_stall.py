"""How a guest fares in postcopy: pages that it asks for have their own channel, and what it waits is measured."""

from __future__ import annotations

from pathlib import Path

from migrator.core.model import Mode, State
from migrator.testing.lab import Lab
from tests.postcopy import BUSY, IMMEDIATE, driven


async def test_pages_that_are_asked_for_have_their_own_channel_and_the_wait_for_them_is_told(
    lab: Lab, one_crossing: tuple[Path, Path]
) -> None:
    pair = await lab.pair(BUSY, source=one_crossing[0], destination=one_crossing[1])
    seen: dict[str, bool] = {}

    async def look() -> None:
        for end in (pair.source, pair.destination):
            found = await end.query("query-migrate-capabilities")
            seen.update({f"{end.label} {each['capability']}": each["state"] for each in found})

    async with driven(pair, policy=IMMEDIATE.but(max_postcopy_stall_seconds=0.001)) as drive:
        drive.make_it_last()
        drive.source.after("migrate", look)
        result = await drive.run()
    assert (result.state, result.mode) == (State.COMPLETED, Mode.POSTCOPY)
    for end in (pair.source, pair.destination):
        assert seen[f"{end.label} postcopy-preempt"]
    assert result.postcopy_stall_seconds is not None
    assert len(result.postcopy_vcpu_stall_seconds) == 1
    exceeded = result.postcopy_stall_seconds > 0.001
    assert exceeded == ("postcopy-stall-exceeded" in [each.action for each in result.decisions])
    await pair.destination.check_memory()
