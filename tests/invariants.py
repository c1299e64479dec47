"""What holds after every migration, whatever was done to it: looked at from outside, through the rescue monitors.

::

    async with witness(lab, pair) as seen:
        ended = await direct(pair)
        await seen.verify(ended.state)

Never two: the guest is nowhere seen to run after it was seen to run elsewhere. Never none: it is at the source as it
was, or at the destination, unless the process that held its memory was killed. No process is left over. A source that
kept its guest has the capabilities and parameters that it had. The record is put away, unless the migration is held.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migrator.testing.guest import GuestCounters
from migrator.testing.lab import Lab, LabQemu, Pair, RunWatch, until

#: A guest that still ran somewhere would have beaten several times in it (every 20 ms).
_SILENCE_SECONDS = 0.15


@dataclass(frozen=True)
class Settings:
    """All that a migration may change at a QEMU and has to put back."""

    run_state: str
    capabilities: Mapping[str, bool]
    parameters: Mapping[str, Any]


async def settings(qemu: LabQemu) -> Settings:
    """As they are now."""
    async with qemu.monitor() as monitor:
        return Settings(
            run_state=(await monitor.execute("query-status"))["status"],
            capabilities={
                each["capability"]: each["state"]
                for each in await monitor.execute("query-migrate-capabilities")
            },
            parameters=await monitor.execute("query-migrate-parameters"),
        )


def records() -> list[Path]:
    """Records of migrations that are not ended."""
    return sorted(Path(os.environ["XDG_STATE_HOME"], "migrator", "direct").glob("*.jsonl"))


class Witness:
    """Knows how things were, watches where the guest runs, and says at the end whether it may be so."""

    def __init__(
        self, lab: Lab, pair: Pair, source: Settings, destination: Settings, watch: RunWatch
    ) -> None:
        self.lab, self.pair = lab, pair
        self.source, self.destination = source, destination
        self.watch = watch

    async def verify(
        self,
        state: str,
        *,
        run_state: str | None = None,
        lost: bool = False,
        left_over: tuple[LabQemu, ...] = (),
    ) -> GuestCounters | None:
        """Assert the invariants for a migration that ended as `state`; what the guest has counted, if it is there.

        QEMUs that are stopped (SIGSTOP) are woken first: what they do then counts too.

        :param run_state: of the guest in the end, where somebody changed it; by default as it was.
        :param lost: the process that held the guest's memory was killed by the test.
        :param left_over: ends that may outlive the migration beside the guest's own.
        """
        for qemu in self.lab.qemus:
            qemu.sigcont()
        wanted = run_state or self.source.run_state
        if state == "held":
            await self._verify_held(lost=lost)
            return None
        owner = {
            "completed": self.pair.destination,
            "failed": self.pair.source,
            "cancelled": self.pair.source,
            "guest-ended": None,
        }[state]
        counted = None if owner is None else await self._verify_owner(owner, wanted)
        if owner is self.pair.source:
            await self._verify_as_it_was(wanted)
        for qemu in (self.pair.source, self.pair.destination):
            if qemu not in (owner, *left_over):
                await qemu.wait_dead()
        await self.verify_never_two()
        assert records() == []
        return counted

    async def verify_untouched(self) -> None:
        """After a refusal: both ends are as they were, and no record was begun."""
        assert await settings(self.pair.source) == self.source
        assert await settings(self.pair.destination) == self.destination
        await self.verify_never_two()
        assert self.watch.course in ([], [self.pair.source])
        assert records() == []

    async def verify_never_two(self) -> None:
        """The guest never ran at the source after it had run at the destination, and is not running twice now."""
        seen = self.watch.course
        assert seen in (
            [],
            [self.pair.source],
            [self.pair.destination],
            [self.pair.source, self.pair.destination],
        )
        now = await self.lab.counting(within=_SILENCE_SECONDS)
        assert len(now) <= 1
        assert not seen or not now or seen[-1:] == now

    async def _verify_owner(self, owner: LabQemu, run_state: str) -> GuestCounters | None:
        async def arrived() -> bool:
            return await owner.run_state() == run_state

        await until(arrived, what=f"{run_state} at {owner!r}")
        if run_state == "running":
            assert await self.lab.counting() == [owner]
            assert self.watch.course[-1:] == [owner]
        else:
            assert await self.lab.counting(within=_SILENCE_SECONDS) == []
        if owner is self.pair.source:
            assert self.pair.destination not in self.watch.course
        if owner.machine.habit.region_bytes:
            return await owner.check_memory()
        return await owner.counters()

    async def _verify_as_it_was(self, run_state: str) -> None:
        now = await settings(self.pair.source)
        assert now.capabilities == self.source.capabilities
        assert now.parameters == self.source.parameters
        assert now.run_state == run_state

    async def _verify_held(self, *, lost: bool) -> None:
        assert len(records()) == 1
        if not lost:
            assert [qemu for qemu in (self.pair.source, self.pair.destination) if qemu.alive]
        await self.verify_never_two()


@asynccontextmanager
async def witness(lab: Lab, pair: Pair) -> AsyncIterator[Witness]:
    """Look at both ends, then watch the guest until the end of the block and of the verification in it."""
    before = await settings(pair.source), await settings(pair.destination)
    async with lab.watch() as watch:
        yield Witness(lab, pair, *before, watch)
