"""Says, at every change, which guest goes where, when, with how much of the links, and what it will come to.

Places come from :mod:`migrator.core.placement`, turns and bandwidth from :mod:`migrator.core.schedule`, times from
:mod:`migrator.core.schedule.timetable`: all three are pure, and asked afresh with what is known now.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from migrator import logs
from migrator.api import trace_context
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.inventory import Guest
from migrator.core.model import State
from migrator.core.placement import NoHost, PlacementRequest, place
from migrator.core.policy import Policy, PostcopyMode, builtin
from migrator.core.schedule import Orders, schedule
from migrator.core.schedule.transfers import Transfer, TransferPhase
from migrator.engine.foretelling import Going, foretell, going_jobs, tell
from migrator.engine.migration import preflight
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.others import heed, here_or_coming
from migrator.errors import JournalError, UsageError

if TYPE_CHECKING:
    from migrator.engine.controller import Engine

#: While something is under way the forecast is made anew so often.
_LIVE_SECONDS = 1.0
#: ... and so much more seldom where there are many: it takes the longer, and changes the less.
_LIVE_SECONDS_A_GUEST = 0.02
#: A guest that dirties this share of what its link carries goes to postcopy in its first rounds, if it may.
_HOPELESS_RATIO = 0.8
#: What QEMU holds beside the memory of its guest: RssAnon of 7.2 and 10.0 whose guest has touched nothing is 20 to
#: 28 MiB, under KVM and TCG.
_QEMUS_OWN_BYTES = 20 << 20
#: A share of a link is changed by this much at least.
_SHARE_STEP_RATIO = 0.05
#: Between two turns at most: time alone changes deadlines, and a journal that cannot be written is waited for.
_IDLE_SECONDS = 5.0


class Planner:
    """One turn at a time; see :meth:`turn`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wake = asyncio.Event()
        self._foretold = -math.inf
        #: To be announced at the end of the turn: each is a document of all its guests.
        self._begun: dict[str, Evacuation] = {}
        self._log = logs.logger()

    def clock(self) -> float:
        """The loop's."""
        return asyncio.get_running_loop().time()

    def wake(self) -> None:
        """Something changed."""
        self._wake.set()

    async def run(self) -> None:
        """A turn at every change, and from time to time, until cancelled."""
        while True:
            self._wake.clear()
            pause = await self.turn()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass  # time alone changes forecasts and deadlines
            await asyncio.sleep(0.02)  # what changes together is seen together

    # --- one turn ----------------------------------------------------------------------------------------------------

    async def turn(self) -> float:
        """Do what is due; seconds until the next turn at the latest."""
        engine = self._engine
        engine.forget()
        for run in [run for run in engine.runs.values() if not run.ended]:
            await self._look_after(run)
        if engine.stopping:
            return _IDLE_SECONDS
        targets = self._place()
        transfers = self._transfers(targets)
        later = self._later()
        if not transfers and not later:
            await self._foretell((), targets)
            return _LIVE_SECONDS if engine.runs else _IDLE_SECONDS
        hosts = {host.name: host for host in engine.inventory.hosts()}
        orders = schedule(transfers, hosts, engine.rules.links)
        await self._carry_out(orders, targets)
        while self._begun:
            engine.announce_run(self._begun.popitem()[1])
        if self.clock() - self._foretold >= max(_LIVE_SECONDS, _LIVE_SECONDS_A_GUEST * len(transfers)):
            self._foretold = self.clock()
            await self._foretell([*transfers, *later], targets)
        return min(_LIVE_SECONDS, orders.look_again_seconds or _LIVE_SECONDS)

    async def _look_after(self, run: Evacuation) -> None:
        engine, now = self._engine, datetime.now(UTC)
        host = engine.inventory.host(run.host)
        up = host is not None and host.up
        changed = heed(engine, run)
        if run.kind == "restore":
            up_hosts = {each.name for each in engine.inventory.hosts() if each.up}
            changed = run.follow(engine.inventory.guests(), up_hosts) or changed
        elif up:
            changed = run.take(here_or_coming(engine, run.host)) or changed
        if run.deadline is not None and now >= run.deadline and run.left and not run.late:
            run.late = changed = True
            if run.on_deadline == "stop" and run.closing is None:
                run.closing = EvacuationState.STOPPED
                engine.stop_jobs(run)
        if run.kind == "evacuate" and up and not run.left and run.closing is None:
            # Empty as far as is known: only a fresh look makes it so.
            host = await engine.inventory.look(run.host)
            up = host.up
            changed = run.take(here_or_coming(engine, run.host)) or changed
        if run.kind == "evacuate" and run.waits_for_contact and not run.under_way:
            engine.inventory.look_soon(run.host)
        empty = up and not here_or_coming(engine, run.host)
        state = run.settle(self.clock(), host_empty=empty, host_up=up)
        if state is not None:
            engine.end_run(run, state)
        elif changed:
            engine.announce_run(run)

    def _place(self) -> dict[str, tuple[Evacuation, Entry, str, str]]:
        """A target for everyone of an evacuation that wants one: run, entry, host, reason."""
        engine, now = self._engine, self.clock()
        busy = {job.guest.key for job in engine.jobs.values() if not job.ended}
        wanting = [
            (run, entry)
            for run in engine.runs.values()
            for entry in run.wanting(now)
            if entry.guest.key not in busy
        ]
        requests = [request_of(run, entry) for run, entry in wanting]
        answers = place(engine.fleet(), requests, engine.rules.placement) if requests else {}
        found = {}
        for run, entry in wanting:
            answer = answers[entry.guest.key]
            if isinstance(answer, NoHost):
                if run.retry_anywhere(entry.guest.key):
                    self.wake()  # where it failed is better than nowhere
                elif run.no_target(entry.guest.key, answer.reason):
                    engine.announce_run(run)
                continue
            if entry.standing is GuestStanding.NO_TARGET:
                entry.standing = GuestStanding.WAITING
            if entry.target != answer.host or not entry.reason or entry.attempts:
                entry.target, entry.reason = answer.host, answer.reason
                if entry.planned not in ("", answer.host):
                    why = entry.excluded.get(entry.planned, "it has no room for it any more")
                    entry.reason += f"; the plan said {entry.planned}: {why}"
            found[entry.guest.key] = (run, entry, answer.host, entry.reason)
        return found

    def _transfers(self, targets: dict[str, tuple[Evacuation, Entry, str, str]]) -> list[Transfer]:
        engine = self._engine
        transfers = [
            self.transfer_of(entry.guest, target, self.policy_of(run, entry.guest), run=run)
            for run, entry, target, _ in targets.values()
        ]
        for job in engine.jobs.values():
            if job.ended or job.state in (State.HELD, State.WAITING):
                continue
            run_of = engine.runs.get(job.evacuation or "")
            transfers.append(self.transfer_of(job.guest, job.target, job.policy, run=run_of, job=job))
        return transfers

    def _later(self) -> list[Transfer]:
        """What cannot be begun yet, for the forecast: guests that wait to be tried again, or for somebody's job."""
        engine, now = self._engine, self.clock()
        later = [
            self.transfer_of(
                job.guest, job.target, job.policy, run=engine.runs.get(job.evacuation or ""), job=job
            )
            for job in engine.jobs.values()
            if job.state is State.WAITING
        ]
        for run in engine.runs.values():
            if run.ended or run.closing is not None:
                continue
            for entry in run.entries.values():
                if entry.wants_place and entry.target and entry.not_before > now:
                    one = self.transfer_of(
                        entry.guest, entry.target, self.policy_of(run, entry.guest), run=run
                    )
                    pause = entry.not_before - now
                    later.append(replace(one, prepare_seconds=one.prepare_seconds + pause))
        return later

    async def _foretell(
        self, transfers: Sequence[Transfer], targets: dict[str, tuple[Evacuation, Entry, str, str]]
    ) -> None:
        engine = self._engine
        hosts = {host.name: host for host in engine.inventory.hosts()}
        going = {
            entry.guest.key: Going(guest=entry.guest, policy=self.policy_of(run, entry.guest))
            for run in engine.runs.values()
            for entry in run.entries.values()
            if entry.guest.key in targets or entry.not_before > self.clock()
        }
        going |= going_jobs(engine.jobs.values())
        found = await asyncio.to_thread(foretell, transfers, going, hosts, engine.rules.links)
        tell(engine, *found)

    def policy_of(self, run: Evacuation, guest: Guest) -> Policy:
        """The evacuation's, where it has one; the built-in default where a reload took it away meanwhile."""
        try:
            return self._engine.policy_of(guest, run.policy or None)
        except UsageError as error:
            self._log.warning("policy is gone", guest=guest.key, error=str(error))
            return builtin("default")

    def transfer_of(
        self,
        guest: Guest,
        target: str,
        policy: Policy,
        *,
        run: Evacuation | None = None,
        job: JournalledSession | None = None,
    ) -> Transfer:
        """How the schedule sees it."""
        phase, dirty = TransferPhase.WAITING, guest.dirty_rate_bytes_per_second or 0.0
        left = float(guest.memory_bytes)
        if guest.resident_bytes is not None:
            left = min(left, max(0.0, guest.resident_bytes - _QEMUS_OWN_BYTES))
        alone: float | None = None
        look = self._engine.inventory.look_seconds(guest.host, target)
        prepare = self._engine.preparations.expected(target, look_seconds=look)
        if job is not None:
            phase = _phase(job)
            if phase is TransferPhase.PREPARING:
                prepare = self._engine.preparations.left(prepare, self.clock() - job.preparing_since)
            sample = job.status.sample if job.status else None
            if sample is not None:
                left = float(sample.remaining_bytes)
                dirty = sample.dirty_rate_bytes_per_second or dirty
            forecast = job.status.forecast if job.status else None
            # What it takes while it shares its links says nothing of what it would take alone.
            if forecast is not None and 0 < forecast.seconds_p50 < 1e6 and not self._shares(job):
                alone = forecast.seconds_p50
        # What is copied while the guest stands still, or fetched after a switch that comes early, is sent once.
        fast = self._engine.inventory.link(guest.host, target) or math.inf
        early = policy.postcopy is PostcopyMode.IMMEDIATE or (
            policy.postcopy is PostcopyMode.ALLOW and dirty >= _HOPELESS_RATIO * fast
        )
        once = policy.offline or early
        deadline = None
        if run is not None and run.deadline is not None:
            deadline = (run.deadline - datetime.now(UTC)).total_seconds()
        return Transfer(
            guest=guest.key,
            source=guest.host,
            target=target,
            phase=phase,
            bytes_left=left,
            dirty_rate_bytes_per_second=0.0 if once else dirty,
            barely_converges=True if once and dirty > 0 else None,
            alone_seconds=alone,
            max_bytes_per_second=policy.max_bandwidth_bytes_per_second,
            prepare_seconds=prepare,
            priority=guest.priority,
            deadline_seconds=deadline,
            stop_at_deadline=run is not None and run.on_deadline == "stop",
        )

    def _shares(self, job: JournalledSession) -> bool:
        ends = {job.guest.host, job.target}
        return any(
            other is not job and other.copies and ends & {other.guest.host, other.target}
            for other in self._engine.jobs.values()
        )

    async def _carry_out(
        self, orders: Orders, targets: dict[str, tuple[Evacuation, Entry, str, str]]
    ) -> None:
        engine = self._engine
        jobs = {job.guest.key: job for job in engine.jobs.values() if not job.ended}
        under_way = sum(1 for job in jobs.values() if engine.busy(job) and job.state is not State.WAITING)
        for key in orders.prepare:
            if under_way >= engine.rules.limits.migrations_at_a_time:
                break
            if key in targets:
                if not await self._begin(*targets[key]):
                    break
            elif key in jobs and not engine.busy(jobs[key]):
                engine.drive_job(jobs[key])
            under_way += 1
        for key, speed in orders.bandwidth.items():
            if key in jobs and not _about(jobs[key].share, speed):
                jobs[key].set_share(speed)
        for key in orders.begin:
            if key in jobs:
                jobs[key].admit()

    async def _begin(self, run: Evacuation, entry: Entry, target: str, reason: str) -> bool:
        engine, key = self._engine, entry.guest.key
        taken = engine.reserved.taken(("evacuation", run.id), ("guest", key), ("host", target))
        moving = any(job.guest.key == key and not job.ended for job in engine.jobs.values())
        if (
            taken
            or moving
            or not entry.wants_place
            or run.closing is not None
            or run.ended
            or engine.stopping
        ):
            return True  # a command came between; the next turn sees what it did
        job = engine.make_job(
            entry.guest,
            target,
            self.policy_of(run, entry.guest),
            accept=run.accept,
            run=run.id,
            by=run.requested_by,
            trace=trace_context.of(run.traceparent, run.tracestate),
        )
        try:
            async with engine.reserved.hold(("evacuation", run.id), ("guest", key)):
                await engine.journal_job(job, run, reason=reason)
        except JournalError as error:
            self._log.warning("not begun", guest=key, error=str(error))
            return False
        self._begun[run.id] = run
        engine.drive_job(job)
        return True


def _about(share: int | None, speed: int) -> bool:
    """Too little a change to tell QEMU."""
    return share is not None and abs(share - speed) <= _SHARE_STEP_RATIO * share


def request_of(run: Evacuation, entry: Entry) -> PlacementRequest:
    """What placement is asked for it."""
    return PlacementRequest(
        guest=entry.guest,
        excluded=dict(entry.excluded),
        spare_ports=preflight.SPARES_PORTS in (*run.accept, *entry.guest.accept),
        prefer=entry.target or "",
        only=run.host if run.kind == "restore" else "",
    )


def _phase(job: JournalledSession) -> TransferPhase:
    if job.state is State.QUEUED:
        return TransferPhase.WAITING
    if job.state in (State.PREPARING, State.WAITING):
        if job.admitted or job.started_at:
            return TransferPhase.TRANSFERRING
        return TransferPhase.READY if job.ready else TransferPhase.PREPARING
    return TransferPhase.FINISHING if job.state is State.FINISHING else TransferPhase.TRANSFERRING
