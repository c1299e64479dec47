"""Neighbours of a move on a narrow link: round trips of small packets beside it.

QEMU's own limit, which virsh and Proxmox set, sends what it allows in a tenth of a second in one burst, and whoever
shares the link waits behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.figures import ms, paragraphs, runs_in_words, table
from bench.libvirt import Unavailable
from bench.machine import Quiet, describe
from bench.narrow import (
    MBIT,
    MIB,
    VIRSH_SECONDS,
    move_by_migrator,
    move_by_script,
    narrow_hosts,
    slow_down,
)
from bench.options import Options
from bench.ours import Migrator
from bench.virsh import Virsh
from migrator.testing.lab import Habit
from migrator.testing.network import LabHosts

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


async def run(options: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text.

    :raise Unavailable: where there can be no hosts with links of a set speed.
    """
    async with narrow_hosts(options) as (migrator, virsh, hosts):
        found = await _neighbours(migrator, virsh, hosts, options, quiet)
    return paragraphs(
        f"{describe(str(options.binary))} · {runs_in_words(options.runs or 2)} of each, in turns · {quiet}",
        "Two namespaces whose links are slowed by `tc tbf`; a guest of 256 MiB (TCG), of which 96 MiB are filled.",
        *found,
    )


async def _neighbours(
    migrator: Migrator, virsh: Virsh | None, hosts: LabHosts, options: Options, quiet: Quiet
) -> list[str]:
    """Round trips of a neighbour on the same link beside moves at a share of it."""
    rows, above, slow = [], 0, 0
    habit = Habit(region_bytes=96 * MIB, passes=1)
    for mbit in (1000, 300):
        slow_down(hosts, mbit)
        async with _neighbour(hosts) as empty:
            await asyncio.sleep(2.0)
        for share in (0.5, 0.95):
            mib = int(share * mbit * MBIT / MIB)  # as virsh takes it, and the same for all
            limit = mib * MIB
            for _ in range(options.runs or 2):
                print(f"neighbours: at {share:.0%} of {mbit} Mbit/s", flush=True)
                await quiet.wait()
                async with _neighbour(hosts) as waits:
                    ours = await move_by_migrator(
                        migrator, hosts, options.binary, habit, ceiling_seconds=0.3, limit=f"{limit}B/s"
                    )
                await quiet.wait()
                async with _neighbour(hosts) as waits_beside:
                    script = await move_by_script(
                        hosts, options.binary, habit, ceiling_seconds=0.3, limit=limit
                    )
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
            "Round trip of small packets on the same link, 99th percentile in milliseconds; the script "
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

    async with asyncio.timeout(VIRSH_SECONDS):
        await virsh.move(habit, bandwidth_mib=mib, beside=beside)
    return kept[0]


def _p99(waits: list[float]) -> float:
    return statistics.quantiles(waits, n=100)[98] if len(waits) > 1 else float("nan")
