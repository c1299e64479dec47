"""``python -m bench.evacuation``: a host is emptied, by us and by others; ``--write`` tells docs/benchmarks.md."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from bench import document
from bench.evacuation import real, report, simulated
from bench.evacuation.outcome import Outcome
from bench.evacuation.peers import OURS, PEERS
from bench.figures import paragraphs
from bench.machine import describe
from migrator.testing.lab import binaries
from migrator.testing.network import possible

_COUNTS = (50, 200, 500)
#: So many runs of the smallest, and as many fewer as the others are larger; peers at most so often.
_RUNS, _PEERS_RUNS = 10, 3
_CASES = (("mixed", "precopy only"), ("mixed", "default"), ("mixed", "in haste"), ("idle", "default"))
#: With more guests than this a mix is moved by precopy only.
_MOST_OF_ALL = 200
_LEGEND = (
    "One host with a link of 10 Gbit/s is emptied to four others; guests of 0.5 to 4 GiB. `mixed`: a third dirties 30 "
    "to 70 % of what the link carries, over 30 to 60 % of its memory. The bound is the bytes that must go by the link. "
    "What must be sent: the same, with what the guests dirty meanwhile and by their policy has to be sent again even "
    "where each has the link for itself (by precopy until it fits the ceiling, or by postcopy after a first pass). "
    "Others begin a fixed number of guests at a time, in their order, which share the link; everything else is the "
    "same engine. The policy `precopy only` is what oVirt and KubeVirt do unless told otherwise; `default` is ours: "
    'throttling to 50 % and postcopy are allowed; `in haste` is the same with `prefer = "time"`. A guest outside its '
    "policy was not moved, or stood still for too long. Medians, and of what is counted "
    "means a run. Of the computing some 10 ms a guest are the simulation's."
)

#: Mix, policy, guests, seed, strategy.
_Job = tuple[str, str, int, int, str]


def main(arguments: list[str]) -> int:
    """Measure and print; aims that are not met are a result."""
    parser = argparse.ArgumentParser(prog="python -m bench.evacuation", description=__doc__)
    parser.add_argument("--guests", type=int, nargs="+", metavar="N", help="how many (default: 50 200 500)")
    parser.add_argument("--runs", type=int, help=f"runs of the smallest case (default: {_RUNS}; real: 2)")
    parser.add_argument("--real", action="store_true", help="real guests between network namespaces instead")
    parser.add_argument("--qemu", choices=list(binaries()), default=next(iter(binaries()), None))
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    given = parser.parse_args(arguments)
    # Both end it in an orderly way, so that hosts and guests are taken down.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    began = time.monotonic()
    if given.real:
        if reason := possible():
            parser.error(f"real runs need links of a set speed: {reason}")
        count = (given.guests or [real.GUESTS])[0]
        outcomes = asyncio.run(real.measure(count, given.runs or 2, version=given.qemu))
        key, title, legend = "evacuation-real", "Emptying a host of real guests", real.LEGEND
        machine = describe(str(binaries()[given.qemu]))
    else:
        outcomes = _simulated(jobs(given.guests or _COUNTS, given.runs or _RUNS))
        key, title, legend, machine = "evacuation", "Emptying a host, simulated", _LEGEND, describe()
    text = paragraphs(
        f"{machine} · {len(outcomes)} evacuations in {time.monotonic() - began:.0f} s",
        legend,
        report.tables(outcomes),
        "Orchestration: from the start of a guest's preparation to its end, without its wait for the link and "
        "without QEMU's own time; and what the controller computed.",
        report.overheads(outcomes),
        report.aims(outcomes),
    )
    print(f"\n## {title}\n\n{text}")
    if given.write:
        document.write(key, title, text, order=[])
    return 0


def jobs(counts: Sequence[int], runs: int) -> list[_Job]:
    """Return the simulations to run, the longest first."""
    found: list[_Job] = []
    for count in sorted(counts, reverse=True):
        times, with_peers = (max(1, most * min(counts) // count) for most in (runs, _PEERS_RUNS))
        for seed in range(times):
            for mix, policy in _CASES if count <= _MOST_OF_ALL else (_CASES[0], _CASES[-1]):
                peers = () if mix == "idle" or seed >= with_peers else tuple(reversed(PEERS))
                found += [(mix, policy, count, seed, strategy) for strategy in (*peers, OURS)]
    return found


def _simulated(jobs: Sequence[_Job]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor() as pool:
        for outcome in pool.map(_simulate, jobs):
            done = f"{outcome.count} {outcome.mix}, {outcome.policy}, {outcome.strategy}, seed {outcome.seed}"
            took = f"{outcome.makespan_seconds:.1f} s, simulated in {outcome.wall_seconds:.0f} s"
            print(f"{len(outcomes) + 1}/{len(jobs)} {done}: {took}", file=sys.stderr)
            outcomes.append(outcome)
    return outcomes


def _simulate(job: _Job) -> Outcome:
    return simulated.run(*job)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
