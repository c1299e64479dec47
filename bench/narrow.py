"""Narrow and shared links: `migrator direct` beside a bare script and `virsh migrate` over the same path, in turns.

What is in the pipe when the guest is stopped drains inside its downtime, and what is sent in bursts makes neighbours
wait. Both are measured here, and how often an aim is missed is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import bare, libvirt
from bench.figures import Figures, ms, paragraphs, table
from bench.libvirt import Libvirtd, Unavailable
from bench.machine import Quiet, describe
from bench.options import SETTLE_SECONDS, Options
from bench.ours import Failed, Migrator
from bench.virsh import Virsh
from migrator.testing import network
from migrator.testing.lab import GuestMachine, Habit, Lab, Pair, binaries
from migrator.testing.network import LabHosts

_MIB = 1 << 20
_MBIT = 1e6 / 8
_MEMORY_BYTES = 256 * _MIB
_GUESTS = {
    "idle": Habit(region_bytes=24 * _MIB, passes=1),
    "writing slowly": Habit(region_bytes=24 * _MIB, bytes_per_second=1e6),
    "small busy set": Habit(region_bytes=2 * _MIB, bytes_per_second=40e6),
}
#: A ceiling may be exceeded by so much before it counts as broken.
_TOLERANCE = 1.1
_IDLE_AIMS = {60: 0.070, 300: 0.040}
_VIRSH_SHARE, _BARE_SHARE = 0.2, 1.2
#: A move by virsh that takes longer is not counted.
_VIRSH_SECONDS = 60.0
#: How much longer than on the empty link a neighbour may wait, at its 99th percentile, in seconds; and how much of the
#: whole time of an unpaced move may be spent on that.
_NEIGHBOUR_SECONDS, _PACED_SHARE = 0.0003, 1.05

_ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 7))
while True:
    data, peer = s.recvfrom(100)
    s.sendto(data, peer)
"""
_PING = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1.0)
while True:
    began = time.perf_counter()
    s.sendto(b"x" * 56, (sys.argv[1], 7))
    try:
        s.recv(100)
    except TimeoutError:
        pass
    print(time.perf_counter() - began, flush=True)
    time.sleep(0.005)
"""


@dataclass(frozen=True, kw_only=True)
class _Case:
    version: str
    mbit: int
    guest: str
    ceiling_seconds: float

    def __str__(self) -> str:
        return f"{self.version}, {self.mbit} Mbit/s, {self.guest}, {ms(self.ceiling_seconds)} ms"


@dataclass(frozen=True, kw_only=True)
class _Took:
    duration_seconds: float
    downtime_seconds: float


def _cases(options: Options) -> list[_Case]:
    versions = list(binaries()) if options.whole else [options.version]
    speeds = (60, 300, 1000) if options.whole else (60, 300)
    ceilings = (0.05, 0.1, 0.3) if options.whole else (0.05,)
    return [
        _Case(version=version, mbit=mbit, guest=guest, ceiling_seconds=ceiling)
        for version in versions
        for mbit in speeds
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


async def _ours(
    migrator: Migrator,
    hosts: LabHosts,
    binary: Path,
    habit: Habit,
    *,
    ceiling_seconds: float,
    limit: str = "",
) -> _Took:
    async with _pair(hosts, binary, habit) as pair:
        outcome = await migrator.direct(
            pair.source.qmp,
            pair.destination.qmp,
            *("--max-downtime", f"{ceiling_seconds * 1e3:.0f}ms", "--postcopy", "never"),
            *("--max-throttle", "0", "--listen", f"tcp:{hosts['beta'].address}:0"),
            *(("--max-bandwidth", limit) if limit else ()),
            mode="precopy",
        )
        return _Took(duration_seconds=outcome.duration_seconds, downtime_seconds=outcome.downtime_seconds)


async def _script(
    hosts: LabHosts,
    binary: Path,
    habit: Habit,
    *,
    ceiling_seconds: float,
    limit: int = bare.UNLIMITED_BYTES_PER_SECOND,
) -> _Took:
    async with _pair(hosts, binary, habit) as pair:
        moved = await bare.move(
            pair,
            max_downtime_seconds=ceiling_seconds,
            listen=f"tcp:{hosts['beta'].address}:0",
            bandwidth_bytes_per_second=limit,
        )
        return _Took(duration_seconds=moved.duration_seconds, downtime_seconds=moved.downtime_seconds)


async def run(options: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text.

    :raise Unavailable: where there can be no hosts with links of a set speed.
    """
    if reason := network.possible():
        raise Unavailable(reason)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        migrator = Migrator(directory / "migrator")
        with LabHosts("alpha", "beta", isolated=True) as hosts:
            async with _virsh(hosts, directory, options) as virsh:
                matrix = await _matrix(migrator, virsh, hosts, options, quiet)
                neighbours = await _neighbours(migrator, virsh, hosts, options, quiet)
    return paragraphs(
        f"{describe(str(options.binary))} · {options.runs or 2} runs of each, in turns · {quiet}",
        "Two namespaces whose links are slowed by `tc tbf`; a guest of 256 MiB (TCG), of which 24 MiB are filled. "
        "Milliseconds: median (minimum – maximum).",
        *matrix,
        *neighbours,
    )


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
    migrator: Migrator, virsh: Virsh | None, hosts: LabHosts, options: Options, quiet: Quiet
) -> list[str]:
    took: dict[tuple[_Case, str], list[_Took]] = defaultdict(list)
    unmoved: dict[_Case, str] = {}
    for binary in binaries().values():  # what a program does only once is not measured
        await _ours(migrator, hosts, binary, Habit(), ceiling_seconds=0.3)
    for case in _cases(options):
        print(f"narrow: {case}", flush=True)
        _slow_down(hosts, case.mbit)
        binary, habit = binaries()[case.version], _GUESTS[case.guest]
        for _ in range(options.runs or 2):
            await quiet.wait()
            try:
                ours = await _ours(migrator, hosts, binary, habit, ceiling_seconds=case.ceiling_seconds)
                took[case, "migrator"].append(ours)
            except Failed as error:  # a guest that does not converge is left where it is
                unmoved[case] = str(error)[:100]
                continue
            with contextlib.suppress(bare.Broken, TimeoutError):
                script = _script(hosts, binary, habit, ceiling_seconds=case.ceiling_seconds)
                took[case, "script"].append(await script)
            if virsh is not None and case.version == options.version:
                with contextlib.suppress(Unavailable, OSError, TimeoutError):
                    async with asyncio.timeout(_VIRSH_SECONDS):
                        theirs = await virsh.move(habit, max_downtime_seconds=case.ceiling_seconds)
                    took[case, "virsh"].append(
                        _Took(duration_seconds=theirs.total_seconds, downtime_seconds=theirs.downtime_seconds)
                    )
    return _judge(took, unmoved)


def _slow_down(hosts: LabHosts, mbit: int) -> None:
    for host in hosts:
        host.set_speed(mbit * _MBIT)


def _judge(took: dict[tuple[_Case, str], list[_Took]], unmoved: dict[_Case, str]) -> list[str]:
    rows, over, slow, missed = [], 0, 0, 0
    moves = 0
    shares: dict[int, list[float]] = defaultdict(list)
    for (case, who), ours in took.items():
        if who != "migrator":
            continue
        moves += len(ours)
        over += sum(one.downtime_seconds > _TOLERANCE * case.ceiling_seconds for one in ours)
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
        ["over their ceiling by more than 10 %", str(over), f"0 of {moves}"],
        [f"slower than {_BARE_SHARE} × the script", str(slow), "0"],
        ["idle guests above 70 ms at 60 Mbit/s, 40 ms at 300", str(missed), "0"],
    ]
    for mbit, found in shares.items():
        aim = f"≤ {_VIRSH_SHARE}" if mbit == 60 else ""
        name = f"idle guest's downtime of virsh's at {mbit} Mbit/s"
        counts.append([name, f"{statistics.median(found):.2f}", aim])
    header = ["QEMU, path, guest, ceiling", "downtime", "script's", "virsh's", "time", "script's", "virsh's"]
    return [
        "**Ceilings**, downtime from STOP to RESUME and time from the first command; of virsh of the whole command:",
        table(header, rows),
        "**Counts**:",
        table(["what", "counted", "aim"], counts),
    ]


def _downtime(took: list[_Took]) -> Figures | None:
    return Figures.of(one.downtime_seconds for one in took) if took else None


def _duration(took: list[_Took]) -> Figures | None:
    return Figures.of(one.duration_seconds for one in took) if took else None


async def _neighbours(
    migrator: Migrator, virsh: Virsh | None, hosts: LabHosts, options: Options, quiet: Quiet
) -> list[str]:
    """Round trips of a neighbour on the same link beside moves at a share of it."""
    rows, above, slow = [], 0, 0
    habit = Habit(region_bytes=96 * _MIB, passes=1)
    for mbit in (1000, 300):
        _slow_down(hosts, mbit)
        async with _neighbour(hosts) as empty:
            await asyncio.sleep(2.0)
        for share in (0.5, 0.95):
            mib = int(share * mbit * _MBIT / _MIB)  # as virsh takes it, and the same for all
            limit = mib * _MIB
            for _ in range(options.runs or 2):
                print(f"narrow: a neighbour at {share:.0%} of {mbit} Mbit/s", flush=True)
                await quiet.wait()
                async with _neighbour(hosts) as waits:
                    ours = await _ours(
                        migrator, hosts, options.binary, habit, ceiling_seconds=0.3, limit=f"{limit}B/s"
                    )
                await quiet.wait()
                async with _neighbour(hosts) as waits_beside:
                    script = await _script(hosts, options.binary, habit, ceiling_seconds=0.3, limit=limit)
                waits_beside_virsh: list[float] = []
                if virsh is not None:
                    await quiet.wait()
                    with contextlib.suppress(Unavailable, OSError, TimeoutError):
                        waits_beside_virsh = await _beside_virsh(virsh, hosts, habit, mib)
                alone, mine, theirs, virshs = (
                    _p99(each) for each in (empty, waits, waits_beside, waits_beside_virsh)
                )
                above += mine - alone > _NEIGHBOUR_SECONDS
                slow += ours.duration_seconds > _PACED_SHARE * script.duration_seconds
                rows.append(
                    [
                        f"{share:.0%} of {mbit} Mbit/s",
                        *(f"{each * 1e3:.2f}" for each in (alone, mine, theirs, virshs)),
                        *(ms(each.duration_seconds) for each in (ours, script)),
                    ]
                )
    header = [
        *("share", "empty link", "beside migrator", "beside the script", "beside virsh"),
        *("time of migrator", "script's"),
    ]
    return [
        (
            "**Neighbours**, round trip of small packets on the same link, 99th percentile in milliseconds; the script "
            "has the same limit as QEMU's `max-bandwidth`, as Proxmox sets it, and virsh has it as `--bandwidth`:"
        ),
        table(header, rows),
        table(
            ["what", "counted", "aim"],
            [
                ["more than 0.3 ms above the empty link", str(above), f"0 of {len(rows)}"],
                [f"slower than {_PACED_SHARE} × the script", str(slow), "0"],
            ],
        ),
    ]


@asynccontextmanager
async def _neighbour(hosts: LabHosts) -> AsyncIterator[list[float]]:
    """Measure round trips beside the block; the list is filled once it is left."""
    waits: list[float] = []
    address = hosts["beta"].address
    python = [sys.executable, "-c"]
    with (
        subprocess.Popen([*hosts["beta"].prefix, *python, _ECHO, address]) as echo,
        subprocess.Popen(
            [*hosts["alpha"].prefix, *python, _PING, address], stdout=subprocess.PIPE, text=True
        ) as ping,
    ):
        try:
            await asyncio.sleep(0.5)
            yield waits
        finally:
            ping.kill()
            echo.kill()
            said = ping.stdout.read() if ping.stdout is not None else ""
            waits += [float(line) for line in said.split("\n")[:-1]]


async def _beside_virsh(virsh: Virsh, hosts: LabHosts, habit: Habit, mib: int) -> list[float]:
    kept: list[list[float]] = []

    @asynccontextmanager
    async def beside() -> AsyncIterator[None]:
        async with _neighbour(hosts) as waits:
            kept.append(waits)
            yield

    async with asyncio.timeout(_VIRSH_SECONDS):
        await virsh.move(habit, bandwidth_mib=mib, beside=beside)
    return kept[0]


def _p99(waits: list[float]) -> float:
    return statistics.quantiles(waits, n=100)[98] if len(waits) > 1 else float("nan")
