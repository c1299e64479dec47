"""The spans of a migration or an evacuation, made from its events alone: the same after a restart as without one.

Ids are made from the migration's or evacuation's own, so that nothing about them needs to be remembered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any

from migrator.api import trace_context
from migrator.api.documents import DecisionDocument, MigrationDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import DecisionTaken, Event, MigrationStateChanged
from migrator.api.trace_context import TraceContext
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.model import State

#: Decisions of one phase; of more the oldest go.
MOST_DECISIONS = 256
#: Phases of one migration; a postcopy may break and be mended many times. Of more the latest become one.
MOST_PHASES = 256

_HELD = "held for a person"
_WRONG = {State.FAILED, State.HELD}
_WRONG_ENDS = {EvacuationState.INCOMPLETE, EvacuationState.STOPPED}

Value = str | bool | int | float

_Ended = MigrationDocument | EvacuationDocument


@dataclass(frozen=True, kw_only=True)
class SpanEvent:
    """A decision within a span."""

    at: datetime
    name: str
    attributes: Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class Span:
    """One span, complete."""

    name: str
    trace_id: int
    span_id: int
    #: ``None``: the trace begins with it.
    parent_id: int | None
    #: The caller's context, where it gave one: whether to record is for it to say, and its state is passed on.
    caller: TraceContext | None
    #: The parent is the caller's.
    remote: bool = False
    began: datetime
    ended: datetime
    attributes: Mapping[str, Value]
    events: tuple[SpanEvent, ...] = ()
    #: Why it went wrong; empty where it did not.
    error: str = ""


@dataclass(kw_only=True)
class _Phase:
    state: str
    began: datetime
    events: deque[SpanEvent] = field(default_factory=lambda: deque(maxlen=MOST_DECISIONS))


class MigrationTrace:
    """The phases of one migration as far as its events have told of them."""

    def __init__(self, identifier: str, site: str) -> None:
        self._id, self._site = identifier, site
        self._heard = 0
        self._phases: list[_Phase] = []

    def take_in(self, event: Event) -> tuple[Span, ...] | None:
        """Take in an event of the migration, in order; one that was heard before is passed over.

        :return: all its spans, the root first, with the event that ends it; ``None`` with every other.
        """
        if event.event_id <= self._heard or not isinstance(event, MigrationStateChanged | DecisionTaken):
            return None
        self._heard = event.event_id
        if isinstance(event, DecisionTaken):
            if self._phases:
                self._phases[-1].events.append(_span_event(event.time, event.decision))
            return None
        migration = event.migration
        if migration.ended_at is not None:
            return self._spans(migration, migration.ended_at)
        state = str(migration.state)
        if (not self._phases or self._phases[-1].state != state) and len(self._phases) < MOST_PHASES:
            # A clock that was put back must not make a phase end before it began.
            began = max(event.time, self._phases[-1].began) if self._phases else migration.created_at
            self._phases.append(_Phase(state=state, began=began))
        return None

    def _spans(self, migration: MigrationDocument, ended_at: datetime) -> tuple[Span, ...]:
        run = migration.evacuation
        caller = trace_context.of(migration.traceparent, migration.tracestate)
        trace = _trace_id(caller, self._site, "evacuation" if run else "migration", run or self._id)
        began = migration.created_at
        ended = max([ended_at, began, *(phase.began for phase in self._phases)])
        error = _error(migration) if migration.state in _WRONG else ""
        parent = span_id(self._site, "evacuation", run) if run else _span_of(caller)
        root = Span(
            name="migrate",
            trace_id=trace,
            span_id=span_id(self._site, "migration", self._id),
            parent_id=parent,
            caller=caller,
            remote=not run,
            began=began,
            ended=ended,
            attributes=_known(_MIGRATION, migration) | _ended(migration, error, migration.held_code),
            error=error,
        )
        ends = [*(phase.began for phase in self._phases[1:]), ended]
        phases = [
            Span(
                name=phase.state,
                trace_id=trace,
                span_id=span_id(self._site, "migration", self._id, str(number), phase.state),
                parent_id=root.span_id,
                caller=caller,
                began=phase.began,
                ended=end,
                attributes=_known(_PHASE, migration),
                events=tuple(phase.events),
                error=_HELD if phase.state == State.HELD else error if number == len(ends) - 1 else "",
            )
            for number, (phase, end) in enumerate(zip(self._phases, ends, strict=True))
        ]
        return root, *phases


def of_evacuation(evacuation: EvacuationDocument, site: str) -> Span | None:
    """Return the span of an evacuation or restore; ``None`` while it runs."""
    if evacuation.ended_at is None:
        return None
    caller = trace_context.of(evacuation.traceparent, evacuation.tracestate)
    error = _error(evacuation) if evacuation.state in _WRONG_ENDS else ""
    moved = sum(guest.standing is GuestStanding.MOVED for guest in evacuation.guests)
    counts: dict[str, Value] = {
        "migrator.evacuation.guests": len(evacuation.guests),
        "migrator.evacuation.guests_moved": moved,
    }
    return Span(
        name=evacuation.kind,
        trace_id=_trace_id(caller, site, "evacuation", evacuation.id),
        span_id=span_id(site, "evacuation", evacuation.id),
        parent_id=_span_of(caller),
        caller=caller,
        remote=True,
        began=evacuation.created_at,
        ended=max(evacuation.created_at, evacuation.ended_at),
        attributes=_known(_EVACUATION, evacuation) | counts | _ended(evacuation, error),
        error=error,
    )


def recorded(span: Span, ratio: float) -> bool:
    """Tell whether to record: as the caller says, else that share of traces, by their ids.

    So all of a trace is recorded, or nothing.
    """
    if span.caller is not None:
        return span.caller.sampled
    return span.trace_id % 2**64 < round(ratio * 2**64)


def span_id(*of: str) -> int:
    """Never 0, and the same for the same."""
    return int.from_bytes(_digest(*of)[:8]) or 1


def _trace_id(caller: TraceContext | None, *of: str) -> int:
    return int(caller.trace_id, 16) if caller else int.from_bytes(_digest(*of)[:16]) or 1


def _span_of(caller: TraceContext | None) -> int | None:
    return int(caller.span_id, 16) if caller else None


def _digest(*of: str) -> bytes:
    return sha256("\n".join(of).encode()).digest()


#: Attribute: field of the document.
_MIGRATION = {
    "migrator.migration.id": "id",
    "migrator.guest.id": "guest",
    "migrator.guest.name": "guest_name",
    "migrator.source.host": "source",
    "migrator.destination.host": "destination",
    "migrator.policy": "policy",
    "migrator.evacuation.id": "evacuation",
    "migrator.requested_by": "requested_by",
    "migrator.result": "state",
    "migrator.mode": "mode",
    "migrator.duration_seconds": "duration_seconds",
    "migrator.downtime_seconds": "downtime_seconds",
    "migrator.max_downtime_seconds": "max_downtime_seconds",
    "migrator.preflight_seconds": "preflight_seconds",
    "migrator.transferred_bytes": "transferred_bytes",
    "migrator.total_bytes": "total_bytes",
    "migrator.queued_at_stop_bytes": "queued_at_stop_bytes",
    "migrator.postcopy_stall_seconds": "postcopy_stall_seconds",
    "migrator.rounds": "round",
    "migrator.max_throttle_ratio": "max_throttle_ratio",
    "migrator.forecast_error_ratio": "forecast_error_ratio",
    "migrator.held_code": "held_code",
}
_PHASE = {"migrator.migration.id": "id", "migrator.guest.id": "guest"}
_EVACUATION = {
    "migrator.evacuation.id": "id",
    "migrator.host": "host",
    "migrator.policy": "policy",
    "migrator.requested_by": "requested_by",
    "migrator.result": "state",
    "migrator.evacuation.guests_left": "guests_left",
    "migrator.evacuation.late": "late",
    "migrator.evacuation.deadline": "deadline",
}


def _known(names: Mapping[str, str], document: _Ended) -> dict[str, Value]:
    values = {attribute: getattr(document, field_name) for attribute, field_name in names.items()}
    return {attribute: _value(value) for attribute, value in values.items() if value not in (None, "")}


def _value(value: Any) -> Value:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value) if isinstance(value, StrEnum) else value


def _ended(document: _Ended, error: str, code: str | None = None) -> dict[str, Value]:
    """How it ended, beside the result: why, and for what went wrong a word to group by."""
    found: dict[str, Value] = {}
    if document.error:
        found["migrator.reason"] = document.error
    if error:
        found["error.type"] = code or str(document.state)
    return found


def _error(document: _Ended) -> str:
    return document.error or str(document.state)


def _span_event(at: datetime, decision: DecisionDocument) -> SpanEvent:
    numbers: dict[str, Value] = {
        f"migrator.decision.{name}": value for name, value in decision.numbers.items()
    }
    return SpanEvent(at=at, name=decision.action, attributes={"migrator.reason": decision.reason} | numbers)
