"""How the QEMUs that take guests are started, as it is configured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from migrator.core.inventory import Guest
from migrator.core.process.replica import TargetEnvironment
from migrator.errors import UsageError
from migrator.hosts.launch import RunDirectory


class Method(StrEnum):
    """Who starts the destination's process, and how."""

    #: Like the source's: by its command line.
    REPLICATE = "replicate"
    #: By a command from the configuration.
    TEMPLATE = "template"
    #: Somebody else does, and says where its monitor is.
    ATTACHED = "attached"


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How the QEMUs that take guests are started on a host."""

    method: Method = Method.REPLICATE
    #: Command and arguments, in which ``{name}``, ``{uuid}``, ``{run_dir}``, ``{qmp}`` and ``{rescue}`` are replaced;
    #: no shell reads it. It ends once QEMU is up.
    template: tuple[str, ...] = ()
    #: Path of the QMP socket of a QEMU that waits already; ``{name}`` and ``{uuid}`` are replaced.
    attached: str = ""
    #: The QEMU to start; empty: the host's, where one is configured; else the one under the source's path, or of its
    #: PATH.
    binary: str = ""
    #: See :class:`migrator.hosts.launch.Launcher`.
    base_directory: str = ""
    log_directory: str = ""
    former_directories: tuple[tuple[str, str], ...] = ()
    systemd: bool | None = None
    #: A port of the guest's QEMU that is taken there may be exchanged for another.
    spare_ports: bool = False
    #: Memory that is taken at once (hugepages, prealloc) takes its time.
    start_seconds: float = 60.0


def place(run_dir: RunDirectory) -> TargetEnvironment:
    """As the command line knows it."""
    return TargetEnvironment(binary="", run_directory=run_dir.path)


def fill(template: Iterable[str], guest: Guest, run_dir: RunDirectory) -> tuple[str, ...]:
    """The template's command for a guest.

    :raise UsageError: it names what does not exist.
    """
    where = place(run_dir)
    values = {"run_dir": run_dir.path, "qmp": where.control, "rescue": where.rescue}
    filled = tuple(_put_in(word, {**values, "name": guest.name, "uuid": guest.uuid}) for word in template)
    if not filled:
        raise UsageError("the template to start guests by is empty: give a command and its arguments")
    return filled


def socket_of(pattern: str, guest: Guest) -> str:
    """Path of the QMP socket at which a guest's destination was promised.

    :raise UsageError: the guest's name cannot be a part of a path, or the pattern is none.
    """
    if "{name}" in pattern and (not guest.name or "/" in guest.name or guest.name in (".", "..")):
        raise UsageError(f"a guest of the name {guest.name!r} has no place in {pattern}: use {{uuid}} there")
    path = _put_in(pattern, {"name": guest.name, "uuid": guest.uuid})
    if not path.startswith("/"):
        raise UsageError(f"{pattern!r} is no absolute path of a socket")
    return path


def _put_in(text: str, values: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            known = ", ".join(f"{{{name}}}" for name in sorted(values))
            raise UsageError(f"{text!r}: there is no {match[0]}; there are {known}")
        return values[match[1]]

    return re.sub(r"\{([a-z_]+)\}", value, text)
