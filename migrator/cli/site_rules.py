"""Lists of what commands may name: the site's policies, and the hooks of rolls."""

from __future__ import annotations

from migrator.cli import tables
from migrator.cli.client import ServiceClient
from migrator.cli.output import OutputForm
from migrator.units import show_seconds

_POLICIES = ("POLICY", "GUESTS", "FROM", "ALLOWS")
_HOOKS = ("POINT", "HOOK", "WHERE", "AT MOST")


def policies(client: ServiceClient, *, output: OutputForm) -> None:
    """Print the policies, and what each allows."""
    found = client.get("policies")
    if output.document:
        output.print(found)
        return
    rows = (
        (
            f"{one['name']}{' (default)' if one['default'] else ''}",
            str(one["guests"]),
            "built in" if one["built_in"] else "configuration",
            " ".join(one["allows"]),
        )
        for one in found["items"]
    )
    tables.table(_POLICIES, rows, empty="there are no policies", wide=output is OutputForm.WIDE)


def hooks(client: ServiceClient, *, output: OutputForm) -> None:
    """Print the hooks of rolls, in the order in which they are run."""
    found = client.get("hooks")
    if output.document:
        output.print(found)
        return
    rows = (
        (one["point"], one["name"], one["where"], show_seconds(one["timeout_seconds"]))
        for one in found["items"]
    )
    tables.table(
        _HOOKS,
        rows,
        empty="no hook is configured for rolls: add [[hooks]] with the point after-drain or ready",
        wide=output is OutputForm.WIDE,
    )
