"""What an evacuation would do, before the act: the plan that it would be, which nobody carries out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from migrator.api.documents import FindingDocument, PlanDocument, PlannedGuest
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.forecast import foreseen, foretell, no_end, question
from migrator.core.drain.plan import DrainPlan, make_plan
from migrator.core.drain.snapshot import SiteSnapshot
from migrator.core.findings import errors_first, finding
from migrator.core.migration.forecast import Verdict
from migrator.core.model import Finding, State
from migrator.core.schedule.timetable import Prediction, Quantiles, lower_bound_seconds
from migrator.core.schedule.transfers import LinkTable, Move, Transfer
from migrator.engine import clock
from migrator.engine.dirty_rates import DirtyRates
from migrator.engine.migration import preflight
from migrator.engine.sessions import Sessions
from migrator.engine.snapshots import Snapshots

#: An evacuation holds to a plan that is no older, as far as it still can.
_PLAN_HOLDS_SECONDS = 3600.0
#: Guests asked at the same time.
_ASKED_AT_A_TIME = 8
#: Targets that are tried for one guest, each of which preflight may refuse.
_TARGETS_TRIED = 6
#: Of an evacuation that nobody has begun.
_NOBODYS = "plan"

_Targets = dict[str, tuple[str | None, str]]
_Findings = dict[str, tuple[Finding, ...]]


class Preview:
    """Looks ahead; begins nothing."""

    def __init__(self, *, snapshots: Snapshots, sessions: Sessions, dirty_rates: DirtyRates) -> None:
        self._snapshots, self._sessions, self._dirty_rates = snapshots, sessions, dirty_rates
        #: The last plan of each host: every guest's target, and when it was made on the engine's clock.
        self._planned: dict[str, tuple[float, dict[str, str]]] = {}

    def planned(self, host: str) -> dict[str, str]:
        """Return what was last told of each guest's target, if that was a short while ago; empty without a plan."""
        made, targets = self._planned.get(host, (-_PLAN_HOLDS_SECONDS, {}))
        return dict(targets) if clock.now() - made < _PLAN_HOLDS_SECONDS else {}

    async def plan(self, host: str, policy: str | None, accept: Sequence[str] = ()) -> PlanDocument:
        """Return what an evacuation of that host would do now, and what speaks against it.

        The host has just been looked at.
        """
        await self._dirty_rates.measure(self._snapshots.take().guests[host])
        snapshot = self._snapshots.take()
        run = Evacuation(id=_NOBODYS, host=host, policy=policy or "", accept=tuple(accept))
        run = run.took_in(snapshot.here_or_coming(host))
        run, targets, findings = await self._settled(run)
        snapshot, plan = self._made(run)
        asked = question(snapshot, plan)
        outlook = foretell(asked)
        own = [
            one for one in asked.transfers if one.guest in run.entries and targets[one.guest][0] is not None
        ]
        guests = {}
        for key, entry in run.entries.items():
            target, reason = targets[key]
            guests[key] = PlannedGuest(
                guest=key,
                guest_name=entry.guest.name,
                target=target,
                reason=reason,
                policy=snapshot.policies.of(entry.guest, run.policy).name,
                possible=target is not None and not preflight.errors(findings.get(key, ())),
            )
        self._planned[host] = (
            clock.now(),
            {key: each.target for key, each in guests.items() if each.target is not None},
        )
        for transfer in own:
            guests[transfer.guest] = _foreseen(guests[transfer.guest], transfer, run, snapshot, findings)
        ordered = _ordered(guests, outlook.prediction)
        ordered = [
            each.model_copy(update={"findings": _documents(findings.get(each.guest, ()))}) for each in ordered
        ]
        takes = _takes(outlook.prediction, {one.guest for one in own})
        foretold = [one for one in own if one.guest in outlook.prediction.guests]
        return PlanDocument(
            host=host,
            guests=ordered,
            cannot_move=sum(not each.possible for each in ordered),
            takes_p10_seconds=takes.p10,
            takes_p50_seconds=takes.p50,
            takes_p90_seconds=takes.p90,
            lower_bound_seconds=lower_bound_seconds(foretold, asked.hosts, asked.links),
        )

    def _made(self, run: Evacuation) -> tuple[SiteSnapshot, DrainPlan]:
        """Return the plan that would be made if it was begun now."""
        snapshot = self._snapshots.take()
        others = [each for each in snapshot.evacuations if each.host != run.host]
        snapshot = replace(snapshot, evacuations=[*others, run])
        return snapshot, make_plan(snapshot)

    async def _settled(self, run: Evacuation) -> tuple[Evacuation, _Targets, _Findings]:
        """Return every guest's target, or none, with the reason, and what was found.

        As the evacuation would: where preflight refuses a target, the guest is placed anew without it.
        """
        found: _Findings = {}
        targets: _Targets = {}
        snapshot = self._snapshots.take()
        for key, entry in run.entries.items():
            under_way = snapshot.live.get(key)
            if under_way is not None and under_way.target != run.host:
                targets[key] = (
                    None if under_way.state is State.HELD else under_way.target,
                    f"its migration {under_way.id} is {under_way.state}",
                )
            elif entry.guest.obstacle:
                targets[key], found[key] = (None, entry.guest.obstacle), preflight.obstacle(entry.guest)
        given = set(targets)
        asked: set[tuple[str, str]] = set()
        for _ in range(_TARGETS_TRIED):
            snapshot, plan = self._made(run)
            entries = plan.tended[run.id].after.entries
            for key in run.entries.keys() - given:
                place = plan.targets.get(key)
                now = plan.evacuations[run.id].entries[key] if run.id in plan.evacuations else entries[key]
                targets[key] = (place.host, place.reason) if place is not None else (None, now.reason)
            new = {
                key: target
                for key in run.entries.keys() - given
                if (target := targets[key][0]) is not None and (key, target) not in asked
            }
            asked |= set(new.items())
            run, again = await self._ask(run, new, snapshot, given, targets, found)
            if not again:
                break
        return run, targets, found

    async def _ask(
        self,
        run: Evacuation,
        wanted: Mapping[str, str],
        snapshot: SiteSnapshot,
        given: set[str],
        targets: _Targets,
        found: _Findings,
    ) -> tuple[Evacuation, bool]:
        """Ask preflight of these; True where a guest has to be placed anew."""
        slots = asyncio.Semaphore(_ASKED_AT_A_TIME)

        async def ask(key: str, target: str) -> str:
            guest = run.entries[key].guest
            policy = snapshot.policies.of(guest, run.policy)
            session = self._sessions.make(guest, target, policy, accept=run.accept, announce=False)
            async with slots:
                answer = await session.check_only()
            errors = preflight.errors(answer)
            if not errors:
                found[key] = answer
                return ""
            # What kept it from the hosts that were tried before stays said.
            before = preflight.errors(found.get(key, ()))
            found[key] = errors_first([*before, *answer])
            if preflight.hopeless(errors):
                targets[key] = (None, errors[0].message)
                given.add(key)
                return ""
            return preflight.in_one_line(errors)

        async with asyncio.TaskGroup() as group:
            tasks = {
                key: group.create_task(ask(key, target), name=f"check {key}")
                for key, target in wanted.items()
            }
        refused = {key: task.result() for key, task in tasks.items() if task.result()}
        changed = {}
        for key, why in refused.items():
            entry = run.entries[key]
            changed[key] = replace(entry, excluded={**entry.excluded, wanted[key]: why})
        return run.marked(changed), bool(refused)


def _foreseen(
    planned: PlannedGuest, transfer: Transfer, run: Evacuation, snapshot: SiteSnapshot, findings: _Findings
) -> PlannedGuest:
    """Return it with what will come of its migration; who is not expected to end has a finding of that."""
    guest, links = run.entries[transfer.guest].guest, snapshot.limits.links
    policy = snapshot.policies.of(guest, run.policy)
    speed = Move(transfer, LinkTable(snapshot.hosts, links), links).speed
    seen = foreseen(guest, policy, transfer, speed)
    ends = seen.verdict is not Verdict.CANNOT
    if not ends:
        found = finding("does-not-converge", no_end(guest, policy, speed))
        findings[guest.key] = (*findings.get(guest.key, ()), found)
    return planned.model_copy(
        update={
            "verdict": seen.verdict.value,
            "downtime_seconds": seen.downtime_seconds,
            "possible": planned.possible and ends,
        }
    )


def _ordered(guests: dict[str, PlannedGuest], prediction: Prediction) -> list[PlannedGuest]:
    """Return them with their times, in the order in which they start; then those that do not."""
    left: dict[str, PlannedGuest] = dict(guests)
    found: list[PlannedGuest] = []
    for key, expected in prediction.guests.items():
        if key not in left or left[key].target is None:
            continue
        low, middle, high = (
            getattr(expected.ends, name) - getattr(expected.begins, name) for name in ("p10", "p50", "p90")
        )
        update = {
            "order": len(found) + 1,
            "starts_in_seconds": max(0.0, expected.begins.p50),
            "takes_p10_seconds": max(0.0, low),
            "takes_p50_seconds": max(0.0, middle),
            "takes_p90_seconds": max(0.0, high),
        }
        found.append(left.pop(key).model_copy(update=update))
    return [*found, *left.values()]


def _takes(prediction: Prediction, own: set[str]) -> Quantiles:
    """Return when the last of its guests is at its target and cleared away after."""
    if not prediction.guests.keys() - own:
        return prediction.makespan
    ends = [prediction.guests[key].ends for key in own if key in prediction.guests]
    return Quantiles(
        p10=max((end.p10 for end in ends), default=0.0),
        p50=max((end.p50 for end in ends), default=0.0),
        p90=max((end.p90 for end in ends), default=0.0),
    )


def _documents(findings: Sequence[Finding]) -> list[FindingDocument]:
    return [FindingDocument(**asdict(each)) for each in findings]
