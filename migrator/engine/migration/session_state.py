"""Keeps what is known of one migration, and tells it to others: no I/O, no decision."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from migrator.core.image_removal import ImageRemoval
from migrator.core.migration.downsampling import Point
from migrator.core.model import Decision, Mode, State, View
from migrator.core.policy import Policy
from migrator.engine import clock
from migrator.engine.migration.intent_log import OUTCOME
from migrator.engine.migration.outcome import MigrationOutcome, MigrationProgress
from migrator.engine.migration.requests import MigrationRequests
from migrator.engine.migration.services import EndLocation, MovedGuest, SessionServices
from migrator.engine.migration.session_phase import FOLLOWING, Attempt, Hold, Phase, PreflightRefusal
from migrator.errors import MigratorError
from migrator.ports import Record


class SessionState:
    """The state of a migration; :class:`migrator.engine.migration.session.MigrationSession` takes it further.

    :param guest: as it was known when the migration was asked for.
    :param target: the host that it goes to.
    :param accepted: codes of findings that shall not keep it from moving.
    :param on_state: called with the session whenever its state changed; as the others, it must return at once.
    :param on_progress: likewise when it has come further in the same state.
    :param on_decision: likewise, with what was decided about it.
    :param on_ready: likewise when it waits for its turn.
    :param on_status: likewise at every look, with what a person watching wants to see.
    """

    def __init__(
        self,
        *,
        identifier: str,
        guest: MovedGuest,
        target: str,
        policy: Policy,
        services: SessionServices,
        accepted: Sequence[str] = (),
        created_at: datetime | None = None,
        on_state: Callable[[Any], None] = lambda session: None,
        on_progress: Callable[[Any], None] = lambda session: None,
        on_decision: Callable[[Any, Decision], None] = lambda session, decision: None,
        on_ready: Callable[[Any], None] = lambda session: None,
        on_status: Callable[[MigrationProgress], None] = lambda status: None,
    ) -> None:
        self.id = identifier
        self.guest = guest
        self.target = target
        self.policy = policy
        self.services = services
        self.accepted = list(accepted)
        self.phase = Phase.QUEUED
        #: What others see of it.
        self.state = State.QUEUED
        self.requests = MigrationRequests()
        self.attempt = Attempt()
        self.result = self._no_outcome()
        self.status: MigrationProgress | None = None
        self.created_at = created_at or datetime.now(UTC)
        self.started_at: datetime | None = None
        self.ended_at: datetime | None = None
        #: Why preflight refused it; ``None`` where it did not.
        self.refusal: PreflightRefusal | None = None
        #: While it is held.
        self.holding: Hold | None = None
        #: The error that ended it before anything was changed.
        self.failure: MigratorError | None = None
        #: Ends at whose hosts something of it is left, because they could not be asked.
        self.left_behind: set[str] = set()
        #: Images that it left at its source, and that are to be removed; ``None``: there are none.
        self.image_removal: ImageRemoval | None = None
        #: With ``waiting``: what has to end first.
        self.waiting_for = ""
        #: On the engine's clock: since when it is being prepared; and how long that took in the end.
        self.preparing_since = clock.now()
        self.preparation_seconds: float | None = None
        #: Of its steps, while it is driven.
        self.record: Record | None = None
        #: Both ends, as far as they are known.
        self.places: dict[str, EndLocation] = {"source": EndLocation(host=guest.host, socket=guest.socket)}
        self._turn = asyncio.Event()
        self._on_state, self._on_progress, self._on_decision = on_state, on_progress, on_decision
        self._on_ready, self._on_status = on_ready, on_status

    def _no_outcome(self) -> MigrationOutcome:
        return MigrationOutcome(
            id=self.id,
            state=State.QUEUED,
            max_downtime_seconds=self.policy.max_downtime_seconds,
            max_postcopy_stall_seconds=self.policy.max_postcopy_stall_seconds,
        )

    # --- what others ask about it ---------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Return whether nothing more will happen to it; one that is held has not ended."""
        return self.ended_at is not None

    @property
    def preparing(self) -> bool:
        """Return whether it holds no transfer slot yet."""
        return self.state in (State.QUEUED, State.WAITING, State.PREPARING)

    @property
    def ready(self) -> bool:
        """Return whether both ends are set up and it waits for its turn."""
        return self.phase is Phase.READY

    @property
    def admitted(self) -> bool:
        """Return whether its turn has come."""
        return self.requests.admit

    @property
    def cancelled(self) -> bool:
        """Return whether somebody wants the guest to stay where it is."""
        return self.requests.cancel

    @property
    def parked(self) -> bool:
        """Return whether it was asked to be left to the next controller."""
        return self.requests.park

    @property
    def share(self) -> int | None:
        """Return its stream's share of the links, in bytes per second, as last given."""
        return self.requests.share

    @property
    def copies(self) -> bool:
        """Return whether its stream takes part of a link."""
        return self.state in (
            State.MIRRORING,
            State.PRECOPY,
            State.SWITCHOVER,
            State.POSTCOPY,
            State.RECOVERING,
        )

    @property
    def switches(self) -> bool:
        """Return whether its guest stands still, or needs to be steered within moments."""
        return self.state in (State.SWITCHOVER, State.POSTCOPY, State.RECOVERING)

    @property
    def refused(self) -> bool:
        """Return whether preflight refused it; nothing was changed then."""
        return self.refusal is not None

    @property
    def may_pass(self) -> bool:
        """Return whether it was refused only because something could not be asked."""
        return self.refusal is not None and self.refusal.may_pass

    @property
    def refused_everywhere(self) -> bool:
        """Return whether every other target would be refused too."""
        return self.refusal is not None and self.refusal.everywhere

    @property
    def unreachable(self) -> bool:
        """Return whether it is held, and may be taken up again once an end that could not be asked answers."""
        return self.holding is not None and self.holding.unreachable

    @property
    def left_over(self) -> bool:
        """Return whether something of it is left at its target."""
        return "destination" in self.left_behind

    @property
    def images_left_over(self) -> bool:
        """Return whether images were left there that hold nothing, as the guest never ran there."""
        return "images" in self.left_behind

    @property
    def source_left_over(self) -> bool:
        """Return whether something of it is left at its source."""
        return "source" in self.left_behind

    @property
    def arrived_socket(self) -> str:
        """Return where the guest is found at its destination."""
        return self.places["destination"].socket

    @property
    def arrived_pid(self) -> int | None:
        """Return its process there, where that is known."""
        pid = self.places["destination"].identity.get("pid")
        return int(pid) if pid is not None else None

    # --- what becomes of it ---------------------------------------------------------------------------------------

    def _go(self, phase: Phase) -> None:
        if phase not in FOLLOWING[self.phase]:
            raise RuntimeError(f"migration {self.id} cannot go from {self.phase} to {phase}")
        self.phase = phase

    def leave(self) -> None:
        """Leave it to another controller, or find it left by one: its record says how far it got."""
        self._go(Phase.LEFT)

    def break_off(self, error: str) -> None:
        """Hold it because the controller itself failed: a person must look."""
        if not self.ended:
            self.hold("controller-failed", error)

    def begin_anew(self) -> None:
        """Queue it as if it had never been begun: nothing was changed, or all was put back."""
        self._go(Phase.QUEUED)
        self.attempt = Attempt(number=self.attempt.number + 1, went_without=self.attempt.went_without)
        self.refusal = self.holding = self.failure = None
        self.requests.admit = False
        self.started_at, self.status, self.record = None, None, None
        self.places = {"source": EndLocation(host=self.guest.host, socket=self.guest.socket)}
        self.result = self._no_outcome()
        if not self.requests.unwanted():
            self._turn.clear()
        self._enter(State.QUEUED)

    def began_ago(self) -> float:
        """Return the seconds since it began by the clock on the wall; never before what was decided."""
        began = self.started_at or self.created_at
        decided = [each.at_seconds for each in self.result.decisions]
        return max(0.0, (datetime.now(UTC) - began).total_seconds(), *decided)

    def adopt_outcome(self, outcome: Mapping[str, Any]) -> None:
        """Take over how it ended from the record that was put away."""
        for name in OUTCOME:
            if name not in outcome:
                continue
            value = outcome[name]
            kind = {"state": State, "mode": Mode}.get(name)
            setattr(self.result, name, kind(value) if kind is not None else value)
        self.started_at = self.started_at or self.created_at

    def _show(self, status: MigrationProgress) -> None:
        self.status = status
        self._on_status(status)
        if status.sample is not None and self.services.samples is not None:
            sample = replace(status.sample, at_seconds=round(status.at_seconds, 6))
            point = Point(sample=sample, state=status.state, limit_seconds=status.limit_seconds)
            self.services.samples.add(self.id, point)
        if status.state is not self.state and not status.state.final:
            self._enter(status.state)
        else:
            self._on_progress(self)

    def _decide(self, decision: Decision) -> None:
        self.result.decisions.append(decision)
        self._note_decision(decision)

    def _note_decision(self, decision: Decision) -> None:
        self._on_decision(self, decision)

    def _enter(self, state: State) -> None:
        if state is not self.state:
            if state is State.PREPARING:
                self.preparing_since = clock.now()
            self.state = state
            self._on_state(self)

    def announce(self) -> None:
        """Tell others that something of it is not as before."""
        self._on_state(self)

    def hold(self, code: str, error: str, *, unreachable: bool = False) -> None:
        """Have it wait for a person's answer.

        :param unreachable: or for an end that could not be asked.
        """
        self._go(Phase.HELD)
        self.holding = Hold(unreachable=unreachable)
        self.result.held_until = "its host to answer" if unreachable else "a person's word"
        self.result.state, self.result.held_code, self.result.error = State.HELD, code, error
        self._enter(State.HELD)

    def update_hold(self, code: str, error: str, until: str, shown: tuple[View, View]) -> None:
        """Keep it held, for what both ends show now."""
        self.note_views(shown)
        told = code, error, until
        if told != (self.result.held_code, self.result.error, self.result.held_until):
            self.result.held_code, self.result.error, self.result.held_until = told
            self._on_state(self)

    def note_views(self, shown: tuple[View, View]) -> None:
        """Note what both ends of a held one show now."""
        self.holding = replace(self.holding or Hold(), shown=shown)

    @property
    def shown(self) -> tuple[View, View] | None:
        """Return what both ends showed when it was held, or looked at since; ``None`` where that is not known."""
        return self.holding.shown if self.holding is not None else None

    def _end_as(self, state: State, error: str) -> None:
        self.result.state, self.result.error = state, error.replace("\n", " ")
        self._end(state)

    def _end(self, state: State) -> None:
        self._go(Phase.ENDED)
        self.ended_at = datetime.now(UTC)
        self.state = state
        self._on_state(self)

    def about(self) -> dict[str, Any]:
        """Return what its record says for whoever finds it without anything else."""
        return {
            "attempt": self.attempt.number,
            "target": self.target,
            "places": {side: asdict(place) for side, place in self.places.items()},
        }
