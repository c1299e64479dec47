"""Fleet: is all well, and if not, which guest or host is it?"""

from __future__ import annotations

from typing import Any

from dashboards.board import (
    ALL,
    BAD_AT_ZERO,
    GOOD_AT_ZERO,
    NOTHING,
    RECORDED,
    board,
    curves,
    evacuations_shown,
    figure,
    named_guests,
    on_page,
    query,
    rows,
    threshold,
    to,
)

_HOST = f'{ALL}, host=~"$host"'
_FIRING = 'ALERTS{alertname=~"Migrator.+", alertstate="firing"}'


def fleet() -> dict[str, Any]:
    """The dashboard."""
    return board(
        "migrator-fleet",
        "migrator: Fleet",
        "Health at a glance: whether migrations succeed within their policies, what runs, what is wrong.",
        (
            ("At a glance", _glance()),
            ("What is wrong", _wrong()),
            ("Migrations", _migrations()),
            ("Hosts and guests", _hosts()),
        ),
        host='label_values(migrator_host_up{job=~"$job"}, host)',
        guest=named_guests('migrator_guest_info{job=~"$job", host=~"$host"}'),
        annotations=[evacuations_shown(f"migrator_evacuation_guests_left{{{_HOST}}}")],
    )


def _glance() -> list[Any]:
    good = threshold("success_ratio")
    broken = threshold("downtime_ceiling_ratio")
    active = f"migrator_migrations_active{{{ALL}}}"
    return [
        figure(
            "Success rate",
            "Completed migrations of all that completed, failed or are held, in the last hour. "
            "Red below the threshold of the alert MigratorFailureRate.",
            "percentunit",
            f"min(job:migrator_migrations_success:ratio1h{{{RECORDED}}})",
            span=4,
            colours=((None, "red"), (good, "green")),
            nothing="none in the last hour",
        ),
        figure(
            "Downtime, p50",
            "Half of the guests migrated in the last hour stood still for less.",
            "s",
            f"max(job:migrator_migration_downtime_seconds:p50_1h{{{RECORDED}}})",
            span=4,
        ),
        figure(
            "Downtime, p99",
            "All but one in a hundred guests migrated in the last hour stood still for less.",
            "s",
            f"max(job:migrator_migration_downtime_seconds:p99_1h{{{RECORDED}}})",
            span=4,
        ),
        figure(
            "Downtime of its ceiling, p99",
            "Measured downtime divided by the policy's ceiling; above 100 % a policy was broken.",
            "percentunit",
            f"max(job:migrator_migration_downtime_ceiling_ratio:p99_1h{{{RECORDED}}})",
            span=4,
            colours=((None, "green"), (0.9 * broken, "yellow"), (broken, "red")),
        ),
        figure("Running", "Migrations under way.", "short", f"sum({active})", span=2),
        figure(
            "Queued",
            "Migrations that wait for a link or a host.",
            "short",
            f"sum(migrator_queue_depth{{{ALL}}})",
            span=2,
        ),
        figure(
            "Held",
            "Migrations that a person must look at: migrator resolve.",
            "short",
            f"sum(migrator_migrations_held{{{ALL}}})",
            span=2,
            colours=GOOD_AT_ZERO,
        ),
        figure(
            "Alerts",
            "Alerts of migrator that are firing; the table below says for which guest or host.",
            "short",
            f"count({_FIRING}) or vector(0)",
            span=2,
            colours=GOOD_AT_ZERO,
        ),
    ]


def _wrong() -> list[Any]:
    by = "alertname, severity, guest, host, evacuation, instance"
    return [
        rows(
            "Firing alerts",
            "What is wrong, for whom. Each alert has a section in docs/runbook.md.",
            "short",
            f"sum by ({by}) ({_FIRING}) or {NOTHING.format(label='alertname')}",
            columns={
                "severity": "severity",
                "alertname": "alert",
                "guest": "guest",
                "host": "host",
                "evacuation": "evacuation",
                "instance": "controller",
            },
            span=16,
            links=[
                to("Migrations of this guest", "migrator-migration", guest="guest"),
                to("This host", "migrator-host", host="host"),
                on_page("The guest on the page", "guests", "guest"),
                on_page("The host on the page", "hosts", "host"),
            ],
        ),
        figure(
            "Controllers",
            "Controllers that answer Prometheus.",
            "short",
            f"sum(up{{{ALL}}})",
            span=4,
            colours=BAD_AT_ZERO,
        ).height(7),
        figure(
            "Broker",
            "Whether every controller has its session with the MQTT broker.",
            "bool_yes_no",
            f"min(migrator_mqtt_connected{{{ALL}}})",
            span=4,
            colours=BAD_AT_ZERO,
            nothing="none configured",
        ).height(7),
    ]


def _migrations() -> list[Any]:
    per_second = f"sum by (result) (rate(migrator_migrations_total{{{ALL}}}[$__rate_interval]))"
    of = "* on (job, instance, migration, guest) group_left (source, destination, policy)"
    info = f"migrator_migration_info{{{ALL}}}"
    mine = f'{ALL}, guest=~"$guest"'
    return [
        curves(
            "Migrations that end, by result",
            "Per second. A held one counts as held.",
            "ops",
            query(per_second, "{{result}}", exemplar=True),
        ),
        curves(
            "Running and queued",
            "Migrations under way, and those that wait for their turn.",
            "short",
            query(f"sum(migrator_migrations_active{{{ALL}}})", "running"),
            query(f"sum(migrator_queue_depth{{{ALL}}})", "queued"),
            query(f"sum(migrator_migrations_held{{{ALL}}})", "held"),
            query(f"sum(migrator_migrations_recovering{{{ALL}}})", "recovering"),
        ),
        curves(
            "Downtime",
            "As measured, over the last hour, beside the highest ceiling of those under way.",
            "s",
            query(f"max(job:migrator_migration_downtime_seconds:p50_1h{{{RECORDED}}})", "p50"),
            query(f"max(job:migrator_migration_downtime_seconds:p99_1h{{{RECORDED}}})", "p99"),
            query(
                "histogram_quantile(0.99, sum by (le) "
                f"(rate(migrator_migration_standstill_seconds_bucket{{{ALL}}}[1h])))",
                "p99, watched or not",
            ),
            query(
                "histogram_quantile(0.99, sum by (le) "
                f"(rate(migrator_migration_postcopy_stall_seconds_bucket{{{ALL}}}[1h])))",
                "p99, waited for pages in postcopy",
            ),
            query(f"max(migrator_migration_downtime_ceiling_seconds{{{ALL}}})", "highest ceiling"),
        ),
        curves(
            "Downtime of its ceiling",
            "Measured downtime divided by the policy's ceiling, p99 of the last hour.",
            "percentunit",
            query(f"max(job:migrator_migration_downtime_ceiling_ratio:p99_1h{{{RECORDED}}})", "p99"),
            limit="downtime_ceiling_ratio",
        ),
        rows(
            "Active migrations",
            "What moves now; choose one to see it alone.",
            "short",
            f"migrator_migration_progress_ratio{{{mine}}} {of} {info}",
            f"migrator_migration_eta_seconds{{{mine}}} {of} {info}",
            f"migrator_migration_remaining_bytes{{{mine}}} {of} {info}",
            columns={
                "guest": "guest",
                "migration": "migration",
                "source": "source",
                "destination": "destination",
                "policy": "policy",
                "Value #A": "progress",
                "Value #B": "time left",
                "Value #C": "remaining",
            },
            units={"progress": "percentunit", "time left": "s", "remaining": "bytes"},
            links=[
                to("This migration", "migrator-migration", guest="guest"),
                on_page("On the page", "migrations", "migration"),
            ],
        ),
    ]


def _hosts() -> list[Any]:
    stuck = (
        f'sum by (host) (1 - max by (guest, host) (migrator_guest_migratable{{{_HOST}, guest=~"$guest"}}))'
    )
    return [
        curves(
            "Hosts by state",
            "Active hosts take guests; draining ones are being emptied; those in maintenance are empty. No new guests "
            "come to cordoned ones, whatever their state.",
            "short",
            query(f"sum by (state) (max by (host, state) (migrator_host_state{{{_HOST}}}))", "{{state}}"),
            query(f"sum(max by (host) (migrator_host_cordoned{{{_HOST}}}))", "cordoned"),
            span=6,
        ),
        curves(
            "Time to the next maintenance window",
            "By host; the evacuation begins by itself then. Nothing is shown where no window is planned.",
            "s",
            query(
                f"min by (host) (migrator_window_start_timestamp_seconds{{{_HOST}}}) - time()",
                "{{host}}",
            ),
            span=6,
        ),
        curves(
            "Hosts that do not answer",
            "Guests on them cannot be moved until they do.",
            "short",
            query(f"count(max by (host) (migrator_host_up{{{_HOST}}}) == 0) or vector(0)", "unreachable"),
            span=6,
        ),
        curves(
            "Guests by host",
            "The twenty fullest.",
            "short",
            query(f"topk(20, max by (host) (migrator_host_guests{{{_HOST}}}))", "{{host}}"),
            span=6,
        ),
        curves(
            "Busiest guests",
            "Memory dirtied a second, as last measured: the ten that will be hardest to move.",
            "binBps",
            query(
                "topk(10, max by (guest, host) "
                f'(migrator_guest_dirty_rate_bytes_per_second{{{_HOST}, guest=~"$guest"}}))',
                "{{guest}} on {{host}}",
            ),
        ),
        curves(
            "Guests that cannot be moved",
            "By host; migrator guests says why.",
            "short",
            query(stuck, "{{host}}"),
            query(f"sum(max by (host) (migrator_guest_unmonitored{{{_HOST}}}))", "without a monitor, in all"),
            query(
                f"sum(max by (host) (migrator_guest_undriven{{{_HOST}}}))",
                "in a migration that nobody drives, in all",
            ),
            query(
                'count(max by (guest) (migrator_guest_duplicate{job=~"$job", instance=~"$instance"})) or vector(0)',
                "that RUN TWICE, in all",
            ),
        ),
        rows(
            "Evacuations under way",
            "Hosts that are being emptied or filled again; choose one to see it alone.",
            "short",
            f"migrator_evacuation_guests_left{{{_HOST}}} or {NOTHING.format(label='host')}",
            columns={"host": "host", "evacuation": "evacuation", "Value": "guests still there"},
            links=[
                to("This evacuation", "migrator-evacuation", host="host"),
                to("This host", "migrator-host", host="host"),
                on_page("On the page", "evacuations", "evacuation"),
            ],
        ),
    ]
