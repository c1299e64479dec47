"""Counters and histograms: what happened, told by the engine's events and by whoever has something to count."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from migrator.core.migration.guest_impact import above_ceiling, standstill_at_least
from migrator.core.model import Mode, State
from migrator.metrics import catalogue as words
from migrator.metrics.catalogue import BY_NAME
from migrator.metrics.seen import SeenEvent, SeenMigration

#: A failure is shown for so long, unless the guest's next migration completes.
_FAILURE_SECONDS = 86_400.0
#: A downtime is shown for so long: many scrapes, and an alert about it ends by itself.
_DOWNTIME_SECONDS = 3_600.0
#: Guests that failures and downtimes are remembered of, and ended migrations that are not counted again.
_MOST_REMEMBERED = 10_000


@dataclass(kw_only=True)
class _Course:
    """What is remembered of a migration while it is active."""

    #: Empty until its first event.
    phase: str = ""
    since: float = 0.0
    throttle_ratio: float = 0.0
    #: When throttling was last added up; ``None`` before its first event.
    at: float | None = None
    #: When each action was last decided, seconds since the epoch.
    decisions: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Past:
    """What is still shown of a migration that has ended."""

    host: str
    #: Seconds since the epoch.
    at: float
    downtime_seconds: float = 0.0
    ceiling_seconds: float = 0.0


class Counted:
    """Counters and histograms in a registry of their own.

    :param clock: monotonic seconds.
    :param now: seconds since the epoch.
    """

    def __init__(self, *, clock: Callable[[], float], now: Callable[[], float]) -> None:
        # Series that tell when counting began double the number, and a restart shows in the counters anyway.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._clock = clock
        self._now = now
        self.registry = CollectorRegistry(auto_describe=False)
        self._courses: OrderedDict[str, _Course] = OrderedDict()
        self._counted: OrderedDict[str, None] = OrderedDict()
        self._failures: OrderedDict[str, Past] = OrderedDict()
        self._downtimes: OrderedDict[str, Past] = OrderedDict()
        self._migrations = self._counter("migrations_total", words.RESULTS, words.MODES)
        self._evacuations = self._counter("evacuations_total", words.EVACUATION_RESULTS)
        self._commands = self._counter("commands_total", words.INTERFACES, words.VERBS, words.COMMAND_RESULTS)
        self._decisions = self._counter("decisions_total", words.ACTIONS)
        self._qmp_errors = self._counter("qmp_errors_total", words.QMP_ERRORS)
        self._journal_errors = self._counter("journal_errors_total", words.JOURNAL_OPERATIONS)
        self._faults = self._counter("faults_total")
        self._sessions_taken = self._counter("mqtt_sessions_taken_total")
        self._spans = self._counter("trace_spans_total", words.SPAN_RESULTS)
        self._exceeded = self._counter("migration_downtime_ceiling_exceeded_total")
        self._throttled = self._counter("migration_throttled_seconds_total")
        self._duration = self._histogram("migration_duration_seconds", words.MODES)
        self._downtime = self._histogram("migration_downtime_seconds", words.MODES)
        self._standstill = self._histogram("migration_standstill_seconds")
        self._of_ceiling = self._histogram("migration_downtime_ceiling_ratio", words.MODES)
        self._preparation = self._histogram("migration_preparation_seconds")
        self._phases = self._histogram("migration_phase_duration_seconds", words.PHASES)
        self._forecast = self._histogram("forecast_error_ratio")
        self._qmp = self._histogram("qmp_command_duration_seconds")
        self._journal = self._histogram("journal_write_duration_seconds")
        self._qmp_commands: set[str] = set()

    def _counter(self, name: str, *values: Iterable[str]) -> Counter:
        described = BY_NAME[f"migrator_{name}"]
        counter = Counter(described.name, described.help, described.labels, registry=self.registry)
        _begin_at_zero(counter, values)
        return counter

    def _histogram(self, name: str, *values: Iterable[str]) -> Histogram:
        described = BY_NAME[f"migrator_{name}"]
        histogram = Histogram(
            described.name,
            described.help,
            described.labels,
            buckets=described.buckets,
            registry=self.registry,
        )
        _begin_at_zero(histogram, values)
        return histogram

    # What others tell ------------------------------------------------------------------------------------

    def command(self, interface: str, verb: str, result: str) -> None:
        """A command came; see the dispatcher."""
        self._commands.labels(
            interface if interface in words.INTERFACES else words.OTHER,
            verb if verb in words.VERBS else "unknown",
            result if result in words.COMMAND_RESULTS else "refused",
        ).inc()

    def qmp_command(self, command: str, seconds: float) -> None:
        """QEMU answered `command` after `seconds`."""
        if command not in self._qmp_commands:
            if len(self._qmp_commands) >= words.MOST_COMMANDS - 1:
                command = words.OTHER
            self._qmp_commands.add(command)
        self._qmp.labels(command).observe(seconds)

    def qmp_error(self, kind: str) -> None:
        """A session or a command failed."""
        self._qmp_errors.labels(kind if kind in words.QMP_ERRORS else words.OTHER).inc()

    def fault(self) -> None:
        """An error of our own, that nobody foresaw."""
        self._faults.inc()

    def mqtt_session_taken(self) -> None:
        """Another client has taken our session with the broker."""
        self._sessions_taken.inc()

    def journal_write(self, seconds: float) -> None:
        """Something was on disk after `seconds`."""
        self._journal.observe(seconds)

    def journal_error(self, operation: str) -> None:
        """The journal could not be read or written."""
        self._journal_errors.labels(operation if operation in words.JOURNAL_OPERATIONS else words.OTHER).inc()

    def spans(self, result: str, number: int) -> None:
        """So many spans were ``sent`` or ``dropped``; from any thread."""
        self._spans.labels(result if result in words.SPAN_RESULTS else "dropped").inc(number)

    # Events ----------------------------------------------------------------------------------------------

    def event(self, event: SeenEvent) -> None:
        """Count it; returns at once and never raises."""
        match event.subject, event.kind:
            case "migration", "state" | "progress":
                self._migration(event.subject_id, event.body, counts=event.kind == "state")
            case "migration", "decision":
                self._decision(event.subject_id, event.body)
            case "evacuation", "decision":
                self._decisions.labels(_action(event.body)).inc()
            case "evacuation", "state" if event.body.get("ended_at"):
                result = str(event.body.get("state"))
                if result in words.EVACUATION_RESULTS and self._first_time(event.subject_id):
                    self._evacuations.labels(result).inc()

    def _decision(self, identifier: str, body: Mapping[str, Any]) -> None:
        action = _action(body)
        self._decisions.labels(action).inc(exemplar={"migration": identifier})
        if identifier not in self._counted:
            self._course(identifier).decisions[action] = self._now()

    def _course(self, identifier: str) -> _Course:
        course = self._courses.setdefault(identifier, _Course())
        _bound(self._courses)
        return course

    def _migration(self, identifier: str, body: Mapping[str, Any], *, counts: bool) -> None:
        state = str(body.get("state"))
        now = self._clock()
        if identifier in self._counted:
            if counts and state in words.RESULTS and state != State.HELD and identifier in self._courses:
                del self._courses[identifier]  # it was held, and a person has resolved it
                self._feel(identifier, body)
                self._remember(identifier, body)
            return
        if state == State.HELD and identifier not in self._courses:
            self.held_before(identifier)  # the first that is heard of it: it was read from the journal so
            return
        course = self._course(identifier)
        if course.at is not None:
            # The share that was taken until now; a share that has just begun counts from now on.
            self._throttled.inc(max(0.0, course.throttle_ratio * (now - course.at)))
        course.at = now
        copying = state in (State.PRECOPY, State.SWITCHOVER)
        course.throttle_ratio = float(body.get("throttle_ratio") or 0.0) if copying else 0.0
        if not counts:
            return
        if state != course.phase:
            self._left(identifier, course, now)
            course.phase, course.since = state, now
        if state in words.RESULTS:
            self._ended(identifier, state, body)
            if state != State.HELD:
                self._courses.pop(identifier, None)

    def _left(self, identifier: str, course: _Course, now: float) -> None:
        if course.phase in words.PHASES:
            spent = max(0.0, now - course.since)
            exemplar = {"migration": identifier}
            self._phases.labels(course.phase).observe(spent, exemplar=exemplar)
            if course.phase == State.PREPARING:
                self._preparation.observe(spent, exemplar=exemplar)

    def _ended(self, identifier: str, state: str, body: Mapping[str, Any]) -> None:
        if not self._first_time(identifier):
            return
        exemplar = {"migration": identifier}
        mode = str(body.get("mode"))
        if mode not in words.MODES:
            mode = str(Mode.PRECOPY)
        self._migrations.labels(state, mode).inc(exemplar=exemplar)
        duration, downtime = body.get("duration_seconds"), body.get("downtime_seconds")
        if duration is not None and state == State.COMPLETED:
            self._duration.labels(mode).observe(duration, exemplar=exemplar)
        if downtime is not None:
            self._downtime.labels(mode).observe(downtime, exemplar=exemplar)
            ceiling = body.get("max_downtime_seconds") or 0.0
            if ceiling > 0 and mode != Mode.OFFLINE:
                self._of_ceiling.labels(mode).observe(downtime / ceiling, exemplar=exemplar)
        if state != State.HELD:
            self._feel(identifier, body)
        if (error := body.get("forecast_error_ratio")) is not None:
            self._forecast.observe(abs(error), exemplar=exemplar)
        self._remember(identifier, body)

    def _feel(self, identifier: str, body: Mapping[str, Any]) -> None:
        """What the guest felt, once it is over."""
        mode = str(body.get("mode"))
        if mode == Mode.OFFLINE:
            return
        exemplar = {"migration": identifier}
        standstill = body.get("standstill_seconds")
        if standstill is not None:
            self._standstill.observe(standstill, exemplar=exemplar)
        if above_ceiling(_felt(body), body.get("max_downtime_seconds") or 0.0, mode):
            self._exceeded.inc(exemplar=exemplar)

    def _first_time(self, identifier: str) -> bool:
        if identifier in self._counted:
            return False
        self._counted[identifier] = None
        _bound(self._counted)
        return True

    # What is shown for a while after the end ---------------------------------------------------------------

    def _remember(self, identifier: str, body: Mapping[str, Any]) -> None:
        self._past(
            guest=str(body.get("guest") or identifier),
            state=str(body.get("state")),
            mode=str(body.get("mode")),
            source=str(body.get("source") or ""),
            destination=str(body.get("destination") or ""),
            downtime=_felt(body),
            ceiling=float(body.get("max_downtime_seconds") or 0.0),
            at=self._now(),
        )

    def held_before(self, identifier: str) -> None:
        """It was held, and counted as such, before this process began."""
        if self._first_time(identifier):
            self._course(identifier)

    def recall(self, ended: Iterable[SeenMigration]) -> None:
        """Take over what the journal holds of migrations that ended before this process began, newest first."""
        for migration in reversed(list(ended)):
            if migration.ended_at is not None:
                self._past(
                    guest=migration.guest,
                    state=migration.state,
                    mode=migration.mode,
                    source=migration.source,
                    destination=migration.destination,
                    downtime=_felt(
                        {
                            "downtime_seconds": migration.downtime_seconds,
                            "standstill_seconds": migration.standstill_seconds,
                            "standstill_uncertainty_seconds": migration.standstill_uncertainty_seconds,
                        }
                    ),
                    ceiling=migration.max_downtime_seconds,
                    at=migration.ended_at.timestamp(),
                )

    def _past(
        self,
        *,
        guest: str,
        state: str,
        mode: str,
        source: str,
        destination: str,
        downtime: float | None,
        ceiling: float,
        at: float,
    ) -> None:
        host = destination if state == State.COMPLETED else source
        if state == State.FAILED:
            self._failures[guest] = Past(host=host, at=at)
            self._failures.move_to_end(guest)
            _bound(self._failures)
        elif state in (State.COMPLETED, State.GUEST_ENDED):
            self._failures.pop(guest, None)
        self._downtimes.pop(guest, None)
        if downtime is not None and mode != Mode.OFFLINE:
            self._downtimes[guest] = Past(
                host=host, at=at, downtime_seconds=downtime, ceiling_seconds=ceiling
            )
            _bound(self._downtimes)

    def failures(self) -> dict[str, Past]:
        """Guests whose last migration failed, within a day."""
        return self._recent(self._failures, _FAILURE_SECONDS)

    def downtimes(self) -> dict[str, Past]:
        """Guests that stood still for a migration within the last hour."""
        return self._recent(self._downtimes, _DOWNTIME_SECONDS)

    def _recent(self, past: OrderedDict[str, Past], seconds: float) -> dict[str, Past]:
        oldest = self._now() - seconds
        for guest in [guest for guest, entry in past.items() if entry.at < oldest]:
            del past[guest]
        return dict(past)

    def decisions(self, active: Iterable[str]) -> dict[str, dict[str, float]]:
        """When each action was last decided, by migration."""
        wanted = set(active) & self._courses.keys()
        return {identifier: dict(self._courses[identifier].decisions) for identifier in wanted}


def _felt(body: Mapping[str, Any]) -> float | None:
    """For how long the guest stood still at least."""
    return standstill_at_least(
        downtime=body.get("downtime_seconds"),
        standstill=body.get("standstill_seconds"),
        uncertainty=body.get("standstill_uncertainty_seconds"),
    )


def _begin_at_zero(metric: Counter | Histogram, values: tuple[Iterable[str], ...]) -> None:
    if values:
        for combination in product(*values):
            metric.labels(*combination)


def _action(body: Mapping[str, Any]) -> str:
    action = str(body.get("action"))
    return action if action in words.ACTIONS else words.OTHER


def _bound(remembered: OrderedDict[str, Any]) -> None:
    while len(remembered) > _MOST_REMEMBERED:
        remembered.popitem(last=False)
