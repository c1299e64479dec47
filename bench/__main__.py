"""``python -m bench [PART...]``: measures, prints tables, and with ``--write`` puts them into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from bench import (
    answers,
    disks,
    document,
    entrances,
    floor,
    idle,
    libvirt_moves,
    narrow,
    neighbours,
    network,
    placement,
    postcopy,
    readers,
    shared_path,
    startup,
    streams,
    virsh,
    workloads,
)
from bench.libvirt import Unavailable
from bench.machine import Quiet
from bench.options import Options
from bench.ours import Failed
from migrator.testing.lab import binaries


@dataclass(frozen=True)
class Part:
    """One measurement."""

    title: str
    run: Callable[[Options, Quiet], Awaitable[str]]
    #: Whether it is another measurement with another QEMU.
    of_qemu: bool = True


PARTS = {
    "floor": Part("Beside a bare script", floor.run),
    "virsh": Part("Beside libvirt", virsh.run),
    "libvirt": Part("Guests of libvirt, beside virsh", libvirt_moves.run),
    **{
        f"narrow_{mbit}": Part(f"A path of {mbit} Mbit/s", partial(narrow.run, mbit))
        for mbit in (60, 300, 1000)
    },
    "neighbours": Part("Neighbours of a move on its link", neighbours.run),
    "disks": Part("Disks that hosts do not share", disks.run),
    "streams": Part("Channels, compression and encryption of the stream", streams.run),
    "shared_path": Part("Guests that share one narrow path", shared_path.run),
    "workloads": Part("Real workloads, seen from outside", workloads.run, of_qemu=False),
    "network": Part("A move, felt from outside", network.run, of_qemu=False),
    "postcopy": Part("Postcopy over a narrow path, seen from outside", postcopy.run, of_qemu=False),
    "startup": Part("Start of the command line", startup.run, of_qemu=False),
    "placement": Part("Plans for a large site", placement.run, of_qemu=False),
    "answers": Part("Answers while 100 migrations run", answers.run, of_qemu=False),
    "entrances": Part("A flood on an entrance", entrances.run, of_qemu=False),
    "readers": Part("Answers beside many streams", readers.run, of_qemu=False),
    "idle": Part("A service with nothing to do", idle.run, of_qemu=False),
}


def main(arguments: list[str]) -> int:
    """Run the parts; the exit status is 1 when one could not be measured. An aim not met is a result."""
    versions = list(binaries())
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument(
        "--runs", type=int, help="how often each thing is measured (default: 20, virsh 10, placement 5)"
    )
    parser.add_argument("--qemu", choices=versions, default=versions[0] if versions else None)
    parser.add_argument(
        "--quiet-timeout",
        type=float,
        default=60.0,
        help="seconds a part may wait for a quiet machine; then it is measured as it is (default: %(default)s)",
    )
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="real-time priority for all that is measured: on a busy machine niceness does not help where the "
        "kernel shares it out by sessions (sched_autogroup_enabled)",
    )
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    parser.add_argument("--whole", action="store_true", help="whole matrices, which take longer")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not versions:
        parser.error("there is no QEMU here: install the package qemu-system-x86")
    # Both end it in an orderly way, so that everything is taken down; a shell may have had Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    if given.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    options = Options(
        runs=given.runs,
        version=given.qemu,
        binary=binaries()[given.qemu],
        realtime=given.realtime,
        whole=given.whole,
    )
    order = [_key(name, version) for name in PARTS for version in versions]
    bad = 0
    for name in given.parts or PARTS:
        part = PARTS[name]
        title = f"{part.title}, QEMU {options.version}" if part.of_qemu else part.title
        began = time.monotonic()
        try:
            text = asyncio.run(_run(part, options, Quiet(given.quiet_timeout)))
        except (Unavailable, Failed) as error:
            print(f"{name}: not measured: {error}", file=sys.stderr)
            bad = 1
            continue
        print(f"\n## {title}\n\n{text}\n\n({name} took {time.monotonic() - began:.0f} s)\n", flush=True)
        if given.write:
            document.write(_key(name, options.version), title, text, order=order)
    return bad


async def _run(part: Part, options: Options, quiet: Quiet) -> str:
    return await part.run(options, quiet)


def _key(name: str, version: str) -> str:
    return f"{name}-{version}" if PARTS[name].of_qemu else name


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
