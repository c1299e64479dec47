"""What is known of one migration of the service, and told of it to others: no I/O, no decision."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from migrator.api.trace_context import TraceContext
from migrator.core.inventory import Guest
from migrator.core.migration.downsampling import Point
from migrator.core.model import Decision, Mode, State, View
from migrator.core.policy import Policy
from migrator.engine import clock
from migrator.engine.migration.intent_log import OUTCOME
from migrator.engine.migration.outcome import MigrationOutcome, MigrationProgress
from migrator.engine.migration.services import EndLocation, SessionServices
from migrator.ports import Record


class SessionState:
    """How far a migration is; :class:`migrator.engine.migration.session.MigrationSession` is what takes it further.

    :param guest: as the inventory knew it when it was asked for.
    :param key: of the command that began it; empty for one that an evacuation began.
    :param on_state: called with the job whenever its state changed; as the other callbacks, it must return at once.
    :param on_progress: likewise when it has come further in the same state.
    :param on_decision: likewise, with what was decided about it.
    :param on_ready: likewise when it waits for its turn.
    """

    def __init__(
        self,
        *,
        identifier: str,
        guest: Guest,
        target: str,
        policy: Policy,
        means: SessionServices,
        accepted: Sequence[str] = (),
        evacuation: str | None = None,
        requested_by: str = "",
        key: str = "",
        trace: TraceContext | None = None,
        created_at: datetime | None = None,
        on_state: Callable[[Any], None] = lambda job: None,
        on_progress: Callable[[Any], None] = lambda job: None,
        on_decision: Callable[[Any, Decision], None] = lambda job, decision: None,
        on_ready: Callable[[Any], None] = lambda job: None,
    ) -> None:
        self.id = identifier
        self.guest = guest
        self.target = target
        self.policy = policy
        self.evacuation = evacuation
        self.state = State.QUEUED
        self.result = MigrationOutcome(
            id=identifier, state=State.QUEUED, max_downtime_seconds=policy.max_downtime_seconds
        )
        self.created_at = created_at or datetime.now(UTC)
        self.started_at: datetime | None = None
        self.ended_at: datetime | None = None
        self.status: MigrationProgress | None = None
        #: Its stream's share of the links, as last given.
        self.share: int | None = None
        #: Preflight refused it; nothing was changed.
        self.refused = False
        #: ... only because something could not be asked, which may pass; else trying again without a change is no use.
        self.may_pass = False
        #: ... nor is trying another target.
        self.refused_everywhere = False
        #: It is held, and may be taken up again once the host that could not be asked answers.
        self.unreachable = False
        #: What both ends showed when it was held; ``None`` where they could not be looked at together.
        self.shown: tuple[View, View] | None = None
        #: Something of it is left at its target, which could not be asked.
        self.left_over = False
        #: ... or at its source.
        self.source_left_over = False
        #: What it works with.
        self.means = means
        self.accepted = list(accepted)
        self.requested_by = requested_by
        #: Of the command that began it.
        self.key = key
        #: What it was asked for as part of.
        self.trace = trace
        #: With ``waiting``: what has to end first.
        self.waiting_for = ""
        #: On the engine's clock: since when it is being prepared; and how long that took in the end.
        self.preparing_since = clock.now()
        self.preparation_seconds: float | None = None
        #: Both ends are set up; it waits for :meth:`admit`.
        self.ready = False
        #: Its turn has come: the links are its own from now on, though it may be looked at and written down first.
        self.admitted = False
        self._turn = asyncio.Event()
        self._on_state, self._on_progress, self._on_decision = on_state, on_progress, on_decision
        self._on_ready = on_ready
        #: Of its steps, while it is driven.
        self.record: Record | None = None
        #: Both ends, as far as they are known.
        self.places: dict[str, EndLocation] = {"source": EndLocation(host=guest.host, socket=guest.socket)}
        #: Somebody wants the guest to stay where it is, and it was not too late then.
        self.cancelled = False
        self._parked = False
        #: It was taken up once though its target could not be asked.
        self.went_without = False
        #: How often it was begun from the start: one that a controller had to leave before anything was sent is
        #: begun anew under the same id.
        self.attempt = 1
        #: The record of this attempt is there, or was: a missing one does not mean that nothing was done.
        self.recorded = False

    @property
    def ended(self) -> bool:
        """Nothing more will happen to it; one that is held has not ended."""
        return self.ended_at is not None

    @property
    def preparing(self) -> bool:
        """Holds no transfer slot yet."""
        return self.state in (State.QUEUED, State.WAITING, State.PREPARING)

    @property
    def copies(self) -> bool:
        """Its stream takes part of a link."""
        return self.state in (State.PRECOPY, State.SWITCHOVER, State.POSTCOPY, State.RECOVERING)

    def unwanted(self) -> bool:
        """It shall not go on: it was cancelled, or the controller stops."""
        return self.cancelled or self._parked

    @property
    def arrived_socket(self) -> str:
        """Where the guest is found at its destination."""
        return self.places["destination"].socket

    @property
    def arrived_pid(self) -> int | None:
        """Its process there, where that is known."""
        pid = self.places["destination"].identity.get("pid")
        return int(pid) if pid is not None else None

    # --- what becomes of it ---------------------------------------------------------------------------------------

    def break_off(self, error: str) -> None:
        """The controller itself failed: a person must look."""
        if not self.ended:
            self.unreachable = False
            self.hold("controller-failed", error)

    def resolved(self, state: State, error: str | None) -> None:
        """A person, or a look, has said how it ended."""
        self.result.state, self.result.error, self.result.held_code = state, error, None
        self._end(state)

    def begin_anew(self) -> None:
        """Nothing was changed, or all was put back: it is queued as if it had never been begun."""
        self.attempt += 1
        self.recorded = self.ready = self.admitted = self.refused = self.unreachable = False
        self.started_at, self.status, self.record = None, None, None
        self.places = {"source": EndLocation(host=self.guest.host, socket=self.guest.socket)}
        self.result = MigrationOutcome(
            id=self.id, state=State.QUEUED, max_downtime_seconds=self.policy.max_downtime_seconds
        )
        if not self.unwanted():
            self._turn.clear()
        self._enter(State.QUEUED)

    def began_ago(self) -> float:
        """By the clock on the wall; never before what was decided, should somebody have set it back."""
        began = self.started_at or self.created_at
        decided = [each.at_seconds for each in self.result.decisions]
        return max(0.0, (datetime.now(UTC) - began).total_seconds(), *decided)

    def know(self, outcome: Mapping[str, Any]) -> None:
        """It has ended so, says the record that was put away."""
        for name in OUTCOME:
            if name not in outcome:
                continue
            value = outcome[name]
            kind = {"state": State, "mode": Mode}.get(name)
            setattr(self.result, name, kind(value) if kind is not None else value)
        self.started_at = self.started_at or self.created_at

    def _show(self, status: MigrationProgress) -> None:
        self.status = status
        if status.sample is not None and self.means.samples is not None:
            sample = replace(status.sample, at_seconds=round(status.at_seconds, 6))
            point = Point(sample=sample, state=status.state, limit_seconds=status.limit_seconds)
            self.means.samples.add(self.id, point)
        if status.state is not self.state and not status.state.final:
            self._enter(status.state)
        else:
            self._on_progress(self)

    def _enter(self, state: State) -> None:
        if state is not self.state:
            if state is State.PREPARING:
                self.preparing_since = clock.now()
            self.state = state
            self._on_state(self)

    def judged_again(self, code: str, error: str, until: str, shown: tuple[View, View]) -> None:
        """It stays held, for what both ends show now."""
        self.shown = shown
        told = code, error, until
        if told != (self.result.held_code, self.result.error, self.result.held_until):
            self.result.held_code, self.result.error, self.result.held_until = told
            self._on_state(self)

    def announce(self) -> None:
        """Tell others that something of it is not as before."""
        self._on_state(self)

    def hold(self, code: str, error: str) -> None:
        """It waits for a person's word, or for its host to answer, as :attr:`unreachable` says."""
        self.shown = None
        self.result.held_until = "its host to answer" if self.unreachable else "a person's word"
        self.result.state, self.result.held_code, self.result.error = State.HELD, code, error
        self._enter(State.HELD)

    def _end_as(self, state: State, error: str) -> None:
        self.result.state, self.result.error = state, error.replace("\n", " ")
        self._end(state)

    def _end(self, state: State) -> None:
        self.ended_at = datetime.now(UTC)
        self.state = state
        self._on_state(self)

    def about(self) -> dict[str, Any]:
        """What its record says for whoever finds it without anything else."""
        return {
            "attempt": self.attempt,
            "guest_fields": self.guest.fields(),
            "target": self.target,
            "places": {side: asdict(place) for side, place in self.places.items()},
        }
