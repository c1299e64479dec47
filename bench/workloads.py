"""Real workloads: a Linux guest that serves, fills memory or compiles moves, and a client outside looks on.

By `migrator direct` and by `virsh migrate`, in turns, over the same link.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

from bench import libvirt, linux_moves
from bench.figures import Figures, paragraphs, table
from bench.libvirt import Libvirtd, Unavailable
from bench.linux_moves import SeenMove
from bench.machine import Quiet, describe
from bench.options import Options
from bench.ours import Failed, Migrator
from migrator.testing import linux_guest
from migrator.testing.lab import binaries

_MAX_DOWNTIME_SECONDS = 0.3
_LINK_BYTES_PER_SECOND = 125e6
_NAMES = {
    "redis": "Redis alone",
    "memory": "... and a program that writes 32 MiB, twice a second",
    "compile": "... and a compiler",
}


async def run(options: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text.

    :raise Unavailable: where there can be no such guest.
    """
    seen: dict[tuple[str, str], list[SeenMove]] = defaultdict(list)
    unmoved: dict[tuple[str, str], str] = {}
    async with AsyncExitStack() as stack:
        hosts = stack.enter_context(linux_moves.joined())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        migrator = Migrator(directory / "migrator")
        peers: tuple[Libvirtd, Libvirtd] | None = None
        if libvirt.why_not() is None:
            stack.callback(libvirt.remove_cgroups)
            alpha, beta = [
                await stack.enter_async_context(Libvirtd(hosts[name], directory / name, cgroups=False))
                for name in ("alpha", "beta")
            ]
            peers = alpha, beta
        for name in ("alpha", "beta"):
            hosts[name].set_speed(_LINK_BYTES_PER_SECOND)
        ceiling = ("--max-downtime", f"{_MAX_DOWNTIME_SECONDS * 1e3:.0f}ms", "--postcopy", "never")
        for _ in range(options.runs or 2):
            for workload in linux_guest.WORKLOADS:
                print(f"workloads: {workload}", flush=True)
                await quiet.wait()
                try:
                    seen[workload, "migrator"].append(
                        await linux_moves.ours(migrator, hosts, workload, *ceiling)
                    )
                except Failed as error:
                    unmoved[workload, "migrator"] = str(error)[:150]
                if peers is None:
                    continue
                await quiet.wait()
                try:
                    moved = await linux_moves.virsh(
                        *peers, hosts, workload, max_downtime_seconds=_MAX_DOWNTIME_SECONDS
                    )
                    seen[workload, "virsh"].append(moved)
                except Unavailable as error:
                    unmoved[workload, "virsh"] = str(error)[:150]
    return paragraphs(
        f"{describe(str(binaries()[linux_moves.VERSION]))} · {options.runs or 2} runs of each, in turns · {quiet}",
        f"Debian's cloud kernel with {linux_guest.MEMORY_BYTES >> 20} MiB under TCG, between two namespaces, "
        "over 1 Gbit/s; its network has a cable of its own. A client outside writes to its Redis 200 times "
        "a second and pings it as often. Requests a second, and the work of what runs beside Redis: before, during and "
        "after the move. "
        "Milliseconds: median (minimum – maximum). Silence: the longest time without the answer to a ping; wait: "
        "without the answer to a request; late: how late the client was itself, at the worst. After its stop a guest "
        "under TCG is slow for a while: the QEMU that it has come to has translated nothing of it yet.",
        _text(seen, unmoved),
    )


def _text(seen: dict[tuple[str, str], list[SeenMove]], unmoved: dict[tuple[str, str], str]) -> str:
    rows = []
    for (workload, who), moves in seen.items():
        if not moves:
            continue
        reported = [each.outcome.downtime_seconds for each in moves if each.outcome is not None]
        rows.append(
            [
                _NAMES[workload],
                who,
                _rates([each.rates(each.view.requests_per_second) for each in moves]),
                _rates([each.rates(each.view.work_per_second) for each in moves]),
                str(Figures.of(reported)) if reported else "",
                str(Figures.of(each.silence_seconds for each in moves)),
                str(Figures.of(each.wait_seconds for each in moves)),
                str(Figures.of(each.late_seconds for each in moves)),
                str(Figures.of(each.duration_seconds for each in moves)),
            ]
        )
    rows += [[_NAMES[workload], who, why, *[""] * 6] for (workload, who), why in unmoved.items()]
    header = ["guest", "moved by", "requests/s", "work/s", "downtime", "silence", "wait", "late", "time"]
    return table(header, rows)


def _rates(found: list[tuple[float, float, float]]) -> str:
    means = [sum(each) / len(found) for each in zip(*found, strict=True)]
    return " → ".join(f"{each:.1f}" for each in means) if any(means) else "—"
