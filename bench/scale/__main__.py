"""``python -m bench.scale [PART...]``: how much one controller takes; ``--write`` tells docs/benchmarks.md.

The QEMUs are fakes that speak QMP, in processes of their own; the service is whole, with its journal on disk.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from bench import answers, document, store
from bench.figures import paragraphs
from bench.libvirt import Unavailable
from bench.machine import Quiet, describe
from bench.scale import evacuations, guards, lists, load
from bench.scale.progress import say

#: No part takes longer, whatever happens.
_PART_SECONDS = 900.0
_KEY, _TITLE = "scale", "Many migrations at once"


async def _under_way(counts: Sequence[int]) -> str:
    return await load.under_way(counts or load.UNDER_WAY)


async def _cost(counts: Sequence[int]) -> str:
    return await load.cost(counts or load.COUNTS)


async def _controllers(counts: Sequence[int]) -> str:
    return await load.controllers(*counts[:1])


async def _evacuation(counts: Sequence[int]) -> str:
    return await asyncio.to_thread(evacuations.cost, counts or evacuations.COUNTS)


async def _commands(_: Sequence[int]) -> str:
    text, _found = await answers.measure(answers.COMMANDS)
    return text


async def _guards(counts: Sequence[int]) -> str:
    return await guards.cost(counts or guards.COUNTS)


async def _lists(_: Sequence[int]) -> str:
    return await lists.reading()


async def _store(_: Sequence[int]) -> str:
    return store.report(await store.measure_both(), store.MIGRATIONS)


#: In the order of the document, each told how many migrations it is asked for; all of them take some half an hour.
PARTS: dict[str, tuple[str, Callable[[Sequence[int]], Awaitable[str]]]] = {
    "load": ("Migrations under way on one controller", _under_way),
    "cost": ("What each of many costs", _cost),
    "evacuation": ("What each guest of an evacuation costs", _evacuation),
    "guards": ("What guards at the hosts cost", _guards),
    "controllers": ("Three controllers on one journal", _controllers),
    "commands": ("Commands beside 100 migrations", _commands),
    "lists": ("Lists of 20,000 guests", _lists),
    "store": ("The journal", _store),
}


def main(arguments: list[str]) -> int:
    """Measure and print; the exit status is 1 where a part could not be measured. An aim not met is a result."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument(
        "--quiet-timeout", type=float, default=60.0, help="seconds to wait for a quiet machine"
    )
    parser.add_argument(
        "--counts",
        type=_counts,
        default=[],
        metavar="N,...",
        help="how many migrations, instead of the usual",
    )
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="real-time priority for all that is measured, on a busy machine",
    )
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    # Both end it in an orderly way, so that everything is taken down.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if given.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    bad = 0
    for name in given.parts or PARTS:
        title, work = PARTS[name]
        began = time.monotonic()
        say(title)
        try:
            text = asyncio.run(_measured(functools.partial(work, given.counts), given.quiet_timeout))
        except (Unavailable, TimeoutError, RuntimeError, ExceptionGroup) as error:
            why = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            print(f"{name}: not measured: {why or 'it took too long'}", file=sys.stderr)
            bad = 1
            continue
        print(f"\n## {title}\n\n{text}\n\n({name} took {time.monotonic() - began:.0f} s)\n", flush=True)
        if given.write:
            document.write(f"{_KEY}-{name}", f"{_TITLE}: {title}", text, order=[])
    return bad


def _counts(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


async def _measured(work: Callable[[], Awaitable[str]], quiet_timeout: float) -> str:
    quiet = Quiet(quiet_timeout)
    await quiet.wait()
    async with asyncio.timeout(_PART_SECONDS):
        text = await work()
    return paragraphs(f"{describe()} · 1 run · {quiet}", text)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
