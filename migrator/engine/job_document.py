"""What a job shows, and what the journal keeps of it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from migrator.core.forecast import Forecast, Verdict
from migrator.core.model import State
from migrator.engine.documents import (
    DecisionDocument,
    FindingDocument,
    ForecastDocument,
    MigrationDocument,
)

if TYPE_CHECKING:
    from migrator.engine.job import Job


def document(job: Job) -> MigrationDocument:
    """As it is now."""
    result, status = job.result, job.status
    sample = status.sample if status else None
    forecast = status.forecast if status else None
    return MigrationDocument(
        id=job.id,
        guest=job.guest.key,
        guest_name=job.guest.name,
        source=job.guest.host,
        destination=job.target,
        source_socket=_socket(job, "source"),
        destination_socket=_socket(job, "destination"),
        policy=job.policy.name,
        state=job.state,
        refused=job.refused,
        waiting_for=job.waiting_for if job.state is State.WAITING else "",
        can_cancel=job.can_cancel,
        can_postcopy=job.can_postcopy,
        mode=result.mode,
        evacuation=job.evacuation,
        requested_by=job.requested_by,
        traceparent=job.trace.parent if job.trace else None,
        tracestate=(job.trace.state or None) if job.trace else None,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        progress_ratio=1.0 if job.state is State.COMPLETED else status.progress_ratio if status else 0.0,
        remaining_bytes=sample.remaining_bytes if sample else None,
        total_bytes=sample.total_bytes if sample else None,
        transferred_bytes=max(result.transferred_bytes, sample.transferred_bytes if sample else 0),
        dirty_rate_bytes_per_second=sample.dirty_rate_bytes_per_second if sample else None,
        bandwidth_bytes_per_second=sample.bandwidth_bytes_per_second if sample else None,
        throttle_ratio=sample.throttle_ratio if sample and not job.ended else 0.0,
        round=sample.round if sample else result.rounds,
        forecast=_forecast(forecast),
        expected_downtime_seconds=sample.expected_downtime_seconds if sample else None,
        max_downtime_seconds=job.policy.max_downtime_seconds,
        downtime_limit_seconds=status.limit_seconds if status else None,
        downtime_seconds=result.downtime_seconds,
        downtime_uncertainty_seconds=result.downtime_uncertainty_seconds,
        standstill_seconds=result.standstill_seconds,
        standstill_uncertainty_seconds=result.standstill_uncertainty_seconds,
        preflight_seconds=result.preflight_seconds or None,
        duration_seconds=result.duration_seconds if job.ended else None,
        max_throttle_ratio=result.max_throttle_ratio,
        forecast_error_ratio=result.forecast_error_ratio,
        network_state=result.network_state,
        network_problem=result.network_problem,
        findings=[FindingDocument(**asdict(each)) for each in result.findings],
        accepted=job.accepted,
        decisions=[DecisionDocument(**asdict(each)) for each in result.decisions],
        error=result.error if job.ended or job.state is State.HELD else None,
        held_code=result.held_code,
        held_until=result.held_until if job.state is State.HELD else None,
    )


def journalled(job: Job, *, cancelled: bool = False) -> dict[str, Any]:
    """The document with what another controller needs to go on, under ``_private``.

    :param cancelled: as if it had been told to cancel.
    """
    return document(job).model_dump(mode="json") | {
        "_private": {
            "command": job.key,
            "guest": job.guest.fields(),
            "policy": asdict(job.policy),
            "places": {side: asdict(place) for side, place in job.places.items()},
            "attempt": job.attempt,
            "recorded": job.recorded,
            "cancelled": job.cancelled or cancelled,
        }
    }


def _socket(job: Job, side: str) -> str:
    place = job.places.get(side)
    return place.socket if place is not None else ""


def _forecast(forecast: Forecast | None) -> ForecastDocument | None:
    if forecast is None or forecast.verdict is Verdict.UNKNOWN:
        return None
    return ForecastDocument(
        verdict=forecast.verdict,
        rung=forecast.rung,
        p10_seconds=_finite(forecast.seconds_p10),
        p50_seconds=_finite(forecast.seconds_p50),
        p90_seconds=_finite(forecast.seconds_p90),
        downtime_p50_seconds=_finite(forecast.downtime_seconds_p50),
        downtime_p90_seconds=_finite(forecast.downtime_seconds_p90),
    )


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None
