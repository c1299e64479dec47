"""The guests that are saved in files: their list, and deleting one."""

from __future__ import annotations

from datetime import datetime

from migrator.cli import tables
from migrator.cli.client import Document, ServiceClient
from migrator.cli.output import OutputForm
from migrator.cli.show import print_line
from migrator.text import clean
from migrator.units import show_bytes

_COLUMNS = ("GUEST", "HOST", "FILE", "SAVED", "SIZE", "BY QEMU", "STATE", "CAN BE LOADED ON", "NOTE")


def show(client: ServiceClient, host: str | None, *, output: OutputForm) -> None:
    """Print what is saved, or what is in files of one host."""
    found = client.get("saved", host=host)
    if output.document:
        output.print(found)
        return
    tables.table(
        _COLUMNS,
        map(_row, found["items"]),
        empty="no guest is saved in a file",
        wide=output is OutputForm.WIDE,
    )


def discard(client: ServiceClient, file: str, host: str, *, only_copy: bool, output: OutputForm) -> None:
    """Delete a file with a saved guest, and say why it could be."""
    # Without it the field is not sent: it is said only where it is meant.
    said = {"only_copy": True} if only_copy else {}
    found = client.post("discards", {"file": file, "host": host, **said})
    if output.document:
        output.print(found)
        return
    name = found["guest_name"] or found["guest"]
    print_line(clean(f"{found['file']} of {name} is deleted on {found['host']}: {found['reason']}"))


def _row(one: Document) -> tuple[str, ...]:
    at, size = one["saved_at"], one["size_bytes"]
    return (
        one["guest_name"] or one["guest"],
        one["host"],
        one["file"],
        f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M}" if at else "",
        show_bytes(size) if size is not None else "",
        one["qemu_version"],
        one["state"],
        ", ".join(each["host"] for each in one["hosts"] if each["loadable"]) or "-",
        one["reason"] or _why_nowhere(one),
    )


def _why_nowhere(one: Document) -> str:
    """Return why it can be loaded on no host that was asked; empty where it can."""
    if any(each["loadable"] for each in one["hosts"]):
        return ""
    return "; ".join(f"{each['host']}: {each['reason']}" for each in one["hosts"])
