"""``python -m bench.quiet_start``: what ``start = "quiet"`` gains, simulated; ``--write``: into docs/benchmarks.md.

The same guest is moved twice under the same policy: at once, and once :mod:`migrator.core.migration.quiet_start` says
so, from a random moment of its pattern. One works for ten seconds and rests for ten; one has a daily pattern, with two
quiet hours, of which its controller has measured three days.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable

from bench import document
from bench.figures import paragraphs, table
from bench.machine import describe
from bench.policies import simulated
from bench.policies.cases import MEMORY_BYTES, SETTINGS, Guest
from bench.policies.ours import Migrator
from migrator.core.guest_experience import GuestExperience
from migrator.core.migration import quiet_start
from migrator.testing.memory import Memory
from migrator.testing.workload import MIB, Workload, on_off

_TITLE = 'Waiting for a quiet guest: start = "quiet"'
_HOUR, _DAY = 3600.0, 24 * 3600.0
_SPEED = 100.0 * MIB


def _by_seconds() -> Workload:
    return on_off(300 * MIB, 200 * MIB, on_seconds=10, off_seconds=10)


def _by_day() -> Workload:
    """Busy for 22 hours, then quiet for two."""
    return on_off(300 * MIB, 200 * MIB, on_seconds=22 * _HOUR, off_seconds=2 * _HOUR)


def _known(workload: Workload) -> GuestExperience:
    """Three days of measurements, one an hour."""
    found = GuestExperience()
    for hour in range(72):
        at = hour * _HOUR + 60
        found = found.after_rate(sum(workload.rates_at(at)[0][1:]), at=at)
    return found


def waited(workload: Workload, asked: float, experience: GuestExperience | None) -> float:
    """Return how long a guest waits whose migration is asked for at that time of its pattern, seconds."""
    memory = Memory(workload, MEMORY_BYTES)
    memory.forward(asked, 1.0)
    now, usual = asked, 0.0
    last = quiet_start.last_safe_start(
        asked + _DAY, memory_bytes=MEMORY_BYTES, bytes_per_second=_SPEED, experience=experience
    )
    while True:
        memory.probe()
        memory.forward(1.0, 1.0)
        now, rate = now + 1.0, float(memory.probe())
        usual = max(usual, rate)
        decision = quiet_start.decide(
            now=now,
            since=asked,
            last_start=last,
            rate_bytes_per_second=rate,
            usual_bytes_per_second=usual,
            experience=experience,
        )
        if decision.begin:
            return now - asked
        memory.forward(decision.pause_seconds, 1.0)
        now += decision.pause_seconds


def _rows(
    name: str, workload: Callable[[], Workload], period: float, *, known: bool, runs: int
) -> list[list[str]]:
    mood = random.Random(name)
    experience = _known(workload()) if known else None
    rows = []
    moments = [(period if not known else 3 * _DAY) + mood.uniform(0, period) for _ in range(runs)]
    waits = [waited(workload(), asked, experience) for asked in moments]
    setting = next(each for each in SETTINGS if each.name == "precopy only")
    for start, delays in (("now", [0.0] * runs), ("quiet", waits)):
        outcomes = [
            simulated.run(
                Migrator, Guest(name, workload, None, runs_before_seconds=asked + delay), setting, seed
            )
            for seed, (asked, delay) in enumerate(zip(moments, delays, strict=True))
        ]
        arrived = [each for each in outcomes if each.inside(setting.policy)]
        rows.append(
            [
                name,
                start,
                f"{statistics.median(delays):.0f} s",
                f"{len(arrived)} of {runs}",
                f"{statistics.median(each.seconds for each in outcomes):.1f} s",
                f"{statistics.median(each.sent_bytes for each in outcomes) / MIB:.0f} MiB",
            ]
        )
    return rows


def main(arguments: list[str]) -> int:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.quiet_start", description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    given = parser.parse_args(arguments)
    rows = [
        *_rows("works 10 s, rests 10 s", _by_seconds, 20.0, known=False, runs=given.runs),
        *_rows("works 22 hours, rests 2", _by_day, _DAY, known=True, runs=given.runs),
    ]
    text = paragraphs(
        describe(),
        f"{given.runs} simulated migrations of each, asked for at a random moment, under a policy that allows neither "
        "throttle nor postcopy. The one with the daily pattern has been measured for three days before.",
        table(["guest", "start", "waited", "arrived inside its policy", "time", "sent"], rows),
    )
    print(text)
    if given.write:
        document.write("quiet-start", _TITLE, text, order=[])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
