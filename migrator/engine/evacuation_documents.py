"""An evacuation as others see it, and as the journal keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from migrator.api.evacuation_documents import EvacuationDocument, EvacuationGuest, RolledHost
from migrator.core.drain.entries import Entries
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation, GuestForecast
from migrator.core.drain.roll import RollHost, RollProgress, RollStage
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.drain.window import MaintenanceWindow, WindowFit, WindowForecast
from migrator.core.inventory import Guest

#: What was made of one guest: of which entry and which forecast, as it is shown, and as the journal keeps it.
_Made = tuple[Entry, GuestForecast | None, EvacuationGuest, dict[str, Any]]


class EvacuationDocuments:
    """Makes documents of evacuations; what was made of a guest is used again while nothing of it is different."""

    def __init__(self) -> None:
        self._made: dict[str, dict[str, _Made]] = {}

    def shown(self, run: Evacuation) -> EvacuationDocument:
        """Return it as it is now."""
        return _document(run, [each[2] for each in self._guests(run)])

    def journalled(self, run: Evacuation) -> dict[str, Any]:
        """Return the document with what another controller needs to go on, under ``_private``."""
        made = self._guests(run)
        return _document(run, [each[2] for each in made]).model_dump(mode="json") | {
            "_private": {
                "command": run.key,
                "accept": list(run.accept),
                "closing": run.closing,
                "entries": {each[2].guest: each[3] for each in made},
                **({"roll": asdict(run.roll)} if run.roll is not None else {}),
            }
        }

    def forget(self, identifier: str) -> None:
        """Drop what is kept of an evacuation that will not be asked for any more."""
        self._made.pop(identifier, None)

    def _guests(self, run: Evacuation) -> list[_Made]:
        before = self._made.get(run.id, {})
        now: dict[str, _Made] = {}
        for key, entry in run.entries.items():
            known, forecast = before.get(key), run.forecasts.get(key)
            if known is None or known[0] is not entry or known[1] is not forecast:
                private = known[3] if known is not None and known[0] is entry else _private(entry)
                known = (entry, forecast, _guest(key, entry, forecast), private)
            now[key] = known
        self._made[run.id] = now
        return list(now.values())


def evacuation_document(run: Evacuation) -> EvacuationDocument:
    """Return an evacuation as it is now."""
    return _document(run, [_guest(key, each, run.forecasts.get(key)) for key, each in run.entries.items()])


def journalled(run: Evacuation) -> dict[str, Any]:
    """Return an evacuation as the journal keeps it; see :meth:`EvacuationDocuments.journalled`."""
    return EvacuationDocuments().journalled(run)


def _document(run: Evacuation, guests: list[EvacuationGuest]) -> EvacuationDocument:
    low, middle, high = _forecast(run)
    return EvacuationDocument(
        id=run.id,
        kind=run.kind,
        host=run.host,
        group=run.group,
        target=run.target,
        state=run.state,
        policy=run.policy,
        requested_by=run.requested_by,
        traceparent=run.traceparent,
        tracestate=run.tracestate,
        created_at=run.created_at,
        ended_at=run.ended_at,
        deadline=run.deadline,
        on_deadline=run.on_deadline,
        starts_at=run.window.starts_at,
        window_ends_at=run.window.ends_at,
        window_note=run.window.note,
        window_fit=run.window_forecast.fit if run.scheduled else None,
        window_forecast=run.window_forecast.text if run.scheduled else "",
        begins_soon=run.begins_soon and run.scheduled,
        can_cancel=not run.ended and run.closing is None,
        late=run.late,
        at_risk=run.at_risk,
        forecast_end_at=middle,
        forecast_end_p10_at=low,
        forecast_end_p90_at=high,
        guests=guests,
        guests_left=run.left_count,
        guests_shut_off=run.guests_shut_off,
        hosts=_rolled(run.roll),
        max_unavailable=run.roll.max_unavailable if run.roll is not None else None,
        error=run.error,
    )


def _rolled(roll: RollProgress | None) -> list[RolledHost]:
    return [
        RolledHost(
            host=each.host,
            stage=each.stage,
            reason=each.reason,
            since=datetime.fromtimestamp(each.since, UTC) if each.since else None,
            evacuation=each.evacuation or None,
            restore=each.restore or None,
        )
        for each in (roll.hosts if roll is not None else ())
    ]


def _roll(fields: Mapping[str, Any]) -> RollProgress:
    hosts = tuple(RollHost(**{**each, "stage": RollStage(each["stage"])}) for each in fields["hosts"])
    hooks = {point: tuple(names) for point, names in fields["hooks"].items()}
    return RollProgress(**{**fields, "hosts": hosts, "hooks": hooks})


def _guest(key: str, entry: Entry, forecast: GuestForecast | None) -> EvacuationGuest:
    return EvacuationGuest(
        guest=key,
        guest_name=entry.guest.name,
        standing=entry.standing,
        target=entry.target,
        reason=entry.reason,
        attempts=entry.attempts,
        migration=entry.migration,
        ceiling_exceeded=entry.exceeded,
        starts_in_seconds=forecast.starts_in_seconds if forecast else None,
        takes_seconds=forecast.takes_seconds if forecast else None,
        doubt=forecast.doubt if forecast and entry.going else "",
    )


def _forecast(run: Evacuation) -> tuple[datetime, datetime, datetime] | tuple[None, None, None]:
    """Return what can still be true: what has not ended does not end in the past."""
    now = datetime.now(UTC)
    if run.ended or run.forecast_end_at is None or run.forecast_end_at[2] <= now:
        return None, None, None
    low, middle, high = run.forecast_end_at
    return max(low, now), max(middle, now), high


def _private(entry: Entry) -> dict[str, Any]:
    return {
        "guest": entry.guest.fields(),
        "standing": entry.standing,
        "target": entry.target,
        "planned": entry.planned,
        "reason": entry.reason,
        "attempts": entry.attempts,
        "migration": entry.migration,
        "excluded": dict(entry.excluded),
        "exceeded": entry.exceeded,
        # An older controller does not know these.
        **({"saving": True} if entry.saving else {}),
        **({"stays": entry.stays} if entry.stays else {}),
        **({"policy": entry.policy} if entry.policy else {}),
    }


def from_journal(saved: Mapping[str, Any]) -> Evacuation:
    """Return one that another controller left, or one that has ended, as :func:`journalled` gave it."""
    private = saved["_private"]
    document = EvacuationDocument.model_validate(
        {key: each for key, each in saved.items() if key != "_private"}
    )
    return Evacuation(
        id=document.id,
        host=document.host,
        kind=document.kind,
        group=document.group,
        target=document.target,
        state=document.state,
        policy=document.policy,
        accept=tuple(private["accept"]),
        deadline=document.deadline,
        on_deadline=document.on_deadline,
        window=MaintenanceWindow(
            starts_at=document.starts_at, ends_at=document.window_ends_at, note=document.window_note
        ),
        window_forecast=WindowForecast(
            fit=document.window_fit or WindowFit.UNKNOWN, text=document.window_forecast
        ),
        begins_soon=document.begins_soon,
        roll=_roll(private["roll"]) if "roll" in private else None,
        requested_by=document.requested_by,
        key=private["command"],
        traceparent=document.traceparent,
        tracestate=document.tracestate,
        created_at=document.created_at,
        ended_at=document.ended_at,
        late=document.late,
        error=document.error,
        guests_shut_off=document.guests_shut_off,
        closing=EvacuationState(private["closing"]) if private["closing"] else None,
        entries=Entries({key: _entry(fields) for key, fields in private["entries"].items()}),
    )


def _entry(fields: Mapping[str, Any]) -> Entry:
    guest, standing = Guest.from_fields(fields["guest"]), GuestStanding(fields["standing"])
    return Entry(**{**fields, "guest": guest, "standing": standing})
