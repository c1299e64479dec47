"""Narrow links: `migrator direct` beside a bare script and `virsh migrate` over the same path, in turns.

What is in the pipe when the guest is stopped drains inside its downtime: here it is counted how often a ceiling is
exceeded. :mod:`bench.neighbours` measures what a move does to others on its link.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import bare, libvirt
from bench.figures import Figures, ms, paragraphs, runs_in_words, table
from bench.libvirt import Libvirtd, Unavailable
from bench.machine import Quiet, describe
from bench.options import SETTLE_SECONDS, Options
from bench.ours import Failed, Migrator
from bench.virsh import Virsh
from migrator.testing import network
from migrator.testing.lab import GuestMachine, Habit, Lab, Pair, binaries
from migrator.testing.network import LabHosts

MIB = 1 << 20
MBIT = 1e6 / 8
_MEMORY_BYTES = 256 * MIB
_GUESTS = {
    "idle": Habit(region_bytes=24 * MIB, passes=1),
    "writing slowly": Habit(region_bytes=24 * MIB, bytes_per_second=1e6),
    "small busy set": Habit(region_bytes=2 * MIB, bytes_per_second=40e6),
}
#: A ceiling may be exceeded by so much before it counts as broken.
_TOLERANCE = 1.1
_IDLE_AIMS = {60: 0.070, 300: 0.040}
_VIRSH_SHARE, _BARE_SHARE = 0.2, 1.2
#: A guest that has not moved by then is one that cannot.
_MOST_DURATION = "30s"
#: A move by virsh that takes longer is not counted.
VIRSH_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class _Case:
    version: str
    mbit: int
    guest: str
    ceiling_seconds: float

    def __str__(self) -> str:
        return f"{self.version}, {self.guest}, {ms(self.ceiling_seconds)} ms"

    @property
    def feasible(self) -> bool:
        """False where a set that is rewritten all the time takes longer than the ceiling to send, whoever sends it."""
        habit = _GUESTS[self.guest]
        always_dirty = habit.region_bytes if (habit.bytes_per_second or 0.0) > self.mbit * MBIT else 0
        return always_dirty / (self.mbit * MBIT) < self.ceiling_seconds


@dataclass(frozen=True, kw_only=True)
class Took:
    """One move."""

    duration_seconds: float
    downtime_seconds: float
    #: What was in the source's socket when the guest was stopped.
    queued_at_stop_bytes: int | None = None


def _cases(mbit: int, options: Options) -> list[_Case]:
    versions = list(binaries()) if options.whole else [options.version]
    ceilings = (0.05, 0.1, 0.3) if options.whole else (0.05,)
    return [
        _Case(version=version, mbit=mbit, guest=guest, ceiling_seconds=ceiling)
        for version in versions
        for guest in (_GUESTS if options.whole else ("idle", "writing slowly"))
        for ceiling in ceilings
    ]


@asynccontextmanager
async def _pair(hosts: LabHosts, binary: Path, habit: Habit) -> AsyncIterator[Pair]:
    machine = GuestMachine(habit=habit, memory_bytes=_MEMORY_BYTES)
    async with Lab() as lab:
        source = await lab.boot(machine, binary=binary, prefix=hosts["alpha"].prefix)
        destination = await lab.start(machine, binary=binary, incoming=True, prefix=hosts["beta"].prefix)
        await asyncio.sleep(SETTLE_SECONDS)
        yield Pair(source, destination)
        await destination.wait_beating()


async def move_by_migrator(
    migrator: Migrator,
    hosts: LabHosts,
    binary: Path,
    habit: Habit,
    *,
    ceiling_seconds: float,
    limit: str = "",
) -> Took:
    async with _pair(hosts, binary, habit) as pair:
        outcome = await migrator.direct(
            pair.source.qmp,
            pair.destination.qmp,
            *("--max-downtime", f"{ceiling_seconds * 1e3:.0f}ms", "--postcopy", "never"),
            *(
                "--max-throttle",
                "0",
                "--max-duration",
                _MOST_DURATION,
                "--listen",
                f"tcp:{hosts['beta'].address}:0",
            ),
            *(("--max-bandwidth", limit) if limit else ()),
            mode="precopy",
        )
        return Took(
            duration_seconds=outcome.duration_seconds,
            downtime_seconds=outcome.downtime_seconds,
            queued_at_stop_bytes=outcome.queued_at_stop_bytes,
        )


async def move_by_script(
    hosts: LabHosts,
    binary: Path,
    habit: Habit,
    *,
    ceiling_seconds: float,
    limit: int = bare.UNLIMITED_BYTES_PER_SECOND,
) -> Took:
    async with _pair(hosts, binary, habit) as pair:
        moved = await bare.move(
            pair,
            max_downtime_seconds=ceiling_seconds,
            listen=f"tcp:{hosts['beta'].address}:0",
            bandwidth_bytes_per_second=limit,
            look_at_socket=True,
        )
        return Took(
            duration_seconds=moved.duration_seconds,
            downtime_seconds=moved.downtime_seconds,
            queued_at_stop_bytes=moved.queued_at_stop_bytes,
        )


async def run(mbit: int, options: Options, quiet: Quiet) -> str:
    """Measure it over a path of that speed; returns the section's text.

    :raise Unavailable: where there can be no hosts with links of a set speed.
    """
    async with narrow_hosts(options) as (migrator, virsh, hosts):
        matrix = await _matrix(mbit, migrator, virsh, hosts, options, quiet)
    return paragraphs(
        f"{describe(str(options.binary))} · {runs_in_words(options.runs or 2)} of each, in turns · {quiet}",
        f"Two namespaces whose links are slowed to {mbit} Mbit/s by `tc tbf`; a guest of 256 MiB (TCG), of which 24 "
        "MiB are filled: idle, writing 1 MB/s of them, or 40 MB/s to a set of 2 MiB. Milliseconds: median (minimum – "
        "maximum).",
        *matrix,
    )


@asynccontextmanager
async def narrow_hosts(options: Options) -> AsyncIterator[tuple[Migrator, Virsh | None, LabHosts]]:
    """Yield two hosts whose links can be slowed, and what moves guests between them; no virsh where there is none.

    :raise Unavailable: where there can be no such hosts.
    """
    if reason := network.possible():
        raise Unavailable(reason)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        migrator = Migrator(directory / "migrator")
        with LabHosts("alpha", "beta", isolated=True) as hosts:
            async with _virsh(hosts, directory, options) as virsh:
                yield migrator, virsh, hosts


@asynccontextmanager
async def _virsh(hosts: LabHosts, directory: Path, options: Options) -> AsyncIterator[Virsh | None]:
    """Yield what moves guests by virsh between the hosts; ``None`` where there can be no libvirtd."""
    if reason := libvirt.why_not():
        print(f"narrow: nothing of virsh: {reason}", flush=True)
        yield None
        return
    async with AsyncExitStack() as stack:
        stack.callback(libvirt.remove_cgroups)
        alpha, beta = [
            await stack.enter_async_context(Libvirtd(host, directory / host.name, cgroups=False))
            for host in hosts
        ]
        virsh = Virsh(alpha, beta, directory / "virsh.img", options.binary, memory_bytes=_MEMORY_BYTES)
        await virsh.prepare()
        yield virsh


async def _matrix(
    mbit: int, migrator: Migrator, virsh: Virsh | None, hosts: LabHosts, options: Options, quiet: Quiet
) -> list[str]:
    took: dict[tuple[_Case, str], list[Took]] = defaultdict(list)
    unmoved: dict[_Case, str] = {}
    for binary in binaries().values():  # what a program does only once is not measured
        await move_by_migrator(migrator, hosts, binary, Habit(), ceiling_seconds=0.3)
    slow_down(hosts, mbit)
    for case in _cases(mbit, options):
        print(f"narrow: {case}", flush=True)
        binary, habit = binaries()[case.version], _GUESTS[case.guest]
        for _ in range(options.runs or 2):
            await quiet.wait()
            try:
                ours = await move_by_migrator(
                    migrator, hosts, binary, habit, ceiling_seconds=case.ceiling_seconds
                )
                took[case, "migrator"].append(ours)
            except Failed as error:  # a guest that does not converge is left where it is
                unmoved[case] = str(error)[:100]
                continue
            with contextlib.suppress(bare.Broken, TimeoutError):
                script = move_by_script(hosts, binary, habit, ceiling_seconds=case.ceiling_seconds)
                took[case, "script"].append(await script)
            if virsh is not None and case.version == options.version:
                with contextlib.suppress(Unavailable, OSError, TimeoutError):
                    async with asyncio.timeout(VIRSH_SECONDS):
                        theirs = await virsh.move(habit, max_downtime_seconds=case.ceiling_seconds)
                    took[case, "virsh"].append(
                        Took(duration_seconds=theirs.total_seconds, downtime_seconds=theirs.downtime_seconds)
                    )
    return _judge(took, unmoved)


def slow_down(hosts: LabHosts, mbit: int) -> None:
    for host in hosts:
        host.set_speed(mbit * MBIT)


def _judge(took: dict[tuple[_Case, str], list[Took]], unmoved: dict[_Case, str]) -> list[str]:
    rows, over, slow, missed = [], 0, 0, 0
    moves = 0
    shares: dict[int, list[float]] = defaultdict(list)
    for (case, who), ours in took.items():
        if who != "migrator":
            continue
        moves += len(ours) if case.feasible else 0
        over += case.feasible and sum(
            one.downtime_seconds > _TOLERANCE * case.ceiling_seconds for one in ours
        )
        downtime = Figures.of(one.downtime_seconds for one in ours)
        duration = Figures.of(one.duration_seconds for one in ours)
        script, theirs = took.get((case, "script"), []), took.get((case, "virsh"), [])
        floor = _duration(script)
        slow += floor is not None and duration.median > _BARE_SHARE * floor.median
        if case.guest == "idle" and case.mbit in _IDLE_AIMS:
            missed += downtime.median > _IDLE_AIMS[case.mbit]
            if (peer := _downtime(theirs)) is not None:
                shares[case.mbit].append(downtime.median / peer.median)
        others = [str(each or "—") for of in (_downtime, _duration) for each in map(of, (script, theirs))]
        rows.append([str(case), str(downtime), *others[:2], str(duration), *others[2:]])
    rows += [[str(case), "not moved", "", "", why, "", ""] for case, why in unmoved.items()]
    counts = [
        ["over their ceiling by more than 10 %", str(over), f"0 of {moves} that were feasible"],
        [f"slower than {_BARE_SHARE} × the script", str(slow), "0"],
        ["idle guests above 70 ms at 60 Mbit/s, 40 ms at 300", str(missed), "0"],
    ]
    for who in ("migrator", "script"):
        held = [one.queued_at_stop_bytes for (_, by), moved in took.items() if by == who for one in moved]
        kib = sorted(each / 1024 for each in held if each is not None)
        if kib:
            found = f"{statistics.median(kib):.0f} KiB ({kib[0]:.0f} – {kib[-1]:.0f})"
            counts.append([f"in the source's socket when the guest was stopped, {who}", found, ""])
    for mbit, ratios in shares.items():
        aim = f"≤ {_VIRSH_SHARE}" if mbit == 60 else ""
        name = f"idle guest's downtime of virsh's at {mbit} Mbit/s"
        counts.append([name, f"{statistics.median(ratios):.2f}", aim])
    header = ["QEMU, guest, ceiling", "downtime", "script's", "virsh's", "time", "script's", "virsh's"]
    return [
        "**Ceilings**, downtime from STOP to RESUME and time from the first command; of virsh of the whole command:",
        table(header, rows),
        "**Counts**:",
        table(["what", "counted", "aim"], counts),
    ]


def _downtime(took: list[Took]) -> Figures | None:
    return Figures.of(one.downtime_seconds for one in took) if took else None


def _duration(took: list[Took]) -> Figures | None:
    return Figures.of(one.duration_seconds for one in took) if took else None
