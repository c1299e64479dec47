"""Previews of evacuations and migrations: the plan that each would be, which nobody carries out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime

from migrator.api.documents import FindingDocument
from migrator.api.plan_documents import PlanDocument, PlannedGuest, PlannedGuestExperience, PlannedPath
from migrator.core.cold_start import START_SECONDS, is_cold
from migrator.core.drain import preview
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.saving import saved_into
from migrator.core.drain.snapshot import SiteSnapshot
from migrator.core.findings import errors_first
from migrator.core.guest_experience import GuestExperience
from migrator.core.inventory import Guest
from migrator.core.model import Finding, State
from migrator.core.policy import Policy
from migrator.core.preflight.disk_room import PlannedRoom, beside_others
from migrator.engine import clock
from migrator.engine.dirty_rates import DirtyRates
from migrator.engine.guest_experiences import GuestExperiences
from migrator.engine.migration import preflight
from migrator.engine.sessions import Sessions
from migrator.engine.snapshots import Snapshots
from migrator.ports.computing import Computing

#: An evacuation holds to a plan that is no older, as far as it still can.
_PLAN_HOLDS_SECONDS = 3600.0
#: Guests asked at the same time.
_ASKED_AT_A_TIME = 8
#: Targets that are tried for one guest, each of which preflight may refuse.
_TARGETS_TRIED = 6
#: Between two checks beside an evacuation, whose guests are asked as well.
_BETWEEN_CHECKS_SECONDS = 0.1
#: Documents of guests that are made in one go.
_DOCUMENTS_AT_ONCE = 100
#: Of an evacuation that nobody has begun.
_NOBODYS = "plan"
#: States of a migration in which nobody can promise that its guest will leave.
_NOT_SURE_TO_LEAVE = (State.RECOVERING, State.HELD)

_Targets = dict[str, tuple[str | None, str]]
_Findings = dict[str, tuple[Finding, ...]]


class Preview:
    """Looks ahead; begins nothing."""

    def __init__(
        self,
        *,
        snapshots: Snapshots,
        sessions: Sessions,
        dirty_rates: DirtyRates,
        experiences: GuestExperiences,
        computing: Computing,
    ) -> None:
        self._snapshots, self._sessions, self._dirty_rates = snapshots, sessions, dirty_rates
        self._experiences, self._computing = experiences, computing
        #: The last plan of each host: every guest's target, and when it was made on the engine's clock.
        self._planned: dict[str, tuple[float, dict[str, str]]] = {}

    def planned(self, host: str) -> dict[str, str]:
        """Return what was last told of each guest's target, if that was a short while ago; empty without a plan."""
        made, targets = self._planned.get(host, (-_PLAN_HOLDS_SECONDS, {}))
        return dict(targets) if clock.now() - made < _PLAN_HOLDS_SECONDS else {}

    async def plan(self, host: str, policy: str | None, accept: Sequence[str] = ()) -> PlanDocument:
        """Return what an evacuation of that host would do now, and what speaks against it.

        The host has just been looked at.

        :raise Unavailable: it cannot be computed now.
        """
        await self._dirty_rates.measure(self._snapshots.take().guests[host])
        snapshot = self._snapshots.take()
        run = Evacuation(id=_NOBODYS, host=host, policy=policy or "", accept=tuple(accept))
        run = run.took_in(snapshot.here_or_coming(host))
        run, targets, findings = await self._settled(run)
        snapshot = self._snapshots.take()
        placed = frozenset(
            key
            for key, (target, _) in targets.items()
            if target is not None and not preflight.errors(findings.get(key, ()))
        )
        found = await self._computing.compute(preview.outlook, preview.portions(snapshot, run, placed=placed))
        for key, each in found.guests.items():
            if each.no_end is not None and not is_cold(findings.get(key, ())):
                findings[key] = errors_first([*findings.get(key, ()), each.no_end])
        guests = []
        for number, (key, entry) in enumerate(run.entries.items()):
            target, reason = targets[key]
            own = snapshot.policies.of(entry.guest, run.policy)
            known = _experience(self._experiences.of(key))
            its = (found.guests.get(key), findings.get(key, ()), known)
            planned = _guest(entry.guest, target, reason, own, *its)
            if not planned.possible:
                path = saved_into(entry.guest, snapshot.hosts.get(host), own, "ID")
                planned = planned.model_copy(update={"saved_into": path})
            guests.append(planned)
            if number % _DOCUMENTS_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._planned[host] = (clock.now(), {each.guest: each.target for each in guests if each.target})
        # In the order in which they start; then those that do not.
        guests.sort(key=lambda each: math.inf if each.order is None else each.order)
        return PlanDocument(
            host=host,
            paths=[_path(*ends, each) for ends, each in found.paths.items()],
            guests=guests,
            cannot_move=sum(not (each.possible or each.saved_into) for each in guests),
            guests_shut_off=snapshot.hosts[host].facts.shut_off_guests if host in snapshot.hosts else 0,
            takes_p10_seconds=found.takes.p10,
            takes_p50_seconds=found.takes.p50,
            takes_p90_seconds=found.takes.p90,
            lower_bound_seconds=found.lower_bound_seconds,
        )

    async def learn_disks(self, run: Evacuation) -> None:
        """Find out how much of its guests' disks an evacuation will copy, before their turn comes.

        For one that was begun without a plan: each is checked against the host that it would go to now, a few at a
        time, unless that is known or the guest is on its way.

        :raise Unavailable: it cannot be computed now.
        """
        snapshot = self._snapshots.take()
        places = await self._computing.compute(preview.places, preview.portions(snapshot, run))
        for key, (target, _) in places.items():
            guest = run.entries[key].guest
            if target is None or guest.obstacle or target in guest.disk_bytes_to:
                continue
            snapshot = self._snapshots.take()
            if key in snapshot.live or key not in snapshot.here_or_coming_by_key(run.host):
                continue
            policy = snapshot.policies.of(guest, run.policy)
            session = self._sessions.make(guest, target, policy, accept=run.accept, announce=False)
            await session.check_only()
            await asyncio.sleep(_BETWEEN_CHECKS_SECONDS)

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
                    None if under_way.state in _NOT_SURE_TO_LEAVE else under_way.target,
                    f"its migration {under_way.id} is {under_way.state}",
                )
            elif entry.guest.obstacle:
                targets[key], found[key] = (None, entry.guest.obstacle), preflight.obstacle(entry.guest)
        given, room = set(targets), PlannedRoom()
        asked: set[tuple[str, str]] = set()
        for _ in range(_TARGETS_TRIED):
            snapshot = self._snapshots.take()
            places = await self._computing.compute(preview.places, preview.portions(snapshot, run))
            targets |= {key: places[key] for key in run.entries.keys() - given}
            new = {
                key: target
                for key in run.entries.keys() - given
                if (target := targets[key][0]) is not None and (key, target) not in asked
            }
            asked |= set(new.items())
            run, again = await self._ask(run, new, snapshot, given, targets, found, room)
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
        room: PlannedRoom,
    ) -> tuple[Evacuation, bool]:
        """Ask preflight of these; True where a guest has to be placed anew."""
        slots = asyncio.Semaphore(_ASKED_AT_A_TIME)

        async def ask(key: str, target: str) -> str:
            guest = run.entries[key].guest
            policy = snapshot.policies.of(guest, run.policy)
            session = self._sessions.make(guest, target, policy, accept=run.accept, announce=False)
            async with slots:
                answer = await session.check_only()
            others = room.beside(key, target)
            disks = session.copied_disks or ()
            answer = errors_first([*answer, *beside_others(target, disks, others)])
            errors = preflight.errors(answer)
            if not errors:
                room.give(key, target, disks)
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


def _guest(
    guest: Guest,
    target: str | None,
    reason: str,
    policy: Policy,
    outlook: preview.GuestOutlook | None,
    findings: Sequence[Finding],
    experience: PlannedGuestExperience | None,
) -> PlannedGuest:
    outlook = outlook or preview.GuestOutlook()
    takes = outlook.takes
    cold = is_cold(findings)
    return PlannedGuest(
        guest=guest.key,
        guest_name=guest.name,
        target=target,
        reason=reason,
        policy=policy.name,
        possible=target is not None and (cold or outlook.no_end is None) and not preflight.errors(findings),
        order=outlook.order,
        starts_in_seconds=outlook.starts_in_seconds,
        takes_p10_seconds=takes.p10 if takes else None,
        takes_p50_seconds=takes.p50 if takes else None,
        takes_p90_seconds=takes.p90 if takes else None,
        verdict=outlook.verdict.value if outlook.verdict is not None and not cold else "",
        # At the most: nobody knows how long a guest takes to shut down, nor to boot.
        downtime_seconds=policy.max_shutdown_seconds + START_SECONDS if cold else outlook.downtime_seconds,
        moved_with=outlook.moved_with,
        findings=_documents(findings),
        experience=experience,
    )


def _experience(known: GuestExperience | None) -> PlannedGuestExperience | None:
    note = known.note(clock.wall()) if known is not None else ""
    if known is None or not note:
        return None
    move, quiet = known.last_move, known.quiet_hours()
    return PlannedGuestExperience(
        last_moved_at=datetime.fromtimestamp(move.at, UTC) if move is not None else None,
        last_move_seconds=move.seconds if move is not None else None,
        last_move_downtime_seconds=move.downtime_seconds if move is not None else None,
        quiet_from_hour=quiet[0] if quiet is not None else None,
        quiet_until_hour=quiet[1] if quiet is not None else None,
        note=note,
    )


def _path(source: str, target: str, outlook: preview.PathOutlook) -> PlannedPath:
    at = outlook.measured_at
    return PlannedPath(
        source=source,
        target=target,
        bytes_per_second=outlook.bytes_per_second,
        p10_bytes_per_second=outlook.low,
        p90_bytes_per_second=outlook.high,
        measured_at=datetime.fromtimestamp(at, UTC) if at is not None else None,
        basis=outlook.basis,
        note=outlook.note,
    )


def _documents(findings: Sequence[Finding]) -> list[FindingDocument]:
    return [FindingDocument(**asdict(each)) for each in findings]
