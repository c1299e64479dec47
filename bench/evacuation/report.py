"""The outcomes as people read them, and beside the aims."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median

from bench.evacuation.outcome import Outcome
from bench.evacuation.peers import OURS, PEERS
from bench.figures import table

#: The aims: of the lower bound, of the faster peer's time, and how often a plan is how near.
_MOST_OF_BOUND, _MOST_OF_PEERS = 1.10, 0.72
#: Of guests that write much: where none is disturbed, and where some are throttled or go to postcopy.
_MOST_OF_BOUND_MIXED = {False: 1.25, True: 1.20}
_ERROR_RATIO, _OFTEN = 0.15, 0.9

_Case = tuple[str, str, int]


def tables(outcomes: Sequence[Outcome]) -> str:
    """A row for every case and strategy: medians of its runs."""
    rows = []
    for case in _cases(outcomes):
        for strategy in (OURS, *PEERS):
            runs = _of(outcomes, case, strategy)
            if runs:
                rows.append([*_words(case), strategy, *_row(runs, ours=strategy == OURS)])
    return table(
        [
            "guests",
            "policy",
            "strategy",
            "runs",
            "makespan",
            "of the bound",
            "of what must be sent",
            "downtime",
            "outside the policy",
            "tried again",
            "postcopy",
            "throttled",
            "plan off by",
        ],
        rows,
    )


def _row(runs: Sequence[Outcome], *, ours: bool) -> list[str]:
    errors = [abs(run.error_ratio) for run in runs]
    return [
        str(len(runs)),
        f"{median(run.makespan_seconds for run in runs):.1f} s",
        f"{median(_of_bound(run) for run in runs):.2f} ×",
        _of_needed(runs),
        _downtimes(runs),
        _mean(len(run.outside) for run in runs),
        _mean(sum(one.attempts - 1 for one in run.guests) for run in runs),
        _mean(sum(one.postcopy for one in run.guests) for run in runs),
        _mean(sum(one.max_throttle_ratio > 0 for one in run.guests) for run in runs),
        f"{median(errors):.1%} (at most {max(errors):.1%})" if ours else "–",
    ]


def overheads(outcomes: Sequence[Outcome]) -> str:
    """Return the controller's own computing time for a guest, by the number of guests."""
    rows = []
    for case in _cases(outcomes):
        runs = _of(outcomes, case, OURS)
        if runs:
            waited = f"{median(run.overhead_seconds for run in runs) * 1e3:.0f} ms"
            computed = [run.cpu_seconds / run.count for run in runs if run.cpu_seconds]
            share = [run.cpu_seconds / run.makespan_seconds for run in runs if run.cpu_seconds]
            rows.append(
                [
                    *_words(case),
                    waited,
                    f"{median(computed) * 1e3:.0f} ms" if computed else "–",
                    f"{median(share):.1%}" if share else "–",
                ]
            )
    return table(
        ["guests", "policy", "waits a guest", "computing a guest", "computing, of the makespan"], rows
    )


def aims(outcomes: Sequence[Outcome]) -> str:
    """Compare the aims with what was found."""
    rows = []
    for case in _cases(outcomes):
        runs, words = _of(outcomes, case, OURS), ", ".join(_words(case))
        if not runs:
            continue
        if case[0] == "idle":
            worst = max(_of_bound(run) for run in runs)
            rows.append(
                [
                    f"{words}: at most {_MOST_OF_BOUND:.2f} × the bound",
                    f"worst {worst:.2f} ×",
                    _met(worst <= _MOST_OF_BOUND),
                ]
            )
            continue
        most = _MOST_OF_BOUND_MIXED[any(_disturbed(run) for run in runs)]
        found = median(_of_bound(run) for run in runs)
        least = [run.needed_seconds / run.bound_seconds for run in runs if run.needed_seconds]
        rows.append(
            [
                f"{words}: at most {most:.2f} × the bound",
                f"{found:.2f} ×" + (f", of which {median(least):.2f} × must be sent" if least else ""),
                _met(found <= most),
            ]
        )
        for peer in PEERS:
            pairs = _pairs(runs, _of(outcomes, case, peer))
            if not pairs:
                continue
            mine, theirs = (_mean(map(_disturbed, each)) for each in zip(*pairs, strict=True))
            rows.append(
                [
                    f"{words}: no more guests throttled or in postcopy than {peer}",
                    f"{mine} against {theirs}",
                    _met(float(mine) <= float(theirs)),
                ]
            )
            ratio = median(our.makespan_seconds / their.makespan_seconds for our, their in pairs)
            # Nobody is faster than the link.
            possible = median(1 - 1 / _of_bound(their) for _, their in pairs)
            more = sum(len(our.outside) for our, _ in pairs) - sum(len(their.outside) for _, their in pairs)
            rows.append(
                [
                    f"{words}: 28 % shorter than {peer}, and no more guests outside their policy",
                    (
                        f"{abs(1 - ratio):.0%} {'shorter' if ratio <= 1 else 'longer'}, "
                        f"{abs(more)} {'more' if more > 0 else 'fewer'} (at most {possible:.0%} is possible)"
                    ),
                    _met(ratio <= _MOST_OF_PEERS and more <= 0),
                ]
            )
    ours = [run for run in outcomes if run.strategy == OURS]
    near = sum(abs(run.error_ratio) <= _ERROR_RATIO for run in ours)
    if ours:
        rows.append(
            [
                f"plan within {_ERROR_RATIO:.0%} in 9 of 10 evacuations",
                f"in {near} of {len(ours)}",
                _met(near >= _OFTEN * len(ours)),
            ]
        )
    return table(["aim", "found", ""], rows)


def _met(met: bool) -> str:
    return "met" if met else "**not met**"


def _mean(values: Iterable[float]) -> str:
    found = list(values)
    return f"{sum(found) / len(found):.3g}"


def _of_bound(run: Outcome) -> float:
    return run.makespan_seconds / run.bound_seconds


def _of_needed(runs: Sequence[Outcome]) -> str:
    found = [run.makespan_seconds / run.needed_seconds for run in runs if run.needed_seconds]
    return f"{median(found):.2f} ×" if found else "–"


def _downtimes(runs: Sequence[Outcome]) -> str:
    found = [one.downtime_seconds for run in runs for one in run.guests if one.downtime_seconds is not None]
    return f"{median(found) * 1e3:.0f} ms (at most {max(found) * 1e3:.0f})" if found else "–"


def _disturbed(run: Outcome) -> int:
    return sum(one.postcopy or one.max_throttle_ratio > 0 for one in run.guests)


def _words(case: _Case) -> list[str]:
    return [f"{case[2]} {case[0]}", case[1]]


def _cases(outcomes: Sequence[Outcome]) -> list[_Case]:
    key: Callable[[Outcome], _Case] = lambda run: (run.mix, run.policy, run.count)  # noqa: E731 - used twice
    return sorted({key(run) for run in outcomes})


def _of(outcomes: Sequence[Outcome], case: _Case, strategy: str) -> list[Outcome]:
    return [run for run in outcomes if (run.mix, run.policy, run.count, run.strategy) == (*case, strategy)]


def _pairs(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    return [(our, their) for our in ours for their in theirs if our.seed == their.seed]
