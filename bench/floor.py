"""`migrator direct` beside the bare script, in turns: what its checks, its record and its decisions cost."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import bare
from bench.bare import Moved
from bench.figures import Figures, paragraphs, table, verdict
from bench.machine import Quiet, describe
from bench.options import GUESTS, MEMORY_BYTES, SETTLE_SECONDS, Options
from bench.ours import Migrator, Outcome
from migrator.testing.lab import IDLE, GuestMachine, Habit, Lab, Pair

_FIRST_PREFLIGHT_AIM_SECONDS = 0.4
_LATER_PREFLIGHT_AIM_SECONDS = 0.2
_PREFLIGHT_RUNS = 10


@dataclass(frozen=True, kw_only=True)
class Case:
    """A guest to move and how."""

    guest: str
    max_downtime_seconds: float
    postcopy: bool = False

    def __str__(self) -> str:
        mode = "postcopy" if self.postcopy else "precopy"
        return f"{self.guest}, {mode}, limit {self.max_downtime_seconds * 1e3:.0f} ms"


CASES = [
    *(Case(guest=guest, max_downtime_seconds=limit) for guest in GUESTS for limit in (0.3, 0.03)),
    Case(guest="dirtying 100 MiB", max_downtime_seconds=0.3, postcopy=True),
]


async def run(options: Options, quiet: Quiet) -> str:
    """Measure every case; returns the section's text."""
    durations, downtimes, later = [], [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        migrator = Migrator(Path(directory))
        first = await _first_preflights(options, quiet, migrator)
        for case in CASES:
            print(f"floor: {case}", flush=True)
            floor, ours, unsafe = await _each(case, options, quiet, migrator)
            later += [outcome.preflight_seconds for outcome in ours]
            durations.append(_duration_row(case, floor, ours))
            downtimes.append(_downtime_row(case, floor, ours))
            if unsafe:
                price = f"{case}, the guest's stop left to QEMU"
                taken = Figures.of(moved.duration_seconds for moved in unsafe)
                durations.append([price, str(taken), "–", "none", "not safe with QEMU 10.0"])
                taken = Figures.of(moved.downtime_seconds for moved in unsafe)
                downtimes.append([price, str(taken), "–", "none", "not safe with QEMU 10.0"])
    header = ["guest", "bare script", "migrator", "aim", "verdict"]
    preflights = [
        _preflight_row("first on this QEMU", Figures.of(first), _FIRST_PREFLIGHT_AIM_SECONDS),
        _preflight_row("later", Figures.of(later), _LATER_PREFLIGHT_AIM_SECONDS),
    ]
    return paragraphs(
        f"{describe(str(options.binary))} · {options.runs or 20} runs of each, in turns · {quiet}",
        "The script (`bench/bare.py`) drives the same two QEMUs over QMP by events, with the same safety rules and "
        "nothing else. Both move a guest of 512 MiB (TCG) over loopback with unlimited bandwidth. In the last row "
        "the script leaves out that for postcopy the guest is stopped by whoever moves it: what that rule costs. "
        "Milliseconds: median (minimum – maximum).",
        "**Duration**, from the first command that changes anything until the guest is seen running at the "
        "destination:",
        table(header, durations),
        "**Downtime**, from STOP at the source to RESUME at the destination:",
        table(header, downtimes),
        "**Preflight**, which changes nothing:",
        table(["run", "migrator", "aim", "verdict"], preflights),
    )


def _duration_row(case: Case, floor: list[Moved], ours: list[Outcome]) -> list[str]:
    script = Figures.of(moved.duration_seconds for moved in floor)
    figures = Figures.of(outcome.duration_seconds for outcome in ours)
    aim = verdict(figures, 1.25 * script.median + 0.025, "1.25 × script + 25")
    return [str(case), str(script), str(figures), *aim]


def _downtime_row(case: Case, floor: list[Moved], ours: list[Outcome]) -> list[str]:
    script = Figures.of(moved.downtime_seconds for moved in floor)
    figures = Figures.of(outcome.downtime_seconds for outcome in ours)
    aim = verdict(figures, script.median + 0.005, "script + 5")
    return [str(case), str(script), str(figures), *aim]


def _preflight_row(name: str, figures: Figures, aim_seconds: float) -> list[str]:
    return [name, str(figures), *verdict(figures, aim_seconds, "fixed")]


async def _each(
    case: Case, options: Options, quiet: Quiet, migrator: Migrator
) -> tuple[list[Moved], list[Outcome], list[Moved]]:
    """The script, `migrator`, and for postcopy the script without the one rule that is not about going back."""
    floor: list[Moved] = []
    unsafe: list[Moved] = []
    ours = []
    habit = GUESTS[case.guest]
    for _ in range(options.runs or 20):
        for moved, stopping in ((floor, True), *([(unsafe, False)] if case.postcopy else [])):
            async with _pair(options, quiet, habit) as pair:
                moved.append(
                    await bare.move(
                        pair,
                        max_downtime_seconds=case.max_downtime_seconds,
                        postcopy=case.postcopy,
                        stopping=stopping,
                    )
                )
        async with _pair(options, quiet, habit) as pair:
            ours.append(await _direct(migrator, pair, case))
    return floor, ours, unsafe


async def _first_preflights(options: Options, quiet: Quiet, migrator: Migrator) -> list[float]:
    """Measure preflight with an empty cache; the runs before it are for Python's bytecode, and count nowhere."""
    found = []
    case = Case(guest="idle", max_downtime_seconds=0.3)
    for _ in range((options.runs or _PREFLIGHT_RUNS) + 1):
        migrator.forget()
        async with _pair(options, quiet, IDLE) as pair:
            found.append((await _direct(migrator, pair, case)).preflight_seconds)
    return found[1:]


async def _direct(migrator: Migrator, pair: Pair, case: Case) -> Outcome:
    ways = ["--max-downtime", f"{case.max_downtime_seconds * 1e3:.0f}ms"]
    if case.postcopy:
        ways += ["--postcopy", "immediate"]
    mode = "postcopy" if case.postcopy else "precopy"
    return await migrator.direct(pair.source.qmp, pair.destination.qmp, *ways, mode=mode)


@asynccontextmanager
async def _pair(options: Options, quiet: Quiet, habit: Habit) -> AsyncIterator[Pair]:
    """A guest that runs and a QEMU that waits for it; at the end the guest has to run there."""
    await quiet.wait()
    async with Lab() as lab:
        machine = GuestMachine(habit=habit, memory_bytes=MEMORY_BYTES)
        pair = await lab.pair(machine, source=options.binary, destination=options.binary)
        await asyncio.sleep(SETTLE_SECONDS)
        yield pair
        await pair.destination.wait_beating()
