"""What a job shows, and what the journal keeps of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from migrator.api import trace_context
from migrator.api.documents import (
    DecisionDocument,
    FindingDocument,
    ForecastDocument,
    MigrationDocument,
)
from migrator.core.inventory import Guest
from migrator.core.migration.forecast import Forecast, Verdict
from migrator.core.model import Decision, Finding, State
from migrator.core.policy import from_fields
from migrator.engine.migration.services import EndLocation

if TYPE_CHECKING:
    from migrator.engine.migration.session import MigrationSession
    from migrator.engine.migration.session_state import SessionState


def document(job: MigrationSession, *, decisions: bool = True) -> MigrationDocument:
    """The migration as it is now.

    :param decisions: False leaves them out: there may be many, and events are made often.
    """
    result, status = job.result, job.status
    sample = status.sample if status else None
    foretold = _forecast(status.forecast if status else None)
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
        forecast=foretold,
        expected_downtime_seconds=foretold.downtime_p50_seconds if foretold else None,
        max_downtime_seconds=job.policy.max_downtime_seconds,
        downtime_limit_seconds=status.limit_seconds if status else None,
        downtime_seconds=result.downtime_seconds,
        downtime_uncertainty_seconds=result.downtime_uncertainty_seconds,
        standstill_seconds=result.standstill_seconds,
        standstill_uncertainty_seconds=result.standstill_uncertainty_seconds,
        preparation_seconds=job.preparation_seconds,
        preflight_seconds=result.preflight_seconds or None,
        duration_seconds=result.duration_seconds if job.ended else None,
        max_throttle_ratio=result.max_throttle_ratio,
        forecast_error_ratio=result.forecast_error_ratio,
        network_state=result.network_state,
        network_problem=result.network_problem,
        findings=[FindingDocument(**asdict(each)) for each in result.findings],
        accepted=job.accepted,
        decisions=[DecisionDocument(**asdict(each)) for each in result.decisions] if decisions else [],
        error=result.error if job.ended or job.state is State.HELD else None,
        held_code=result.held_code,
        held_until=result.held_until if job.state is State.HELD else None,
    )


def journalled(job: MigrationSession, *, cancelled: bool = False) -> dict[str, Any]:
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


def _socket(job: MigrationSession, side: str) -> str:
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


def read(saved: Mapping[str, Any]) -> tuple[MigrationDocument, Mapping[str, Any]]:
    """What :func:`journalled` gave: the document, and what is private."""
    shown = {key: each for key, each in saved.items() if key != "_private"}
    return MigrationDocument.model_validate(shown), saved["_private"]


def asked_for(document: MigrationDocument, private: Mapping[str, Any]) -> dict[str, Any]:
    """With what a job that the journal has was made."""
    return {
        "identifier": document.id,
        "guest": Guest.from_fields(private["guest"]),
        "target": document.destination,
        "policy": from_fields(private["policy"]),
        "accepted": document.accepted,
        "evacuation": document.evacuation,
        "requested_by": document.requested_by,
        "key": private["command"],
        "trace": trace_context.of(document.traceparent, document.tracestate),
        "created_at": document.created_at,
    }


def put_back(job: SessionState, document: MigrationDocument, private: Mapping[str, Any]) -> None:
    """How far it was, for a job that was made with :func:`asked_for`."""
    job.state, job.refused = document.state, document.refused
    job.started_at = document.started_at if job.state is not State.QUEUED else None
    job.preparation_seconds = document.preparation_seconds
    # Of an older version: where the destination is was written down just before the record was begun, and one that
    # is queued again has the outcome of what was undone for it.
    queued = job.state is State.QUEUED
    job.attempt = private.get("attempt", 2 if queued and document.started_at else 1)
    job.cancelled = private.get("cancelled", False)
    job.recorded = private.get("recorded", "destination" in private["places"] and not queued)
    job.result.held_code, job.result.error = document.held_code, document.error
    job.result.held_until = document.held_until
    job.result.decisions = [Decision(**each.model_dump()) for each in document.decisions]
    job.result.findings = [Finding(**each.model_dump()) for each in document.findings]
    job.places = {side: EndLocation(**place) for side, place in private["places"].items()}
