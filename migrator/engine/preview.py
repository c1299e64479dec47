"""What would happen, before the act: dirty rates measured, places and times foretold, preflight for every guest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from migrator import logs
from migrator.core.findings import errors_first, everywhere, finding
from migrator.core.forecast import Verdict
from migrator.core.inventory import Guest
from migrator.core.model import Finding, Severity
from migrator.core.placement import NoHost, Request, check, place
from migrator.core.policy import Policy
from migrator.core.timetable import predict
from migrator.core.transfers import Move, Network
from migrator.engine import clock
from migrator.engine.documents import FindingDocument, PlanDocument, PlannedGuest
from migrator.engine.evacuation import Entry, Evacuation
from migrator.engine.foretelling import PROBE_SECONDS, foreseen, no_end
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

    async def plan(self, host: str, policy: str | None) -> PlanDocument:
        """What :meth:`turn` would do with an evacuation of that host, and what speaks against it."""
        engine = self._engine
        await engine.inventory.look(host)
        guests = engine.inventory.guests(host)
        await self.probe(guests)
        run = Evacuation(identifier="plan", host=host, policy=policy or "")
        run.take(engine.inventory.guests(host))
        fleet = engine.fleet(without=host)
        wanting = run.wanting(0.0)
        answers = place(fleet, [request_of(run, entry) for entry in wanting], engine.rules.placement)
        planned: dict[str, PlannedGuest] = {}
        transfers = []
        for entry in run.entries.values():
            guest, chosen = entry.guest, self._planner.policy_of(run, entry.guest)
            answer = answers.get(guest.key)
            target = None if answer is None or isinstance(answer, NoHost) else answer.host
            if target is not None:
                transfers.append(self._planner.transfer_of(guest, target, chosen))
            planned[guest.key] = PlannedGuest(
                guest=guest.key,
                guest_name=guest.name,
                target=target,
                reason=answer.reason if answer is not None else guest.obstacle,
                policy=chosen.name,
                findings=[_obstacle(guest)] if guest.obstacle else [],
            )
        hosts = {each.name: each for each in engine.inventory.hosts()}
        findings = await self._findings(list(run.entries.values()), planned, run)
        for key, found in findings.items():
            refused = [each for each in found if each.severity is Severity.ERROR and everywhere(each.code)]
            if refused:
                planned[key] = planned[key].model_copy(update={"target": None, "reason": refused[0].message})
        transfers = [each for each in transfers if planned[each.guest].target is not None]
        self._planned[host] = (
            clock.now(),
            {key: each.target for key, each in planned.items() if each.target is not None},
        )
        links = engine.rules.limits.links
        prediction = predict(transfers, hosts, links)
        for transfer in transfers:
            guest = run.entries[transfer.guest].guest
            policy_of_it = self._planner.policy_of(run, guest)
            speed = Move(transfer, Network(hosts, links), links).speed
            seen = foreseen(guest, policy_of_it, transfer, speed)
            planned[guest.key] = planned[guest.key].model_copy(
                update={"verdict": seen.verdict.value, "downtime_seconds": seen.downtime_seconds}
            )
            if seen.verdict is Verdict.CANNOT:
                findings.setdefault(guest.key, []).append(_no_end(guest, policy_of_it, speed))
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
                each.model_copy(update={"findings": [*each.findings, *findings.get(each.guest, [])]})
                for each in guests_planned
            ],
            takes_p10_seconds=prediction.makespan.p10,
            takes_p50_seconds=prediction.makespan.p50,
            takes_p90_seconds=prediction.makespan.p90,
            lower_bound_seconds=prediction.bound_seconds,
        )

    async def _findings(
        self, entries: Sequence[Entry], planned: dict[str, PlannedGuest], run: Evacuation
    ) -> dict[str, list[FindingDocument]]:
        engine, found = self._engine, dict[str, list[FindingDocument]]()
        slots = asyncio.Semaphore(_ASKED_AT_A_TIME)

        async def ask(entry: Entry, target: str) -> None:
            job = engine.make_job(
                entry.guest, target, self._planner.policy_of(run, entry.guest), announce=False
            )
            async with slots:
                try:
                    findings = await job.check_only()
                except MigratorError as error:
                    findings = (
                        Finding(
                            code="not-checked",
                            severity=Severity.WARNING,
                            message=str(error),
                            remedy="look at it before the evacuation",
                        ),
                    )
            found[entry.guest.key] = [FindingDocument(**asdict(each)) for each in errors_first(findings)]

        async with asyncio.TaskGroup() as group:
            for entry in entries:
                target = planned[entry.guest.key].target
                if target is not None and not self._has_job(entry.guest):
                    group.create_task(ask(entry, target), name=f"check {entry.guest.key}")
        return found

    def _has_job(self, guest: Guest) -> bool:
        return any(job.guest.key == guest.key and not job.ended for job in self._engine.jobs.values())

    def against(self, guest: Guest, host: str) -> list[Finding]:
        """What placement has against that host for this guest."""
        return [
            Finding(
                code="placement",
                severity=Severity.ERROR,
                message=f"{each.constraint}: {each.text}",
                remedy="choose another host, or change what keeps it from this one",
            )
            for each in check(self._engine.fleet(), Request(guest=guest), host)
            if not each.fits
        ]

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
                if not guest.obstacle and not self._has_job(guest):
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


def _no_end(guest: Guest, policy: Policy, speed: float) -> FindingDocument:
    return FindingDocument(**asdict(finding("does-not-converge", no_end(guest, policy, speed))))


def _obstacle(guest: Guest) -> FindingDocument:
    return FindingDocument(
        code=guest.obstacle_code or "not-movable",
        severity=Severity.ERROR,
        message=guest.obstacle,
        remedy="see docs/preflight.md",
    )
