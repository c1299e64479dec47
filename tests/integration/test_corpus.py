"""Guests in which nothing has changed are started again as they were: what QEMU shows of each changes nothing."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

from migrator.errors import QemuError
from migrator.qemu.address import Address
from migrator.qemu.current_devices import CurrentDevices
from migrator.qemu.device_inventory import read_current_devices
from migrator.qemu.monitor import Monitor
from migrator.testing.lab import Lab, until
from tests.shapes import SHAPES, Outcome, Shape, judge
from tests.shapes_run import Made, can_run, make


async def shown(made: Made) -> tuple[str, CurrentDevices]:
    """Of a QEMU with this command line, which ends with it: its machine type, and what it has."""
    socket = made.directory / "look.qmp"
    words = [word for word in made.argv if word != "-daemonize"]
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *words, "-S", "-qmp", f"unix:{socket},server=on,wait=off"),
        cwd=made.directory,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        monitor = Monitor(
            Address(kind="unix", path=str(socket)),
            name="look",
            on_event=lambda event: None,
            on_break=lambda: None,
        )

        async def greets() -> bool:
            assert process.returncode is None, (await process.communicate())[1].decode()
            try:
                await monitor.connect(timeout=20)
            except QemuError:
                return False
            return True

        await until(greets, what=f"{made.argv}")
        try:
            return await read_current_devices(monitor, made.argv)
        finally:
            await monitor.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def told(outcome: Outcome) -> tuple[object, ...]:
    return outcome.replica.argv, outcome.codes("error"), outcome.codes("warning"), outcome.files


async def test_what_qemu_shows_changes_nothing(lab: Lab, one_version: Path) -> None:
    version = "10.0" if "10.0" in str(one_version) else "7.2"
    turns = asyncio.Semaphore(3)
    differing: dict[str, object] = {}
    shapes = [shape for shape in SHAPES if can_run(shape, version)]
    assert len(shapes) > 25

    async def one(shape: Shape) -> None:
        async with turns:
            directory = lab.directory / shape.name
            directory.mkdir()
            made = make(shape, one_version, directory)
            machine, current_devices = await shown(made)
            exists, missing = (made.there(shape.listed(key)) for key in ("exists", "missing"))
            here = replace(
                shape, head={**shape.head, "machine": machine, "exists": exists, "missing": missing}
            )
            if shape.head.get("shows") is None:
                written = told(judge(here, command=made.argv))
                seen = told(judge(here, command=made.argv, current_devices=current_devices))
                if written != seen:
                    differing[shape.name] = written, seen
            shutil.rmtree(directory)

    async with asyncio.TaskGroup() as group:
        for shape in shapes:
            group.create_task(one(shape))
    assert not differing
