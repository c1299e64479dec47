"""Options of ``migrator direct``, and the quick way to them.

To import Typer takes a quarter of the start of a command whose guest may have moved in a tenth of a second. What has
only options with values is read without it; whatever else there is, help and mistakes above all, is Typer's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

#: Begins an address of libvirt's, ``qemu:///system`` or ``qemu+ssh://HOST/system``.
_LIBVIRT = ("qemu:", "qemu+")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options that say what is to be done, as they were typed."""

    source: str | None = None
    destination: str | None = None
    policy: str = "default"
    max_downtime: str | None = None
    max_bandwidth: str | None = None
    max_throttle: str | None = None
    postcopy: str | None = None
    max_duration: str | None = None
    last_resort: str | None = None
    block_jobs: str | None = None
    prefer: str | None = None
    start: str | None = None
    max_postcopy_stall: str | None = None
    disks: str | None = None
    tls: str | None = None
    stream: str | None = None
    streams: str | None = None
    compress: str | None = None
    accept: tuple[str, ...] = ()
    listen: str | None = None
    wait: str | None = None
    destination_pid: int | None = None
    fence_command: str | None = None
    tls_dir: str | None = None
    tls_name: str | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    rescue: bool = False
    guest_at: str | None = None
    run_state: str | None = None
    take_over: bool = False
    yes: bool = False

    @property
    def names_libvirt(self) -> bool:
        """Return whether an end of it is a guest of libvirt."""
        return any((given or "").startswith(_LIBVIRT) for given in (self.source, self.destination))


@dataclass(frozen=True, kw_only=True)
class DirectCommand:
    """The whole command: what is to be done, and what is said of it."""

    request: Request
    record: Path | None = None
    json: bool = False
    verbose: bool = False


#: Options by their names: the field that each fills, and its type as it is written there.
_OPTIONS = {
    f"--{field.name.replace('_', '-')}": (field.name, str(field.type))
    for kind in (Request, DirectCommand)
    for field in fields(kind)
    if field.name != "request"
}


def codes(accepted: Iterable[str]) -> tuple[str, ...]:
    """Return the codes of findings in what was given with ``--accept``: several with commas, or given again."""
    return tuple(code for given in accepted for code in given.split(",") if code)


def command_of(options: dict[str, Any]) -> DirectCommand:
    """Return the command with these options, by the names of their fields."""
    about = {name: options.pop(name) for name in ("record", "json", "verbose") if name in options}
    return DirectCommand(
        request=Request(**{**options, "accept": codes(options.get("accept") or ())}), **about
    )


def read_quickly(arguments: Sequence[str]) -> DirectCommand | None:
    """Return the command that these arguments of the program are; ``None``: that is for Typer to tell."""
    if arguments[:1] != ["direct"] or "_MIGRATOR_COMPLETE" in os.environ:
        return None
    found: dict[str, Any] = {}
    rest = iter(arguments[1:])
    for argument in rest:
        name, kind = _OPTIONS.get(argument, ("", ""))
        if not name or (name in found and name != "accept"):
            return None
        if kind == "bool":
            found[name] = True
            continue
        value = next(rest, "")
        if not value or value.startswith("-"):
            return None
        if kind.startswith("int"):
            if not (value.isascii() and value.isdecimal()):
                return None
            found[name] = int(value)
        elif name == "accept":
            found[name] = (*found.get(name, ()), value)
        else:
            found[name] = Path(value) if kind.startswith("Path") else value
    return command_of(found)
