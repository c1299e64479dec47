"""``migrator demo``: two hosts, six guests with different habits, moved one after another before your eyes."""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
import sys
from dataclasses import dataclass, field

from migrator import logs, units
from migrator.cli import Exit
from migrator.cli.show import Bars, Screen
from migrator.core.model import State
from migrator.core.policy import Policy, builtin
from migrator.engine.migration import Migration
from migrator.engine.result import Result
from migrator.qemu import address
from migrator.qemu.endpoint import Endpoint
from migrator.store.records import FileRecord
from migrator.testing import network
from migrator.testing.guest import Habit
from migrator.testing.lab import Lab, LabError, Machine, Qemu
from migrator.testing.network import Host, Hosts

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class _Guest:
    name: str
    what: str
    habit: Habit = field(default_factory=Habit)
    policy: str = "default"
    paused: bool = False

    @property
    def machine(self) -> Machine:
        return Machine(name=self.name, memory_bytes=256 * _MIB, habit=self.habit)


_GUESTS = (
    _Guest(name="idle", what="does nothing"),
    _Guest(
        name="web",
        what="rewrites 160 MiB slowly",
        habit=Habit(region_bytes=160 * _MIB, bytes_per_second=6 * _MIB),
    ),
    _Guest(
        name="mail",
        what="works for 1 s, rests for 2 s",
        habit=Habit(region_bytes=96 * _MIB, bytes_per_second=40 * _MIB, on_seconds=1, off_seconds=2),
        policy="gentle",
    ),
    _Guest(name="frozen", what="somebody paused it", habit=Habit(region_bytes=64 * _MIB), paused=True),
    _Guest(
        name="batch",
        what="rewrites 160 MiB faster than the link",
        habit=Habit(region_bytes=160 * _MIB, bytes_per_second=200 * _MIB),
    ),
    _Guest(
        name="cold",
        what="may be stopped: policy offline",
        habit=Habit(region_bytes=64 * _MIB, bytes_per_second=20 * _MIB),
        policy="offline",
    ),
)


def main(link: str) -> None:
    """Run the demo and exit with its code."""
    gc.enable()
    logs.configure()
    speed = units.rate(link)
    try:
        code = asyncio.run(_interruptible(speed))
    except (LabError, network.NetworkError) as error:
        print(f"migrator: the demo cannot be set up: {error}", file=sys.stderr)
        code = Exit.FAILED
    sys.exit(code)


async def _interruptible(speed: int) -> Exit:
    demo = asyncio.create_task(_demo(speed), name="demo")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, demo.cancel)
    try:
        return await demo
    except asyncio.CancelledError:
        print("interrupted; everything the demo started has been removed")
        return Exit.CANCELLED


async def _demo(speed: int) -> Exit:
    results: list[tuple[_Guest, Result, str]] = []
    bars = Bars(keep=True)
    told: set[str] = set()  # one warning of a kind is enough
    with (
        Hosts("alpha", "beta", bytes_per_second=speed if network.possible() is None else None) as hosts,
        Lab() as lab,
    ):
        where = "network namespaces" if hosts.isolated else f"this machine's loopback ({network.possible()})"
        print(f"Two hosts, alpha and beta: {where}; the link carries {units.show_rate(speed)}.")
        alpha, beta = hosts
        running = await asyncio.gather(*(_boot(lab, guest, alpha) for guest in _GUESTS))
        print(f"{len(running)} guests run on alpha, under {running[0].binary.name}. Moving them to beta:")
        try:
            for guest, source in zip(_GUESTS, running, strict=True):
                waiting = await lab.start(
                    source.machine, incoming=True, prefix=beta.prefix, label=f"{guest.name}-beta"
                )
                policy = builtin(guest.policy)
                if not hosts.isolated:
                    policy = policy.but(max_bandwidth_bytes_per_second=speed)
                result = await _move(guest, source, waiting, policy, beta, lab, bars, told)
                results.append((guest, result, await _inspect(waiting, guest)))
        finally:
            bars.stop()
    _table(results)
    print("Nothing of it is left running.")
    return Exit.DONE if all(result.state is State.COMPLETED for _, result, _ in results) else Exit.FAILED


async def _boot(lab: Lab, guest: _Guest, host: Host) -> Qemu:
    qemu = await lab.boot(guest.machine, prefix=host.prefix, label=f"{guest.name}-alpha")
    if guest.paused:
        await qemu.query("stop")
    return qemu


async def _move(
    guest: _Guest,
    source: Qemu,
    waiting: Qemu,
    policy: Policy,
    beta: Host,
    lab: Lab,
    bars: Bars,
    told: set[str],
) -> Result:
    screen = Screen(label=guest.name, bars=bars)
    ends = (
        Endpoint(address.parse(f"unix:{source.qmp}"), role="source"),
        Endpoint(address.parse(f"unix:{waiting.qmp}"), role="destination"),
    )
    migration = Migration(
        name=secrets.token_hex(6),
        source=ends[0],
        destination=ends[1],
        policy=policy,
        listen=f"tcp:{beta.address}:0",
        record=FileRecord(guest.name, directory=lab.directory / "records"),
        on_status=screen.status,
        on_decision=screen.decision,
    )
    try:
        await asyncio.gather(*(end.connect() for end in ends))
        findings = await migration.check()
        screen.findings([finding for finding in findings if finding.code not in told])
        told |= {finding.code for finding in findings}
        return await migration.run()
    finally:
        await asyncio.gather(*(end.close() for end in ends))


async def _inspect(qemu: Qemu, guest: _Guest) -> str:
    """What the guest at the destination looks like: its run state and whether its memory is whole."""
    if not qemu.alive:
        return "lost"
    state = await qemu.run_state()
    if not guest.paused:
        await qemu.query("stop")
    await qemu.check_memory()
    if not guest.paused:
        await qemu.query("cont")
    return f"{state}, memory intact"


def _table(results: list[tuple[_Guest, Result, str]]) -> None:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - slow to import
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=SIMPLE_HEAD)
    for heading in ("guest", "habit", "mode", "rounds", "time", "downtime", "ceiling", "sent", "at beta"):
        table.add_column(
            heading, justify="right" if heading in ("rounds", "time", "downtime", "sent") else "left"
        )
    for guest, result, found in results:
        downtime = "-" if result.downtime_seconds is None else units.show_seconds(result.downtime_seconds)
        table.add_row(
            guest.name,
            guest.what,
            str(result.mode) if result.state is State.COMPLETED else str(result.state),
            str(result.rounds),
            units.show_seconds(result.duration_seconds or 0.0),
            downtime,
            "none" if guest.policy == "offline" else units.show_seconds(result.max_downtime_seconds),
            units.show_bytes(result.transferred_bytes),
            found,
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
