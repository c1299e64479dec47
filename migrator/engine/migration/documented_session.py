"""The session of a migration of the service: whom it is for, its group, and the document that is shown of it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from migrator.api.documents import DecisionDocument, FindingDocument, ForecastDocument, MigrationDocument
from migrator.api.trace_context import TraceContext
from migrator.core.inventory import Guest
from migrator.core.migration.forecast import Forecast, Verdict
from migrator.core.model import Decision, State
from migrator.core.policy import Policy
from migrator.core.preflight.disk_room import CopiedDisk, copied_bytes
from migrator.engine import clock
from migrator.engine.migration.file_move import FileMove
from migrator.engine.migration.file_session import FileSession
from migrator.engine.migration.group_hold import GROUP
from migrator.engine.migration.outcome import MigrationProgress
from migrator.engine.migration.removal_document import source_images
from migrator.engine.migration.services import SessionServices


class DocumentedSession(FileSession):
    """A migration that a service was asked for, as its documents and its group see it.

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
