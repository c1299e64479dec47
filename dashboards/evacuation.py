"""Evacuation: will the host be empty in time, and if not, who is in the way?"""

from __future__ import annotations

from typing import Any

from dashboards.board import (
    ALL,
    GOOD_AT_ZERO,
    NOTHING,
    RECORDED,
    board,
    curves,
    decisions_shown,
    evacuations_shown,
    figure,
    on_page,
    query,
    rows,
    to,
)

_MINE = f'{ALL}, host=~"$host"'
#: Joins figures of migrations with where they come from.
_LEAVING = (
    "* on (job, instance, migration, guest) group_left (source, destination) "
    f'migrator_migration_info{{{ALL}, source=~"$host"}}'
)


def evacuation() -> dict[str, Any]:
    """The dashboard."""
    return board(
        "migrator-evacuation",
        "migrator: Evacuation",
        "One host, or several, being emptied: deadline against forecast, guests still there, how the links are used.",
        (
            ("In time?", _in_time()),
            ("How far", _how_far()),
            ("Links", _links()),
            ("Guests", _guests()),
        ),
        host='label_values(migrator_evacuation_guests_left{job=~"$job"}, host)',
        view="evacuations",
        annotations=[
            evacuations_shown(f"migrator_evacuation_guests_left{{{_MINE}}}"),
            decisions_shown(
                f"migrator_migration_decision_timestamp_seconds{{{ALL}}} {_LEAVING}", enabled=False
            ),
        ],
    )


def _in_time() -> list[Any]:
    deadline = f"min(migrator_evacuation_deadline_timestamp_seconds{{{_MINE}}})"
    end = f"max(migrator_evacuation_forecast_end_timestamp_seconds{{{_MINE}}})"
    return [
        figure(
            "Guests still there",
            "Guests that have still to leave (or to come home).",
            "short",
            f"sum(migrator_evacuation_guests_left{{{_MINE}}})",
            span=4,
            nothing="no evacuation",
        ),
        figure(
            "Deadline",
            "The earliest of the hosts shown.",
            "dateTimeFromNow",
            f"{deadline} * 1000",
            span=4,
            nothing="none",
        ),
        figure(
            "Predicted end",
            "The latest of the hosts shown (median).",
            "dateTimeFromNow",
            f"{end} * 1000",
            span=4,
        ),
        figure(
            "Time to spare",
            "Deadline less predicted end, of the host with the least; below zero it will be missed.",
            "s",
            f"min(evacuation:migrator_evacuation_slack:seconds{{{_MINE}}})",
            span=4,
            colours=((None, "red"), (0.0, "green")),
            nothing="no deadline",
        ),
        figure(
            "At risk",
            "Evacuations that may miss their deadline, as the controller sees it (alert MigratorEvacuationAtRisk).",
            "short",
            f"sum(migrator_evacuation_at_risk{{{_MINE}}})",
            span=4,
            colours=GOOD_AT_ZERO,
        ),
        figure(
            "Guests that do not get on",
            "No host can take them, they failed too often, or they are held; the table below names them.",
            "short",
            f"count(migrator_evacuation_guest_stuck{{{_MINE}}}) or vector(0)",
            span=4,
            colours=GOOD_AT_ZERO,
        ),
    ]


def _how_far() -> list[Any]:
    return [
        curves(
            "Guests still there",
            "Falls to zero; a step up is a guest that appeared on the host.",
            "short",
            query(f"migrator_evacuation_guests_left{{{_MINE}}}", "{{host}}"),
        ),
        curves(
            "Time to spare",
            "Deadline less predicted end; below zero it will be missed.",
            "s",
            query(f"evacuation:migrator_evacuation_slack:seconds{{{_MINE}}}", "{{host}}"),
            query("vector(0)", "too late"),
        ),
        curves(
            "Still to be sent",
            "Memory of the guests under way.",
            "bytes",
            query(f"migrator_migration_remaining_bytes{{{ALL}}} {_LEAVING}", "{{guest}} to {{destination}}"),
        ),
        curves(
            "Predicted time left",
            "Of the guests under way (median).",
            "s",
            query(f"migrator_migration_eta_seconds{{{ALL}}} {_LEAVING}", "{{guest}} to {{destination}}"),
        ),
    ]


def _links() -> list[Any]:
    return [
        curves(
            "Sent by the host",
            "What migrations send, beside the speed of the link.",
            "binBps",
            query(
                f'sum by (host) (migrator_host_link_bytes_per_second{{{_MINE}, direction="out"}})', "{{host}}"
            ),
            query(
                f"max by (host) (migrator_host_link_capacity_bytes_per_second{{{_MINE}}})", "link of {{host}}"
            ),
        ),
        curves(
            "Paths from the host",
            "What the slowest paths to other hosts were seen to hold streams back at: a narrow one is behind the link.",
            "binBps",
            query(
                f"bottomk(5, max by (host, target) (migrator_path_bytes_per_second{{{_MINE}}}))",
                "{{host}} to {{target}}",
            ),
        ),
        curves(
            "Use of links",
            "Share of its speed that migrations use, of the ten busiest links of all hosts: what holds the rest up.",
            "percentunit",
            query(f"topk(10, host:migrator_host_link_use:ratio{{{RECORDED}}})", "{{host}} {{direction}}"),
            limit="link_use_ratio",
        ),
    ]


def _guests() -> list[Any]:
    return [
        rows(
            "Guests under way",
            "Choose one to see it alone.",
            "short",
            f"migrator_migration_progress_ratio{{{ALL}}} {_LEAVING}",
            f"migrator_migration_bandwidth_bytes_per_second{{{ALL}}} {_LEAVING}",
            f"migrator_migration_dirty_rate_bytes_per_second{{{ALL}}} {_LEAVING}",
            columns={
                "guest": "guest",
                "source": "source",
                "destination": "destination",
                "Value #A": "progress",
                "Value #B": "bandwidth",
                "Value #C": "dirty rate",
            },
            units={"progress": "percentunit", "bandwidth": "binBps", "dirty rate": "binBps"},
            span=14,
            links=[
                to("This migration", "migrator-migration", guest="guest"),
                on_page("The guest on the page", "guests", "guest"),
            ],
        ),
        rows(
            "Guests that do not get on",
            "No host can take them, they failed too often, or they are held. migrator guests says why.",
            "short",
            f"migrator_evacuation_guest_stuck{{{_MINE}}} or {NOTHING.format(label='guest')}",
            columns={"guest": "guest", "host": "host", "standing": "standing"},
            span=10,
            links=[
                to("Migrations of this guest", "migrator-migration", guest="guest"),
                to("This host", "migrator-host", host="host"),
                on_page("The guest on the page", "guests", "guest"),
            ],
        ),
    ]
