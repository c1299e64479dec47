"""Every metric there is, with what it means: the code that fills them and the documents both read this."""

from __future__ import annotations

from collections.abc import Mapping

from migrator.metrics.definition import (
    Described,
    counter,
    evacuation_gauge,
    gauge,
    histogram,
    migration_gauge,
)
from migrator.metrics.label_values import (
    ACTIONS,
    COMMAND_RESULTS,
    EVACUATION_RESULTS,
    INTERFACES,
    INVARIANTS,
    JOURNAL_OPERATIONS,
    MODES,
    MOST_COMMANDS,
    MOST_GUESTS,
    PHASES,
    QMP_ERRORS,
    RECOVERY_RESULTS,
    RESULTS,
    SPAN_RESULTS,
    TAKEOVER_REASONS,
    VERBS,
)

COUNTED = (
    counter(
        "migrator_migrations_total",
        "Migrations that have ended, each counted once: a held one as held, however a person resolves it.",
        "result",
        "mode",
        series=str(len(RESULTS) * len(MODES)),
    ),
    counter(
        "migrator_evacuations_total",
        "Evacuations and restores that have ended.",
        "result",
        series=str(len(EVACUATION_RESULTS)),
    ),
    counter(
        "migrator_commands_total",
        "Commands, by the interface they came through.",
        "interface",
        "verb",
        "result",
        series=str(len(INTERFACES) * len(VERBS) * len(COMMAND_RESULTS)),
    ),
    counter(
        "migrator_decisions_total",
        "Decisions of the controller; other stands for an action that this list does not know.",
        "action",
        series=str(len(ACTIONS)),
    ),
    counter(
        "migrator_postcopy_recoveries_total",
        "Postcopy streams that broke and went on again, or are held because that took too long.",
        "result",
        series=str(len(RECOVERY_RESULTS)),
    ),
    counter(
        "migrator_invariant_violations_total",
        "Migrations that were held because both ends broke a safety invariant; anything but 0 is an emergency.",
        "invariant",
        series=str(len(INVARIANTS)),
    ),
    counter(
        "migrator_qmp_errors_total",
        "QMP sessions and commands that failed; command-failed is QEMU's refusal, strange-answer what was no answer.",
        "kind",
        series=str(len(QMP_ERRORS)),
    ),
    counter(
        "migrator_faults_total",
        "Errors of migrator itself, each in its log with an id: whatever it was about was left undone. Please report.",
    ),
    counter(
        "migrator_takeovers_total",
        "What this controller took over from one whose lease had ended without a word: the plan, or a migration.",
        "reason",
        series=str(len(TAKEOVER_REASONS)),
    ),
    counter(
        "migrator_mqtt_sessions_taken_total",
        "Times that another client connected under our id and got what was meant for us: see the broker's log.",
    ),
    counter(
        "migrator_mqtt_dropped_total",
        "States, decisions and replies that were not published because too many waited for the broker.",
    ),
    counter(
        "migrator_journal_errors_total",
        "Operations on the journal that failed.",
        "operation",
        series=str(len(JOURNAL_OPERATIONS)),
    ),
    counter(
        "migrator_trace_spans_total",
        "Spans that the collector of traces has taken, or that were dropped because it was away or too slow; 0 where "
        "none is configured.",
        "result",
        series=str(len(SPAN_RESULTS)),
    ),
    counter(
        "migrator_migration_downtime_ceiling_exceeded_total",
        "Migrations whose guest stood still for longer than their policy's ceiling, whether or not a controller "
        "watched; those that were to stand still (mode offline) are not counted.",
    ),
    counter(
        "migrator_migration_throttled_seconds_total",
        "Work lost to throttling: CPU time taken from each virtual CPU, summed over migrations.",
    ),
    histogram(
        "migrator_migration_duration_seconds",
        "From the first command that changed anything until the guest was seen running at the destination; "
        "completed migrations only.",
        "mode",
        buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200),
        why="from an idle small guest (a tenth of a second) to a terabyte over 10 Gbit/s (a quarter of an hour) and "
        "a time limit of hours",
        times=len(MODES),
    ),
    histogram(
        "migrator_migration_downtime_seconds",
        "From STOP at the source to RESUME, as measured, whichever way the migration ended.",
        "mode",
        buckets=(0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60, 300),
        why="the ceilings of the built-in policies (0.1, 0.3 and 2 s) are bounds, so that the share below each is "
        "exact; the long end is for guests that stand still on purpose",
        times=len(MODES),
    ),
    histogram(
        "migrator_migration_standstill_seconds",
        "All the time that the guest stood still for a migration, whether or not a controller watched; not for mode "
        "offline. Where it is known between bounds only, the middle.",
        buckets=(0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60, 300, 1800),
        why="as of downtimes; the long end is for a controller that was away at the switch, and for held guests",
    ),
    histogram(
        "migrator_migration_postcopy_stall_seconds",
        "For how long all of the guest waited for pages in postcopy, where its destination measures that.",
        "mode",
        buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300),
        why="as of downtimes; the default ceiling of 2 s is a bound",
        times=len(MODES),
    ),
    histogram(
        "migrator_migration_downtime_ceiling_ratio",
        "Measured downtime divided by the policy's ceiling; above 1 is a broken promise. Not for mode offline.",
        "mode",
        buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 5, 10),
        why="close together around 1, where it is decided whether the ceiling was kept",
        times=len(MODES),
    ),
    histogram(
        "migrator_migration_preparation_seconds",
        "Time in the state preparing: the destination's process is started and both ends are set up.",
        buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120),
        why="from a destination that waits already to one whose start runs into its time limit",
    ),
    histogram(
        "migrator_migration_phase_duration_seconds",
        "Time in each state of the lifecycle, observed when it is left.",
        "phase",
        buckets=(0.01, 0.05, 0.1, 0.3, 1, 2.5, 5, 10, 30, 60, 300, 600, 1800, 3600),
        why="one set for all states: a switchover takes hundredths of a second, precopy up to hours",
        times=len(PHASES),
    ),
    histogram(
        "migrator_forecast_error_ratio",
        "How far the time forecast at the end of the first round was off, absolute.",
        buckets=(0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5),
        why="0.1 is what is known to be possible for nine in ten, 0.15 the aim for a whole evacuation",
    ),
    histogram(
        "migrator_qmp_command_duration_seconds",
        "From sending a QMP command to its answer; up to 64 commands by name, the rest as other.",
        "command",
        buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        why="a local QEMU answers in under a millisecond, one over SSH in a few; 1 and 5 s are the time limits",
        times=MOST_COMMANDS,
    ),
    histogram(
        "migrator_journal_write_duration_seconds",
        "From asking for a write to the journal until it is on disk.",
        buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5),
        why="a solid-state disk syncs in a millisecond, a spinning one in ten; a command shall be answered within "
        "20 ms (median) and 100 ms (p99)",
    ),
)

MIGRATIONS = (
    gauge(
        "migrator_migration_info",
        "1 for every active migration, with what it is.",
        "migration",
        "guest",
        "source",
        "destination",
        "policy",
        series="M",
    ),
    gauge("migrator_migration_state", "1 for the present state.", "migration", "guest", "state", series="M"),
    migration_gauge("progress_ratio", "Progress; never falls, and is 1 only once the guest has arrived."),
    migration_gauge("remaining_bytes", "Memory that is still to be sent."),
    gauge(
        "migrator_disk_remaining_bytes",
        "What is still to be copied of disks that the target does not share; 0 once memory is sent.",
        "migration",
        "guest",
        series="M",
    ),
    migration_gauge("transferred_bytes", "What has been sent so far."),
    migration_gauge(
        "dirty_rate_bytes_per_second", "Memory that the guest dirties, as measured between two rounds."
    ),
    migration_gauge("bandwidth_bytes_per_second", "The stream, as QEMU measured it last."),
    migration_gauge("throttle_ratio", "Share of CPU time that is taken from the guest."),
    migration_gauge("round", "Passes over dirty memory so far."),
    migration_gauge("eta_seconds", "Predicted time left (median)."),
    migration_gauge("expected_downtime_seconds", "Predicted downtime, by our forecast."),
    migration_gauge("downtime_limit_seconds", "The downtime limit that QEMU was given."),
    migration_gauge("downtime_ceiling_seconds", "The policy's ceiling of the downtime."),
    gauge(
        "migrator_migration_decision_timestamp_seconds",
        "When the last decision of this action was made.",
        "migration",
        "guest",
        "action",
        series=f"{len(ACTIONS)} M",
    ),
)

EVACUATIONS = (
    evacuation_gauge("guests_left", "Guests that have still to leave the host (or to come home)."),
    evacuation_gauge("deadline_timestamp_seconds", "The deadline, where it has one."),
    evacuation_gauge("forecast_end_timestamp_seconds", "Its predicted end (median)."),
    evacuation_gauge(
        "at_risk", "1 when the forecast says that the deadline, or the window's end, may be missed."
    ),
    gauge(
        "migrator_window_start_timestamp_seconds",
        "When an evacuation that is scheduled begins by itself.",
        "evacuation",
        "host",
        series="windows ahead",
    ),
    gauge(
        "migrator_evacuation_guest_stuck",
        "1 for every guest that does not get on: no host can take it, it failed too often, or it is held.",
        "evacuation",
        "host",
        "guest",
        "standing",
        series="guests of evacuations",
    ),
)

INVENTORY = (
    gauge(
        "migrator_host_state",
        "1 for what the host may be used for, 0 for the others.",
        "host",
        "state",
        series="3 H",
    ),
    gauge("migrator_host_cordoned", "1 where no new guests come to the host.", "host", series="H"),
    gauge("migrator_host_guests", "Guests on the host.", "host", series="H"),
    gauge(
        "migrator_host_guests_shut_off",
        "Guests that its libvirt has shut off, besides: they stay when it is emptied. Absent where it cannot be asked.",
        "host",
        series="H",
    ),
    gauge(
        "migrator_guest_unmonitored",
        "Guests on the host whose QEMU has no monitor where it was looked for: they cannot be moved, nor asked.",
        "host",
        series="H",
    ),
    gauge(
        "migrator_guest_undriven",
        "Guests on the host that stand in a migration which nobody drives: at the switch, left, or not let run.",
        "host",
        series="H",
    ),
    gauge(
        "migrator_guest_duplicate",
        "1 for a guest whose uuid runs twice: an emergency, its disks are being destroyed. Absent otherwise.",
        "guest",
        series="0",
    ),
    gauge("migrator_host_up", "1 when the host answered when it was last asked.", "host", series="H"),
    gauge(
        "migrator_host_link_bytes_per_second",
        "What migrations send (out) and receive (in) now.",
        "host",
        "direction",
        series="2 H",
    ),
    gauge(
        "migrator_host_link_capacity_bytes_per_second",
        "Speed of the host's link, where known.",
        "host",
        series="H",
    ),
    gauge(
        "migrator_certificate_expiry_timestamp_seconds",
        "When the first of the host's certificates for encrypted streams expires; absent where it has none.",
        "host",
        series="H",
    ),
    gauge(
        "migrator_path_bytes_per_second",
        "What the path to another host was seen to hold streams back at: the slowest from each host, ten at most.",
        "host",
        "target",
        series="10 H",
    ),
    gauge("migrator_guest_info", "1 for every guest, with its name.", "guest", "host", "name", series="G"),
    gauge(
        "migrator_guest_dirty_rate_bytes_per_second",
        "Memory that the guest dirties, as last measured.",
        "guest",
        "host",
        series="G",
    ),
    gauge(
        "migrator_guest_migratable",
        "0 when something is known that keeps it here.",
        "guest",
        "host",
        series="G",
    ),
    gauge(
        "migrator_guest_last_failure_timestamp_seconds",
        "When its last migration failed; until one completes, a day at most.",
        "guest",
        "host",
        series="G",
    ),
    gauge(
        "migrator_guest_last_downtime_seconds",
        "For how long it stood still at least in its last migration, as measured; for an hour. Not for mode offline.",
        "guest",
        "host",
        series="G",
    ),
    gauge(
        "migrator_guest_last_downtime_ceiling_seconds",
        "The ceiling that this downtime was to stay below; for an hour.",
        "guest",
        "host",
        series="G",
    ),
    gauge(
        "migrator_guests_not_shown", f"Guests beyond the first {MOST_GUESTS}, for which there are no series."
    ),
)

SERVICE = (
    gauge("migrator_migrations_active", "Migrations that have begun and not ended, without held ones."),
    gauge("migrator_migrations_held", "Migrations that a person must look at."),
    gauge(
        "migrator_migrations_recovering",
        "Migrations whose postcopy stream is broken and is being recovered; they are active, too.",
    ),
    gauge("migrator_queue_depth", "Migrations that wait for their turn."),
    gauge("migrator_complaints", "Reasons why no new work is taken now; 0 when all is well."),
    gauge("migrator_journal_writable", "1 while the journal can be written."),
    gauge(
        "migrator_mqtt_connected",
        "1 while there is a session with the broker; absent where none is configured.",
    ),
    gauge(
        "migrator_mqtt_waiting_messages",
        "States, decisions and replies that the broker has not taken yet; absent where none is configured.",
    ),
    gauge(
        "migrator_lease_held",
        "1 while this controller holds the lease to act on its hosts; absent of one that stands by.",
    ),
    gauge(
        "migrator_lease_age_seconds",
        "Since a lease was renewed, by the database's clock; absent where the journal is one controller's own.",
        "lease",
        series="C",
    ),
    gauge(
        "migrator_controller_migrations",
        "Migrations that a controller drives, as of its last heartbeat; absent where one has the journal for itself.",
        "controller",
        series="C",
    ),
    gauge("migrator_planner_present", "1 while a controller holds the lease that plans the site."),
    gauge(
        "migrator_event_loop_lag_seconds", "The longest that the event loop was late by during the last 15 s."
    ),
    gauge(
        "migrator_look_stretch_ratio",
        "How many times as long as usual is waited between two looks at a migration that is far from its switch, "
        "because the event loop is busy.",
    ),
    gauge("migrator_build_info", "1, with the version.", "version"),
    gauge(
        "migrator_link_info",
        "1, with where people open the page and read the runbook ([site] page_url, runbook_url); absent without them.",
        "page",
        "runbook",
    ),
)

#: All, in the order of the document.
CATALOGUE = COUNTED + MIGRATIONS + EVACUATIONS + INVENTORY + SERVICE
BY_NAME: Mapping[str, Described] = {each.name: each for each in CATALOGUE}
