"""Host: what one host does, who is on it, and what comes and goes."""

from __future__ import annotations

from typing import Any

from dashboards.board import (
    ALL,
    BAD_AT_ZERO,
    GOOD_AT_ZERO,
    NOTHING,
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

_MINE = f'{ALL}, host="$host"'
_FIRING = 'ALERTS{alertname=~"Migrator.+", alertstate="firing", host="$host"}'
_ENDS = "* on (job, instance, migration, guest) group_left (source, destination)"
_INFO = "migrator_migration_info"
_COMING_OR_GOING = f'({_INFO}{{{ALL}, source="$host"}} or {_INFO}{{{ALL}, destination="$host"}})'
#: Of a guest, its name besides.
_NAME = f"* on (job, instance, guest, host) group_left (name) migrator_guest_info{{{_MINE}}}"


def host() -> dict[str, Any]:
    """The dashboard."""
    return board(
        "migrator-host",
        "migrator: Host",
        "One host: what it may be used for, its guests and how hard they are to move, what its link carries.",
        (("Now", _now()), ("Link", _link()), ("Guests", _guests())),
        host='label_values(migrator_host_up{job=~"$job"}, host)',
        one_host=True,
        view="hosts/${host:percentencode}",
        annotations=[
            evacuations_shown(f"migrator_evacuation_guests_left{{{_MINE}}}"),
            decisions_shown(
                f"migrator_migration_decision_timestamp_seconds{{{ALL}}} {_ENDS} {_COMING_OR_GOING}",
                enabled=False,
            ),
        ],
    )


def _now() -> list[Any]:
    return [
        figure(
            "State",
            "An active host takes guests; a draining one is being emptied; one in maintenance is empty.",
            "short",
            f"max by (state) (migrator_host_state{{{_MINE}}}) == 1",
            span=4,
            legend="{{state}}",
            name=True,
        ),
        figure(
            "Answers",
            "Whether it answered when it was last asked.",
            "bool_yes_no",
            f"max(migrator_host_up{{{_MINE}}})",
            span=4,
            colours=BAD_AT_ZERO,
        ),
        figure("Guests", "Guests on the host.", "short", f"max(migrator_host_guests{{{_MINE}}})", span=4),
        figure(
            "Guests that cannot be moved",
            "Something is known that keeps them here: the table below names them, migrator guests says what.",
            "short",
            f"count(max by (guest) (migrator_guest_migratable{{{_MINE}}}) == 0) or vector(0)",
            span=4,
            colours=GOOD_AT_ZERO,
        ),
        figure(
            "Takes new guests",
            "No new guests come to a cordoned host.",
            "bool_yes_no",
            f"1 - max(migrator_host_cordoned{{{_MINE}}})",
            span=4,
        ),
        figure(
            "Certificates expire",
            "The first of its certificates for encrypted streams.",
            "dateTimeFromNow",
            f"min(migrator_certificate_expiry_timestamp_seconds{{{_MINE}}}) * 1000",
            span=4,
            nothing="it has none",
        ),
        rows(
            "Firing alerts",
            "What is wrong with the host, or with a guest on it.",
            "short",
            f"sum by (alertname, severity, guest) ({_FIRING}) or {NOTHING.format(label='alertname')}",
            columns={"severity": "severity", "alertname": "alert", "guest": "guest"},
            height=5,
            links=[on_page("The guest on the page", "guests", "guest")],
        ),
    ]


def _link() -> list[Any]:
    return [
        curves(
            "What migrations send and receive",
            "Beside the speed of its link, where that is known.",
            "binBps",
            query(
                f"max by (direction) (migrator_host_link_bytes_per_second{{{_MINE}}})",
                "{{direction}}",
            ),
            query(f"max(migrator_host_link_capacity_bytes_per_second{{{_MINE}}})", "link"),
        ),
        curves(
            "Paths from the host",
            "What the slowest paths to other hosts were seen to hold streams back at.",
            "binBps",
            query(f"max by (target) (migrator_path_bytes_per_second{{{_MINE}}})", "to {{target}}"),
        ),
        curves(
            "Still to be sent",
            "Memory of the guests that come and go.",
            "bytes",
            query(
                f"migrator_migration_remaining_bytes{{{ALL}}} {_ENDS} {_COMING_OR_GOING}",
                "{{guest}}: {{source}} to {{destination}}",
            ),
        ),
        curves(
            "Guests of an evacuation that are still here",
            "Falls to zero; a step up is a guest that appeared on the host.",
            "short",
            query(f"migrator_evacuation_guests_left{{{_MINE}}}", "{{evacuation}}"),
        ),
    ]


def _guests() -> list[Any]:
    return [
        curves(
            "Guests",
            "Those on the host, and of them those that have no monitor, or stand in a migration that nobody drives. "
            "Those that libvirt has shut off stay when it is emptied.",
            "short",
            query(f"max(migrator_host_guests{{{_MINE}}})", "guests"),
            query(f"max(migrator_host_guests_shut_off{{{_MINE}}})", "shut off, besides"),
            query(f"max(migrator_guest_unmonitored{{{_MINE}}})", "without a monitor"),
            query(f"max(migrator_guest_undriven{{{_MINE}}})", "in a migration that nobody drives"),
        ),
        curves(
            "Busiest guests",
            "Memory dirtied a second, as last measured: the ten that will be hardest to move.",
            "binBps",
            query(
                f"topk(10, max by (guest, name) (migrator_guest_dirty_rate_bytes_per_second{{{_MINE}}} {_NAME}))",
                "{{name}}",
            ),
        ),
        rows(
            "Guests on the host",
            "1 where nothing is known that keeps a guest here, and how much memory it dirties a second.",
            "short",
            f"migrator_guest_migratable{{{_MINE}}} {_NAME}",
            f"migrator_guest_dirty_rate_bytes_per_second{{{_MINE}}} {_NAME}",
            columns={"name": "name", "guest": "guest", "Value #A": "can move", "Value #B": "dirty rate"},
            units={"can move": "bool_yes_no", "dirty rate": "binBps"},
            links=[
                to("Migrations of this guest", "migrator-migration", guest="guest"),
                on_page("On the page", "guests", "guest"),
            ],
        ),
    ]
