"""Outcomes held against the aims, run by run: the same guest in the same mood for everyone."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.figures import table
from bench.policies.cases import ON_DEMAND, SETTINGS
from bench.policies.ours import Migrator
from bench.policies.outcome import Outcome
from bench.policies.peers import PEERS, QemuDefault
from migrator.core.policy import Policy

_POLICIES: dict[str, Policy] = {setting.name: setting.policy for setting in (*SETTINGS, *ON_DEMAND)}
_BY_TIMERS = {peer.name for peer in PEERS if peer.by_timers}
_OURS = Migrator.name
#: What both move in less than this is not compared: it is over before anybody could decide anything.
_COMPARED_FROM_SECONDS = 0.2
#: A downtime that is lower by no more than this is no lower, and a time that is longer by no more than this no longer.
_DOWNTIME_TOLERANCE_SECONDS = 0.01
_TIME_TOLERANCE_RATIO = 0.05
#: Guest's time lost that is above a peer's by no more than this is not above it: what two runs of the same differ by.
_LOST_TOLERANCE_SECONDS = 0.05
#: The peer that decides nothing.
_DEFAULT = QemuDefault.name
#: Rounds until "cannot" has to be said.
_CANNOT_WITHIN_ROUNDS = 2


@dataclass(frozen=True)
class Aim:
    """One aim, what was found, and whether that meets it; ``None``: there was nothing to judge by."""

    text: str
    found: str
    met: bool | None


def inside(outcome: Outcome) -> bool:
    """Tell whether an outcome is within its policy."""
    return outcome.inside(_POLICIES[outcome.setting])


def judge(outcomes: Iterable[Outcome]) -> list[Aim]:
    """Every aim."""
    cases: dict[tuple[str, str, int], dict[str, Outcome]] = defaultdict(dict)
    for outcome in outcomes:
        cases[outcome.case][outcome.strategy] = outcome
    complete = [found for found in cases.values() if _OURS in found]
    return [
        *_reach(complete),
        *_dominated(complete),
        _default(complete),
        *(aim for peer in PEERS for aim in _beside(complete, peer.name)),
        _timers(complete),
        *_hopeless(complete),
        _ceiling(complete),
        *_forecasts(complete),
    ]


def _peers(found: dict[str, Outcome]) -> list[Outcome]:
    return [outcome for name, outcome in found.items() if name != _OURS]


def _reach(cases: Sequence[dict[str, Outcome]]) -> list[Aim]:
    behind = [
        found[_OURS]
        for found in cases
        if not inside(found[_OURS]) and any(inside(peer) for peer in _peers(found))
    ]
    named = ", ".join(sorted({f"{outcome.guest} ({outcome.setting})" for outcome in behind}))
    ours = sum(inside(found[_OURS]) for found in cases)
    theirs = [
        (sum(inside(found[name]) for found in cases if name in found), name)
        for name in {name for found in cases for name in found} - {_OURS}
    ]
    most, best = max(theirs, default=(0, "nobody"))
    return [
        Aim(
            "inside in every case in which any peer is",
            f"in all but {len(behind)} of {len(cases)}{': ' + named if named else ''}",
            not behind,
        ),
        Aim("inside more often than any single peer", f"{ours} against {most} ({best})", ours > most),
    ]


def _dominated(cases: Sequence[dict[str, Outcome]]) -> list[Aim]:
    """Count the runs in which a peer that is inside was better in both: the promise of downtime first, then time."""
    better = [
        (found[_OURS], peer) for found in cases for peer in _peers(found) if dominates(peer, found[_OURS])
    ]
    lost = [
        (found[_OURS], peer)
        for found in cases
        for peer in _peers(found)
        if _comparable(found[_OURS], peer)
        and peer.seconds <= found[_OURS].seconds * (1 + _TIME_TOLERANCE_RATIO)
        and (peer.downtime_seconds or 0.0)
        <= (found[_OURS].downtime_seconds or 0.0) + _DOWNTIME_TOLERANCE_SECONDS
        and found[_OURS].lost_seconds > peer.lost_seconds + _LOST_TOLERANCE_SECONDS
    ]
    return [
        Aim(
            "no peer that is inside has a lower downtime (by more than 10 ms) and no longer time (within 5 %)",
            _counted(better, len(cases)),
            not better,
        ),
        Aim(
            "no peer that is inside, no longer and with no more downtime, costs the guest less of its time",
            _counted(lost, len(cases)),
            not lost,
        ),
    ]


def dominates(peer: Outcome, ours: Outcome) -> bool:
    """Tell whether a peer that is inside its policy was better than ours: less downtime, and no more time."""
    if not inside(peer) or max(ours.seconds, peer.seconds) < _COMPARED_FROM_SECONDS:
        return False
    if not inside(ours) or ours.downtime_seconds is None or peer.downtime_seconds is None:
        return True
    return (
        peer.downtime_seconds < ours.downtime_seconds - _DOWNTIME_TOLERANCE_SECONDS
        and peer.seconds <= ours.seconds * (1 + _TIME_TOLERANCE_RATIO)
    )


def _counted(pairs: Sequence[tuple[Outcome, Outcome]], cases: int) -> str:
    runs = {ours.case for ours, _ in pairs}
    named = Counter(f"{ours.guest} ({ours.setting}) by {peer.strategy}" for ours, peer in pairs)
    most = ", ".join(f"{name} {count} ×" for name, count in named.most_common(6))
    return f"{len(runs)} of {cases} runs{': ' + most if most else ''}"


def _default(cases: Sequence[dict[str, Outcome]]) -> Aim:
    ratios = [
        (found[_OURS].seconds / found[_DEFAULT].seconds, found[_OURS].guest)
        for found in cases
        if _DEFAULT in found and _comparable(found[_OURS], found[_DEFAULT])
    ]
    text = "time at most 1.05 × QEMU's default wherever that is inside"
    if not ratios:
        return Aim(text, "–", None)
    worst, guest = max(ratios)
    above = sum(ratio > 1 + _TIME_TOLERANCE_RATIO for ratio, _ in ratios)
    return Aim(text, f"worst {worst:.2f} × ({guest}), above in {above} of {len(ratios)} runs", above == 0)


def _beside(cases: Sequence[dict[str, Outcome]], peer: str) -> list[Aim]:
    both = [
        (found[_OURS], found[peer])
        for found in cases
        if peer in found and _comparable(found[_OURS], found[peer])
    ]
    if not both:
        return []
    ratios = sorted(ours.seconds / theirs.seconds for ours, theirs in both)
    worst, name = max((ours.seconds / theirs.seconds, ours.guest) for ours, theirs in both)
    slower = sum(ratio > 1.05 for ratio in ratios)
    lost = sum(ours.lost_seconds for ours, _ in both) / len(both)
    their_lost = sum(theirs.lost_seconds for _, theirs in both) / len(both)
    return [
        Aim(
            f"{peer}: at most 1.05 × its time where both are inside",
            f"geometric mean {_mean(ratios):.2f}, worst {worst:.2f} ({name}), above in {slower} of {len(both)}",
            slower == 0,
        ),
        Aim(
            f"{peer}: no more of the guest's time lost where both are inside",
            f"{lost:.2f} s against {their_lost:.2f} s a run",
            lost <= their_lost,
        ),
    ]


def _comparable(ours: Outcome, theirs: Outcome) -> bool:
    long_enough = max(ours.seconds, theirs.seconds) >= _COMPARED_FROM_SECONDS
    return long_enough and inside(ours) and inside(theirs)


def _timers(cases: Sequence[dict[str, Outcome]]) -> Aim:
    ratios = [
        found[_OURS].seconds / peer.seconds
        for found in cases
        for peer in _peers(found)
        if peer.strategy in _BY_TIMERS and _comparable(found[_OURS], peer)
    ]
    text = "at most 0.7 × the time of those that go by timers (geometric mean)"
    return Aim(text, f"{_mean(ratios):.2f}", _mean(ratios) <= 0.7) if ratios else Aim(text, "–", None)


def _hopeless(cases: Sequence[dict[str, Outcome]]) -> list[Aim]:
    hopeless = [found for found in cases if not any(inside(outcome) for outcome in found.values())]
    text = "where nothing allowed works: given up in at most 0.3 × the time of the fastest peer's abort"
    ratios = []
    for found in hopeless:
        aborts = [peer.seconds for peer in _peers(found) if peer.end == "aborted"]
        if aborts:
            ours = found[_OURS]
            ratios.append(ours.seconds / min(aborts) if ours.end == "aborted" else math.inf)
    given_up = Aim(text, f"worst {max(ratios):.2f} of {len(ratios)}", max(ratios) <= 0.3) if ratios else None
    said = [found[_OURS] for found in cases if found[_OURS].cannot_round is not None]
    right = sum(found[_OURS].cannot_round is not None for found in hopeless)
    in_time = sum((found[_OURS].cannot_round or 99) <= _CANNOT_WITHIN_ROUNDS for found in hopeless)
    share = right / len(said) if said else 1.0
    return [
        given_up or Aim(text, "–", None),
        Aim(
            "what was said to be impossible is, in at least 95 %",
            f"{right} of {len(said)}" if said else "–",
            share >= 0.95 if said else None,
        ),
        Aim(
            "what is impossible is said to be within two rounds, in at least 95 %",
            f"{in_time} of {len(hopeless)}" if hopeless else "–",
            in_time >= 0.95 * len(hopeless) if hopeless else None,
        ),
    ]


def _ceiling(cases: Sequence[dict[str, Outcome]]) -> Aim:
    moved = [found[_OURS] for found in cases if found[_OURS].downtime_seconds is not None]
    under = sum((one.downtime_seconds or 0) <= _POLICIES[one.setting].max_downtime_seconds for one in moved)
    text = "downtime under its ceiling in at least 99 % of the runs"
    return (
        Aim(text, f"{under} of {len(moved)}", under >= 0.99 * len(moved)) if moved else Aim(text, "–", None)
    )


def _forecasts(cases: Sequence[dict[str, Outcome]]) -> list[Aim]:
    errors = [
        abs(ours.forecast_seconds - ours.seconds) / ours.seconds
        for ours in (found[_OURS] for found in cases)
        if ours.forecast_seconds is not None and ours.end == "completed" and not ours.postcopy
    ]
    text = "forecast of the whole time after the first round: off by at most 10 % (median), 25 % (p90)"
    if len(errors) < 2:
        return [Aim(text, "–", None)]
    median, high = statistics.median(errors), statistics.quantiles(errors, n=10)[-1]
    return [Aim(text, f"{median:.0%}, {high:.0%} in {len(errors)} runs", median <= 0.1 and high <= 0.25)]


def _mean(ratios: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))


def show(aims: Iterable[Aim]) -> str:
    """Format as a table of Markdown."""
    words = {True: "met", False: "**not met**", None: "–"}
    return table(["aim", "found", ""], [[aim.text, aim.found, words[aim.met]] for aim in aims])
