"""What would happen, before the act: dirty rates measured, places and times foretold, preflight for every guest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from migrator import logs
from migrator.api.documents import FindingDocument, PlanDocument, PlannedGuest
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.findings import errors_first, finding
from migrator.core.inventory import Guest
from migrator.core.migration.forecast import Verdict
from migrator.core.model import Finding, State
from migrator.core.placement import NoHost, place
from migrator.core.schedule.timetable import predict
from migrator.core.schedule.transfers import LinkTable, Move
from migrator.engine import clock
from migrator.engine.foretelling import PROBE_SECONDS, foreseen, no_end
from migrator.engine.migration import preflight
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.others import here_or_coming
from migrator.engine.planner import Planner, request_of
from migrator.errors import MigratorError, QemuError
from migrator.ports import Qemu

if TYPE_CHECKING:
    from migrator.engine.controller import Engine

#: A dirty-rate probe's answer is waited for so long.
_PROBE_ANSWER_SECONDS = 5.0
#: An evacuation holds to a plan that is no older, as far as it still can.
_PLAN_HOLDS_SECONDS = 3600.0
#: Guests asked at the same time.
_ASKED_AT_A_TIME = 8
#: Targets that are tried for one guest, each of which preflight may refuse.
_TARGETS_TRIED = 6


class Preview:
    """Looks ahead; begins nothing."""

    def __init__(self, engine: Engine, planner: Planner) -> None:
        self._engine = engine
        self._planner = planner
        self._log = logs.logger()
        #: The last plan of each host: every guest's target, and when it was made on the engine's clock.
        self._planned: dict[str, tuple[float, dict[str, str]]] = {}

    def planned(self, host: str) -> dict[str, str]:
        """What was last told of each guest's target, if that was a short while ago; empty without a plan."""
        made, targets = self._planned.get(host, (-_PLAN_HOLDS_SECONDS, {}))
        return dict(targets) if clock.now() - made < _PLAN_HOLDS_SECONDS else {}

    async def plan(self, host: str, policy: str | None, accept: Sequence[str] = ()) -> PlanDocument:
        """What :meth:`turn` would do with an evacuation of that host, and what speaks against it.

        The host has just been looked at.
        """
        engine = self._engine
        await self.probe(engine.inventory.guests(host))
        run = Evacuation(identifier="plan", host=host, policy=policy or "", accept=accept)
        run.take(here_or_coming(engine, host))
        targets, findings = await self._settle(run)
        planned: dict[str, PlannedGuest] = {}
        transfers = []
        for key, entry in run.entries.items():
            guest, chosen = entry.guest, self._planner.policy_of(run, entry.guest)
            target, reason = targets[key]
            if target is not None:
                transfers.append(self._planner.transfer_of(guest, target, chosen))
            planned[key] = PlannedGuest(
                guest=key,
                guest_name=guest.name,
                target=target,
                reason=reason,
                policy=chosen.name,
                possible=target is not None and not preflight.errors(findings.get(key, ())),
            )
        hosts = {each.name: each for each in engine.inventory.hosts()}
        self._planned[host] = (
            clock.now(),
            {key: each.target for key, each in planned.items() if each.target is not None},
        )
        links = engine.rules.links
        prediction = predict(transfers, hosts, links)
        for transfer in transfers:
            guest = run.entries[transfer.guest].guest
            policy_of_it = self._planner.policy_of(run, guest)
            speed = Move(transfer, LinkTable(hosts, links), links).speed
            seen = foreseen(guest, policy_of_it, transfer, speed)
            ends = seen.verdict is not Verdict.CANNOT
            planned[guest.key] = planned[guest.key].model_copy(
                update={
                    "verdict": seen.verdict.value,
                    "downtime_seconds": seen.downtime_seconds,
                    "possible": planned[guest.key].possible and ends,
                }
            )
            if not ends:
                found = finding("does-not-converge", no_end(guest, policy_of_it, speed))
                findings[guest.key] = (*findings.get(guest.key, ()), found)
        guests_planned = []
        for order, (key, expected) in enumerate(prediction.guests.items(), start=1):
            low, middle, high = (
                getattr(expected.ends, name) - getattr(expected.begins, name)
                for name in ("p10", "p50", "p90")
            )
            update = {
                "order": order,
                "starts_in_seconds": max(0.0, expected.begins.p50),
                "takes_p10_seconds": max(0.0, low),
                "takes_p50_seconds": max(0.0, middle),
                "takes_p90_seconds": max(0.0, high),
            }
            guests_planned.append(planned.pop(key).model_copy(update=update))
        guests_planned += planned.values()
        return PlanDocument(
            host=host,
            guests=[
                each.model_copy(update={"findings": _documents(findings.get(each.guest, ()))})
                for each in guests_planned
            ],
            cannot_move=sum(not each.possible for each in guests_planned),
            takes_p10_seconds=prediction.makespan.p10,
            takes_p50_seconds=prediction.makespan.p50,
            takes_p90_seconds=prediction.makespan.p90,
            lower_bound_seconds=prediction.bound_seconds,
        )

    async def _settle(
        self, run: Evacuation
    ) -> tuple[dict[str, tuple[str | None, str]], dict[str, tuple[Finding, ...]]]:
        """Of every guest the target, or none, with the reason; and what was found.

        As the evacuation would: where preflight refuses a target, the guest is placed anew without it.
        """
        engine = self._engine
        fleet = engine.fleet(without=run.host)
        found: dict[str, tuple[Finding, ...]] = {}
        targets: dict[str, tuple[str | None, str]] = {}
        asked: set[tuple[str, str]] = set()
        for key, entry in run.entries.items():
            under_way = self._job_of(entry.guest)
            if under_way is not None and under_way.target != run.host:
                targets[key] = (
                    None if under_way.state is State.HELD else under_way.target,
                    f"its migration {under_way.id} is {under_way.state}",
                )
            elif entry.guest.obstacle:
                targets[key], found[key] = (None, entry.guest.obstacle), preflight.obstacle(entry.guest)
        open_ = {key: entry for key, entry in run.entries.items() if key not in targets}
        for _ in range(_TARGETS_TRIED):
            requests = [request_of(run, entry) for entry in open_.values()]
            answers = place(fleet, requests, engine.rules.placement)
            for key, answer in answers.items():
                targets[key] = (
                    (None, answer.reason) if isinstance(answer, NoHost) else (answer.host, answer.reason)
                )
            new = [
                (entry, target)
                for key, entry in open_.items()
                if (target := targets[key][0]) is not None and (key, target) not in asked
            ]
            asked |= {(entry.guest.key, target) for entry, target in new}
            if not await self._ask(run, new, open_, targets, found):
                break
        return targets, found

    async def _ask(
        self,
        run: Evacuation,
        wanted: Sequence[tuple[Entry, str]],
        open_: dict[str, Entry],
        targets: dict[str, tuple[str | None, str]],
        found: dict[str, tuple[Finding, ...]],
    ) -> bool:
        """Ask preflight of these; True where a guest has to be placed anew."""
        slots = asyncio.Semaphore(_ASKED_AT_A_TIME)

        async def ask(entry: Entry, target: str) -> bool:
            policy, key = self._planner.policy_of(run, entry.guest), entry.guest.key
            job = self._engine.make_job(entry.guest, target, policy, accept=run.accept, announce=False)
            async with slots:
                answer = await job.check_only()
            errors = preflight.errors(answer)
            if not errors:
                found[key] = answer
                return False
            # What kept it from the hosts that were tried before stays said.
            before = preflight.errors(found.get(key, ()))
            found[key] = errors_first([*before, *answer])
            if preflight.hopeless(errors):
                targets[key] = (None, errors[0].message)
                del open_[key]
                return False
            entry.excluded[target] = preflight.in_one_line(errors)
            return True

        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(ask(entry, target), name=f"check {entry.guest.key}")
                for entry, target in wanted
            ]
        return any(task.result() for task in asked)

    def _job_of(self, guest: Guest) -> JournalledSession | None:
        jobs = self._engine.jobs.values()
        return next((job for job in jobs if job.guest.key == guest.key and not job.ended), None)

    async def probe(self, guests: Iterable[Guest]) -> None:
        """Measure how fast each guest dirties its memory, all at the same time; what cannot be asked is left out."""
        slots = asyncio.Semaphore(_ASKED_AT_A_TIME * 4)

        async def measure(guest: Guest) -> None:
            async with slots:
                try:
                    source = await self._engine.open_source(guest)
                    try:
                        rate = await _measure(source)
                    finally:
                        await source.close()
                except MigratorError as error:
                    self._log.info("no dirty-rate probe", guest=guest.key, error=str(error))
                    return
            if rate is not None:
                self._engine.inventory.note_dirty_rate(guest.key, rate)

        async with asyncio.TaskGroup() as group:
            for guest in guests:
                if not guest.obstacle and self._job_of(guest) is None:
                    group.create_task(measure(guest), name=f"probe {guest.key}")


async def _measure(source: Qemu) -> float | None:
    await source.start_dirty_rate(PROBE_SECONDS, exact=True)
    try:
        async with asyncio.timeout(_PROBE_ANSWER_SECONDS):
            await asyncio.sleep(PROBE_SECONDS)
            while (rate := await source.dirty_rate()) is None:
                await asyncio.sleep(0.1)
            return rate
    except (TimeoutError, QemuError):
        return None


def _documents(findings: Sequence[Finding]) -> list[FindingDocument]:
    return [FindingDocument(**asdict(each)) for each in findings]
