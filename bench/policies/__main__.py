"""``python -m bench.policies``: peers and migrator on the same guests; ``--write`` puts it into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from bench import document
from bench.figures import paragraphs
from bench.machine import describe
from bench.policies import accuracy, aims, named, real, report, simulated, turns
from bench.policies.cases import GUESTS, SETTINGS, Guest, Setting
from bench.policies.ours import Migrator
from bench.policies.outcome import Outcome
from bench.policies.strategy import Strategy
from migrator.testing.lab import binaries
from migrator.testing.network import possible

_TITLE = "Policies, beside what others do"
#: On real QEMU nobody is waited for any longer; longer than any peer's run that ends inside its policy.
_HORIZON_SECONDS = 100.0


def main(arguments: list[str]) -> int:
    """Run the cases; aims that are not met are a result."""
    parser = argparse.ArgumentParser(prog="python -m bench.policies", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two runs of each case instead of ten")
    parser.add_argument("--runs", type=int, help="how many runs of each case")
    parser.add_argument("--guest", action="append", metavar="WORD", help="only guests whose name has this")
    parser.add_argument("--policy", action="append", metavar="WORD", help="only policies whose name has this")
    parser.add_argument("--strategy", action="append", metavar="WORD", help="only peers whose name has this")
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    parser.add_argument("--real", action="store_true", help="on real QEMU first, then simulated")
    parser.add_argument(
        "--minutes",
        type=float,
        help="for real runs (default 55, quick 5); cases beyond it are left out for all",
    )
    parser.add_argument("--qemu", choices=list(binaries()), default=next(iter(binaries()), None))
    parser.add_argument("--reasons", action="store_true", help="print what migrator did and why")
    given = parser.parse_args(arguments)
    guests = [guest for guest in GUESTS if _wanted(guest.name, given.guest)]
    settings = [setting for setting in SETTINGS if _wanted(setting.name, given.policy)]
    strategies = [one for one in named.STRATEGIES if one is Migrator or _wanted(one.name, given.strategy)]
    runs = given.runs or (2 if given.quick else 10)
    if given.reasons:
        for setting in settings:
            for guest in guests:
                _explain(guest, setting)
        return 0
    names = [one.name for one in strategies]
    texts = [describe(*([str(binaries()[given.qemu])] if given.real else [])), report.LEGEND]
    if given.real:
        if reason := possible():
            parser.error(f"real runs need a link of a set speed: {reason}")
        minutes = given.minutes or (5.0 if given.quick else 55.0)
        chosen, left_out = turns.choose(
            _cases(strategies, [guest for guest in guests if guest.real is not None], settings, runs),
            seconds=60 * minutes,
            horizon_seconds=_HORIZON_SECONDS,
        )
        outcomes = asyncio.run(_measure(chosen, given.qemu))
        texts += [
            f"### On QEMU {given.qemu}",
            _how_fair(len(chosen), left_out, minutes),
            *report.tables(outcomes, names, prefix="QEMU, "),
            aims.show(aims.judge(outcomes)),
            "### The simulator against these runs",
            accuracy.compare(outcomes, [_simulate(_job(outcome)) for outcome in outcomes]),
        ]
    began = time.monotonic()
    jobs = [job for case in _cases(strategies, guests, settings, runs) for job in case]
    outcomes = _simulated(jobs)
    texts += [
        "### Simulated",
        f"{runs} runs of each case in {time.monotonic() - began:.0f} s, each with guest and link in another mood.",
        *report.tables(outcomes, names, prefix="Simulated, "),
        aims.show(aims.judge(outcomes)),
    ]
    text = paragraphs(*texts)
    print(text)
    if given.write:
        document.write("policies", _TITLE, text, order=[])
    return 0


def _how_fair(chosen: int, left_out: int, minutes: float) -> str:
    return (
        f"{chosen} cases, each met by every algorithm that its policy is for, in turns: all have as many runs as "
        f"ours. {left_out} that would have taken longer than the {minutes:g} minutes were left out for everybody."
    )


def _cases(
    strategies: Sequence[type[Strategy]], guests: Sequence[Guest], settings: Sequence[Setting], runs: int
) -> list[turns.Case]:
    """Every guest under every policy, so many times, each with all algorithms that the policy is for."""
    return [
        [
            (strategy.name, guest.name, setting.name, seed)
            for strategy in strategies
            if strategy.fits(setting.policy)
        ]
        for seed in range(runs)
        for guest in guests
        for setting in settings
    ]


def _simulated(jobs: Sequence[turns.Job]) -> list[Outcome]:
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_simulate, jobs, chunksize=8))


async def _measure(cases: Sequence[turns.Case], version: str) -> list[Outcome]:
    """Measure the cases."""
    outcomes: list[Outcome] = []
    jobs = [job for case in cases for job in case]
    for job in jobs:
        strategy, guest, setting, seed = named.find(job)
        outcome = await real.run(
            strategy, guest, setting, seed, binary=binaries()[version], horizon_seconds=_HORIZON_SECONDS
        )
        print(f"{len(outcomes) + 1}/{len(jobs)} {' · '.join(job[:3])}: {outcome.end}", file=sys.stderr)
        outcomes.append(outcome)
    return outcomes


def _job(outcome: Outcome) -> turns.Job:
    return outcome.strategy, outcome.guest, outcome.setting, outcome.seed


def _simulate(job: turns.Job) -> Outcome:
    return simulated.run(*named.find(job))


def _explain(guest: Guest, setting: Setting) -> None:
    outcome, steering = simulated.steered(Migrator, guest, setting, 0)
    inside = "inside" if outcome.inside(setting.policy) else "outside"
    print(f"{guest.name}, {setting.name}: {outcome.end} after {outcome.seconds:.1f} s, {inside}")
    assert isinstance(steering, Migrator)
    for at, act, reason in steering.reasons:
        print(f"  {at:6.2f} s  {act}: {reason}")


def _wanted(name: str, words: list[str] | None) -> bool:
    return words is None or any(word.lower() in name.lower() for word in words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
