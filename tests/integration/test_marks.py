"""Marks at a QEMU, real and fake: seen by everyone, never two of a name, gone with the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from migrator.qemu import marks
from migrator.qemu.address import Address
from migrator.qemu.device_inventory import read_inventory
from migrator.qemu.monitor import Monitor
from migrator.testing.fake_qemu import FakeQemu
from migrator.testing.lab import Lab

TEXT = 'a "person", who said: {"id": 7} = ü'


@asynccontextmanager
async def asking(path: Path) -> AsyncIterator[Monitor]:
    monitor = Monitor(
        Address(kind="unix", path=str(path)), name="test", on_event=lambda _: None, on_break=lambda: None
    )
    await monitor.connect()
    try:
        yield monitor
    finally:
        await monitor.close()


async def _marks(monitor: Monitor) -> None:
    assert await marks.read(monitor, "one", "two") == {}
    assert sorted(await asyncio.gather(*(marks.add(monitor, "one", TEXT) for _ in range(2)))) == [False, True]
    assert await marks.add(monitor, "two", "")
    assert await marks.read(monitor, "one", "two", "three") == {"one": TEXT, "two": ""}
    await marks.remove(monitor, "two")
    await marks.remove(monitor, "two")
    assert await marks.read(monitor, "one", "two") == {"one": TEXT}


async def test_a_real_qemu_keeps_marks_in_every_state_and_never_counts_them_as_the_guests(
    lab: Lab, each_qemu: Path
) -> None:
    for qemu in (await lab.start(binary=each_qemu), await lab.start(binary=each_qemu, incoming=True)):
        async with asking(qemu.qmp) as monitor:
            await _marks(monitor)
            assert "migrator-one" not in (await read_inventory(monitor)).objects


async def test_the_fake_qemu_keeps_marks_as_a_real_one_does() -> None:
    async with FakeQemu() as qemu, asking(qemu.qmp) as monitor:
        await _marks(monitor)
