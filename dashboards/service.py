"""Service: are the controllers themselves well?"""

from __future__ import annotations

from typing import Any

from dashboards.board import ALL, BAD_AT_ZERO, GOOD_AT_ZERO, RECORDED, board, curves, figure, query, threshold


def service() -> dict[str, Any]:
    """The dashboard."""
    return board(
        "migrator-service",
        "migrator: Service",
        "The controllers themselves: QMP, journal, broker, event loop, and how good their predictions are.",
        (
            ("Well?", _well()),
            ("QMP", _qmp()),
            ("Commands, journal, loop", _own()),
            ("How well it decides", _deciding()),
        ),
    )


def _quantile(share: float, name: str, by: str = "") -> str:
    labels = f"{by}, le" if by else "le"
    rate = f"rate(migrator_{name}_bucket{{{ALL}}}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by ({labels}) ({rate}))"


def _well() -> list[Any]:
    late = threshold("event_loop_lag_seconds")
    return [
        figure("Answers", "Controllers that Prometheus reaches.", "short", f"sum(up{{{ALL}}})", span=3,
               colours=BAD_AT_ZERO),
        figure("Version", "Of migrator.", "short", f"migrator_build_info{{{ALL}}}", span=3, legend="{{version}}",
               name=True),
        figure("Journal", "Whether every controller can write its journal.", "bool_yes_no",
               f"min(migrator_journal_writable{{{ALL}}})", span=3, colours=BAD_AT_ZERO),
        figure("Broker", "Whether every controller has its session with the MQTT broker.", "bool_yes_no",
               f"min(migrator_mqtt_connected{{{ALL}}})", span=3, colours=BAD_AT_ZERO, nothing="none configured"),
        figure("Lease", "Whether the controller that acts holds its lease.", "bool_yes_no",
               f"min(migrator_lease_held{{{ALL}}})", span=3, colours=BAD_AT_ZERO),
        figure("Planner", "Whether a controller plans the site.", "bool_yes_no",
               f"max(migrator_planner_present{{{ALL}}})", span=3, colours=BAD_AT_ZERO),
        figure("Leases renewed", "The longest that one was not; a controller that has gone stays for a day.",
               "s", f"max(migrator_lease_age_seconds{{{ALL}}})", span=3, nothing="no shared journal"),
        figure("Driven by", "How many migrations each controller drives.", "short",
               f"max by (controller) (migrator_controller_migrations{{{ALL}}})", span=3, legend="{{controller}}",
               nothing="no shared journal"),
        figure("Takeovers", "Leases that were taken over from a controller which fell silent, in a day.", "short",
               f"sum(increase(migrator_takeovers_total{{{ALL}}}[1d]))", span=3, colours=GOOD_AT_ZERO),
        figure("Complaints", "Reasons why no new work is taken; migrator doctor says which.", "short",
               f"sum(migrator_complaints{{{ALL}}})", span=3, colours=GOOD_AT_ZERO),
        figure("Event loop late by", "At most, in the last 15 s.", "s",
               f"max(migrator_event_loop_lag_seconds{{{ALL}}})", span=3, colours=((None, "green"), (late, "red"))),
        figure("Guests not shown", "Beyond the most that have series of their own.", "short",
               f"sum(migrator_guests_not_shown{{{ALL}}})", span=3, colours=GOOD_AT_ZERO),
    ]  # fmt: skip


def _qmp() -> list[Any]:
    return [
        curves(
            "QMP, slowest commands",
            "From sending to the answer, p99 of five minutes, of the ten slowest commands.",
            "s",
            query(
                f"topk(10, job_command:migrator_qmp_command_duration_seconds:p99_5m{{{RECORDED}}})",
                "{{command}}",
            ),
            limit="qmp_command_duration_seconds",
        ),
        curves(
            "QMP, all commands",
            "From sending to the answer.",
            "s",
            query(_quantile(0.5, "qmp_command_duration_seconds"), "p50"),
            query(_quantile(0.99, "qmp_command_duration_seconds"), "p99"),
        ),
        curves(
            "QMP errors",
            "Sessions and commands that failed, a second; command-failed is QEMU's refusal.",
            "ops",
            query(f"sum by (kind) (rate(migrator_qmp_errors_total{{{ALL}}}[$__rate_interval]))", "{{kind}}"),
        ),
        curves(
            "QMP commands",
            "Answered a second, the ten most frequent.",
            "ops",
            query(
                "topk(10, sum by (command) "
                f"(rate(migrator_qmp_command_duration_seconds_count{{{ALL}}}[$__rate_interval])))",
                "{{command}}",
            ),
        ),
    ]


def _own() -> list[Any]:
    by_result = f"sum by (interface, result) (rate(migrator_commands_total{{{ALL}}}[$__rate_interval]))"
    return [
        curves(
            "Commands",
            "A second, by the interface they came through.",
            "ops",
            query(by_result, "{{interface}} {{result}}"),
        ),
        curves(
            "Evacuations that end",
            "A second, restores among them.",
            "ops",
            query(
                f"sum by (result) (rate(migrator_evacuations_total{{{ALL}}}[$__rate_interval]))", "{{result}}"
            ),
        ),
        curves(
            "Postcopy streams that broke",
            "Those that went on again, and those that are held because that took too long.",
            "short",
            query(
                f"sum by (result) (increase(migrator_postcopy_recoveries_total{{{ALL}}}[$__rate_interval]))",
                "{{result}}",
            ),
        ),
        curves(
            "Journal, writes",
            "Until they are on disk.",
            "s",
            query(_quantile(0.5, "journal_write_duration_seconds"), "p50"),
            query(_quantile(0.99, "journal_write_duration_seconds"), "p99"),
        ),
        curves(
            "MQTT, sessions taken by others",
            "Anything but 0 is somebody who should not.",
            "short",
            query(f"increase(migrator_mqtt_sessions_taken_total{{{ALL}}}[$__rate_interval])", "{{instance}}"),
        ),
        curves(
            "MQTT, messages that wait",
            "For the broker; those that were dropped because too many did are lost to it, and in the journal.",
            "short",
            query(f"migrator_mqtt_waiting_messages{{{ALL}}}", "{{instance}} waiting"),
            query(
                f"increase(migrator_mqtt_dropped_total{{{ALL}}}[$__rate_interval])", "{{instance}} dropped"
            ),
        ),
        curves(
            "Errors of migrator itself",
            "Anything but 0 is a fault of migrator: its log has each under an id. Please report it.",
            "short",
            query(f"increase(migrator_faults_total{{{ALL}}}[$__rate_interval])", "{{instance}}"),
        ),
        curves(
            "Safety invariants broken",
            "Anything but 0 is an emergency: the migration is held, and its guest may run twice or nowhere.",
            "short",
            query(
                f"sum by (invariant) (increase(migrator_invariant_violations_total{{{ALL}}}[$__rate_interval]))",
                "{{invariant}}",
            ),
        ),
        curves(
            "Journal, errors",
            "A second.",
            "ops",
            query(
                f"sum by (operation) (rate(migrator_journal_errors_total{{{ALL}}}[$__rate_interval]))",
                "{{operation}}",
            ),
        ),
        curves(
            "Event loop late by",
            "The most in 15 s: what happens is seen that much later.",
            "s",
            query(f"migrator_event_loop_lag_seconds{{{ALL}}}", "{{instance}}"),
            limit="event_loop_lag_seconds",
        ),
        curves(
            "Looks rarer by",
            "Times as long as usual between two looks at what is far from its switch; above 1 the event loop is busy.",
            "none",
            query(f"migrator_look_stretch_ratio{{{ALL}}}", "{{instance}}"),
        ),
        curves(
            "Scrape",
            "What Prometheus waits for this page of metrics.",
            "s",
            query(f"scrape_duration_seconds{{{ALL}}}", "{{instance}}"),
        ),
        curves(
            "Traces",
            "Spans a second that the collector has taken, or that were dropped; 0 where none is configured.",
            "ops",
            query(
                f"sum by (result) (rate(migrator_trace_spans_total{{{ALL}}}[$__rate_interval]))", "{{result}}"
            ),
        ),
    ]


def _deciding() -> list[Any]:
    return [
        curves(
            "Time in each state, average",
            "Of the migrations that left it.",
            "s",
            query(
                f"sum by (phase) (rate(migrator_migration_phase_duration_seconds_sum{{{ALL}}}[$__rate_interval])) / "
                "(sum by (phase) "
                f"(rate(migrator_migration_phase_duration_seconds_count{{{ALL}}}[$__rate_interval])) > 0)",
                "{{phase}}",
            ),
        ),
        curves(
            "Duration of migrations",
            "Completed ones, by mode.",
            "s",
            query(_quantile(0.5, "migration_duration_seconds", "mode"), "{{mode}} p50"),
            query(_quantile(0.95, "migration_duration_seconds", "mode"), "{{mode}} p95"),
        ),
        curves(
            "Preparation",
            "Time until the destination waits and both ends are set up.",
            "s",
            query(_quantile(0.5, "migration_preparation_seconds"), "p50"),
            query(_quantile(0.95, "migration_preparation_seconds"), "p95"),
        ),
        curves(
            "Forecast, error",
            "How far the time predicted after the first round was off, p90 of the last hour.",
            "percentunit",
            query(f"max(job:migrator_forecast_error_ratio:p90_1h{{{RECORDED}}})", "p90"),
            limit="forecast_error_ratio",
        ),
        curves(
            "Decisions",
            "A second, by what was decided.",
            "ops",
            query(
                f"sum by (action) (rate(migrator_decisions_total{{{ALL}}}[$__rate_interval]))",
                "{{action}}",
                exemplar=True,
            ),
        ),
        curves(
            "Lost to throttling, and ceilings exceeded",
            "CPU time taken from each virtual CPU a second; and migrations above their ceiling a second.",
            "short",
            query(
                f"sum(rate(migrator_migration_throttled_seconds_total{{{ALL}}}[$__rate_interval]))",
                "throttled",
            ),
            query(
                f"sum(rate(migrator_migration_downtime_ceiling_exceeded_total{{{ALL}}}[$__rate_interval]))",
                "ceiling exceeded",
            ),
        ),
    ]
