"""What happens, in the log: a line for every change of a migration, an evacuation or a host, and for every decision.

The journal has the same with more around it; the log is what is read when somebody wonders at night, and what a
collector of logs has when the machine is lost.
"""

from __future__ import annotations

import contextlib
from typing import Any

from migrator import logs
from migrator.api import trace_context
from migrator.api.events import EventDocument, EventKind, Subject
from migrator.core.model import State
from migrator.engine.event_bus import EventBus

#: What is told of a migration besides its state, where it is known.
_FIGURES = ("error", "held_code", "duration_seconds", "downtime_seconds", "transferred_bytes")
_BAD = {State.FAILED.value, State.HELD.value}


class Narrator:
    """Hears every event of a bus, and logs what a person wants to have read."""

    def __init__(self, bus: EventBus) -> None:
        self._log = logs.logger()
        #: Whom the decisions of a migration are about.
        self._about: dict[str, dict[str, Any]] = {}
        #: What was said last of a host or an evacuation: their documents change far more often.
        self._said: dict[tuple[Subject, str], tuple[Any, ...]] = {}
        bus.subscribe(self._hear)

    def _hear(self, event: EventDocument) -> None:
        # A log that cannot be written keeps no guest from moving.
        with contextlib.suppress(OSError, ValueError):
            if event.kind is EventKind.DECISION:
                body = event.body
                self._log.info(
                    "decision",
                    migration=event.subject_id,
                    **self._about.get(event.subject_id, {}),
                    action=body.get("action"),
                    reason=body.get("reason"),
                )
            elif event.kind is EventKind.STATE and event.subject is Subject.MIGRATION:
                self._migration(event.subject_id, event.body)
            elif event.kind is EventKind.STATE and event.subject is Subject.EVACUATION:
                self._evacuation(event.subject_id, event.body)
            elif event.kind is EventKind.STATE and event.subject is Subject.HOST:
                self._host(event.subject_id, event.body)

    def _migration(self, identifier: str, body: dict[str, Any]) -> None:
        about = {
            "guest": body.get("guest_name") or body.get("guest"),
            "host": body.get("source"),
            "target": body.get("destination"),
        }
        if body.get("evacuation"):
            about["evacuation"] = body["evacuation"]
        about |= _trace(body)
        figures = {name: body[name] for name in _FIGURES if body.get(name) not in (None, 0, "")}
        say = self._log.warning if body.get("state") in _BAD else self._log.info
        say("migration", migration=identifier, **about, state=body.get("state"), **figures)
        if body.get("ended_at"):
            self._about.pop(identifier, None)
        else:
            self._about[identifier] = about

    def _evacuation(self, identifier: str, body: dict[str, Any]) -> None:
        told = {name: body.get(name) for name in ("kind", "state", "guests_left", "late", "at_risk", "error")}
        if not self._new(
            Subject.EVACUATION, identifier, tuple(told.values()), ended=bool(body.get("ended_at"))
        ):
            return
        bad = told["late"] or told["at_risk"] or told["error"]
        say = self._log.warning if bad else self._log.info
        kept = {name: value for name, value in told.items() if value not in (None, "", False)} | _trace(body)
        say("evacuation", evacuation=identifier, host=body.get("host"), **kept)

    def _host(self, name: str, body: dict[str, Any]) -> None:
        state, up, error = body.get("state"), body.get("up"), body.get("error") or ""
        if self._new(Subject.HOST, name, (state, up, error), ended=False):
            say = self._log.info if up else self._log.warning
            say("host", host=name, state=state, up=up, **({"error": error} if error else {}))

    def _new(self, subject: Subject, identifier: str, told: tuple[Any, ...], *, ended: bool) -> bool:
        key = (subject, identifier)
        if self._said.get(key) == told:
            return False
        self._said[key] = told
        if ended:
            del self._said[key]
        return True


def _trace(body: dict[str, Any]) -> dict[str, str]:
    """What to look for among traces, where the caller said it."""
    trace = trace_context.of(body.get("traceparent"), None)
    return {"trace_id": trace.trace_id} if trace else {}
