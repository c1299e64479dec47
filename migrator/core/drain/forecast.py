"""The forecast of migrations that wait or run: when each will end, and which are not expected to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache

from migrator.core.drain.evacuation import Evacuation, GuestForecast
from migrator.core.drain.plan import DrainPlan
from migrator.core.drain.snapshot import SiteSnapshot
from migrator.core.drain.transfers import Transfers
from migrator.core.drain.wanting import Wanting
from migrator.core.findings import finding
from migrator.core.inventory import Guest, Host, HostFacts
from migrator.core.migration.advance_forecast import AdvanceForecast, forecast_in_advance
from migrator.core.migration.downtime_floor import INFEASIBLE, ceiling_findings, smallest_ceiling
from migrator.core.migration.forecast import Verdict
from migrator.core.model import Finding, RunState, State
from migrator.core.policy import Policy
from migrator.core.schedule.timetable import Prediction, Quantiles, predict
from migrator.core.schedule.transfers import LinkRules, LinkTable, Move, Transfer
from migrator.units import show_rate, show_seconds

#: From a guest's arrival until what is left of it at its source is cleared away.
_CLEARING_SECONDS = 0.5
#: Guests in one portion of a request.
_PORTION = 25
#: How long a dirty-rate probe watches.
PROBE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class TransferGuest:
    """The guest that a transfer belongs to, and what is known of its migration."""

    guest: Guest
    policy: Policy
    #: Of its running migration; ``UNKNOWN`` before there is one that can tell.
    verdict: Verdict = Verdict.UNKNOWN
    #: Why that migration is at risk, where it said so.
    risk: str = ""
    #: Nothing can keep it from ending any more.
    sure: bool = False
    #: Somebody accepted that its ceiling cannot be kept.
    ceiling_accepted: bool = False


@dataclass(frozen=True, kw_only=True)
class ForecastRequest:
    """The transfers that are to be forecast, with the hosts and links that they use."""

    transfers: Sequence[Transfer]
    going: Mapping[str, TransferGuest]
    hosts: Mapping[str, Host]
    links: LinkRules


@dataclass(frozen=True, kw_only=True)
class DrainForecast:
    """The forecast of all guests that wait or are under way."""

    prediction: Prediction
    #: Who is not expected to end, by the guest's key, and why.
    doubts: Mapping[str, str]


def forecast_request(snapshot: SiteSnapshot, plan: DrainPlan) -> ForecastRequest:
    """Return the request for a forecast: everybody that waits or is under way."""
    return joined(list(forecast_request_portions(snapshot, plan)))


def forecast_request_portions(snapshot: SiteSnapshot, plan: DrainPlan) -> Iterator[ForecastRequest]:
    """Yield the same as :func:`forecast_request` in portions of so many guests that each is made in a moment."""
    transfers = Transfers(snapshot, deadlines_from=snapshot.now)
    going: dict[str, TransferGuest] = {}
    found: list[Transfer] = []
    for transfer, whose in _everybody(snapshot, plan, transfers):
        found.append(transfer)
        going[transfer.guest] = whose
        if len(found) == _PORTION:
            yield _portion(snapshot, found, going)
            found, going = [], {}
    yield _portion(snapshot, found, going)


def joined(portions: Sequence[ForecastRequest]) -> ForecastRequest:
    """Return the whole that these are portions of; at least one."""
    return ForecastRequest(
        transfers=[each for portion in portions for each in portion.transfers],
        going={key: each for portion in portions for key, each in portion.going.items()},
        hosts={name: each for portion in portions for name, each in portion.hosts.items()},
        links=portions[0].links,
    )


def forecast_from_portions(portions: Sequence[ForecastRequest]) -> DrainForecast:
    """Make the forecast that these portions ask for; see :func:`make_forecast`."""
    return make_forecast(joined(portions))


def _portion(
    snapshot: SiteSnapshot, found: Sequence[Transfer], going: Mapping[str, TransferGuest]
) -> ForecastRequest:
    # Of hosts only the links count; the rest is large.
    names = {name for each in found for name in (each.source, each.target)}
    hosts = {
        name: replace(snapshot.hosts[name], facts=HostFacts()) for name in names if name in snapshot.hosts
    }
    return ForecastRequest(transfers=found, going=going, hosts=hosts, links=snapshot.limits.links)


def _everybody(
    snapshot: SiteSnapshot, plan: DrainPlan, transfers: Transfers
) -> Iterator[tuple[Transfer, TransferGuest]]:
    """Yield all that wait, pause or are under way; who is on its way counts as that."""
    for target in plan.targets.values():
        wanting, guest = target.wanting, target.wanting.entry.guest
        one = transfers.waiting(guest, target.host, wanting.policy, wanting.run)
        accepted = accepts_ceiling(guest, wanting.run.accept)
        yield one, TransferGuest(guest=guest, policy=wanting.policy, ceiling_accepted=accepted)
    for wanting in _paused(snapshot, plan):
        entry = wanting.entry
        one = transfers.waiting(entry.guest, entry.target or "", wanting.policy, wanting.run)
        pause = entry.not_before - snapshot.clock
        one = replace(one, prepare_seconds=one.prepare_seconds + pause)
        accepted = accepts_ceiling(entry.guest, wanting.run.accept)
        yield one, TransferGuest(guest=entry.guest, policy=wanting.policy, ceiling_accepted=accepted)
    for each in snapshot.live.values():
        if each.state is State.HELD:
            continue
        yield (
            transfers.running(each),
            TransferGuest(
                guest=each.guest,
                policy=each.policy,
                verdict=each.verdict,
                risk=each.risk,
                sure=each.sure,
                ceiling_accepted=accepts_ceiling(each.guest, each.accepted),
            ),
        )


def _paused(snapshot: SiteSnapshot, plan: DrainPlan) -> Iterable[Wanting]:
    """Return those that wait to be tried again."""
    for run in plan.evacuations.values():
        for entry in run.wanting:
            if entry.target and entry.not_before > snapshot.clock and entry.guest.key not in snapshot.live:
                policy = snapshot.policies.of(entry.guest, run.policy_of(entry.guest.key))
                yield Wanting(run=run, entry=entry, policy=policy)


def make_forecast(asked: ForecastRequest) -> DrainForecast:
    """Simulate the schedule from now on; for everyone that is not expected to end, say why.

    Takes the longer the more there are: about 0.1 s for 500 guests of one source.
    """
    network = LinkTable(asked.hosts, asked.links)
    doubts = {}
    for transfer in asked.transfers:
        one = asked.going[transfer.guest]
        if one.sure or one.verdict in (Verdict.CONVERGES, Verdict.CONVERGES_IF):
            continue
        speed = Move(transfer, network, asked.links).speed
        if one.risk:
            doubts[transfer.guest] = f"not expected to end: {one.risk}"
        elif (
            forecast_guest(
                one.guest, one.policy, transfer, speed, ceiling_accepted=one.ceiling_accepted
            ).verdict
            is Verdict.CANNOT
        ):
            doubts[transfer.guest] = f"not expected to end: {why_no_end(one.guest, one.policy, speed)}"
    return DrainForecast(prediction=predict(asked.transfers, asked.hosts, asked.links), doubts=doubts)


def with_forecast(
    run: Evacuation, outlook: DrainForecast, *, waiting: Iterable[str], now: datetime, look_seconds: float
) -> Evacuation:
    """Return the evacuation with its forecast.

    :param waiting: guests whose migrations wait for somebody else's job.
    :param look_seconds: what a look at its host takes: it is looked at again before it is called empty.
    """
    ends = []
    forecasts = {}
    for key, entry in run.entries.items():
        expected = outlook.prediction.guests.get(key)
        if expected is None or not entry.going:
            # What was doubted stays so while it waits to be tried again, or is set aside.
            if (known := run.forecasts.get(key)) is not None and known.doubt:
                forecasts[key] = GuestForecast(doubt=known.doubt)
            continue
        doubt, takes = outlook.doubts.get(key, ""), None
        if not doubt:
            takes = max(0.0, expected.ends.p50 - expected.begins.p50)
            ends.append(expected.ends)
        forecasts[key] = GuestForecast(
            starts_in_seconds=max(0.0, expected.begins.p50), takes_seconds=takes, doubt=doubt
        )
    # What they wait for ends when somebody else says so: nobody knows how late that will be.
    doubted = any(
        entry.guest.key in forecasts and forecasts[entry.guest.key].doubt for entry in run.left
    ) or any(key in run.entries for key in waiting)
    after = _CLEARING_SECONDS + (look_seconds if run.kind == "evacuate" else 0.0)
    end_at = _all_ended(now + timedelta(seconds=after), ends)
    at_risk = run.deadline is not None and (doubted or (end_at is not None and end_at[2] > run.deadline))
    if not (ends or doubted):
        at_risk = run.at_risk
    return replace(run, forecasts=forecasts, forecast_end_at=end_at, at_risk=at_risk)


def _all_ended(now: datetime, ends: Sequence[Quantiles]) -> tuple[datetime, datetime, datetime] | None:
    """Return p10, p50 and p90; ``None`` where nobody is expected to end."""
    if not ends:
        return None
    return (
        now + timedelta(seconds=max(end.p10 for end in ends)),
        now + timedelta(seconds=max(end.p50 for end in ends)),
        now + timedelta(seconds=max(end.p90 for end in ends)),
    )


def accepts_ceiling(guest: Guest, accepted: Iterable[str]) -> bool:
    """Return whether these codes, or the guest's own, accept that its ceiling cannot be kept."""
    return INFEASIBLE in accepted or INFEASIBLE in guest.accept


def forecast_guest(
    guest: Guest, policy: Policy, transfer: Transfer, speed: float, *, ceiling_accepted: bool = False
) -> AdvanceForecast:
    """Return what will come of a migration that has not begun.

    :param speed: what the stream will carry, bytes per second.
    :param ceiling_accepted: it goes although its ceiling cannot be kept.
    """
    if guest.run is not RunState.RUNNING:
        return AdvanceForecast(verdict=Verdict.CONVERGES)  # nobody dirties anything, and nobody stands still
    if ceiling_accepted and (least := smallest_ceiling(policy, speed)) is not None:
        return AdvanceForecast(verdict=Verdict.CONVERGES_IF, downtime_seconds=least)
    return _in_advance(policy, transfer.bytes_left, speed, guest.dirty_rate_bytes_per_second)


@lru_cache(maxsize=4096)
def _in_advance(policy: Policy, left_bytes: float, speed: float, dirty_rate: float | None) -> AdvanceForecast:
    """Forecast a migration that has not begun; cached, as little changes for waiting guests between two forecasts."""
    return forecast_in_advance(
        policy,
        left_bytes=left_bytes,
        bytes_per_second=speed,
        dirty_rate_bytes_per_second=dirty_rate,
        probe_seconds=PROBE_SECONDS,
    )


def no_end_finding(guest: Guest, policy: Policy, speed: float) -> Finding:
    """Return :func:`why_no_end` as the finding that a plan shows."""
    if found := ceiling_findings(policy, speed):
        return found[0]
    return finding("does-not-converge", why_no_end(guest, policy, speed))


def why_no_end(guest: Guest, policy: Policy, speed: float) -> str:
    """Return why a guest cannot be moved inside its policy."""
    if (least := smallest_ceiling(policy, speed)) is not None:
        return (
            f"its devices' state alone takes {show_seconds(least)} at {show_rate(speed)}, the smallest ceiling that "
            f"can be kept, and policy {policy.name} allows {show_seconds(policy.max_downtime_seconds)}"
        )
    return (
        f"it dirties {show_rate(guest.dirty_rate_bytes_per_second or 0.0)}, its link carries {show_rate(speed)}, "
        f"and policy {policy.name} allows nothing that would let it end"
    )
