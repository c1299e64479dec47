"""Log of events: a line for every change of a migration, an evacuation or a host, and for every decision.

The journal has the same with more around it; the log is what is read when somebody wonders at night, and what a
collector of logs has when the machine is lost.
"""

from __future__ import annotations

import contextlib
from typing import Any

from migrator import logs
from migrator.api import trace_context
from migrator.api.documents import MigrationDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import (
    DecisionTaken,
    EvacuationStateChanged,
    Event,
    HostStateChanged,
    MigrationStateChanged,
    Subject,
)
from migrator.api.inventory_documents import HostDocument
from migrator.core.model import State
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import NOT_LOOKED_AT

_BAD = {State.FAILED, State.HELD}


class EventLogger:
    """Log of what a person wants to have read of the events of a bus."""

    def __init__(self, bus: EventBus) -> None:
        self._log = logs.logger()
        #: Whom the decisions of a migration are about.
        self._about: dict[str, dict[str, Any]] = {}
        #: What was said last of a host or an evacuation: their documents change far more often.
        self._said: dict[tuple[Subject, str], tuple[Any, ...]] = {}
        # One that was frozen, and replaced meanwhile, has nothing to say: a journal that is shared is asked first.
        bus.subscribe(self._on_event, journalled=bus.numbered_by_journal)

    def _on_event(self, event: Event) -> None:
        # A log that cannot be written keeps no guest from moving.
        with contextlib.suppress(OSError, ValueError):
            match event:
                case DecisionTaken(migration=identifier, decision=decision):
                    self._log.info(
                        "decision",
                        migration=identifier,
                        **self._about.get(identifier, {}),
                        action=decision.action,
                        reason=decision.reason,
                    )
                case MigrationStateChanged(migration=migration):
                    self._migration(migration)
                case EvacuationStateChanged(evacuation=evacuation):
                    self._evacuation(evacuation)
                case HostStateChanged(host=host):
                    self._host(host)

    def _migration(self, migration: MigrationDocument) -> None:
        about = {
            "guest": migration.guest_name or migration.guest,
            "host": migration.source,
            "target": migration.destination,
        }
        if migration.evacuation:
            about["evacuation"] = migration.evacuation
        about |= _trace(migration)
        figures = {
            "error": migration.error,
            "held_code": migration.held_code,
            "duration_seconds": migration.duration_seconds,
            "downtime_seconds": migration.downtime_seconds,
            "transferred_bytes": migration.transferred_bytes,
        }
        known = {name: value for name, value in figures.items() if value not in (None, 0, "")}
        say = self._log.warning if migration.state in _BAD else self._log.info
        say("migration", migration=migration.id, **about, state=str(migration.state), **known)
        if migration.ended_at is not None:
            self._about.pop(migration.id, None)
        else:
            self._about[migration.id] = about

    def _evacuation(self, evacuation: EvacuationDocument) -> None:
        told = {
            "kind": evacuation.kind,
            "state": str(evacuation.state),
            "guests_left": evacuation.guests_left,
            "late": evacuation.late,
            "at_risk": evacuation.at_risk,
            "error": evacuation.error,
        }
        ended = evacuation.ended_at is not None
        if not self._new(Subject.EVACUATION, evacuation.id, tuple(told.values()), ended=ended):
            return
        bad = evacuation.late or evacuation.at_risk or evacuation.error
        say = self._log.warning if bad else self._log.info
        kept = {name: value for name, value in told.items() if value not in (None, "", False)}
        say("evacuation", evacuation=evacuation.id, host=evacuation.host, **kept | _trace(evacuation))

    def _host(self, host: HostDocument) -> None:
        if self._new(Subject.HOST, host.host, (host.state, host.cordoned, host.up, host.error), ended=False):
            say = self._log.info if host.up or host.error == NOT_LOOKED_AT else self._log.warning
            error = {"error": host.error} if host.error else {}
            cordoned = {"cordoned": True} if host.cordoned else {}
            say("host", host=host.host, state=str(host.state), up=host.up, **cordoned, **error)

    def _new(self, subject: Subject, identifier: str, told: tuple[Any, ...], *, ended: bool) -> bool:
        key = (subject, identifier)
        if self._said.get(key) == told:
            return False
        self._said[key] = told
        if ended:
            del self._said[key]
        return True


def _trace(document: MigrationDocument | EvacuationDocument) -> dict[str, str]:
    """Return the trace to look for, where the caller named one."""
    trace = trace_context.of(document.traceparent, None)
    return {"trace_id": trace.trace_id} if trace else {}
