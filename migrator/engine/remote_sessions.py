"""A migration that another controller drives, as the planner has it: shown as reported, and asked by requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Self

from migrator.api.documents import MigrationDocument
from migrator.core.image_removal import from_fields
from migrator.core.migration.forecast import Forecast, Verdict
from migrator.core.model import Decision, Finding, Sample, State
from migrator.engine import clock
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.outcome import LEARNED, MigrationProgress
from migrator.engine.migration.requests import MigrationRequests
from migrator.engine.migration.services import EndLocation, SessionServices
from migrator.engine.migration.session_phase import Hold, Phase, PreflightRefusal
from migrator.ports.assignments import Assignment

#: Of the outcome, as the document has it.
_OUTCOME = (
    "mode",
    "downtime_seconds",
    "downtime_uncertainty_seconds",
    "standstill_seconds",
    "standstill_uncertainty_seconds",
    "recoveries",
    "error",
    "held_code",
    "held_until",
)


class RemoteSession(JournalledSession):
    """Has a session's interface; :meth:`take` keeps it as its driver says it is.

    :ivar assignment: as it was last seen.
    """

    driven_elsewhere = True
    assignment: Assignment
    _request: Callable[[RemoteSession], None]
    _saved: Mapping[str, Any]
    _document: MigrationDocument
    #: An earlier planner has told of its states so far.
    told_before = False
    _seen = 0
    _ready = False

    @classmethod
    def of(
        cls,
        saved: Mapping[str, Any],
        assignment: Assignment,
        *,
        services: SessionServices,
        request: Callable[[RemoteSession], None],
        **callbacks: Any,
    ) -> Self:
        """Return the session of a migration that was given to another controller.

        :param saved: the migration as the journal has it.
        :param request: sends what is wanted of it (:attr:`requests`) to its driver.
        """
        session = cls.from_journal(saved, services=services, **callbacks)
        session.follow(saved, assignment, request)
        return session

    def follow(
        self, saved: Mapping[str, Any], assignment: Assignment, request: Callable[[RemoteSession], None]
    ) -> None:
        """See :meth:`of`."""
        self.assignment, self._request, self.driver_name = assignment, request, assignment.driver
        self._saved, self._document = saved, _document(saved)
        self.requests = MigrationRequests(**assignment.requests)
        # That was accepted, and then there may have been no time to tell its driver.
        self.requests.cancel = bool(saved["_private"].get("cancelled") or self.requests.cancel)
        if (reason := saved["_private"].get("postcopy")) is not None:
            self.requests.postcopy, self.requests.postcopy_reason = True, reason

    # --- what its driver says ----------------------------------------------------------------------------------------

    def take(self, assignment: Assignment) -> None:
        """Take over a report, and tell of what is new in it."""
        self.assignment, report = assignment, assignment.report
        if report is None:
            return
        last = _document(report["session"])
        if self.told_before:
            self._seen, self.told_before = max((number for number, _ in report["trail"]), default=0), False
        for number, saved in report["trail"]:
            if number > self._seen:
                self._show_document(MigrationDocument.model_validate(saved), last)
                self._seen = number
                self._tell_new_state(report)
        self._saved = report["session"]
        self._show_document(last, last)
        self._take_rest(report)
        if last.state is not self.state:
            self._tell_new_state(report)
        else:
            self._on_progress(self)

    def _tell_new_state(self, report: Mapping[str, Any]) -> None:
        if self._document.state is State.PREPARING and self.state is not State.PREPARING:
            self.preparing_since = clock.now()
        self.state = self.result.state = self._document.state
        self._saved = {**self._document.model_dump(mode="json"), "_private": report["session"]["_private"]}
        self._take_rest(report)
        self._on_state(self)

    def _show_document(self, document: MigrationDocument, last: MigrationDocument) -> None:
        self._document = document
        self.started_at, self.ended_at = document.started_at, document.ended_at
        if self.ended_at is not None:
            self.phase = Phase.ENDED
        self.preparation_seconds = document.preparation_seconds
        for name in _OUTCOME:
            setattr(self.result, name, getattr(document, name))
        self.result.findings = [Finding(**each.model_dump()) for each in last.findings]
        self.status = _progress(document)
        if self.requests.switch:
            self.switchable_since = None
        elif document.switch_in_seconds is not None and self.switchable_since is None:
            self.switchable_since = clock.now()
        known = len(self.result.decisions)
        for each in last.decisions[known:]:
            decision = Decision(**each.model_dump())
            self.result.decisions.append(decision)
            self._on_decision(self, decision)

    def _take_rest(self, report: Mapping[str, Any]) -> None:
        private = report["session"]["_private"]
        self.places = {side: EndLocation(**place) for side, place in private["places"].items()}
        was, self._ready = self._ready, bool(report["ready"])
        refusal = report["refusal"]
        self.refusal = PreflightRefusal(**refusal) if refusal is not None else None
        self.holding = Hold(unreachable=True) if report["unreachable"] else None
        self.left_behind = set(report["left_behind"])
        if (removal := private.get("image_removal")) is not None:
            self.image_removal = from_fields(removal)
        for name in LEARNED:
            if name in (learned := report.get("learned", {})):  # an older driver does not tell
                setattr(self.result, name, learned[name])
        if self._ready and not was:
            self._on_ready(self)

    @property
    def ready(self) -> bool:
        """Return whether both ends are set up and it waits for its turn."""
        return self._ready

    def document(self, *, decisions: bool = True) -> MigrationDocument:
        """Return the migration as its driver said last."""
        return self._document if decisions else self._document.model_copy(update={"decisions": []})

    def journalled(self) -> dict[str, Any]:
        """Return what another controller needs to go on."""
        private = self._saved["_private"]
        wanted = {
            "cancelled": self.requests.cancel or bool(private.get("cancelled")),
            "postcopy": self.requests.postcopy_reason if self.requests.postcopy else None,
        }
        return {**self.document().model_dump(mode="json"), "_private": {**private, **wanted}}

    # --- what is wanted of it ----------------------------------------------------------------------------------------

    @property
    def can_cancel(self) -> bool:
        """Return whether it was not too late for :meth:`cancel` when its driver was last heard of."""
        if self.ended or self.state is State.HELD:
            return False
        return self.state is State.QUEUED or self._document.can_cancel

    @property
    def can_postcopy(self) -> bool:
        """Return whether :meth:`postcopy` would do something, likewise."""
        return not self.ended and self._document.can_postcopy

    def cancel(self) -> bool:
        """See :meth:`migrator.engine.migration.session.MigrationSession.cancel`; its driver may find it too late."""
        if not self.can_cancel:
            return False
        self.requests.cancel = True
        self._request(self)
        return True

    def admit(self) -> None:
        """See :meth:`migrator.engine.migration.session.MigrationSession.admit`."""
        if not self.requests.admit:
            self.requests.admit = True
            self._request(self)

    def postcopy(self, reason: str = "") -> bool:
        """See :meth:`migrator.engine.migration.session.MigrationSession.postcopy`."""
        if not self.can_postcopy:
            return False
        if not self.requests.postcopy:
            self.requests.postcopy = True
            self.requests.postcopy_reason = reason or self.requests.postcopy_reason
            self._request(self)
        return True

    def set_share(self, bytes_per_second: int | None) -> None:
        """See :meth:`migrator.engine.migration.session.MigrationSession.set_share`."""
        if bytes_per_second != self.requests.share:
            self.requests.share = bytes_per_second
            self._request(self)

    def _heed_switch(self) -> None:
        self._request(self)

    def tell_group(self, reason: str) -> None:
        """Do nothing: the controller that drives it says what its group comes to."""

    def park(self) -> None:
        """Do nothing: the controller that drives it goes on, whatever becomes of this one."""


def wanted_of(requests: MigrationRequests) -> dict[str, Any]:
    """Return what is wanted of a migration, as its driver is told; whether to park it that one knows by itself."""
    wanted = {**asdict(requests), "park": False}
    if not requests.switch:
        del wanted["switch"]  # an older controller does not know it
    return wanted


def _document(saved: Mapping[str, Any]) -> MigrationDocument:
    return MigrationDocument.model_validate({key: each for key, each in saved.items() if key != "_private"})


def _progress(document: MigrationDocument) -> MigrationProgress | None:
    """Return what a plan goes by."""
    if document.remaining_bytes is None and document.disk_remaining_bytes is None:
        return None
    foretold = document.forecast
    forecast = None
    if foretold is not None:
        forecast = Forecast(
            verdict=Verdict(foretold.verdict),
            rung=foretold.rung,
            seconds_p10=_seconds(foretold.p10_seconds),
            seconds_p50=_seconds(foretold.p50_seconds),
            seconds_p90=_seconds(foretold.p90_seconds),
        )
    return MigrationProgress(
        state=document.state,
        progress_ratio=document.progress_ratio,
        disk_left_bytes=float(document.disk_remaining_bytes or 0),
        sample=None
        if document.remaining_bytes is None
        else Sample(
            remaining_bytes=document.remaining_bytes,
            total_bytes=document.total_bytes or 0,
            transferred_bytes=document.transferred_bytes,
            dirty_rate_bytes_per_second=document.dirty_rate_bytes_per_second or 0.0,
            bandwidth_bytes_per_second=document.bandwidth_bytes_per_second or 0.0,
            throttle_ratio=document.throttle_ratio,
            round=document.round,
        ),
        forecast=forecast,
        limit_seconds=document.downtime_limit_seconds,
        switch_in_seconds=document.switch_in_seconds,
        waiting_for=document.waiting_for,
    )


def _seconds(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds
