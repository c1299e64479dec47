"""What will come of the migrations that wait or run: when each will end, and who is not expected to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from migrator.core.inventory import Guest, Host
from migrator.core.migration.advance_forecast import AdvanceForecast, forecast_in_advance
from migrator.core.migration.convergence import ActionKind
from migrator.core.migration.forecast import Verdict
from migrator.core.model import RunState, State
from migrator.core.policy import Policy
from migrator.core.schedule.timetable import Prediction, Quantiles, predict
from migrator.core.schedule.transfers import LinkRules, LinkTable, Move, Transfer
from migrator.units import show_rate

if TYPE_CHECKING:
    from migrator.engine.controller import Engine
    from migrator.engine.migration.journalled_session import JournalledSession

#: From a guest's arrival until what is left of it at its source is cleared away.
_CLEARING_SECONDS = 0.5
#: How long a dirty-rate probe watches.
PROBE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Going:
    """Whose a transfer is."""

    guest: Guest
    policy: Policy
    #: Of its running migration; ``UNKNOWN`` before there is one that can tell.
    verdict: Verdict = Verdict.UNKNOWN
    #: Why that migration is at risk, where it said so.
    said: str = ""
    #: Nothing can keep it from ending any more: it is past its switch.
    sure: bool = False


def foretell(
    transfers: Sequence[Transfer], going: Mapping[str, Going], hosts: Mapping[str, Host], rules: LinkRules
) -> tuple[Prediction, dict[str, str]]:
    """When each ends; and for everyone that is not expected to, by the guest's key, why. Pure."""
    network = LinkTable(hosts, rules)
    doubts = {}
    for transfer in transfers:
        one = going.get(transfer.guest)
        if one is None or one.sure:  # none: it has ended since
            continue
        if one.verdict in (Verdict.CONVERGES, Verdict.CONVERGES_IF):
            continue
        speed = Move(transfer, network, rules).speed
        if one.said:
            doubts[transfer.guest] = f"not expected to end: {one.said}"
        elif foreseen(one.guest, one.policy, transfer, speed).verdict is Verdict.CANNOT:
            doubts[transfer.guest] = f"not expected to end: {no_end(one.guest, one.policy, speed)}"
    return predict(transfers, hosts, rules), doubts


def going_jobs(jobs: Iterable[JournalledSession]) -> dict[str, Going]:
    """Whose the transfers of migrations are."""
    going = {}
    for job in jobs:
        if job.ended or job.state is State.HELD:
            continue
        forecast = job.status.forecast if job.status else None
        at_risk = [each.reason for each in job.result.decisions if each.action == ActionKind.AT_RISK]
        going[job.guest.key] = Going(
            guest=job.guest,
            policy=job.policy,
            verdict=forecast.verdict if forecast else Verdict.UNKNOWN,
            said=at_risk[-1] if at_risk else "",
            sure=job.state not in (State.QUEUED, State.WAITING, State.PREPARING, State.PRECOPY),
        )
    return going


def tell(engine: Engine, prediction: Prediction, doubts: Mapping[str, str]) -> None:
    """Every evacuation that runs gets what is foretold of it."""
    now = datetime.now(UTC)
    waiting = {job.guest.key for job in engine.jobs.values() if job.state is State.WAITING}
    for run in engine.runs.values():
        if run.ended:
            continue
        ends = []
        for key, entry in run.entries.items():
            expected = prediction.guests.get(key)
            entry.starts_in_seconds = entry.takes_seconds = None
            if expected is None or not entry.going:
                continue  # what was doubted stays so while it waits to be tried again, or is set aside
            entry.starts_in_seconds = max(0.0, expected.begins.p50)
            entry.doubt = doubts.get(key, "")
            if not entry.doubt:
                entry.takes_seconds = max(0.0, expected.ends.p50 - expected.begins.p50)
                ends.append(expected.ends)
        # What they wait for ends when somebody else says so: nobody knows how late that will be.
        doubted = any(entry.doubt for entry in run.left) or any(key in waiting for key in run.entries)
        after = _CLEARING_SECONDS
        if run.kind == "evacuate":
            after += engine.inventory.look_seconds(
                run.host
            )  # it is looked at again before it is called empty
        run.forecast_end_at = _all_ended(now + timedelta(seconds=after), ends)
        at_risk = run.deadline is not None and (
            doubted or (run.forecast_end_at is not None and run.forecast_end_at[2] > run.deadline)
        )
        if at_risk != run.at_risk and (ends or doubted):
            run.at_risk = at_risk
            engine.announce_run(run)


def _all_ended(now: datetime, ends: Sequence[Quantiles]) -> tuple[datetime, datetime, datetime] | None:
    """At p10, p50 and p90; ``None`` where nobody is expected to."""
    if not ends:
        return None
    return (
        now + timedelta(seconds=max(end.p10 for end in ends)),
        now + timedelta(seconds=max(end.p50 for end in ends)),
        now + timedelta(seconds=max(end.p90 for end in ends)),
    )


def foreseen(guest: Guest, policy: Policy, transfer: Transfer, speed: float) -> AdvanceForecast:
    """Of a migration that has not begun.

    :param speed: what the stream will carry, bytes per second.
    """
    if guest.run is not RunState.RUNNING:
        return AdvanceForecast(verdict=Verdict.CONVERGES)  # nobody dirties anything, and nobody stands still
    return forecast_in_advance(
        policy,
        left_bytes=transfer.bytes_left,
        bytes_per_second=speed,
        dirty_rate_bytes_per_second=guest.dirty_rate_bytes_per_second,
        probe_seconds=PROBE_SECONDS,
    )


def no_end(guest: Guest, policy: Policy, speed: float) -> str:
    """Why a guest cannot be moved inside its policy."""
    return (
        f"it dirties {show_rate(guest.dirty_rate_bytes_per_second or 0.0)}, its link carries {show_rate(speed)}, "
        f"and policy {policy.name} allows nothing that would let it end"
    )
