"""Migration: one guest on its way."""

from __future__ import annotations

from typing import Any

from dashboards.board import ALL, board, curves, decisions_shown, figure, named_guests, on_page, query, rows

_MINE = f'{ALL}, guest=~"$guest"'


def migration() -> dict[str, Any]:
    """The dashboard."""
    known = 'last_over_time(migrator_guest_info{job=~"$job"}[$__range])'
    moved = 'last_over_time(migrator_migration_info{job=~"$job"}[$__range])'
    return board(
        "migrator-migration",
        "migrator: Migration",
        "One guest on its way: what is left, whether it dirties more than the link carries, what was decided.",
        (("Now", _now()), ("Memory", _memory()), ("Guest", _guest()), ("Decisions", _decisions())),
        # One that is not there any more goes by its key.
        guest=named_guests(f"{known} and on (guest) {moved} or on (guest) max by (guest) ({moved})"),
        view="guests/${guest:percentencode}",
        annotations=[decisions_shown(f"migrator_migration_decision_timestamp_seconds{{{_MINE}}}")],
    )


def _now() -> list[Any]:
    def now(name: str) -> str:
        return f"max(migrator_migration_{name}{{{_MINE}}})"

    return [
        figure(
            "State",
            "Where it is in its lifecycle.",
            "short",
            f"migrator_migration_state{{{_MINE}}}",
            span=4,
            legend="{{state}}",
            name=True,
            nothing="not under way",
        ),
        figure("Progress", "Never falls.", "percentunit", now("progress_ratio"), span=4),
        figure("Time left", "Predicted (median).", "s", now("eta_seconds"), span=4),
        figure("Remaining", "Memory that is still to be sent.", "bytes", now("remaining_bytes"), span=4),
        figure("Round", "Passes over dirty memory.", "short", now("round"), span=4),
        figure(
            "Last downtime",
            "Of its last migration, as measured, for an hour; red above its ceiling.",
            "s",
            f"max(migrator_guest_last_downtime_seconds{{{_MINE}}})",
            span=4,
            nothing="none lately",
        ),
    ]


def _memory() -> list[Any]:
    return [
        curves(
            "Memory",
            "What is still to be sent, and what has been.",
            "bytes",
            query(f"migrator_migration_remaining_bytes{{{_MINE}}}", "remaining"),
            query(f"migrator_disk_remaining_bytes{{{_MINE}}}", "remaining of disks"),
            query(f"migrator_migration_transferred_bytes{{{_MINE}}}", "transferred"),
        ),
        curves(
            "Dirty rate against bandwidth",
            "While the guest dirties more than is carried, precopy does not end.",
            "binBps",
            query(f"migrator_migration_dirty_rate_bytes_per_second{{{_MINE}}}", "dirty rate"),
            query(f"migrator_migration_bandwidth_bytes_per_second{{{_MINE}}}", "bandwidth"),
        ),
        curves(
            "Progress",
            "Never falls; 1 only once the guest has arrived.",
            "percentunit",
            query(f"migrator_migration_progress_ratio{{{_MINE}}}", "progress"),
            most=1,
        ),
        curves(
            "Predicted time left",
            "Median of the forecast.",
            "s",
            query(f"migrator_migration_eta_seconds{{{_MINE}}}", "time left"),
        ),
    ]


def _guest() -> list[Any]:
    return [
        curves(
            "Downtime",
            "The policy's ceiling, the limit QEMU was given, what is predicted, and what was measured in the end.",
            "s",
            query(f"migrator_migration_downtime_ceiling_seconds{{{_MINE}}}", "ceiling"),
            query(f"migrator_migration_downtime_limit_seconds{{{_MINE}}}", "limit"),
            query(f"migrator_migration_expected_downtime_seconds{{{_MINE}}}", "predicted"),
            query(f"migrator_guest_last_downtime_seconds{{{_MINE}}}", "measured"),
            query(f"migrator_guest_last_downtime_ceiling_seconds{{{_MINE}}}", "its ceiling"),
        ),
        curves(
            "Throttle",
            "Share of CPU time that is taken from the guest so that it dirties less.",
            "percentunit",
            query(f"migrator_migration_throttle_ratio{{{_MINE}}}", "throttle"),
            most=1,
        ),
        curves(
            "Rounds",
            "Passes over dirty memory.",
            "short",
            query(f"migrator_migration_round{{{_MINE}}}", "round"),
        ),
        curves(
            "Dirty rate of the guest",
            "As last measured, also while it does not migrate.",
            "binBps",
            query(f"migrator_guest_dirty_rate_bytes_per_second{{{_MINE}}}", "{{host}}"),
        ),
    ]


def _decisions() -> list[Any]:
    return [
        rows(
            "Last decisions",
            "The last of each kind and when it was made; migrator events ID has all of them with their reasons.",
            "dateTimeAsIso",
            f"migrator_migration_decision_timestamp_seconds{{{_MINE}}} * 1000",
            columns={"migration": "migration", "action": "action", "Value": "when"},
            links=[on_page("On the page", "migrations", "migration")],
        ),
    ]
