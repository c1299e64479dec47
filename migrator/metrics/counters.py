"""Counters and histograms: what happened, told by the engine's events and by whoever has something to count."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from migrator.api.documents import MigrationDocument
from migrator.api.events import (
    DecisionTaken,
    EvacuationStateChanged,
    Event,
    MigrationProgressed,
    MigrationStateChanged,
)
from migrator.core.migration.guest_impact import standstill_at_least
from migrator.core.migration.invariants import VIOLATED
from migrator.core.model import STOPPED_MODES, State
from migrator.metrics import label_values
from migrator.metrics.catalogue import BY_NAME

#: A failure is shown for so long, unless the guest's next migration completes.
_FAILURE_SECONDS = 86_400.0
#: A downtime is shown for so long: many scrapes, and an alert about it ends by itself.
_DOWNTIME_SECONDS = 3_600.0
#: Guests that failures and downtimes are remembered of, and ended migrations that are not counted again.
_MOST_REMEMBERED = 10_000


@dataclass(kw_only=True)
class _ActiveMigration:
    """Facts that are remembered of a migration while it is active."""

    #: Empty until its first event.
    phase: str = ""
    since: float = 0.0
    throttle_ratio: float = 0.0
    #: When throttling was last added up; ``None`` before its first event.
    at: float | None = None
    #: When each action was last decided, seconds since the epoch.
    decisions: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PastMigration:
    """Facts that are still shown of a migration that has ended."""

    host: str
    #: Seconds since the epoch.
    at: float
    downtime_seconds: float = 0.0
    ceiling_seconds: float = 0.0


class Counters:
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
        self._active: OrderedDict[str, _ActiveMigration] = OrderedDict()
        #: What is in the registry, one after the other.
        self.families: list[Counter | Histogram] = []
        self._counted: OrderedDict[str, None] = OrderedDict()
        self._failures: OrderedDict[str, PastMigration] = OrderedDict()
        self._downtimes: OrderedDict[str, PastMigration] = OrderedDict()
        self._migrations = self._counter("migrations_total", label_values.RESULTS, label_values.MODES)
        self._evacuations = self._counter("evacuations_total", label_values.EVACUATION_RESULTS)
        self._commands = self._counter(
            "commands_total", label_values.INTERFACES, label_values.VERBS, label_values.COMMAND_RESULTS
        )
        self._decisions = self._counter("decisions_total", label_values.ACTIONS)
        self._recoveries = self._counter("postcopy_recoveries_total", label_values.RECOVERY_RESULTS)
        self._violations = self._counter("invariant_violations_total", label_values.INVARIANTS)
        self._qmp_errors = self._counter("qmp_errors_total", label_values.QMP_ERRORS)
        self._journal_errors = self._counter("journal_errors_total", label_values.JOURNAL_OPERATIONS)
        self._faults = self._counter("faults_total")
        self._takeovers = self._counter("takeovers_total", label_values.TAKEOVER_REASONS)
        self._sessions_taken = self._counter("mqtt_sessions_taken_total")
        self._dropped = self._counter("mqtt_dropped_total")
        self._spans = self._counter("trace_spans_total", label_values.SPAN_RESULTS)
        self._exceeded = self._counter("migration_downtime_ceiling_exceeded_total")
        self._throttled = self._counter("migration_throttled_seconds_total")
        self._duration = self._histogram("migration_duration_seconds", label_values.MODES)
        self._downtime = self._histogram("migration_downtime_seconds", label_values.MODES)
        self._standstill = self._histogram("migration_standstill_seconds")
        self._stall = self._histogram("migration_postcopy_stall_seconds", label_values.MODES)
        self._of_ceiling = self._histogram("migration_downtime_ceiling_ratio", label_values.MODES)
        self._preparation = self._histogram("migration_preparation_seconds")
        self._phases = self._histogram("migration_phase_duration_seconds", label_values.PHASES)
        self._forecast = self._histogram("forecast_error_ratio")
        self._qmp = self._histogram("qmp_command_duration_seconds")
        self._journal = self._histogram("journal_write_duration_seconds")
        #: By command: to look a label up costs as much as to count.
        self._qmp_commands: dict[str, Histogram] = {}

    def _counter(self, name: str, *values: Iterable[str]) -> Counter:
        described = BY_NAME[f"migrator_{name}"]
        counter = Counter(described.name, described.help, described.labels, registry=self.registry)
        _begin_at_zero(counter, values)
        self.families.append(counter)
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
        self.families.append(histogram)
        return histogram

    # What others tell ------------------------------------------------------------------------------------

    def command(self, interface: str, verb: str, result: str, number: int = 1) -> None:
        """Commands came; see the dispatcher."""
        self._commands.labels(
            interface if interface in label_values.INTERFACES else label_values.OTHER,
            verb if verb in label_values.VERBS else "unknown",
            result if result in label_values.COMMAND_RESULTS else "refused",
        ).inc(number)

    def qmp_command(self, command: str, seconds: float) -> None:
        """QEMU answered `command` after `seconds`."""
        histogram = self._qmp_commands.get(command)
        if histogram is None:
            known = (
                command if len(self._qmp_commands) < label_values.MOST_COMMANDS - 1 else label_values.OTHER
            )
            histogram = self._qmp.labels(known)
            if known == command:
                self._qmp_commands[command] = histogram
        histogram.observe(seconds)

    def qmp_error(self, kind: str) -> None:
        """A session or a command failed."""
        self._qmp_errors.labels(kind if kind in label_values.QMP_ERRORS else label_values.OTHER).inc()

    def fault(self) -> None:
        """An error of our own, that nobody foresaw."""
        self._faults.inc()

    def takeover(self, reason: str) -> None:
        """Count what was taken over from a controller whose lease had ended: ``planner-gone`` or ``driver-gone``."""
        self._takeovers.labels(reason).inc()

    def mqtt_sessions_taken(self, number: int) -> None:
        """Another client has taken our session with the broker, so many times."""
        self._sessions_taken.inc(number)

    def mqtt_dropped(self, number: int) -> None:
        """So many messages were dropped because too many waited for the broker."""
        self._dropped.inc(number)

    def journal_write(self, seconds: float) -> None:
        """Something was on disk after `seconds`."""
        self._journal.observe(seconds)

    def journal_error(self, operation: str) -> None:
        """The journal could not be read or written."""
        self._journal_errors.labels(
            operation if operation in label_values.JOURNAL_OPERATIONS else label_values.OTHER
        ).inc()

    def spans(self, result: str, number: int) -> None:
        """So many spans were ``sent`` or ``dropped``; from any thread."""
        self._spans.labels(result if result in label_values.SPAN_RESULTS else "dropped").inc(number)

    # Events ----------------------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        """Count it; returns at once and never raises."""
        match event:
            case MigrationStateChanged(migration=migration):
                self._migration(migration, counts=True)
            case MigrationProgressed(migration=migration):
                self._migration(migration, counts=False)
            case DecisionTaken():
                self._decision(event)
            case EvacuationStateChanged(evacuation=evacuation) if (
                evacuation.ended_at is not None and evacuation.kind != "roll"
            ):
                result = str(evacuation.state)
                if result in label_values.EVACUATION_RESULTS and self._first_time(evacuation.id):
                    self._evacuations.labels(result).inc()

    def _decision(self, event: DecisionTaken) -> None:
        action = (
            event.decision.action if event.decision.action in label_values.ACTIONS else label_values.OTHER
        )
        self._decisions.labels(action).inc(exemplar={"migration": event.migration})
        if action == "stream-recovered":
            self._recoveries.labels("recovered").inc(exemplar={"migration": event.migration})
        if action == VIOLATED:
            broken = str(event.decision.numbers.get("invariant"))
            known = broken if broken in label_values.INVARIANTS else label_values.OTHER
            self._violations.labels(known).inc(exemplar={"migration": event.migration})
        if event.migration not in self._counted and action not in label_values.AFTER_THE_END:
            self._active_migration(event.migration).decisions[action] = self._now()

    def _active_migration(self, identifier: str) -> _ActiveMigration:
        active = self._active.setdefault(identifier, _ActiveMigration())
        _bound(self._active)
        return active

    def _migration(self, migration: MigrationDocument, *, counts: bool) -> None:
        identifier, state = migration.id, migration.state
        now = self._clock()
        if identifier in self._counted:
            if (
                counts
                and state in label_values.RESULTS
                and state is not State.HELD
                and identifier in self._active
            ):
                del self._active[identifier]  # it was held, and a person has resolved it
                self._count_impact(migration)
                self._past(migration, at=self._now())
            return
        if state is State.HELD and identifier not in self._active:
            self.held_before(identifier)  # the first that is heard of it: it was read from the journal so
            return
        active = self._active_migration(identifier)
        if active.at is not None:
            # The share that was taken until now; a share that has just begun counts from now on.
            self._throttled.inc(max(0.0, active.throttle_ratio * (now - active.at)))
        active.at = now
        copying = state in (State.PRECOPY, State.SWITCHOVER)
        active.throttle_ratio = migration.throttle_ratio if copying else 0.0
        if not counts:
            return
        if state != active.phase:
            self._end_phase(identifier, active, now)
            active.phase, active.since = state, now
        if state in label_values.RESULTS:
            self._count_end(migration)
            if state is not State.HELD:
                self._active.pop(identifier, None)

    def _end_phase(self, identifier: str, active: _ActiveMigration, now: float) -> None:
        if active.phase in label_values.PHASES:
            spent = max(0.0, now - active.since)
            exemplar = {"migration": identifier}
            self._phases.labels(active.phase).observe(spent, exemplar=exemplar)
            if active.phase == State.PREPARING:
                self._preparation.observe(spent, exemplar=exemplar)

    def _count_end(self, migration: MigrationDocument) -> None:
        if not self._first_time(migration.id):
            return
        exemplar = {"migration": migration.id}
        if migration.held_code == "postcopy-broken":
            self._recoveries.labels("held").inc(exemplar=exemplar)
        mode = str(migration.mode)
        self._migrations.labels(str(migration.state), mode).inc(exemplar=exemplar)
        if migration.file:  # how long a guest is on a disk says nothing of migrations
            self._past(migration, at=self._now())
            return
        duration, downtime = migration.duration_seconds, migration.downtime_seconds
        if duration is not None and migration.state is State.COMPLETED:
            self._duration.labels(mode).observe(duration, exemplar=exemplar)
        if downtime is not None:
            self._downtime.labels(mode).observe(downtime, exemplar=exemplar)
            ceiling = migration.max_downtime_seconds
            if ceiling > 0 and migration.mode not in STOPPED_MODES:
                self._of_ceiling.labels(mode).observe(downtime / ceiling, exemplar=exemplar)
        if migration.state is not State.HELD:
            self._count_impact(migration)
        if (error := migration.forecast_error_ratio) is not None:
            self._forecast.observe(abs(error), exemplar=exemplar)
        self._past(migration, at=self._now())

    def _count_impact(self, migration: MigrationDocument) -> None:
        """Count what the guest felt, once it is over."""
        if migration.mode in STOPPED_MODES:
            return
        exemplar = {"migration": migration.id}
        if migration.standstill_seconds is not None:
            self._standstill.observe(migration.standstill_seconds, exemplar=exemplar)
        if migration.postcopy_stall_seconds is not None:
            self._stall.labels(migration.mode).observe(migration.postcopy_stall_seconds, exemplar=exemplar)
        if migration.ceiling_exceeded:
            self._exceeded.inc(exemplar=exemplar)

    def _first_time(self, identifier: str) -> bool:
        if identifier in self._counted:
            return False
        self._counted[identifier] = None
        _bound(self._counted)
        return True

    # What is shown for a while after the end ---------------------------------------------------------------

    def held_before(self, identifier: str) -> None:
        """Note that a migration was held, and counted as such, before this process began."""
        if self._first_time(identifier):
            self._active_migration(identifier)

    def recall(self, ended: Iterable[MigrationDocument]) -> None:
        """Take over what the journal holds of migrations that ended before this process began, newest first."""
        for migration in reversed(list(ended)):
            if migration.ended_at is not None:
                self._past(migration, at=migration.ended_at.timestamp())

    def _past(self, migration: MigrationDocument, *, at: float) -> None:
        guest, state = migration.guest, migration.state
        host = migration.destination if state is State.COMPLETED else migration.source
        if state is State.FAILED:
            self._failures[guest] = PastMigration(host=host, at=at)
            self._failures.move_to_end(guest)
            _bound(self._failures)
        elif state in (State.COMPLETED, State.GUEST_ENDED):
            self._failures.pop(guest, None)
        self._downtimes.pop(guest, None)
        downtime = standstill_at_least(
            downtime=migration.downtime_seconds,
            standstill=migration.standstill_seconds,
            uncertainty=migration.standstill_uncertainty_seconds,
        )
        if downtime is not None and migration.mode not in STOPPED_MODES:
            self._downtimes[guest] = PastMigration(
                host=host, at=at, downtime_seconds=downtime, ceiling_seconds=migration.max_downtime_seconds
            )
            _bound(self._downtimes)

    def failures(self) -> dict[str, PastMigration]:
        """Guests whose last migration failed, within a day."""
        return self._recent(self._failures, _FAILURE_SECONDS)

    def downtimes(self) -> dict[str, PastMigration]:
        """Guests that stood still for a migration within the last hour."""
        return self._recent(self._downtimes, _DOWNTIME_SECONDS)

    def _recent(self, past: OrderedDict[str, PastMigration], seconds: float) -> dict[str, PastMigration]:
        oldest = self._now() - seconds
        for guest in [guest for guest, entry in past.items() if entry.at < oldest]:
            del past[guest]
        return dict(past)

    def all_decisions(self) -> dict[str, dict[str, float]]:
        """When each action was last decided, by migration, of all that are active."""
        return {name: dict(each.decisions) for name, each in self._active.items() if each.decisions}

    def decisions(self, active: Iterable[str]) -> dict[str, dict[str, float]]:
        """When each action was last decided, by migration."""
        wanted = set(active) & self._active.keys()
        return {identifier: dict(self._active[identifier].decisions) for identifier in wanted}


def _begin_at_zero(metric: Counter | Histogram, values: tuple[Iterable[str], ...]) -> None:
    if values:
        for combination in product(*values):
            metric.labels(*combination)


def _bound(remembered: OrderedDict[str, Any]) -> None:
    while len(remembered) > _MOST_REMEMBERED:
        remembered.popitem(last=False)
