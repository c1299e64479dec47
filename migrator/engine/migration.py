"""Drives one migration: looks at both ends, asks the lifecycle table, takes the one step it names, looks again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import structlog

from migrator.core import convergence, lifecycle, preflight
from migrator.core.convergence import Act
from migrator.core.facts import Facts
from migrator.core.lifecycle import Intent, Milestone, Next, SourceIs, Step, source_is
from migrator.core.model import Decision, Finding, Mode, Process, RunState, Sample, Severity, State, View
from migrator.core.policy import Policy, Postcopy
from migrator.core.progress import Progress
from migrator.engine.downtime import Downtime, between
from migrator.errors import CommandFailed, MigratorError, QemuError
from migrator.ports import Event, Qemu, Record, Settings, Tuning

#: Capabilities that an earlier user of this QEMU may have left on and that this migration does without: two of
#: them lose guests (late-block-activate and multifd with postcopy, below QEMU 10), the others were not asked for.
_OFF = (
    "auto-converge",
    "background-snapshot",
    "compress",
    "dirty-limit",
    "late-block-activate",
    "mapped-ram",
    "multifd",
    "postcopy-preempt",
    "postcopy-ram",
    "x-colo",
    "xbzrle",
    "zero-copy-send",
)
#: Always on; preflight has seen that both sides have them.
_ON = ("events", "return-path", "pause-before-switchover")
#: More than any link carries: QEMU's own default of 128 MiB/s would be the limit otherwise.
_UNLIMITED_BYTES_PER_SECOND = 2**40


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds without any change after which a phase is overdue."""

    #: Nothing has been copied. The guest runs meanwhile.
    copying: float = 30.0
    #: The guest stands still and a cancel is safe.
    at_switch: float = 2.0
    #: The guest stands still, or is at risk, and going back takes a fence.
    switching: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a person watching wants to see now."""

    state: State
    progress_ratio: float
    sample: Sample | None = None


@dataclass(kw_only=True)
class Result:
    """How a migration ended; the fields of ``direct --json``."""

    id: str
    state: State
    mode: Mode = Mode.PRECOPY
    preflight_seconds: float = 0.0
    #: From the first command that changes anything until the guest is seen running at the destination.
    duration_seconds: float | None = None
    downtime_seconds: float | None = None
    downtime_uncertainty_seconds: float | None = None
    max_downtime_seconds: float = 0.0
    transferred_bytes: int = 0
    rounds: int = 0
    max_throttle_ratio: float = 0.0
    forecast_error_ratio: float | None = None
    findings: list[Finding] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    #: Why it did not complete, in one line; ``None`` when it did.
    error: str | None = None
    #: With ``held``: the row of the lifecycle table that says so.
    held_code: str | None = None


class Migration:
    """One guest going from a source to a destination, once.

    Use :meth:`check`, then :meth:`run`; or :meth:`take_up` with the record another controller left.

    :param name: the migration's id.
    :param listen: where the destination listens for the stream: ``tcp:ADDR:0``.
    :param on_status: called with every new sample and state, on the event loop; must return at once.
    :param on_decision: called with every decision, likewise.
    """

    def __init__(
        self,
        *,
        name: str,
        source: Qemu,
        destination: Qemu,
        policy: Policy,
        listen: str,
        record: Record,
        patience: Patience | None = None,
        on_status: Callable[[Status], None] = lambda status: None,
        on_decision: Callable[[Decision], None] = lambda decision: None,
    ) -> None:
        self._source, self._destination = source, destination
        self._policy = policy
        self._listen = listen
        self._record = record
        self._patience = patience or Patience()
        self._on_status, self._on_decision = on_status, on_decision
        self._log = structlog.get_logger().bind(migration=name)
        self._intent = Intent()
        self._result = Result(
            id=name,
            state=State.PREPARING,
            mode=Mode.OFFLINE if policy.offline else Mode.PRECOPY,
            max_downtime_seconds=policy.max_downtime_seconds,
        )
        self._settings: Settings | None = None
        self._facts: Facts | None = None
        self._abilities = convergence.Abilities(postcopy=False, throttle=False)
        self._seen = convergence.Seen()
        self._progress = Progress()
        self._began = time.monotonic()
        self._wake = asyncio.Event()
        self._cancel_wanted = False
        self._told_too_late = False
        self._views: tuple[View, View] | None = None
        self._last_change: tuple[object, float] = (None, 0.0)
        self._suspect: tuple[str, int] = ("", 0)
        self._stop: Event | None = None
        self._reason = ""  # why it is being undone
        self._complaints: list[str] = []  # what QEMU said of it, from either side
        source.on_change(self._wake.set)
        destination.on_change(self._wake.set)

    # --- before anything is changed --------------------------------------------------------------------------------

    async def check(self) -> tuple[Finding, ...]:
        """Preflight: every finding, errors first. Changes nothing.

        :raise QemuError: when an end cannot be asked.
        """
        began = time.monotonic()
        facts, there, self._settings, _ = await _together(
            self._source.facts(),
            self._destination.facts(),
            self._source.settings(),
            self._destination.settings(),
        )
        findings = preflight.compare(facts, there, self._policy)
        self._facts = facts
        self._abilities = convergence.Abilities(
            postcopy=self._policy.postcopy is not Postcopy.NEVER
            and "postcopy-ram" in facts.capabilities & there.capabilities,
            throttle=self._policy.max_throttle_ratio > 0 and "auto-converge" in facts.capabilities,
        )
        self._intent = replace(self._intent, guest_runs=facts.run is RunState.RUNNING)
        self._result.findings = list(findings)
        self._result.preflight_seconds = time.monotonic() - began
        return findings

    def refuse(self, error: str) -> Result:
        """The result of a migration that was not begun."""
        self._result.state = State.FAILED
        self._result.error = error
        return self._result

    # --- the whole way ---------------------------------------------------------------------------------------------

    async def run(self) -> Result:
        """Begin, and drive it to its end; :meth:`check` has found no error.

        Cancelling the task that runs this leaves both QEMUs as they are at that instant, for :meth:`take_up`;
        whoever wants the migration cancelled calls :meth:`cancel`.

        :raise RecordError: the record could not be written; nothing was changed.
        """
        assert self._facts is not None and self._settings is not None, "check() comes first"
        await self._record.begin(self._what_was(), self._intent)
        self._began = time.monotonic()
        try:
            await self._prepare()
        except (QemuError, ExceptionGroup) as error:
            self._undo(State.FAILED, "it could not be prepared")
            self._complaints.append(_first_line(error))
        return await self._drive()

    async def take_up(self, facts: Mapping[str, Any], intent: Intent) -> Result:
        """Finish, undo or hold what another controller left, as its record says.

        :param facts: what that controller gave to :meth:`migrator.ports.Record.begin`.
        :param intent: the last it noted.
        """
        self._intent = intent
        self._settings = Settings(**facts["settings"])
        self._abilities = convergence.Abilities(**facts["abilities"])
        if intent.postcopy:
            self._result.mode = Mode.POSTCOPY
            self._seen = convergence.Seen(done=frozenset({Act.START_POSTCOPY}))
        self._decide(
            "take-up", f"an unfinished migration was left at {intent.milestone.name.lower()}: taking it up"
        )
        return await self._drive()

    def cancel(self) -> bool:
        """Ask for the guest to stay where it is; False when it is too late, and then nothing changes."""
        if self._views is not None and not lifecycle.can_cancel(self._intent, self._views[0]):
            return False
        self._cancel_wanted = True
        self._wake.set()
        return True

    def _what_was(self) -> dict[str, Any]:
        assert self._facts is not None and self._settings is not None
        return {
            "source": {
                "address": self._source.name.partition(" ")[2],
                "identity": dict(self._source.identity),
            },
            "destination": {
                "address": self._destination.name.partition(" ")[2],
                "identity": dict(self._destination.identity),
            },
            "uuid": self._facts.uuid,
            "guest": self._facts.guest_name,
            "run_state": self._facts.run,
            "policy": asdict(self._policy),
            "listen": self._listen,
            "settings": {
                "capabilities": dict(self._settings.capabilities),
                "parameters": dict(self._settings.parameters),
            },
            "abilities": asdict(self._abilities),
        }

    async def _prepare(self) -> None:
        assert self._settings is not None
        policy = self._policy
        self._report(State.PREPARING)
        wanted = dict.fromkeys(_OFF, False) | dict.fromkeys(_ON, True)
        wanted["auto-converge"] = self._abilities.throttle
        if self._abilities.postcopy:
            wanted["postcopy-ram"] = True
        known = self._settings.capabilities

        async def destination() -> str:
            there = (await self._destination.settings()).capabilities
            try:
                await self._destination.enable(_differing(wanted, there))
            except CommandFailed as error:
                if policy.postcopy is not Postcopy.ALLOW or not wanted.pop("postcopy-ram", False):
                    raise
                self._abilities = replace(self._abilities, postcopy=False)
                self._decide(
                    "no-postcopy", f"the destination refuses postcopy, going without: {error.description}"
                )
                await self._destination.enable(_differing(wanted, there))
            return await self._destination.listen(self._listen)

        async def source() -> None:
            await self._source.tune(
                Tuning(
                    max_bandwidth_bytes_per_second=policy.max_bandwidth_bytes_per_second
                    or _UNLIMITED_BYTES_PER_SECOND,
                    downtime_limit_seconds=policy.max_downtime_seconds,
                    max_postcopy_bandwidth_bytes_per_second=0,
                    # Asleep: auto-converge may take one per cent until the controller wants more.
                    initial_throttle_ratio=0.01 if self._abilities.throttle else None,
                    max_throttle_ratio=0.01 if self._abilities.throttle else None,
                )
            )
            if not self._abilities.postcopy:
                await self._source.enable(_differing(wanted, known))

        uri, _ = await _together(destination(), source())
        if self._abilities.postcopy or "postcopy-ram" in wanted:
            await self._source.enable(_differing(wanted, known))
        if policy.offline and self._intent.guest_runs:
            await self._stop_guest("the policy is offline: the guest stands still while its memory is copied")
        if self._cancel_wanted:
            self._undo(State.CANCELLED, "cancelled before it began")
            return
        self._note(milestone=Milestone.MIGRATING)
        await self._source.migrate(uri)

    async def _drive(self) -> Result:
        while True:
            self._wake.clear()
            source, destination = self._views = await self._look()
            if self._cancel_wanted and self._intent.undo is None:
                self._consider_cancel(source)
            overdue = self._is_overdue(source, destination)
            answer = lifecycle.decide(self._intent, source, destination, overdue=overdue)
            self._report(lifecycle.state_of(self._intent, source, destination), source.sample)
            if answer.step is Step.END:
                if answer.state is State.HELD and not self._confirmed(answer):
                    await self._pause(0.1)
                    continue
                return await self._end(answer)
            self._suspect = ("", 0)
            if answer.step is not Step.WAIT:
                await self._take(answer)
                continue
            if source_is(source) is SourceIs.COPIES and source.sample is not None:
                await self._steer(source.sample)
            await self._pause(self._interval(source))

    # --- looking ---------------------------------------------------------------------------------------------------

    async def _look(self) -> tuple[View, View]:
        source, destination = await asyncio.gather(self._source.observe(), self._destination.observe())
        for event in self._source.take_events():
            if event.name == "STOP":
                self._stop = event
            elif event.name == "RESUME":
                self._resumed(event, at_source=True)
        for event in self._destination.take_events():
            if event.name == "RESUME":
                self._resumed(event, at_source=False)
        for view, side in ((source, "source"), (destination, "destination")):
            if view.error and f"{side}: {view.error}" not in self._complaints:
                self._complaints.append(f"{side}: {view.error}")
        if source.answers:
            self._note_run_state(source.run)
        if source.sample is not None:
            self._result.transferred_bytes = max(
                self._result.transferred_bytes, source.sample.transferred_bytes
            )
            self._result.rounds = max(self._result.rounds, source.sample.round)
            self._result.max_throttle_ratio = max(
                self._result.max_throttle_ratio, source.sample.throttle_ratio
            )
        return source, destination

    def _note_run_state(self, run: RunState) -> None:
        """What somebody wants of the guest, read again at every look: QEMU's own stop shows as finish-migrate."""
        if self._intent.stopped_by_us and run is not RunState.RUNNING:
            return
        if run in (RunState.FINISH_MIGRATE, RunState.POSTMIGRATE, RunState.INMIGRATE, RunState.OTHER):
            return
        runs = run is RunState.RUNNING
        if runs is not self._intent.guest_runs and self._intent.milestone < Milestone.HANDED_OVER:
            self._note(guest_runs=runs)
            self._decide(
                "run-state", f"somebody {'resumed' if runs else 'stopped'} the guest ({run}): so it stays"
            )

    def _resumed(self, event: Event, *, at_source: bool) -> None:
        if self._stop is None or self._result.downtime_seconds is not None and at_source:
            return
        downtime: Downtime = between(
            self._stop,
            event,
            one_clock=at_source or (self._source.shares_clock and self._destination.shares_clock),
            round_trip_seconds=self._source.round_trip_seconds + self._destination.round_trip_seconds,
        )
        self._result.downtime_seconds = downtime.seconds
        self._result.downtime_uncertainty_seconds = downtime.uncertainty_seconds

    def _is_overdue(self, source: View, destination: View) -> bool:
        sample = source.sample or Sample()
        shown = (
            source.run,
            source.status,
            source.answers,
            source.process,
            destination.run,
            destination.status,
            destination.answers,
            destination.process,
            sample.transferred_bytes,
            sample.remaining_bytes,
            sample.postcopy_requests,
            self._intent,
        )
        now = time.monotonic()
        if shown != self._last_change[0]:
            self._last_change = (shown, now)
            return False
        here = source_is(source)
        if here is SourceIs.AT_SWITCH:
            limit = self._patience.at_switch
        elif (
            here is SourceIs.COPIES
            or self._intent.milestone < Milestone.SWITCHING
            and here is SourceIs.SILENT
        ):
            limit = self._patience.copying
        else:
            limit = self._patience.switching
        return now - self._last_change[1] > limit

    def _confirmed(self, answer: Next) -> bool:
        """Two ends are not looked at in one instant, so what needs a person must show three times in a row."""
        row, times = self._suspect
        self._suspect = (answer.row, times + 1 if row == answer.row else 1)
        return self._suspect[1] >= 3

    def _interval(self, source: View) -> float:
        here = source_is(source)
        if here is SourceIs.COPIES:
            return 0.1
        if self._intent.postcopy and self._intent.milestone is Milestone.SWITCHING:
            return 0.001  # no event tells that a postcopy destination is ready; the guest stands still until it is
        return 0.1 if self._intent.milestone >= Milestone.HANDED_OVER else 0.02

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass  # time to look again

    # --- steps -----------------------------------------------------------------------------------------------------

    async def _take(self, answer: Next) -> None:
        """Take one step. What QEMU answers is only a hint: the next look shows what became of it."""
        steps: dict[Step, Callable[[Next], Coroutine[Any, Any, None]]] = {
            Step.SWITCH: self._switch,
            Step.HAND_OVER: self._hand_over,
            Step.RETIRE: self._retire,
            Step.CANCEL: self._cancel,
            Step.FENCE_DESTINATION: self._fence_destination,
            Step.FENCE_SOURCE: self._fence_source,
            Step.REVIVE: self._revive,
            Step.RESTORE: self._restore,
            Step.DISMISS: self._dismiss,
        }
        try:
            await steps[answer.step](answer)
        except QemuError as error:
            self._log.warning("step failed", step=answer.step, row=answer.row, error=str(error))
            self._complain(error)
            await self._pause(0.05)

    async def _switch(self, answer: Next) -> None:
        self._note(milestone=Milestone.SWITCHING)
        await self._source.switch()

    async def _hand_over(self, answer: Next) -> None:
        again = self._intent.milestone is Milestone.HANDED_OVER
        self._note(milestone=Milestone.HANDED_OVER)
        await self._destination.cont()
        if not again:
            self._decide("hand-over", answer.why)
        else:
            await self._pause(0.05)

    async def _retire(self, answer: Next) -> None:
        if self._result.duration_seconds is None:
            self._result.duration_seconds = time.monotonic() - self._began
        self._note(milestone=Milestone.RETIRING)
        if answer.row.startswith("arrived") and self._intent.guest_runs:
            try:
                await self._destination.announce()
            except QemuError as error:
                self._warn(
                    "not-announced", f"the guest's addresses were not announced: {error}", "ping from it"
                )
        if not await self._source.quit():
            self._warn(
                "source-left-over",
                f"{self._source.name} could not be seen to end; it cannot run the guest by itself",
                "end that process; do not send cont to it",
            )
            self._source_done = True
            await self._pause(1.0)

    async def _cancel(self, answer: Next) -> None:
        self._undo(State.FAILED, answer.why)
        await self._source.cancel()
        await self._pause(0.5)

    async def _fence_destination(self, answer: Next) -> None:
        self._undo(State.FAILED, answer.why)
        self._decide("fence-destination", answer.why)
        if not await self._destination.fence():
            self._note(fence_failed=True)

    async def _fence_source(self, answer: Next) -> None:
        self._decide("fence-source", answer.why)
        if not await self._source.fence():
            self._note(fence_failed=True)

    async def _revive(self, answer: Next) -> None:
        self._undo(State.FAILED, answer.why)
        self._decide("revive", answer.why)
        self._note()
        if self._intent.guest_runs:
            await self._source.cont()
        else:
            # A guest left in postmigrate cannot migrate again until it was continued: for the blink of an eye.
            await _together(self._source.cont(), self._source.stop())

    async def _restore(self, answer: Next) -> None:
        if self._intent.undo is None:
            self._undo(State.FAILED, "the source's migration ended")
        if self._intent.stopped_by_us and self._intent.guest_runs:
            await self._source.cont()
        if self._settings is not None:
            try:
                await self._source.restore(self._settings)
            except QemuError as error:
                self._warn(
                    "not-restored",
                    f"not all of the source's migration settings could be put back: {error}",
                    "compare query-migrate-parameters with what you expect",
                )
        if self._stop is not None and self._intent.guest_runs:
            try:
                await self._source.announce()
            except QemuError as error:
                self._log.warning("not announced", error=str(error))
        self._note(restored=True, stopped_by_us=False)

    async def _dismiss(self, answer: Next) -> None:
        gone = await self._destination.quit()
        self._note(dismissed=True)
        if not gone:
            self._warn(
                "destination-left-over",
                f"{self._destination.name} could not be seen to end; it holds nothing and does not run",
                "end that process",
            )

    async def _stop_guest(self, reason: str) -> None:
        self._note(stopped_by_us=True)
        self._decide("pause", reason)
        await self._source.stop()

    # --- steering --------------------------------------------------------------------------------------------------

    async def _steer(self, sample: Sample) -> None:
        elapsed = time.monotonic() - self._began
        self._seen, action = convergence.decide(self._seen, sample, self._policy, self._abilities, elapsed)
        if action is None or self._intent.undo is not None:
            return
        try:
            match action.act:
                case Act.START_POSTCOPY:
                    self._note(postcopy=True)
                    await self._source.start_postcopy()
                    self._result.mode = Mode.POSTCOPY
                case Act.THROTTLE:
                    ceiling = self._policy.max_throttle_ratio
                    await self._source.tune(
                        Tuning(initial_throttle_ratio=min(0.2, ceiling), max_throttle_ratio=ceiling)
                    )
                case Act.PAUSE:
                    await self._stop_guest(action.reason)
                    return
                case Act.GIVE_UP:
                    self._undo(State.FAILED, action.reason)
        except QemuError as error:
            self._log.warning("action failed", action=action.act, error=str(error))
            self._complain(error)
        self._decide(action.act, action.reason, sample)

    def _consider_cancel(self, source: View) -> None:
        if lifecycle.can_cancel(self._intent, source):
            self._undo(State.CANCELLED, "cancelled")
        elif not self._told_too_late:
            self._told_too_late = True
            self._decide("too-late", "too late to cancel: past the switch, the migration is being finished")

    # --- the end ---------------------------------------------------------------------------------------------------

    async def _end(self, answer: Next) -> Result:
        assert answer.state is not None
        result = self._result
        result.state = answer.state
        if answer.state is State.COMPLETED:
            if result.duration_seconds is None:
                result.duration_seconds = time.monotonic() - self._began
            self._progress.ratio = 1.0
        else:
            result.duration_seconds = time.monotonic() - self._began
            result.error = await self._explain(answer)
        if answer.state is State.HELD:
            result.held_code = answer.row
            self._decide("held", answer.why)
            self._note()
        else:
            await self._record.end({"state": result.state, "error": result.error})
        self._report(result.state)
        return result

    async def _explain(self, answer: Next) -> str:
        """One line: why, and what QEMU says of it on either side."""
        words = self._destination.last_words()
        said = [complaint for complaint in self._complaints if complaint]
        if words and not any(words in complaint for complaint in said):
            said.append(f"destination's log: {words}")
        why = answer.why if answer.state in (State.HELD, State.GUEST_ENDED) else self._reason or answer.why
        return "; ".join([why, *said]).replace("\n", " ")

    # --- notes -----------------------------------------------------------------------------------------------------

    def _undo(self, state: State, reason: str) -> None:
        if self._intent.undo is None:
            self._reason = reason
            self._note(undo=state)
            self._decide("cancel" if state is State.CANCELLED else "undo", reason)

    def _note(self, **changes: Any) -> None:
        """Change the intent and have it on record before anything is done about it."""
        self._intent = replace(self._intent, **changes)
        self._record.note(self._intent)

    def _complain(self, error: MigratorError) -> None:
        text = _first_line(error)
        if text not in self._complaints:
            self._complaints.append(text)

    def _warn(self, code: str, message: str, remedy: str) -> None:
        if all(finding.code != code for finding in self._result.findings):
            self._result.findings.append(
                Finding(code=code, severity=Severity.WARNING, message=message, remedy=remedy)
            )

    def _decide(self, action: str, reason: str, sample: Sample | None = None) -> None:
        numbers = {} if sample is None else {key: value for key, value in asdict(sample).items() if value}
        decision = Decision(
            at_seconds=round(time.monotonic() - self._began, 6), action=action, reason=reason, numbers=numbers
        )
        self._result.decisions.append(decision)
        self._on_decision(decision)

    def _report(self, state: State, sample: Sample | None = None) -> None:
        if sample is not None:
            self._progress.update(sample)
        self._on_status(Status(state=state, progress_ratio=self._progress.ratio, sample=sample))


def _differing(wanted: Mapping[str, bool], present: Mapping[str, bool]) -> dict[str, bool]:
    """What has to be sent so that `present` becomes `wanted`; what a QEMU does not know is off there anyway."""
    return {name: state for name, state in wanted.items() if present.get(name, False) is not state}


async def _together(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run them at the same time; the first error cancels the rest, and is raised itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(coroutine, name=f"migration {coroutine!r}") for coroutine in coroutines
            ]
    except* QemuError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _first_line(error: BaseException) -> str:
    if isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return str(error).splitlines()[0] if str(error) else type(error).__name__
