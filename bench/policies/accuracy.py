"""How far the simulator is from what two real QEMUs did."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.figures import table
from bench.policies.outcome import Outcome


def compare(measured: Sequence[Outcome], simulated: Sequence[Outcome]) -> str:
    """Two tables of Markdown: the errors, and the runs that ended otherwise.

    :param simulated: the same cases, in the same order.
    """
    # A real run that nobody waited for any longer says nothing of its end.
    pairs = [
        (real, model)
        for real, model in zip(measured, simulated, strict=True)
        if real.end != "unfinished" or model.seconds < real.seconds
    ]
    same = [(real, model) for real, model in pairs if real.end == model.end]
    seconds = [model.seconds / real.seconds - 1 for real, model in same]
    downtimes = [
        model.downtime_seconds - real.downtime_seconds
        for real, model in same
        if real.downtime_seconds is not None and model.downtime_seconds is not None
    ]
    sent = [model.sent_bytes / real.sent_bytes - 1 for real, model in same if real.sent_bytes]
    lost = [model.lost_seconds - real.lost_seconds for real, model in same]
    rows = [
        ["time", *_spread(seconds, "{:+.0%}")],
        ["bytes sent", *_spread(sent, "{:+.0%}")],
        ["downtime", *_spread([error * 1e3 for error in downtimes], "{:+.0f} ms")],
        ["guest time lost", *_spread(lost, "{:+.2f} s")],
    ]
    header = ["simulated against real", "median error", "p10", "p90", "median of the absolute error"]
    unlike = ", ".join(
        f"{real.strategy} with {real.guest} ({real.setting}): {real.end}, simulated {model.end}"
        for real, model in pairs
        if real.end != model.end
    )
    text = f"{len(same)} of {len(pairs)} runs ended alike."
    return f"{table(header, rows)}\n\n{text}{f' Not: {unlike}.' if unlike else ''}"


def _spread(errors: Sequence[float], shape: str) -> list[str]:
    if len(errors) < 2:
        return ["–"] * 4
    tenths = statistics.quantiles(errors, n=10)
    figures = [statistics.median(errors), tenths[0], tenths[-1]]
    size = statistics.median(abs(error) for error in errors)
    return [*(shape.format(figure) for figure in figures), shape.format(size).lstrip("+")]
