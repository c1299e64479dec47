"""`migrator direct` beside `virsh migrate`, in turns: the same guests between the same two hosts."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from bench import libvirt
from bench.figures import Figures, paragraphs, table, verdict
from bench.libvirt import GUEST, Libvirtd, Unavailable
from bench.machine import Quiet, describe
from bench.options import GUESTS, MEMORY_BYTES, SETTLE_SECONDS, Options
from bench.ours import Migrator
from migrator.testing.guest import write_image
from migrator.testing.lab import GuestMachine, Habit, Lab
from migrator.testing.network import LabHosts
from migrator.testing.raw_qmp import RawMonitor

_MAX_DOWNTIME_SECONDS = 0.3
#: Whether libvirt puts guests into control groups, by what it is called then.
_VARIANTS = {"virsh": True, "virsh without control groups": False}
_TIME_SHARE, _DOWNTIME_SHARE = 0.35, 0.7


@dataclass(frozen=True, kw_only=True)
class Took:
    """One move, from the command to its end."""

    total_seconds: float
    downtime_seconds: float
    #: What ``total_seconds`` consists of; libvirt keeps it to itself.
    parts_seconds: Mapping[str, float] = field(default_factory=dict)


class Virsh:
    """Moves guests by ``virsh migrate``."""

    def __init__(
        self,
        source: Libvirtd,
        destination: Libvirtd,
        image: Path,
        binary: Path,
        *,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._source, self._destination = source, destination
        self._image, self._binary = image, binary
        self._memory_bytes = memory_bytes

    async def prepare(self) -> None:
        """Have both find out once what QEMU can do, and set their guests' numbers apart.

        Control groups are named by those numbers. Here the two daemons share the groups, and a daemon waits for one
        second that the group of its guest becomes empty, which never happens while the other's guest is in it.
        """
        write_image(self._image)
        await self._destination.create(self._image, self._binary, memory_bytes=self._memory_bytes)
        await self._destination.destroy()
        await self.move(Habit())

    async def move(
        self,
        habit: Habit,
        *,
        max_downtime_seconds: float = _MAX_DOWNTIME_SECONDS,
        bandwidth_mib: int | None = None,
        beside: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
    ) -> Took:
        """Start a guest, move it, end it.

        :param bandwidth_mib: the most that it may take, MiB a second, as ``--bandwidth`` says it.
        :param beside: entered for as long as the guest moves.
        """
        write_image(self._image, habit)
        options = ["--unsafe"]
        if bandwidth_mib is not None:
            options += ["--bandwidth", str(bandwidth_mib)]
        return await move(
            self._source,
            self._destination,
            lambda: self._source.create(self._image, self._binary, memory_bytes=self._memory_bytes),
            *options,
            max_downtime_seconds=max_downtime_seconds,
            beside=beside,
        )


async def move(
    source: Libvirtd,
    destination: Libvirtd,
    create: Callable[[], Awaitable[None]],
    *options: str,
    max_downtime_seconds: float = _MAX_DOWNTIME_SECONDS,
    beside: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
    command: Callable[[], Awaitable[None]] | None = None,
) -> Took:
    """Start a guest, move it, end it.

    :param create: starts it at the source.
    :param options: of ``virsh migrate --live``, besides where to.
    :param command: moves it; ``None``: that virsh.
    :param beside: entered for as long as the guest moves.
    """
    destination.qmp.unlink(missing_ok=True)
    destination.serial.unlink(missing_ok=True)
    try:
        await create()
        await source.wait_guest()
        await source.virsh("migrate-setmaxdowntime", GUEST, f"{max_downtime_seconds * 1e3:.0f}")
        await asyncio.sleep(SETTLE_SECONDS)
        async with AsyncExitStack() as monitors:
            before = await source.monitor(monitors)
            awaited = asyncio.create_task(destination.monitor(monitors), name="the destination's monitor")
            monitors.callback(awaited.cancel)
            async with beside():
                began = time.monotonic()
                if command is not None:
                    await command()
                else:
                    await source.virsh(
                        *("migrate", "--live", *options, GUEST, destination.uri),
                        *("--migrateuri", f"tcp://{destination.host.address}"),
                    )
                total = time.monotonic() - began
            after = await awaited
            await destination.wait_guest()
            downtime = await _stamp(after, "RESUME") - await _stamp(before, "STOP")
        return Took(total_seconds=total, downtime_seconds=downtime)
    finally:
        await source.destroy()
        await destination.destroy()


async def _stamp(monitor: RawMonitor, name: str) -> float:
    stamp = (await monitor.event(name))["timestamp"]
    return float(stamp["seconds"] + stamp["microseconds"] / 1e6)


async def _ours(migrator: Migrator, hosts: LabHosts, options: Options, habit: Habit) -> Took:
    machine = GuestMachine(habit=habit, memory_bytes=MEMORY_BYTES)
    async with Lab() as lab:
        source = await lab.boot(machine, binary=options.binary, prefix=hosts["alpha"].prefix)
        await asyncio.sleep(SETTLE_SECONDS)
        began = time.monotonic()
        destination = await lab.start(
            machine, binary=options.binary, incoming=True, prefix=hosts["beta"].prefix
        )
        started = time.monotonic() - began
        outcome = await migrator.direct(
            source.qmp,
            destination.qmp,
            *("--max-downtime", f"{_MAX_DOWNTIME_SECONDS * 1e3:.0f}ms"),
            *("--listen", f"tcp:{hosts['beta'].address}:0"),
            mode="precopy",
        )
        await destination.wait_beating()
    return Took(
        total_seconds=started + outcome.wall_seconds,
        downtime_seconds=outcome.downtime_seconds,
        parts_seconds={
            "start of the destination's QEMU": started,
            "preflight": outcome.preflight_seconds,
            "migration": outcome.duration_seconds,
            "start and end of the process": outcome.wall_seconds
            - outcome.preflight_seconds
            - outcome.duration_seconds,
        },
    )


async def run(options: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text.

    :raise Unavailable: where there can be no two libvirtd.
    """
    if reason := libvirt.why_not():
        raise Unavailable(reason)
    async with AsyncExitStack() as stack:
        stack.callback(libvirt.remove_cgroups)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        hosts = stack.enter_context(LabHosts("alpha", "beta", isolated=True))
        movers: dict[str, Callable[[Habit], Awaitable[Took]]] = {}
        for name, cgroups in _VARIANTS.items():
            if cgroups and options.realtime:
                continue  # control groups may take no real-time process
            alpha, beta = [
                await stack.enter_async_context(
                    Libvirtd(host, directory / f"{host.name}-{cgroups}", cgroups=cgroups)
                )
                for host in hosts
            ]
            virsh = Virsh(alpha, beta, directory / f"{cgroups}.img", options.binary)
            await virsh.prepare()
            movers[name] = virsh.move
        migrator = Migrator(directory / "migrator")
        movers["migrator"] = lambda habit: _ours(migrator, hosts, options, habit)
        await movers["migrator"](Habit())
        return await _compare(movers, options, quiet)


async def _compare(
    movers: dict[str, Callable[[Habit], Awaitable[Took]]], options: Options, quiet: Quiet
) -> str:
    totals, downtimes, parts = [], [], []
    for guest, habit in GUESTS.items():
        print(f"virsh: {guest}", flush=True)
        took: dict[str, list[Took]] = {name: [] for name in movers}
        for _ in range(options.runs or 10):
            for name, move in movers.items():
                await quiet.wait()
                took[name].append(await move(habit))
        ours = took.pop("migrator")
        parts += [
            [guest, part, str(Figures.of(one.parts_seconds[part] for one in ours))]
            for part in ours[0].parts_seconds
        ]
        total = Figures.of(one.total_seconds for one in ours)
        downtime = Figures.of(one.downtime_seconds for one in ours)
        for name, theirs in took.items():
            peer = Figures.of(one.total_seconds for one in theirs)
            aim = verdict(total, _TIME_SHARE * peer.median, f"{_TIME_SHARE} × virsh")
            totals.append([guest, name, str(peer), str(total), *aim])
            peer = Figures.of(one.downtime_seconds for one in theirs)
            aim = verdict(downtime, _DOWNTIME_SHARE * peer.median, f"{_DOWNTIME_SHARE} × virsh")
            downtimes.append([guest, name, str(peer), str(downtime), *aim])
    header = ["guest", "beside", "its", "migrator", "aim", "verdict"]
    return paragraphs(
        f"{describe(str(options.binary), 'virsh')} · {options.runs or 10} runs of each, in turns · {quiet}",
        "Two libvirtd in namespaces of their own, and `migrator` between the same two hosts; a guest of 512 MiB "
        f"(TCG), unlimited bandwidth, a downtime limit of {_MAX_DOWNTIME_SECONDS * 1e3:.0f} ms on either. libvirt "
        "has Debian's settings; without control groups it has less to do than anywhere. "
        "There is no systemd, virtlogd or AppArmor here, which a libvirt usually works with. Milliseconds: median "
        "(minimum – maximum).",
        "**Time**, from the command to its end. `virsh migrate` starts the destination's QEMU itself; for "
        "`migrator` its start is added:",
        table(header, totals),
        "Where the time of `migrator` goes:",
        table(["guest", "part", "time"], parts),
        "**Downtime**, from STOP at the source to RESUME at the destination:",
        table(header, downtimes),
    )
