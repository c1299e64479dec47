"""The session of a migration of the service: whom it is for, its document, and its place in the journal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

from migrator.api import trace_context
from migrator.api.documents import (
    DecisionDocument,
    FindingDocument,
    ForecastDocument,
    MigrationDocument,
)
from migrator.api.trace_context import TraceContext
from migrator.core.findings import finding
from migrator.core.guest_experience import GuestPrior
from migrator.core.hooks import HookPlace, HookPoint
from migrator.core.image_removal import to_fields as removal_to_fields
from migrator.core.inventory import Guest
from migrator.core.migration.convergence_state import ActionKind
from migrator.core.migration.forecast import Forecast, Verdict
from migrator.core.migration.lifecycle import Step
from migrator.core.model import Decision, Finding, State
from migrator.core.policy import Policy, from_fields, to_fields
from migrator.core.preflight.disk_room import CopiedDisk, copied_bytes
from migrator.engine import clock
from migrator.engine.migration import driver as _driver  # noqa: F401 - loaded before the first guest moves
from migrator.engine.migration import preflight
from migrator.engine.migration.file_move import FileMove, FileUse
from migrator.engine.migration.file_session import FileSession
from migrator.engine.migration.group_hold import GROUP
from migrator.engine.migration.outcome import MigrationProgress
from migrator.engine.migration.removal_document import source_images
from migrator.engine.migration.services import EndLocation, SessionServices
from migrator.engine.migration.session_hooks import HOOK, SessionHooks
from migrator.engine.migration.session_phase import Attempt, Hold, Phase, PreflightRefusal
from migrator.errors import Fault
from migrator.faults import contained

#: Decisions after which the guest is stopped, or with which it is known to have been.
_STOPS_GUEST = frozenset(
    {*map(str, (ActionKind.LIMIT, ActionKind.PAUSE, ActionKind.START_POSTCOPY)), str(Step.HAND_OVER)}
)


class JournalledSession(FileSession):
    """A migration of the service; journalled before anything is begun, and at every state.

    :param evacuation: the id of the evacuation that it belongs to, if any.
    :param key: of the command that began it; empty for one that an evacuation began.
    :param trace: what it was asked for as part of.
    :param file: what it is saved into, or loaded from; ``None``: it moves from host to host.
    :param moved_with: the group whose guests are switched together; empty: it is switched when it can be.
    """

    guest: Guest
    #: Another controller drives it.
    driven_elsewhere = False
    #: Name of the controller that does; empty where none does.
    driver_name = ""
    #: What the controller that plans knows of the guest from before, where another drives it.
    _given_prior: GuestPrior | None = None

    def __init__(
        self,
        *,
        guest: Guest,
        identifier: str,
        target: str,
        policy: Policy,
        services: SessionServices,
        evacuation: str | None = None,
        requested_by: str = "",
        key: str = "",
        trace: TraceContext | None = None,
        file: FileMove | None = None,
        moved_with: str = "",
        **more: Any,
    ) -> None:
        super().__init__(
            identifier=identifier, guest=guest, target=target, policy=policy, services=services, **more
        )
        self.evacuation = evacuation
        self.requested_by = requested_by
        self.key = key
        self.trace = trace
        self.use_file(file)
        self.moved_with = moved_with
        #: Since when it could be switched and waits for the others of its group, on the engine's clock.
        self.switchable_since: float | None = None
        #: Its disks that are copied, as a check found them; ``None`` before.
        self.copied_disks: tuple[CopiedDisk, ...] | None = None
        #: Hooks may have been told that it begins, and are to be told how it ends.
        self.hooks_owed = False
        self._hooks = SessionHooks(
            services.hooks,
            guest=guest,
            hosts={HookPlace.SOURCE: guest.host, HookPlace.DESTINATION: target},
            document=self._hook_document,
            tell=self._tell_hook,
        )

    async def check_only(self) -> tuple[Finding, ...]:
        """Return what speaks against it, as far as it shows before a destination is started; changes nothing."""
        found = await preflight.look(
            self.services.site, self.guest, self.target, self.policy, stream_speed=self._stream_speed()
        )
        judged = self.services.accept(self.services.judge_room(self, found), self.accepted)
        return tuple(self.or_cold(judged))

    # --- its group ---------------------------------------------------------------------------------------------------

    @property
    def switch_in_seconds(self) -> float | None:
        """Return how soon it could be stopped, where it has a group; ``None`` where it cannot, or is past that."""
        if self.status is None or self.state not in (State.PRECOPY, State.WAITING):
            return None
        return self.status.switch_in_seconds

    @property
    def waits_for_group(self) -> bool:
        """Return whether it could be switched, and runs on until the others of its group can be too."""
        return self.switch_in_seconds is not None and not self.requests.switch

    def allow_switch(self, reason: str) -> None:
        """Say that its group is due."""
        if not self.requests.switch:
            self.requests.switch = reason
            self._heed_switch()

    def _heed_switch(self) -> None:
        if self._driver is not None:
            self._driver.wake()

    def tell_group(self, reason: str) -> None:
        """Note what its group comes to."""
        self._decide(Decision(at_seconds=round(self.began_ago(), 6), action=GROUP, reason=reason))

    def _show(self, status: MigrationProgress) -> None:
        if self.requests.switch:
            self.switchable_since = None
        elif status.switch_in_seconds is not None and self.switchable_since is None:
            self.switchable_since = clock.now()
        super()._show(status)

    @property
    def disk_left_bytes(self) -> float | None:
        """Return how much of its disks has still to be copied; ``None``: nobody has looked yet."""
        if self.status is not None and self.status.state is self.state is State.MIRRORING:
            return self.status.disk_left_bytes
        if self.state not in (State.QUEUED, State.PREPARING, State.WAITING, State.MIRRORING):
            return 0.0
        return None if self.copied_disks is None else float(copied_bytes(self.copied_disks))

    @property
    def _history_key(self) -> str:
        return self.guest.key

    @property
    def _deadline(self) -> float | None:
        return self.services.deadline(self.evacuation) if self.evacuation is not None else None

    @property
    def _to_send_bytes(self) -> int | None:
        return self.guest.to_send_bytes

    async def _memory_bytes(self) -> int:
        return self.guest.memory_bytes

    # --- hooks -------------------------------------------------------------------------------------------------------

    async def _ask_hooks(self, point: HookPoint) -> Sequence[Finding]:
        """See :meth:`migrator.engine.migration.session_ends.SessionEnds._ask_hooks`."""
        if point is HookPoint.BEFORE and self._hooks.any:
            self.hooks_owed = True
            await self.services.keep(self)  # a controller that comes after this one tells them how it ended
        return await self._hooks.ask(point)

    async def _tell_end(self, state: State) -> None:
        """See :meth:`migrator.engine.migration.session_ends.SessionEnds._tell_end`."""
        if state is State.COMPLETED or self.hooks_owed:
            point = HookPoint.AFTER if state is State.COMPLETED else HookPoint.FAILED
            try:
                with contained(f"the hooks of migration {self.id}"):
                    self.result.findings += await self._hooks.end(point)
            except Fault as fault:
                failed = finding("hook-failed", str(fault))
                self.result.warn(failed.code, failed.message, failed.remedy)
        self.hooks_owed = False

    def begin_anew(self) -> None:
        self._hooks.forget()  # its next switch is told as well
        super().begin_anew()
        self.requests.switch, self.switchable_since = "", None

    def leave(self) -> None:
        self._hooks.forget()
        super().leave()

    def _note_decision(self, decision: Decision) -> None:
        if decision.action in _STOPS_GUEST:
            self._hooks.tell_switch()
        super()._note_decision(decision)

    def _tell_hook(self, what: str) -> None:
        at = self.began_ago() if self.started_at is not None else clock.now() - self.preparing_since
        self._decide(Decision(at_seconds=round(at, 6), action=HOOK, reason=what))

    def _hook_document(self) -> Mapping[str, Any]:
        """Return what a hook is told of it."""
        state, guest = self.result.state if self.result.state.final else self.state, self.guest
        shown = self.document(decisions=False).model_dump(mode="json")
        return {
            "guest": {"id": guest.key, "uuid": guest.uuid, "name": guest.name},
            "attempt": self.attempt.number,
            **{
                side: {"host": host, "socket": self._socket(side), "pid": self._pid(side)}
                for side, host in (("source", guest.host), ("destination", self.target))
            },
            "migration": shown | {"state": str(state), "error": self.result.error},
        }

    def _pid(self, side: str) -> int | None:
        place = self.places.get(side)
        pid = place.identity.get("pid") if place is not None else None
        return int(pid) if pid is not None else None

    def prior(self) -> GuestPrior | None:
        history = self.services.history
        if history is None:
            return self._given_prior
        known = history.of(self.guest.key)
        return known.prior(clock.wall()) if known is not None else None

    def about(self) -> dict[str, Any]:
        """Return what its record says for whoever finds it without anything else."""
        return {**super().about(), "guest_fields": self.guest.fields()}

    # --- what it shows -----------------------------------------------------------------------------------------------

    def document(self, *, decisions: bool = True) -> MigrationDocument:
        """Return the migration as it is now.

        :param decisions: False leaves them out: there may be many, and events are made often.
        """
        result, status = self.result, self.status
        sample = status.sample if status else None
        foretold = _forecast(status.forecast if status else None)
        return MigrationDocument(
            id=self.id,
            guest=self.guest.key,
            guest_name=self.guest.name,
            source=self.guest.host,
            destination=self.target,
            source_socket=self._socket("source"),
            destination_socket=self._socket("destination"),
            file=self.file.path if self.file is not None else "",
            file_use=self.file.use.value if self.file is not None else "",
            moved_with=self.moved_with,
            switch_in_seconds=self.switch_in_seconds,
            policy=self.policy.name,
            controller=self._controller(),
            state=self.state,
            refused=self.refused,
            waiting_for=self._waits_for(),
            can_cancel=self.can_cancel,
            can_postcopy=self.can_postcopy,
            mode=result.mode,
            evacuation=self.evacuation,
            requested_by=self.requested_by,
            traceparent=self.trace.parent if self.trace else None,
            tracestate=(self.trace.state or None) if self.trace else None,
            created_at=self.created_at,
            started_at=self.started_at,
            ended_at=self.ended_at,
            progress_ratio=1.0 if self.state is State.COMPLETED else status.progress_ratio if status else 0.0,
            remaining_bytes=sample.remaining_bytes if sample else None,
            total_bytes=sample.total_bytes if sample else None,
            transferred_bytes=max(result.transferred_bytes, sample.transferred_bytes if sample else 0),
            dirty_rate_bytes_per_second=sample.dirty_rate_bytes_per_second if sample else None,
            bandwidth_bytes_per_second=sample.bandwidth_bytes_per_second if sample else None,
            throttle_ratio=sample.throttle_ratio if sample and not self.ended else 0.0,
            round=sample.round if sample else result.rounds,
            forecast=foretold,
            expected_downtime_seconds=foretold.downtime_p50_seconds if foretold else None,
            max_downtime_seconds=self.policy.max_downtime_seconds,
            downtime_limit_seconds=status.limit_seconds if status else None,
            downtime_seconds=result.downtime_seconds,
            downtime_uncertainty_seconds=result.downtime_uncertainty_seconds,
            standstill_seconds=result.standstill_seconds,
            standstill_uncertainty_seconds=result.standstill_uncertainty_seconds,
            queued_at_stop_bytes=result.queued_at_stop_bytes,
            postcopy_stall_seconds=result.postcopy_stall_seconds,
            postcopy_stall_forecast_seconds=result.postcopy_stall_forecast_seconds,
            max_postcopy_stall_seconds=self.policy.max_postcopy_stall_seconds,
            postcopy_vcpu_stall_seconds=list(result.postcopy_vcpu_stall_seconds),
            disk_bytes=result.disk_bytes,
            disk_remaining_bytes=status.disk_remaining_bytes
            if status is not None and self.state is State.MIRRORING
            else None,
            source_images=source_images(self.image_removal) if self.image_removal is not None else None,
            preparation_seconds=self.preparation_seconds,
            preflight_seconds=result.preflight_seconds or None,
            duration_seconds=result.duration_seconds if self.ended else None,
            max_throttle_ratio=result.max_throttle_ratio,
            recoveries=result.recoveries,
            tls=result.tls,
            streams=result.streams,
            compression=result.compression,
            forecast_error_ratio=result.forecast_error_ratio,
            network_state=result.network_state,
            network_problem=result.network_problem,
            findings=[FindingDocument(**asdict(each)) for each in result.findings],
            accepted=self.accepted,
            decisions=[DecisionDocument(**asdict(each)) for each in result.decisions] if decisions else [],
            error=result.error if self.ended or self.state is State.HELD else None,
            held_code=result.held_code,
            held_until=result.held_until if self.state is State.HELD else None,
        )

    def _controller(self) -> str:
        return "" if self.state is State.QUEUED else self.services.controller

    def _waits_for(self) -> str:
        if self.waits_for_group:
            return f"the others of its group {self.moved_with}"
        if self.state in (State.PRECOPY, State.RECOVERING) and self.status is not None:
            return self.status.waiting_for
        if self.state is State.PREPARING:
            return self._slow_step.waiting_for
        return self.waiting_for if self.state is State.WAITING else ""

    def _socket(self, side: str) -> str:
        place = self.places.get(side)
        return place.socket if place is not None else ""

    def journalled(self) -> dict[str, Any]:
        """Return the document with what another controller needs to go on, under ``_private``."""
        return self.document().model_dump(mode="json") | {
            "_private": {
                "command": self.key,
                "guest": self.guest.fields(),
                "policy": to_fields(self.policy),
                "places": {side: asdict(place) for side, place in self.places.items()},
                "attempt": self.attempt.number,
                "recorded": self.attempt.recorded,
                "cancelled": self.requests.cancel,
                "hooks_owed": self.hooks_owed,
                "thaw_owed": self.thaw_owed,
                "file": self.file.fields() if self.file is not None else None,
                "image_removal": removal_to_fields(self.image_removal)
                if self.image_removal is not None
                else None,
                "postcopy": self.requests.postcopy_reason if self.requests.postcopy else None,
            }
        }

    def as_if_cancelled(self) -> dict[str, Any]:
        """Return what :meth:`journalled` gives once :meth:`cancel` is done."""
        saved = self.journalled()
        return saved | {"_private": saved["_private"] | {"cancelled": True}}

    def as_if_asked_for_postcopy(self) -> dict[str, Any]:
        """Return what :meth:`journalled` gives once :meth:`postcopy` is done."""
        saved = self.journalled()
        return saved | {"_private": saved["_private"] | {"postcopy": self.requests.postcopy_reason}}

    @classmethod
    def from_journal(cls, saved: Mapping[str, Any], *, services: SessionServices, **callbacks: Any) -> Self:
        """Return the session of a migration that another controller left.

        It is queued (then :meth:`drive` goes on), held, or left
        (:func:`migrator.engine.migration.take_over.take_up`).
        """
        private = saved["_private"]
        shown = {key: each for key, each in saved.items() if key != "_private"}
        document = MigrationDocument.model_validate(shown)
        session = cls(
            identifier=document.id,
            guest=Guest.from_fields(private["guest"]),
            target=document.destination,
            policy=from_fields(private["policy"]),
            services=services,
            accepted=document.accepted,
            evacuation=document.evacuation,
            requested_by=document.requested_by,
            key=private["command"],
            trace=trace_context.of(document.traceparent, document.tracestate),
            file=_file(private.get("file")),
            moved_with=document.moved_with,
            created_at=document.created_at,
            **callbacks,
        )
        session._put_back(document, private)
        return session

    def _put_back(self, document: MigrationDocument, private: Mapping[str, Any]) -> None:
        """Set how far it was."""
        queued = document.state is State.QUEUED
        if document.state is State.HELD:
            self._go(Phase.HELD)
            self.holding = Hold()
        elif not queued:
            self._go(Phase.LEFT)
        self.state = document.state
        self.refusal = PreflightRefusal() if document.refused else None
        self.started_at = None if queued else document.started_at
        self.preparation_seconds = document.preparation_seconds
        # Of an older version: where the destination is was written down just before the record was begun, and one that
        # is queued again has the outcome of what was undone for it.
        self.attempt = Attempt(
            number=private.get("attempt", 2 if queued and document.started_at else 1),
            recorded=private.get("recorded", "destination" in private["places"] and not queued),
        )
        self.requests.cancel = private.get("cancelled", False)
        self.hooks_owed = private.get("hooks_owed", False)
        self.thaw_owed = private.get("thaw_owed", False)
        if (reason := private.get("postcopy")) is not None:
            self.requests.postcopy, self.requests.postcopy_reason = True, reason
        if (prior := private.get("prior")) is not None:
            self._given_prior = GuestPrior(**prior)
        self.result.held_code, self.result.error = document.held_code, document.error
        self.result.held_until = document.held_until
        self.result.decisions = [Decision(**each.model_dump()) for each in document.decisions]
        self.result.findings = [Finding(**each.model_dump()) for each in document.findings]
        self.places = {side: EndLocation(**place) for side, place in private["places"].items()}


def _file(saved: Mapping[str, Any] | None) -> FileMove | None:
    return None if saved is None else FileMove(**{**saved, "use": FileUse(saved["use"])})


def _forecast(forecast: Forecast | None) -> ForecastDocument | None:
    if forecast is None or (forecast.verdict is Verdict.UNKNOWN and not forecast.waiting_for):
        return None
    # Before anything is known there are no figures yet.
    known = forecast.seconds_p50 > 0
    if not known:
        return ForecastDocument(verdict=forecast.verdict, waiting_for=forecast.waiting_for)
    return ForecastDocument(
        verdict=forecast.verdict,
        rung=forecast.rung,
        waiting_for=forecast.waiting_for,
        p10_seconds=_finite(forecast.seconds_p10),
        p50_seconds=_finite(forecast.seconds_p50),
        p90_seconds=_finite(forecast.seconds_p90),
        downtime_p50_seconds=_finite(forecast.downtime_seconds_p50),
        downtime_p90_seconds=_finite(forecast.downtime_seconds_p90),
    )


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None
