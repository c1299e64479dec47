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
from bench.policies.cases import GUESTS, ON_DEMAND, SETTINGS, Guest, Setting
from bench.policies.ours import Migrator
from bench.policies.outcome import Outcome
from bench.policies.strategy import Strategy
from migrator.testing.lab import LabError, binaries
from migrator.testing.network import possible
from migrator.testing.raw_qmp import RawQmpError

_TITLE = "Policies, beside what others do"
#: On real QEMU nobody is waited for any longer; longer than any peer's run that ends inside its policy. In a short run
#: nobody is waited for longer than the slowest of those that end for a reason.
_HORIZON_SECONDS, _SHORT_HORIZON_SECONDS = 100.0, 35.0
#: Minutes of real runs.
_MINUTES, _SHORT_MINUTES, _QUICK_MINUTES = 55.0, 9.0, 5.0
#: What a short run has: guests in which algorithms differ, under the policy that leaves most to them.
_SHORT_GUESTS = ("idle", "well under the link", "small hot set", "on 5 s, off 5 s", "slowly growing")
_SHORT_SETTING, _SHORT_RUNS = "precopy only", 3


def main(arguments: list[str]) -> int:
    """Run the cases; aims that are not met are a result."""
    parser = argparse.ArgumentParser(prog="python -m bench.policies", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two runs of each case instead of ten")
    parser.add_argument("--runs", type=int, help="how many runs of each case")
    parser.add_argument("--guest", action="append", metavar="WORD", help="only guests whose name has this")
    parser.add_argument("--policy", action="append", metavar="WORD", help="only policies whose name has this")
    parser.add_argument("--strategy", action="append", metavar="WORD", help="only peers whose name has this")
    parser.add_argument(
        "--short",
        action="store_true",
        help="on real QEMU, the most telling cases only: within twelve minutes with the simulation",
    )
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    parser.add_argument("--real", action="store_true", help="on real QEMU first, then simulated")
    parser.add_argument(
        "--minutes",
        type=float,
        help="for real runs (default 55, short 9, quick 5); cases beyond it are left out for all",
    )
    parser.add_argument("--qemu", choices=list(binaries()), default=next(iter(binaries()), None))
    parser.add_argument("--reasons", action="store_true", help="print what migrator did and why")
    given = parser.parse_args(arguments)
    guests = [guest for guest in GUESTS if _wanted(guest.name, given.guest)]
    settings = [setting for setting in SETTINGS if _wanted(setting.name, given.policy)]
    settings += [setting for setting in ON_DEMAND if given.policy and _wanted(setting.name, given.policy)]
    strategies = [one for one in named.STRATEGIES if one is Migrator or _wanted(one.name, given.strategy)]
    given.real = given.real or given.short
    runs = given.runs or (2 if given.quick else 4 if given.short else 10)
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
        minutes = given.minutes or (
            _QUICK_MINUTES if given.quick else _SHORT_MINUTES if given.short else _MINUTES
        )
        horizon = _SHORT_HORIZON_SECONDS if given.short else _HORIZON_SECONDS
        chosen, left_out = turns.choose(
            _cases(
                strategies,
                [
                    guest
                    for guest in guests
                    if guest.real and (not given.short or guest.name in _SHORT_GUESTS)
                ],
                [one for one in settings if not given.short or one.name == _SHORT_SETTING],
                _SHORT_RUNS if given.short and given.runs is None else runs,
            ),
            seconds=60 * minutes,
            horizon_seconds=horizon,
        )
        measured = asyncio.run(_measure(chosen, given.qemu, horizon, seconds=60 * minutes))
        outcomes = [outcome for case in measured for outcome in case]
        left_out += len(chosen) - len(measured)
        texts += [
            f"### On QEMU {given.qemu}",
            *([_SHORT] if given.short else []),
            _how_fair(len(measured), left_out, minutes),
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


_SHORT = (
    f"A short run: {', '.join(_SHORT_GUESTS)}, under the policy {_SHORT_SETTING!r}; nobody was waited for longer than "
    f"{_SHORT_HORIZON_SECONDS:.0f} s."
)


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


async def _measure(
    cases: Sequence[turns.Case], version: str, horizon_seconds: float, *, seconds: float
) -> list[list[Outcome]]:
    """Measure the cases, each as a whole; those that would begin after so many seconds are left out.

    A case that an algorithm failed in, through no doing of its own, is left out for everybody.
    """
    measured: list[list[Outcome]] = []
    ends = time.monotonic() + seconds
    for place, case in enumerate(cases, 1):
        if time.monotonic() > ends:
            break
        outcomes = []
        try:
            for job in case:
                strategy, guest, setting, seed = named.find(job)
                outcome = await real.run(
                    strategy,
                    guest,
                    setting,
                    seed,
                    binary=binaries()[version],
                    horizon_seconds=horizon_seconds,
                )
                took = f"{outcome.end} after {outcome.seconds:.1f} s"
                print(f"{place}/{len(cases)} {' · '.join(job[:3])}: {took}", file=sys.stderr)
                outcomes.append(outcome)
        except (LabError, RawQmpError, OSError, TimeoutError) as error:
            print(f"{place}/{len(cases)} left out for all: {error}", file=sys.stderr)
            continue
        measured.append(outcomes)
    return measured


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
