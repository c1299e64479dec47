"""The outcomes as people read them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.figures import table
from bench.policies.aims import inside
from bench.policies.cases import GUESTS, ON_DEMAND, SETTINGS
from bench.policies.outcome import Outcome

LEGEND = (
    "A cell is time · downtime · guest time lost · sent, medians of its runs. "
    "**Bold** is outside the policy (of several runs: how many); `gave up` leaves the guest unharmed at the source, "
    "`no end` was still copying when the harness stopped waiting."
)


def tables(outcomes: Sequence[Outcome], strategies: Sequence[str], *, prefix: str) -> list[str]:
    """For each policy a heading (with `prefix`) and a table: guests by algorithms."""
    texts = []
    for setting in (*SETTINGS, *ON_DEMAND):
        here = [outcome for outcome in outcomes if outcome.setting == setting.name]
        names = [name for name in strategies if any(outcome.strategy == name for outcome in here)]
        rows = []
        for guest in GUESTS:
            cells = [
                _cell([one for one in here if one.guest == guest.name and one.strategy == name])
                for name in names
            ]
            if any(cell != "–" for cell in cells):
                rows.append([guest.name, *cells])
        if rows:
            texts += [f"#### {prefix}{setting.name}", table(["", *names], rows)]
    return texts


def _cell(runs: Sequence[Outcome]) -> str:
    if not runs:
        return "–"
    good = sum(inside(run) for run in runs)
    ends = [run.end for run in runs]
    end = max(set(ends), key=ends.count)
    same = [run for run in runs if run.end == end]
    words = {"aborted": "gave up ", "unfinished": "no end ", "completed": ""}[end]
    parts = [f"{words}{statistics.median(run.seconds for run in same):.1f} s"]
    downtimes = [run.downtime_seconds for run in same if run.downtime_seconds is not None]
    if downtimes:
        parts.append(f"{statistics.median(downtimes) * 1e3:.0f} ms")
    parts.append(f"{statistics.median(run.lost_seconds for run in same):.1f} s lost")
    parts.append(f"{statistics.median(run.sent_bytes for run in same) / 2**20:.0f} MiB")
    text = " · ".join(parts)
    if good == len(runs):
        return text
    return f"**{text}**" if good == 0 else f"{text} **(out {len(runs) - good} of {len(runs)})**"
