"""Documents of the service as rows of tables, with the columns of each table."""

from __future__ import annotations

from datetime import datetime

from migrator import wall_clock
from migrator.cli.show_service import Document, age, exceeded, forecast, label
from migrator.cli.tables import ABOVE, Row
from migrator.units import show_bytes, show_rate, show_ratio, show_seconds

HOSTS = ("HOST", "STATE", "UP", "GUESTS", "MEMORY FREE", "OF", "LINK", "NOTE")
GUESTS = ("GUEST", "HOST", "STATE", "MEMORY", "DIRTIED", "POLICY", "UUID", "NOTE")
MIGRATIONS = ("ID", "GUEST", "FROM", "TO", "STATE", "DONE", "LEFT", "STREAM", "DIRTIED", "TIME LEFT")
EVACUATIONS = ("ID", "HOST", "KIND", "STATE", "TO GO", "FORECAST END", "DEADLINE", "NOTE")
CONTROLLERS = ("INSTANCE", "ROLE", "VERSION", "HEARTBEAT", "LEASE", "DRIVES", "ANSWERS AT", "NOTE")
PLAN = ("ORDER", "GUEST", "TO", "STARTS", "TAKES", "DOWNTIME", "POLICY", "WHY", "EXPERIENCE")


#: Columns that are shown besides where the width does not matter.
HOSTS_WIDE = ("ADDRESS", "CPUS", "KVM", "QEMU", "LABELS")
GUESTS_WIDE = ("VCPUS", "MANAGED BY", "IDENTITY", "NETWORK")
MIGRATIONS_WIDE = ("POLICY", "MODE", "ROUND", "THROTTLE", "EVACUATION", "CONTROLLER")
EVACUATIONS_WIDE = ("POLICY", "ASKED FOR BY", "CREATED")


def host_wide(host: Document) -> Row:
    """Return the cells of :data:`HOSTS_WIDE`."""
    return (
        host["address"],
        str(host["cpus"]),
        "yes" if host["kvm"] else "no",
        ", ".join(sorted(set(host["qemus"].values()))),
        ", ".join(f"{key}={value}" for key, value in host["labels"].items()),
    )


def guest_wide(guest: Document) -> Row:
    """Return the cells of :data:`GUESTS_WIDE`."""
    return (
        str(guest["vcpus"]),
        guest.get("managed_by", ""),
        guest.get("identity", ""),
        guest["network_state"],
    )


def migration_wide(one: Document) -> Row:
    """Return the cells of :data:`MIGRATIONS_WIDE`."""
    return (
        one["policy"],
        one["mode"],
        str(one["round"]),
        show_ratio(one["throttle_ratio"]),
        one["evacuation"] or "",
        one["controller"],
    )


def evacuation_wide(one: Document) -> Row:
    """Return the cells of :data:`EVACUATIONS_WIDE`."""
    return (one["policy"], one["requested_by"], _brief(one["created_at"]))


def host_row(host: Document) -> Row:
    """Return the cells of :data:`HOSTS`."""
    link = host["link_bytes_per_second"]
    strangers = host.get("guests_unmonitored", 0)
    twice, undriven = len(host.get("guests_duplicate", ())), host.get("guests_undriven", 0)
    notes = [
        f"{twice} of its guests RUN TWICE: see migrator guests" if twice else "",
        f"{undriven} of its guests in a migration that nobody drives: see migrator guests"
        if undriven
        else "",
        f"{strangers} of its guests without a monitor: see migrator guests" if strangers else "",
        host.get("libvirt_error", ""),
        f"{shut_off} more shut off" if (shut_off := host.get("guests_shut_off", 0)) else "",
    ]
    if host.get("scheduled"):
        until = f" until {_brief(host['scheduled_until'])}" if host["scheduled_until"] else ""
        notes.append(f"to be emptied {_brief(host['scheduled_at'])}{until} ({host['scheduled']})")
    note = "; ".join(each for each in notes if each)
    return (
        host["host"],
        f"{host['state']}, cordoned" if host.get("cordoned") else host["state"],
        "up" if host["up"] else "down",
        str(host["guests"]),
        show_bytes(host["memory_free_bytes"]),
        show_bytes(host["memory_total_bytes"]),
        "" if link is None else show_rate(link),
        host["error"] or note,
    )


def guest_row(guest: Document) -> Row:
    """Return the cells of :data:`GUESTS`."""
    managed = guest.get("managed_by", "")
    note = f"managed by {managed}" if managed else ""
    if not guest["movable"]:
        note = f"cannot move: {guest['obstacle']}"
    if guest["migration"]:
        note = f"in migration {guest['migration']}"
    if guest["network_state"] == "down":
        note = "; ".join(filter(None, (note, f"network down: {guest['network_problem']}")))
    return (
        guest["name"] or guest["guest"],
        guest["host"],
        "RUNS TWICE" if guest.get("duplicate") else guest["run_state"],
        show_bytes(guest["memory_bytes"]),
        _rate(guest["dirty_rate_bytes_per_second"]),
        guest["policy"],
        guest["uuid"],
        note,
    )


def migration_row(one: Document) -> Row:
    """Return the cells of :data:`MIGRATIONS`."""
    left = one["remaining_bytes"]
    over = one["ended_at"] is not None
    return (
        one["id"],
        label(one),
        one["source"],
        one["destination"],
        ABOVE if exceeded(one) else one["state"],
        show_ratio(one["progress_ratio"]),
        "" if left is None or over else show_bytes(left),
        "" if over else _rate(one["bandwidth_bytes_per_second"]),
        "" if over else _rate(one["dirty_rate_bytes_per_second"]),
        "" if over else forecast(one),
    )


def evacuation_row(one: Document) -> Row:
    """Return the cells of :data:`EVACUATIONS`."""
    over = one["ended_at"] is not None
    note = "late" if one["late"] else "at risk" if one["at_risk"] and not over else one["error"] or ""
    if one["kind"] == "roll" and not over:
        note = "; ".join(
            f"{each['host']} {each['stage']}" for each in one["hosts"] if each["stage"] not in _RESTING
        )
    if one["state"] == "scheduled":
        until = f" until {_brief(one['window_ends_at'])}" if one["window_ends_at"] else ""
        note = "; ".join(
            each for each in (f"from {_brief(one['starts_at'])}{until}", one["window_forecast"]) if each
        )
    return (
        one["id"],
        one["host"] or one["group"] or _rolled(one),
        one["kind"],
        one["state"],
        _left(one),
        "" if over else _brief(one["forecast_end_at"]),
        "" if one["state"] == "scheduled" else _brief(one["deadline"]),
        note,
    )


#: Names of hosts in one cell.
_HOSTS_NAMED = 3


def _rolled(one: Document) -> str:
    names = [each["host"] for each in one.get("hosts", ())]
    if len(names) <= _HOSTS_NAMED:
        return ", ".join(names)
    return f"{names[0]} and {len(names) - 1} more"


def _left(one: Document) -> str:
    if one["state"] == "scheduled":
        return ""
    if one["kind"] == "roll":
        return f"{sum(each['stage'] != 'done' for each in one['hosts'])} hosts"
    return str(one["guests_left"])


def controller_row(one: Document, service: Document) -> Row:
    """Return the cells of :data:`CONTROLLERS`; leases are shown with the time since they were renewed."""
    leases = {each["name"]: each for each in service["leases"]}
    own = leases.get(f"controller/{one['name']}")
    site = leases.get("site")
    held = [("site", site)] if site is not None and site["owner"] == one["name"] else []
    held += [("own", own)] if own is not None else []
    lease = ", ".join(f"{name} {age(each['age_seconds'])} ago" for name, each in held)
    return (
        one["instance"],
        one["role"] if one["present"] else "gone",
        one["version"],
        f"{age(one['age_seconds'])} ago",
        lease,
        str(one["migrations"]),
        one["url"],
        one["detail"],
    )


def plan_row(guest: Document) -> Row:
    """Return the cells of :data:`PLAN`."""
    findings = [finding["code"] for finding in guest["findings"] if finding["severity"] == "error"]
    findings = [code for code in dict.fromkeys(findings) if code not in guest["reason"]]
    return (
        "" if guest["order"] is None else str(guest["order"]),
        label(guest),
        guest["target"] or "nowhere",
        _seconds(guest["starts_in_seconds"]),
        _seconds(guest["takes_p50_seconds"]),
        _seconds(guest["downtime_seconds"]),
        guest["policy"],
        "; ".join([guest["reason"], *_together(guest), *findings]),
        experience["note"] if (experience := guest.get("experience")) else "",
    )


def _together(guest: Document) -> list[str]:
    return [f"together with group {group}"] if (group := guest.get("moved_with")) else []


#: Stages of a host of a roll with which nothing is done now.
_RESTING = ("waiting", "done", "left")


def _brief(text: str | None) -> str:
    return "" if text is None else wall_clock.brief(datetime.fromisoformat(text))


def _rate(value: float | None) -> str:
    return "" if value is None else show_rate(value)


def _seconds(value: float | None) -> str:
    return "" if value is None else show_seconds(value)
