"""Commands of QMP and of the human monitor, beside the table of what each of them changes."""

from __future__ import annotations

from migrator.core.preflight.state_kinds import KINDS, StateKind

#: Commands that only ask, beside those that begin as one that does.
_ASKING = frozenset(
    {
        *("device-list-properties", "qom-get", "qom-list", "qom-list-properties", "qom-list-types"),
        *("trace-event-get-state", "x-debug-block-dirty-bitmap-sha256", "x-debug-query-block-graph"),
        *(
            "xen-event-list",
            "gpa2hpa",
            "gpa2hva",
            "gva2gpa",
            "help",
            "info",
            "print",
            "sum",
            "x",
            "xp",
            "?",
            "p",
        ),
    }
)


def changes_nothing(command: str) -> bool:
    """Tell whether a command of QMP or of the human monitor changes nothing."""
    return command in _ASKING or command.startswith(("query-", "x-query-"))


def kinds_of_commands() -> dict[str, list[StateKind]]:
    """Return the rows of every command; more than one is a mistake in the table."""
    rows: dict[str, list[StateKind]] = {}
    for kind in KINDS:
        for command in (*kind.qmp, *kind.hmp):
            rows.setdefault(command, []).append(kind)
    return rows
