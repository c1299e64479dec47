"""Begins a migration that the guest's manager carries out, or takes one up, and has the loop drive it to its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from migrator.core.findings import errors_first
from migrator.core.migration.convergence_state import Abilities
from migrator.core.migration.disk_copies import from_fields
from migrator.core.migration.situation import Intent, Milestone, OperatorAnswer
from migrator.core.model import RUNNING_STATES, Finding, Mode, State
from migrator.core.policy import PostcopyMode
from migrator.engine import clock
from migrator.engine.migration.block_job_wait import too_late
from migrator.engine.migration.ceiling import against_ceiling
from migrator.engine.migration.managed_choice import choose_managed_layout, new_copies
from migrator.engine.migration.managed_loop import ManagedLoop
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.errors import Fault, HostError, MigratorError, QemuError
from migrator.faults import contained
from migrator.ports import Tuning
from migrator.ports.managed import ManagedGuestState


class ManagedDriver(ManagedLoop):
    """Drives one guest of a manager from its source to a destination, once.

    Has the same calls as :class:`migrator.engine.migration.driver.MigrationDriver`.
    """

    # --- before anything is changed --------------------------------------------------------------------------------

    async def check(self) -> tuple[Finding, ...]:
        """Read the source; what speaks against the target its manager has said already. Changes nothing."""
        began = clock.now()
        facts = await self._source.facts()
        self._was = await self._managed.managed_state()
        self._facts = facts
        self._mirrors.copies = new_copies(facts, self._new_images)
        self._steering.begin(None)
        postcopy = self._policy.postcopy is not PostcopyMode.NEVER
        self._abilities = Abilities(postcopy=postcopy, throttle=False)
        self._layout = choose_managed_layout(
            self._policy,
            facts,
            postcopy=postcopy,
            encrypted=self._security.tls is not None,
        )
        self._intent_log.intent = replace(self._intent_log.intent, guest_runs=facts.run in RUNNING_STATES)
        self.result.preflight_seconds = clock.now() - began
        if facts.run not in RUNNING_STATES:
            return ()
        return errors_first(await against_ceiling(self._policy, self._stream_speed, self._source))

    # --- the whole way ---------------------------------------------------------------------------------------------

    async def run(self, *, begun: Callable[[], Awaitable[None]] | None = None) -> MigrationOutcome:
        """Begin, and drive it to its end; see :meth:`migrator.engine.migration.driver.MigrationDriver.run`."""
        facts, was = self._facts, self._was
        if facts is None or was is None:
            raise RuntimeError("check() comes before run()")
        busy = await self._source.disk_users()
        refused = self._security.refusal(self._policy) or (too_late(busy) if busy else "")
        if refused:
            self.result.state, self.result.error = State.FAILED, refused
            self._report(State.FAILED)
            return self.result
        settings = await self._source.settings()
        what = self._what_was(facts, settings) | {
            "managed": asdict(was),
            "peer_to_peer": self._managed.is_peer_to_peer(self._destination),
            "tls_name": self._tls_name,
        }
        await self._intent_log.begin(what)
        try:
            if begun is not None:
                await begun()
        except MigratorError as error:
            await self._intent_log.withdraw(str(error))
            raise
        self._report(State.PREPARING)
        try:
            with contained("the beginning"):
                await self._begin_moving(was)
        except (QemuError, HostError, Fault) as error:
            self._intent_log.undo(State.FAILED, "it could not be begun")
            self._observer.complain(str(error))
        return await self._drive()

    async def _begin_moving(self, was: ManagedGuestState) -> None:
        for action, reason in self._layout.notes:
            self._intent_log.decide(action, reason)
        self.result.streams = self._layout.layout.channels
        self.result.compression = self._layout.layout.compression
        await self._security.begin(self._policy)
        await self._source.tune(Tuning(downtime_limit_seconds=self._limit_seconds))
        if self.requests.unwanted():
            postponed = not self.requests.cancel
            reason = "the controller stops: it begins anew" if postponed else "cancelled before it began"
            self._intent_log.undo(State.CANCELLED, reason, by_choice=True, postponed=postponed)
            return
        await self._intent_log.commit(milestone=Milestone.MIGRATING)
        if self._intent_log.intent.undo is None:
            self._given_bandwidth, self._tuned = self._share, True
            await self._managed.begin_managed(self._destination, self._options(was))

    async def take_up(
        self,
        facts: Mapping[str, Any],
        intent: Intent,
        *,
        began_ago_seconds: float = 0.0,
        anew: bool = False,
    ) -> MigrationOutcome:
        """Go on with what another controller left; see
        :meth:`migrator.engine.migration.driver.MigrationDriver.take_up`.
        """
        self._intent_log.began -= began_ago_seconds
        self._intent_log.intent = intent
        self._was = ManagedGuestState(**facts["managed"]) if "managed" in facts else None
        self._security.take_up(encrypted=bool(facts.get("tls")))
        self._tls_name = facts.get("tls_name")
        self._abilities = Abilities(**facts["abilities"])
        self._mirrors.copies = from_fields(facts.get("disks", ()))
        self._given_bandwidth = None
        if intent.postcopy:
            self.result.mode = Mode.POSTCOPY
            self._steering.settle()
        self._observer.take_up(intent, self._intent_log.taken_up_from)
        self._observer.destination_fenced = True
        if intent.said is not None:
            word = "lost" if intent.said is OperatorAnswer.LOST else f"at the {intent.said}"
            self._intent_log.undo_reason = f"a person said: the guest is {word}"
            self._intent_log.decide("resolve", self._intent_log.undo_reason)
        else:
            at = intent.milestone.name.lower()
            self._intent_log.decide("take-up", f"a migration was left unfinished at {at}: taking it up")
            if anew and intent.undo is None and intent.milestone is Milestone.PREPARING:
                reason = "nothing was sent before its controller went: it begins anew"
                self._intent_log.undo(State.CANCELLED, reason, by_choice=True, postponed=True)
        return await self._drive()
