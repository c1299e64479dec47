"""Remedies for a migration that failed, where there is one that usually helps."""

from __future__ import annotations

#: The policy that lets every guest end.
MUST_FINISH = "must-finish"


def failed(error: str | None, *, another_policy: bool) -> list[str]:
    """Return the line to add to a report of what failed with that error, or none.

    :param another_policy: one that may do more can be asked for.
    """
    if not error:
        return []
    from migrator.core.migration.convergence import GIVING_UP  # noqa: PLC0415 - slow

    if not error.endswith(GIVING_UP) and f"{GIVING_UP}; " not in error:
        return []
    more = f", or with --policy {MUST_FINISH}" if another_policy else ""
    return [f"    what to do: try again when the guest is quieter{more}"]
