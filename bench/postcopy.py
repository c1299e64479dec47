"""Postcopy over 60 Mbit/s beside a client: how long the guest is silent, and whether that is what is reported."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path

from bench import linux_moves
from bench.figures import Figures, ms, paragraphs, table
from bench.linux_moves import SeenMove
from bench.machine import Quiet, describe
from bench.options import Options
from bench.ours import Failed, Migrator
from migrator.testing import linux_guest
from migrator.testing.lab import binaries

_PATH_BYTES_PER_SECOND = 60e6 / 8
#: Options of the command, and how long the guest may be silent, seconds.
_CASES = {
    "after a full first pass": (("--postcopy", "allow", "--max-downtime", "100ms"), 0.5),
    "at once, as the policy says": (("--postcopy", "immediate"), 1.0),
}


async def run(options: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text.

    :raise Unavailable: where there can be no such guest.
    """
    seen: dict[str, list[SeenMove]] = defaultdict(list)
    unmoved: dict[str, str] = {}
    with linux_moves.joined() as hosts, tempfile.TemporaryDirectory(prefix="bench-") as name:
        migrator = Migrator(Path(name) / "migrator")
        for host in ("alpha", "beta"):
            hosts[host].set_speed(_PATH_BYTES_PER_SECOND)
        for _ in range(options.runs or 2):
            for case, (words, _) in _CASES.items():
                print(f"postcopy: {case}", flush=True)
                await quiet.wait()
                try:
                    moved = await linux_moves.ours(migrator, hosts, "memory", *words, mode="postcopy")
                    seen[case].append(moved)
                except Failed as error:
                    unmoved[case] = str(error)[:150]
    return paragraphs(
        f"{describe(str(binaries()[linux_moves.VERSION]))} · {options.runs or 2} runs of each · {quiet}",
        f"Debian's cloud kernel with {linux_guest.MEMORY_BYTES >> 20} MiB under TCG, of which a program writes 32 MiB "
        "twice a second; a client outside pings it every 5 ms over a cable of its own. Milliseconds: median (minimum – "
        "maximum). Stall: how long all of the guest waited for pages, as the destination measured it. Waited in all: "
        "the client, for pings that were late by more than 15 ms, above what is usual beside the same guest; downtime "
        "and stall together should be that. What is missing is the time in which the guest's new QEMU translates its "
        "code.",
        _text(seen, unmoved),
    )


def _text(seen: dict[str, list[SeenMove]], unmoved: dict[str, str]) -> str:
    rows = []
    for case, moves in seen.items():
        silence = Figures.of(each.silence_seconds for each in moves)
        most = _CASES[case][1]
        outcomes = [each.outcome for each in moves if each.outcome is not None]
        rows.append(
            [
                case,
                str(Figures.of(each.downtime_seconds for each in outcomes)),
                str(Figures.of(each.postcopy_stall_seconds or 0.0 for each in outcomes)),
                str(Figures.of(each.waited_seconds for each in moves)),
                str(silence),
                f"≤ {ms(most)} {'met' if silence.median <= most else '**not met**'}",
                str(Figures.of(each.late_seconds for each in moves)),
                str(Figures.of(each.duration_seconds for each in moves)),
            ]
        )
    rows += [[case, why, *[""] * 6] for case, why in unmoved.items()]
    return table(
        ["postcopy begun", "downtime", "stall", "waited in all", "longest silence", "aim", "late", "time"],
        rows,
    )
