"""Which spans a migration or an evacuation is, from its events alone: the same after a restart as without one.

Ids are made from the migration's or evacuation's own, so that nothing about them needs to be remembered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

from migrator.api import trace_context
from migrator.api.trace_context import TraceContext
from migrator.core.model import State

#: Decisions of one phase; of more the oldest go.
MOST_DECISIONS = 256
#: Phases of one migration; a postcopy may break and be mended many times. Of more the latest become one.
MOST_PHASES = 256

_HELD = "held for a person"
_WRONG = {State.FAILED, State.HELD}
_WRONG_ENDS = {"incomplete", "stopped"}

Value = str | bool | int | float


@dataclass(frozen=True, kw_only=True)
class Moment:
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
    moments: tuple[Moment, ...] = ()
    #: Why it went wrong; empty where it did not.
    error: str = ""


@dataclass(kw_only=True)
class _Phase:
    state: str
    began: datetime
    moments: deque[Moment] = field(default_factory=lambda: deque(maxlen=MOST_DECISIONS))


class Course:
    """What was heard of one migration so far."""

    def __init__(self, identifier: str, site: str) -> None:
        self._id, self._site = identifier, site
        self._heard = 0
        self._phases: list[_Phase] = []

    def hear(
        self, event_id: int, time: datetime, kind: str, body: Mapping[str, Any]
    ) -> tuple[Span, ...] | None:
        """Take in an event, in order; one that was heard before is passed over.

        :return: all its spans, the root first, with the event that ends it; ``None`` with every other.
        """
        if event_id <= self._heard or kind not in ("state", "decision"):
            return None
        self._heard = event_id
        if kind == "decision":
            if self._phases:
                self._phases[-1].moments.append(_moment(time, body))
            return None
        state = str(body["state"])
        if body.get("ended_at"):
            return self._spans(body)
        if (not self._phases or self._phases[-1].state != state) and len(self._phases) < MOST_PHASES:
            # A clock that was put back must not make a phase end before it began.
            began = max(time, self._phases[-1].began) if self._phases else _time(body["created_at"])
            self._phases.append(_Phase(state=state, began=began))
        return None

    def _spans(self, body: Mapping[str, Any]) -> tuple[Span, ...]:
        run = body.get("evacuation")
        caller = trace_context.of(body.get("traceparent"), body.get("tracestate"))
        trace = _trace_id(caller, self._site, "evacuation" if run else "migration", str(run or self._id))
        began = _time(body["created_at"])
        ended = max([_time(body["ended_at"]), began, *(phase.began for phase in self._phases)])
        error = _error(body) if body["state"] in _WRONG else ""
        parent = span_id(self._site, "evacuation", str(run)) if run else _span_of(caller)
        root = Span(
            name="migrate",
            trace_id=trace,
            span_id=span_id(self._site, "migration", self._id),
            parent_id=parent,
            caller=caller,
            remote=not run,
            began=began,
            ended=ended,
            attributes=_known(_MIGRATION, body) | _ended(body, error),
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
                attributes=_known(_PHASE, body),
                moments=tuple(phase.moments),
                error=_HELD if phase.state == State.HELD else error if number == len(ends) - 1 else "",
            )
            for number, (phase, end) in enumerate(zip(self._phases, ends, strict=True))
        ]
        return root, *phases


def of_evacuation(identifier: str, site: str, body: Mapping[str, Any]) -> Span | None:
    """The span of an evacuation or restore; ``None`` while it runs."""
    if not body.get("ended_at"):
        return None
    caller = trace_context.of(body.get("traceparent"), body.get("tracestate"))
    began = _time(body["created_at"])
    error = _error(body) if body["state"] in _WRONG_ENDS else ""
    guests: Iterable[Mapping[str, Any]] = body.get("guests") or ()
    standings = [str(guest.get("standing")) for guest in guests]
    counts: dict[str, Value] = {
        "migrator.evacuation.guests": len(standings),
        "migrator.evacuation.guests_moved": standings.count("moved"),
    }
    return Span(
        name=str(body.get("kind") or "evacuate"),
        trace_id=_trace_id(caller, site, "evacuation", identifier),
        span_id=span_id(site, "evacuation", identifier),
        parent_id=_span_of(caller),
        caller=caller,
        remote=True,
        began=began,
        ended=max(began, _time(body["ended_at"])),
        attributes=_known(_EVACUATION, body) | counts | _ended(body, error),
        error=error,
    )


def recorded(span: Span, ratio: float) -> bool:
    """As the caller says; else that share of traces, by their ids, so that all of a trace is recorded, or nothing."""
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


def _known(names: Mapping[str, str], body: Mapping[str, Any]) -> dict[str, Value]:
    return {
        attribute: value
        for attribute, field_name in names.items()
        if (value := body.get(field_name)) not in (None, "") and isinstance(value, (str, bool, int, float))
    }


def _ended(body: Mapping[str, Any], error: str) -> dict[str, Value]:
    """How it ended, beside the result: why, and for what went wrong a word to group by."""
    found: dict[str, Value] = {}
    if body.get("error"):
        found["migrator.reason"] = str(body["error"])
    if error:
        found["error.type"] = str(body.get("held_code") or body["state"])
    return found


def _error(body: Mapping[str, Any]) -> str:
    return str(body.get("error") or body["state"])


def _moment(at: datetime, body: Mapping[str, Any]) -> Moment:
    numbers = body.get("numbers") or {}
    attributes: dict[str, Value] = {"migrator.reason": str(body.get("reason") or "")}
    attributes |= {
        f"migrator.decision.{name}": value
        for name, value in numbers.items()
        if isinstance(value, (str, bool, int, float))
    }
    return Moment(at=at, name=str(body.get("action") or "decision"), attributes=attributes)


def _time(text: Any) -> datetime:
    return text if isinstance(text, datetime) else datetime.fromisoformat(str(text))
