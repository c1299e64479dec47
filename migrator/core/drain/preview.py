"""The outlook of an evacuation that nobody has begun. Pure.

Requests go to another process, so that they come in portions: see :func:`portions`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.forecast import (
    accepts_ceiling,
    forecast_guest,
    forecast_request,
    make_forecast,
    no_end_finding,
)
from migrator.core.drain.groups import together
from migrator.core.drain.plan import DrainPlan, make_plan
from migrator.core.drain.snapshot import KnownPolicies, PolicyRules, SiteSnapshot
from migrator.core.inventory import Guest, Host
from migrator.core.link_speeds import LinkSpeed
from migrator.core.migration.forecast import Verdict
from migrator.core.model import Finding, Severity
from migrator.core.schedule.timetable import P90, Prediction, Quantiles, lower_bound_seconds
from migrator.core.schedule.transfers import LinkDirection, LinkTable, Move
from migrator.units import show_seconds

#: Hosts, and guests, in one portion.
_HOSTS, _GUESTS = 25, 200


@dataclass(frozen=True, kw_only=True)
class Portion:
    """A part of a site; all of them together are one. The first one has everything but hosts and guests."""

    site: SiteSnapshot | None = None
    run: Evacuation | None = None
    #: Of the evacuation, the guests that have a target: no other is asked about.
    placed: frozenset[str] = frozenset()
    hosts: Mapping[str, Host] = field(default_factory=dict)
    #: Guests by their hosts; those of one host may be in several portions.
    guests: Sequence[tuple[str, Sequence[Guest]]] = ()


@dataclass(frozen=True, kw_only=True)
class GuestOutlook:
    """The outlook of one guest's migration."""

    #: Its turn, from 1; ``None``: its time is not forecast.
    order: int | None = None
    starts_in_seconds: float | None = None
    #: From its turn to its end.
    takes: Quantiles | None = None
    #: ``None``: its end is not forecast.
    verdict: Verdict | None = None
    downtime_seconds: float | None = None
    #: Why it would not end; ``None`` where it would.
    no_end: Finding | None = None
    #: The group whose guests are switched together; empty: it goes alone.
    moved_with: str = ""


@dataclass(frozen=True, kw_only=True)
class PathOutlook:
    """Speed that a path is taken to have for streams, in bytes per second, and why."""

    bytes_per_second: float
    low: float
    high: float
    #: Seconds since the epoch.
    measured_at: float | None
    basis: str
    note: str


@dataclass(frozen=True, kw_only=True)
class PlanOutlook:
    """The outlook of the whole evacuation."""

    #: By the guests' keys, of those that were placed.
    guests: Mapping[str, GuestOutlook]
    #: By source and target, of those that would be taken.
    paths: Mapping[tuple[str, str], PathOutlook]
    takes: Quantiles
    lower_bound_seconds: float


def portions(
    snapshot: SiteSnapshot, run: Evacuation, *, placed: frozenset[str] = frozenset()
) -> Iterator[Portion]:
    """Yield the request for the outlook of an evacuation as if it was begun now.

    :param placed: see :class:`Portion`; for :func:`outlook`.
    """
    names = {run.policy, snapshot.policies.default, *(each.policy for each in snapshot.evacuations)}
    for each in (*snapshot.evacuations, run):
        names |= {name for entry in each.entries.values() for name in (entry.policy, entry.guest.policy)}
    policies = KnownPolicies({name: snapshot.policies.named(name) for name in names if name})
    site = replace(
        snapshot,
        hosts={},
        guests={},
        policies=PolicyRules(named=policies, default=snapshot.policies.default),
        evacuations=[],
    )
    yield Portion(site=site, run=run, placed=placed)
    for each in snapshot.evacuations:
        if each.host != run.host:
            yield Portion(run=each)
    hosts = list(snapshot.hosts.items())
    for at in range(0, len(hosts), _HOSTS):
        yield Portion(hosts=dict(hosts[at : at + _HOSTS]))
    some: list[tuple[str, Sequence[Guest]]] = []
    count = 0
    for name, guests in snapshot.guests.items():
        for at in range(0, max(1, len(guests)), _GUESTS):
            some.append((name, guests[at : at + _GUESTS]))
            count += len(some[-1][1]) + 1
            if count >= _GUESTS:
                yield Portion(guests=some)
                some, count = [], 0
    yield Portion(guests=some)


def _joined(given: Sequence[Portion]) -> tuple[SiteSnapshot, Evacuation]:
    first, *others = given
    assert first.site is not None
    assert first.run is not None
    guests: dict[str, tuple[Guest, ...]] = {}
    for portion in others:
        for name, some in portion.guests:
            guests[name] = (*guests.get(name, ()), *some)
    site = replace(
        first.site,
        hosts={name: host for portion in others for name, host in portion.hosts.items()},
        guests=guests,
        evacuations=[*(portion.run for portion in others if portion.run is not None), first.run],
    )
    return site, first.run


def places(given: Sequence[Portion]) -> dict[str, tuple[str | None, str]]:
    """Return, by the guests' keys, the target of each guest of the evacuation, or none; and the reason."""
    site, run = _joined(given)
    plan = make_plan(site)
    after = plan.evacuations.get(run.id, plan.tended[run.id].after)
    targets = plan.targets
    found: dict[str, tuple[str | None, str]] = {}
    for key in run.entries:
        place = targets.get(key)
        found[key] = (place.host, place.reason) if place is not None else (None, after.entries[key].reason)
    return found


def outlook(given: Sequence[Portion]) -> PlanOutlook:
    """Return what would come of the guests that were placed, and of all of them together."""
    site, run = _joined(given)
    plan: DrainPlan = make_plan(site)
    asked = forecast_request(site, plan)
    prediction = make_forecast(asked).prediction
    placed = given[0].placed
    own = {one.guest: one for one in asked.transfers if one.guest in run.entries and one.guest in placed}
    links = site.limits.links
    network = LinkTable(site.hosts, links)
    guests = dict.fromkeys(placed, GuestOutlook())
    for key, transfer in own.items():
        guest = run.entries[key].guest
        policy = site.policies.of(guest, run.policy)
        speed = Move(transfer, network, links).speed
        accepted = accepts_ceiling(guest, run.accept)
        seen = forecast_guest(guest, policy, transfer, speed, ceiling_accepted=accepted)
        guests[key] = GuestOutlook(
            verdict=seen.verdict,
            downtime_seconds=seen.downtime_seconds,
            no_end=no_end_finding(guest, policy, speed) if seen.verdict is Verdict.CANNOT else None,
        )
    ordered = [key for key in prediction.guests if key in placed and not _refused(guests[key])]
    for order, key in enumerate(ordered, 1):
        expected = prediction.guests[key]
        guests[key] = replace(
            guests[key],
            order=order,
            starts_in_seconds=max(0.0, expected.begins.p50),
            takes=Quantiles(
                p10=max(0.0, expected.ends.p10 - expected.begins.p10),
                p50=max(0.0, expected.ends.p50 - expected.begins.p50),
                p90=max(0.0, expected.ends.p90 - expected.begins.p90),
            ),
        )
    for key, group in _groups(site, run, own.keys()).items():
        guests[key] = replace(guests[key], moved_with=group)
    guests |= _ending_together(guests)
    forecast_transfers = [one for one in own.values() if one.guest in prediction.guests]
    ends = {(one.source, one.target) for one in own.values()}
    return PlanOutlook(
        guests=guests,
        paths={each: _path_outlook(site, network, *each) for each in sorted(ends)},
        takes=_takes(prediction, own.keys()),
        lower_bound_seconds=lower_bound_seconds(forecast_transfers, asked.hosts, asked.links),
    )


def _groups(site: SiteSnapshot, run: Evacuation, placed: AbstractSet[str]) -> dict[str, str]:
    """Return the groups of those that are switched together with others, by their keys."""
    groups = {key: run.entries[key].guest.group for key in placed}
    return {
        key: group for key, group in groups.items() if group and together(run, key, site.limits.group(group))
    }


def _ending_together(guests: Mapping[str, GuestOutlook]) -> dict[str, GuestOutlook]:
    """Return the guests of groups, each with the end of the last of its group."""
    last: dict[str, Quantiles] = {}
    for each in guests.values():
        if each.moved_with and each.takes is not None and each.starts_in_seconds is not None:
            known = last.get(each.moved_with, Quantiles(p10=0.0, p50=0.0, p90=0.0))
            last[each.moved_with] = Quantiles(
                p10=max(known.p10, each.starts_in_seconds + each.takes.p10),
                p50=max(known.p50, each.starts_in_seconds + each.takes.p50),
                p90=max(known.p90, each.starts_in_seconds + each.takes.p90),
            )
    found = {}
    for key, each in guests.items():
        if each.moved_with in last and each.starts_in_seconds is not None:
            end, begins = last[each.moved_with], each.starts_in_seconds
            takes = Quantiles(p10=end.p10 - begins, p50=end.p50 - begins, p90=end.p90 - begins)
            found[key] = replace(each, takes=takes)
    return found


def _path_outlook(site: SiteSnapshot, network: LinkTable, source: str, target: str) -> PathOutlook:
    path = network.path(source, target)
    host = site.hosts.get(source)
    link = host.link_bytes_per_second if host is not None else None
    known = min((each for each in path.links if each.learned.bytes_per_second), key=_capacity, default=None)
    if known is not None and known.capacity <= path.speed:
        basis, learned = "measured", known.learned
        carries = learned.bytes_per_second or 0.0
        note = f"measured {_ago(site, learned)}: {known.name} carries {_bits(carries)}"
    else:
        learned = path.learned
        basis = "assumed" if not link else "card" if host is not None and host.link_is_read else "configured"
        says = {"assumed": "assumed", "card": "its card says", "configured": "configured are"}[basis]
        claim = f"{says} {_bits(link or site.limits.links.assumed_link_bytes_per_second)}"
        note = f"never measured: {claim}"
        if learned.measured:
            note = f"it held nobody back at {_bits(learned.at_least)}, {_ago(site, learned)}; {claim}"
    factor = math.exp(P90 * max(site.limits.links.link_spread_ratio, learned.spread_ratio))
    return PathOutlook(
        bytes_per_second=path.speed,
        low=path.speed / max(path.doubt, factor),
        high=path.speed * (factor if path.doubt <= 1 else 1.0),
        measured_at=learned.measured_at,
        basis=basis,
        note=f"{source} to {target}: {note}",
    )


def _capacity(link: LinkDirection) -> float:
    return link.capacity


def _ago(site: SiteSnapshot, learned: LinkSpeed) -> str:
    seconds = max(0.0, site.now.timestamp() - (learned.measured_at or 0.0))
    return f"{show_seconds(seconds)} ago" if seconds >= 1.0 else "just now"


def _bits(payload: float) -> str:
    """Return a speed as cards and switches have it: headers included, which take 5 % beside the payload."""
    bits = payload / 0.95 * 8
    return f"{bits / 1e9:.3g} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.3g} Mbit/s"


def _refused(guest: GuestOutlook) -> bool:
    """Return whether preflight would refuse it, so that it never has its turn."""
    return guest.no_end is not None and guest.no_end.severity is Severity.ERROR


def _takes(prediction: Prediction, own: AbstractSet[str]) -> Quantiles:
    """Return when the last of its guests is at its target and cleared away after."""
    if not prediction.guests.keys() - own:
        return prediction.makespan
    ends = [prediction.guests[key].ends for key in own if key in prediction.guests]
    return Quantiles(
        p10=max((end.p10 for end in ends), default=0.0),
        p50=max((end.p50 for end in ends), default=0.0),
        p90=max((end.p90 for end in ends), default=0.0),
    )
