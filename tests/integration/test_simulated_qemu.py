"""The simulated QEMU beside the real one: what stopping and resuming a guest does before, in and after a migration."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from migrator.core.model import MigrationStatus, RunState
from migrator.ports import Qemu
from migrator.qemu.address import Address
from migrator.qemu.source import SourceEndpoint
from migrator.testing.lab import IDLE, GuestMachine, Lab, LabQemu, until
from migrator.testing.simulated_site import SimulatedSite


async def play(source: Qemu, destination: Qemu, listen: str) -> list[str]:
    """Return the run states of a guest that is stopped, whose move is cancelled at its switch, and that goes on."""
    shown = []

    async def note() -> None:
        shown.append(str((await source.observe()).run))

    await note()
    for command in (source.stop, source.cont, source.cont, source.stop, source.stop):
        await command()
        await note()
    for end in (source, destination):
        await end.enable({"return-path": True, "pause-before-switchover": True})
    await source.migrate(await destination.listen(listen))

    async def shows(status: MigrationStatus) -> bool:
        return (await source.observe()).status is status

    await until(lambda: shows(MigrationStatus.PRE_SWITCHOVER), what="its switch")
    await note()
    await source.cancel()
    await until(lambda: shows(MigrationStatus.CANCELLED), what="its end")
    await note()
    await source.cont()
    await note()
    events = [event.name for event in source.take_events() if event.name in ("STOP", "RESUME")]
    return [*shown, *events]


async def simulated() -> list[str]:
    site = SimulatedSite()
    site.add_host("a")
    site.add_host("b")
    key = site.add_guest("web", host="a", memory_bytes=64 << 20)
    machine = site.machines[key]
    source = await site.open("a", machine.socket, role="source")
    (guest,) = (await site.look("a")).guests
    waiting = await site.start_destination(guest, source, "b", migration="m")
    return await play(source, waiting.qemu, waiting.listen)


async def test_a_simulated_guest_is_stopped_and_goes_on_as_a_real_one(
    qemu_binary: Callable[[str], Path], lab: Lab
) -> None:
    # The simulated one says that it is 10.0: 7.2 leaves a paused guest in `postmigrate` when its switch is cancelled.
    binary = qemu_binary("10.0")
    pair = await lab.pair(GuestMachine(habit=IDLE), source=binary, destination=binary)
    async with AsyncExitStack() as stack:

        async def end(qemu: LabQemu, role: str) -> Qemu:
            # The lab's own monitor stays what it is.
            made = SourceEndpoint(Address(kind="unix", path=str(qemu.qmp)), role=role)
            await made.connect()
            stack.push_async_callback(made.close)
            return made

        real = await play(
            await end(pair.source, "source"), await end(pair.destination, "destination"), "tcp:127.0.0.1:0"
        )
    assert await simulated() == real
    assert real[:6] == [
        RunState.RUNNING,
        RunState.PAUSED,
        RunState.RUNNING,
        RunState.RUNNING,
        *["paused"] * 2,
    ]
