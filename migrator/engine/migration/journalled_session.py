"""The session of a migration of the service: its place in the journal, and the hooks that are told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Self

from migrator.api import trace_context
from migrator.api.documents import MigrationDocument
from migrator.core.findings import finding
from migrator.core.guest_experience import GuestPrior
from migrator.core.hooks import HookPlace, HookPoint
from migrator.core.image_removal import to_fields as removal_to_fields
from migrator.core.inventory import Guest
from migrator.core.migration.convergence_state import ActionKind
from migrator.core.migration.lifecycle import Step
from migrator.core.model import Decision, Finding, State
from migrator.core.policy import from_fields, to_fields
from migrator.engine import clock
from migrator.engine.migration import driver as _driver  # noqa: F401 - loaded before the first guest moves
from migrator.engine.migration import preflight
from migrator.engine.migration.documented_session import DocumentedSession
from migrator.engine.migration.file_move import FileMove, FileUse
from migrator.engine.migration.services import EndLocation, SessionServices
from migrator.engine.migration.session_hooks import HOOK, SessionHooks
from migrator.engine.migration.session_phase import Attempt, Hold, Phase, PreflightRefusal
from migrator.errors import Fault
from migrator.faults import contained

#: Decisions after which the guest is stopped, or with which it is known to have been.
_STOPS_GUEST = frozenset(
    {*map(str, (ActionKind.LIMIT, ActionKind.PAUSE, ActionKind.START_POSTCOPY)), str(Step.HAND_OVER)}
)


class JournalledSession(DocumentedSession):
    """A migration of the service; journalled before anything is begun, and at every state.

    See :class:`~migrator.engine.migration.documented_session.DocumentedSession` for what it is made with.
    """

    #: What the controller that plans knows of the guest from before, where another drives it.
    _given_prior: GuestPrior | None = None

    #: Hooks may have been told that it begins, and are to be told how it ends.
    hooks_owed = False

    @cached_property
    def _hooks(self) -> SessionHooks:
        return SessionHooks(
            self.services.hooks,
            guest=self.guest,
            hosts={HookPlace.SOURCE: self.guest.host, HookPlace.DESTINATION: self.target},
            document=self._hook_document,
            tell=self._tell_hook,
        )

    async def check_only(self) -> tuple[Finding, ...]:
        """Return what speaks against it, as far as it shows before a destination is started; changes nothing."""
        found = await preflight.look(
            self.services.site, self.guest, self.target, self.policy, stream_speed=self._stream_speed()
        )
        judged = self.services.accept(self.services.judge_room(self, found), self.accepted)
        return tuple(self.or_cold(judged))

    # --- hooks -------------------------------------------------------------------------------------------------------

    async def _ask_hooks(self, point: HookPoint) -> Sequence[Finding]:
        """See :meth:`migrator.engine.migration.session_ends.SessionEnds._ask_hooks`."""
        if point is HookPoint.BEFORE and self._hooks.any:
            self.hooks_owed = True
            await self.services.keep(self)  # a controller that comes after this one tells them how it ended
        return await self._hooks.ask(point)

    async def _tell_end(self, state: State) -> None:
        """See :meth:`migrator.engine.migration.session_ends.SessionEnds._tell_end`."""
        if state is State.COMPLETED or self.hooks_owed:
            point = HookPoint.AFTER if state is State.COMPLETED else HookPoint.FAILED
            try:
                with contained(f"the hooks of migration {self.id}"):
                    self.result.findings += await self._hooks.end(point)
            except Fault as fault:
                failed = finding("hook-failed", str(fault))
                self.result.warn(failed.code, failed.message, failed.remedy)
        self.hooks_owed = False

    def begin_anew(self) -> None:
        self._hooks.forget()  # its next switch is told as well
        super().begin_anew()
        self.requests.switch, self.switchable_since = "", None

    def leave(self) -> None:
        self._hooks.forget()
        super().leave()

    def _note_decision(self, decision: Decision) -> None:
        if decision.action in _STOPS_GUEST:
            self._hooks.tell_switch()
        super()._note_decision(decision)

    def _tell_hook(self, what: str) -> None:
        at = self.began_ago() if self.started_at is not None else clock.now() - self.preparing_since
        self._decide(Decision(at_seconds=round(at, 6), action=HOOK, reason=what))

    def _hook_document(self) -> Mapping[str, Any]:
        """Return what a hook is told of it."""
        state, guest = self.result.state if self.result.state.final else self.state, self.guest
        shown = self.document(decisions=False).model_dump(mode="json")
        return {
            "guest": {"id": guest.key, "uuid": guest.uuid, "name": guest.name},
            "attempt": self.attempt.number,
            **{
                side: {"host": host, "socket": self._socket(side), "pid": self._pid(side)}
                for side, host in (("source", guest.host), ("destination", self.target))
            },
            "migration": shown | {"state": str(state), "error": self.result.error},
        }

    def _pid(self, side: str) -> int | None:
        place = self.places.get(side)
        pid = place.identity.get("pid") if place is not None else None
        return int(pid) if pid is not None else None

    def prior(self) -> GuestPrior | None:
        history = self.services.history
        if history is None:
            return self._given_prior
        known = history.of(self.guest.key)
        return known.prior(clock.wall()) if known is not None else None

    def about(self) -> dict[str, Any]:
        """Return what its record says for whoever finds it without anything else."""
        return {**super().about(), "guest_fields": self.guest.fields()}

    # --- its place in the journal ------------------------------------------------------------------------------------

    def journalled(self) -> dict[str, Any]:
        """Return the document with what another controller needs to go on, under ``_private``."""
        return self.document().model_dump(mode="json") | {
            "_private": {
                "command": self.key,
                "guest": self.guest.fields(),
                "policy": to_fields(self.policy),
                "places": {side: asdict(place) for side, place in self.places.items()},
                "attempt": self.attempt.number,
                "recorded": self.attempt.recorded,
                "cancelled": self.requests.cancel,
                "hooks_owed": self.hooks_owed,
                "thaw_owed": self.thaw_owed,
                "file": self.file.fields() if self.file is not None else None,
                "image_removal": removal_to_fields(self.image_removal)
                if self.image_removal is not None
                else None,
                "postcopy": self.requests.postcopy_reason if self.requests.postcopy else None,
            }
        }

    def as_if_cancelled(self) -> dict[str, Any]:
        """Return what :meth:`journalled` gives once :meth:`cancel` is done."""
        saved = self.journalled()
        return saved | {"_private": saved["_private"] | {"cancelled": True}}

    def as_if_asked_for_postcopy(self) -> dict[str, Any]:
        """Return what :meth:`journalled` gives once :meth:`postcopy` is done."""
        saved = self.journalled()
        return saved | {"_private": saved["_private"] | {"postcopy": self.requests.postcopy_reason}}

    @classmethod
    def from_journal(cls, saved: Mapping[str, Any], *, services: SessionServices, **callbacks: Any) -> Self:
        """Return the session of a migration that another controller left.

        It is queued (then :meth:`drive` goes on), held, or left
        (:func:`migrator.engine.migration.take_over.take_up`).
        """
        private = saved["_private"]
        shown = {key: each for key, each in saved.items() if key != "_private"}
        document = MigrationDocument.model_validate(shown)
        session = cls(
            identifier=document.id,
            guest=Guest.from_fields(private["guest"]),
            target=document.destination,
            policy=from_fields(private["policy"]),
            services=services,
            accepted=document.accepted,
            evacuation=document.evacuation,
            requested_by=document.requested_by,
            key=private["command"],
            trace=trace_context.of(document.traceparent, document.tracestate),
            file=_file(private.get("file")),
            moved_with=document.moved_with,
            created_at=document.created_at,
            **callbacks,
        )
        session._put_back(document, private)
        return session

    def _put_back(self, document: MigrationDocument, private: Mapping[str, Any]) -> None:
        """Set how far it was."""
        queued = document.state is State.QUEUED
        if document.state is State.HELD:
            self._go(Phase.HELD)
            self.holding = Hold()
        elif not queued:
            self._go(Phase.LEFT)
        self.state = document.state
        self.refusal = PreflightRefusal() if document.refused else None
        self.started_at = None if queued else document.started_at
        self.preparation_seconds = document.preparation_seconds
        # Of an older version: where the destination is was written down just before the record was begun, and one that
        # is queued again has the outcome of what was undone for it.
        self.attempt = Attempt(
            number=private.get("attempt", 2 if queued and document.started_at else 1),
            recorded=private.get("recorded", "destination" in private["places"] and not queued),
        )
        self.requests.cancel = private.get("cancelled", False)
        self.hooks_owed = private.get("hooks_owed", False)
        self.thaw_owed = private.get("thaw_owed", False)
        if (reason := private.get("postcopy")) is not None:
            self.requests.postcopy, self.requests.postcopy_reason = True, reason
        if (prior := private.get("prior")) is not None:
            self._given_prior = GuestPrior(**prior)
        self.result.held_code, self.result.error = document.held_code, document.error
        self.result.held_until = document.held_until
        self.result.decisions = [Decision(**each.model_dump()) for each in document.decisions]
        self.result.findings = [Finding(**each.model_dump()) for each in document.findings]
        self.places = {side: EndLocation(**place) for side, place in private["places"].items()}


def _file(saved: Mapping[str, Any] | None) -> FileMove | None:
    return None if saved is None else FileMove(**{**saved, "use": FileUse(saved["use"])})
