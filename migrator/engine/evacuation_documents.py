"""An evacuation as others see it, and as the journal keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from migrator.api.documents import EvacuationDocument, EvacuationGuest
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.inventory import Guest


def evacuation_document(run: Evacuation) -> EvacuationDocument:
    """Return it as it is now."""
    low, middle, high = _forecast(run)
    return EvacuationDocument(
        id=run.id,
        kind=run.kind,
        host=run.host,
        state=run.state,
        policy=run.policy,
        requested_by=run.requested_by,
        traceparent=run.traceparent,
        tracestate=run.tracestate,
        created_at=run.created_at,
        ended_at=run.ended_at,
        deadline=run.deadline,
        on_deadline=run.on_deadline,
        can_cancel=not run.ended and run.closing is None,
        late=run.late,
        at_risk=run.at_risk,
        forecast_end_at=middle,
        forecast_end_p10_at=low,
        forecast_end_p90_at=high,
        guests=[_guest(key, entry) for key, entry in run.entries.items()],
        guests_left=len(run.left),
        error=run.error,
    )


def _guest(key: str, entry: Entry) -> EvacuationGuest:
    return EvacuationGuest(
        guest=key,
        guest_name=entry.guest.name,
        standing=entry.standing,
        target=entry.target,
        reason=entry.reason,
        attempts=entry.attempts,
        migration=entry.migration,
        ceiling_exceeded=entry.exceeded,
        starts_in_seconds=entry.starts_in_seconds,
        takes_seconds=entry.takes_seconds,
        downtime_seconds=entry.downtime_seconds,
        doubt=entry.doubt if entry.going else "",
    )


def _forecast(run: Evacuation) -> tuple[datetime, datetime, datetime] | tuple[None, None, None]:
    """Return what can still be true: what has not ended does not end in the past."""
    now = datetime.now(UTC)
    if run.ended or run.forecast_end_at is None or run.forecast_end_at[2] <= now:
        return None, None, None
    low, middle, high = run.forecast_end_at
    return max(low, now), max(middle, now), high


def journalled(run: Evacuation) -> dict[str, Any]:
    """Return the document with what another controller needs to go on, under ``_private``."""
    return evacuation_document(run).model_dump(mode="json") | {
        "_private": {
            "command": run.key,
            "accept": run.accept,
            "closing": run.closing,
            "entries": {key: _entry(entry) for key, entry in run.entries.items()},
        }
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "guest": entry.guest.fields(),
        "standing": entry.standing,
        "target": entry.target,
        "planned": entry.planned,
        "reason": entry.reason,
        "attempts": entry.attempts,
        "migration": entry.migration,
        "excluded": entry.excluded,
        "exceeded": entry.exceeded,
    }


def from_journal(saved: Mapping[str, Any]) -> Evacuation:
    """Return one that another controller left, or one that has ended, as :func:`journalled` gave it."""
    private = saved["_private"]
    document = EvacuationDocument.model_validate(
        {key: each for key, each in saved.items() if key != "_private"}
    )
    found = Evacuation(
        identifier=document.id,
        host=document.host,
        kind=document.kind,
        policy=document.policy,
        accept=private["accept"],
        deadline=document.deadline,
        on_deadline=document.on_deadline,
        requested_by=document.requested_by,
        key=private["command"],
        traceparent=document.traceparent,
        tracestate=document.tracestate,
        created_at=document.created_at,
    )
    found.state, found.ended_at, found.late = document.state, document.ended_at, document.late
    found.error = document.error
    found.closing = EvacuationState(private["closing"]) if private["closing"] else None
    for key, fields in private["entries"].items():
        found.entries[key] = Entry(
            **fields
            | {"guest": Guest.from_fields(fields["guest"]), "standing": GuestStanding(fields["standing"])}
        )
    return found
