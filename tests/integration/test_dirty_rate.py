"""The probe before a migration: exact where that is safe, a sample where it is not, harmless everywhere."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.core.model import State
from migrator.errors import CommandFailed
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.qemu.monitor import Monitor
from migrator.testing.lab import GuestMachine, Habit, Lab, LabError, LabQemu, Pair, until
from tests.driven import MIB, PLAIN, driven

#: Not all of its region in the second that a probe takes, unless it catches up on a machine that is busy.
HABIT = Habit(region_bytes=64 * MIB, bytes_per_second=48 * MIB)
UNDER_TCG = GuestMachine(habit=HABIT)
#: Without the flag KVM refuses to start where it runs inside another KVM.
UNDER_KVM = GuestMachine(habit=HABIT, accelerator="kvm", cpu="host,-arch-capabilities")
#: A ring that this guest does not fill: see migrator/qemu/dirty_rate.py for what becomes of one that does.
WITH_RING = GuestMachine(habit=HABIT, accelerator="kvm,dirty-ring-size=65536", cpu="host,-arch-capabilities")
BOOTS_WITHIN = 60.0
#: What may be counted, MiB a second: a machine that is busy gives the guest less, and then more, at most its region.
EXACTLY = (20, 68)
#: Of a sample of 64 pages, of which 24 are dirtied, 32 at most, give or take 4: at three and a half times that.
SAMPLED = (8, 96)


class Listening(Monitor):
    """A session that notes how dirty rates were asked for."""

    def __init__(self, asked: list[str], address: Address, **how: Any) -> None:
        super().__init__(address, **how)
        self._asked = asked

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float = 5.0,
        oob: bool = False,
    ) -> Any:
        if command == "calc-dirty-rate":
            self._asked.append((arguments or {})["mode"])
        return await super().execute(command, arguments, timeout=timeout, oob=oob)


class Probed(Endpoint):
    """A source that remembers in which ways it was asked to measure."""

    def __init__(self, qemu: LabQemu) -> None:
        address = Address(kind="unix", path=str(qemu.qmp))
        self.asked: list[str] = []
        super().__init__(address, role="source", make_monitor=functools.partial(Listening, self.asked))

    async def measure(self) -> float:
        """MiB a second, as exactly as is safe."""
        await self.start_dirty_rate(1.0, exact=True)
        return await self.answer()

    async def answer(self) -> float:
        """Once it is there."""
        rates: list[float] = []

        async def measured() -> bool:
            rate = await self.dirty_rate()
            rates.extend([] if rate is None else [rate])
            return rate is not None

        await until(measured, what="a dirty rate")
        return rates[-1] / MIB


@asynccontextmanager
async def probed(qemu: LabQemu) -> AsyncIterator[Probed]:
    end = Probed(qemu)
    await end.connect()
    try:
        yield end
    finally:
        await end.close()


async def boot(lab: Lab, machine: GuestMachine, binary: Path, **how: Any) -> LabQemu:
    """A guest that runs; skipped where this KVM does not run it."""
    needs_kvm = machine.accelerator.startswith("kvm")
    try:
        if needs_kvm:
            os.close(os.open("/dev/kvm", os.O_RDWR))
        qemu = await lab.start(machine, binary=binary, **how)
    except OSError as error:
        pytest.skip(f"/dev/kvm does not open: {error.strerror}")
    except LabError as error:
        if not needs_kvm:
            raise
        pytest.skip(f"KVM does not run this guest here: {error}")
    await qemu.wait_beating(BOOTS_WITHIN)
    return qemu


async def copying(qemu: LabQemu) -> None:
    """A migration to nowhere, by somebody else."""
    await qemu.query("migrate-set-parameters", max_bandwidth=4 * MIB)
    await qemu.query("migrate", uri="exec:cat >/dev/null")

    async def active() -> bool:
        return await qemu.migration_status() == "active"

    await until(active, what="a migration that copies")


@pytest.mark.matrix
async def test_under_kvm_every_page_is_counted_until_something_is_migrated(
    lab: Lab, one_version: Path
) -> None:
    qemu = await boot(lab, UNDER_KVM, one_version)
    async with probed(qemu) as end:
        beats = qemu.beats
        assert EXACTLY[0] < await end.measure() < EXACTLY[1]
        assert qemu.beats - beats > 30  # of 50 a second
        assert end.asked == ["dirty-bitmap"]
        await qemu.query("calc-dirty-rate", {"calc-time": 5, "mode": "page-sampling"})
        with pytest.raises(CommandFailed, match=r"calc-dirty-rate.*measur"):  # by somebody else, who may
            await end.start_dirty_rate(1.0, exact=True)
        await end.answer()
        end.asked.clear()
        await copying(qemu)
        assert SAMPLED[0] < await end.measure() < SAMPLED[1]
        assert end.asked == ["page-sampling"]
        # Afterwards the log is free again, and nothing was concluded from the refusal.
        await qemu.query("migrate_cancel")

        async def cancelled() -> bool:
            return await qemu.migration_status() == "cancelled"

        await until(cancelled, what="the end of the migration")
        assert EXACTLY[0] < await end.measure() < EXACTLY[1]
        assert end.asked[1:] == ["dirty-bitmap"]


@pytest.mark.matrix
async def test_with_a_dirty_ring_pages_are_sampled_and_the_refusal_is_remembered(
    lab: Lab, one_version: Path
) -> None:
    qemu = await boot(lab, WITH_RING, one_version)
    async with probed(qemu) as end:
        assert SAMPLED[0] < await end.measure() < SAMPLED[1]
        await end.measure()
        assert end.asked == ["dirty-bitmap", "page-sampling", "page-sampling"]
        beats = qemu.beats
        await until(lambda: qemu.beats > beats + 10, what="a guest that goes on")


@pytest.mark.matrix
async def test_what_blocks_a_migration_keeps_the_log_from_being_asked_for(
    lab: Lab, one_version: Path, tmp_path: Path
) -> None:
    blocking = ("-drive", f"file=fat:rw:{tmp_path},if=none,id=blocker")
    qemu = await boot(lab, UNDER_KVM, one_version, extra=blocking)
    assert (await qemu.query("query-migrate"))["blocked-reasons"]
    async with probed(qemu) as end:
        await end.measure()
        assert end.asked == ["page-sampling"]


async def test_under_tcg_pages_are_sampled_and_qemu_lives(lab: Lab, each_qemu: Path) -> None:
    qemu = await boot(lab, UNDER_TCG, each_qemu)
    async with probed(qemu) as end:
        assert SAMPLED[0] < await end.measure() < SAMPLED[1]
        assert end.asked == ["page-sampling"]
    assert qemu.alive


@pytest.mark.matrix
async def test_a_migration_right_behind_it_loses_no_page(lab: Lab, one_version: Path) -> None:
    # Between versions the host's own processor is not the same to both of them.
    source = await boot(lab, UNDER_KVM, one_version)
    waiting = await lab.start(UNDER_KVM, binary=one_version, incoming=True)
    async with driven(Pair(source=source, destination=waiting), policy=PLAIN) as drive:
        await drive.source.connect()
        await drive.source.start_dirty_rate(1.0, exact=True)
        result = await drive.run()
    assert result.state is State.COMPLETED, result.error
    await waiting.wait_beating(BOOTS_WITHIN)
    await waiting.check_memory()
