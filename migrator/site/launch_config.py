"""How the QEMUs that take guests are started, as it is configured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from migrator.core.inventory import Guest
from migrator.core.process.replica import TargetEnvironment
from migrator.errors import UsageError
from migrator.hosts.run_directories import RunDirectory
from migrator.settings.host_sections import HostDefaults


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How the QEMUs that take guests are started on a host."""

    section: HostDefaults = field(default_factory=HostDefaults)
    #: Directories of runs and of logs that were configured before: what was started there is still ours.
    former_directories: tuple[tuple[str, str], ...] = ()

    @property
    def directories(self) -> tuple[str, str]:
        """Directories of runs and of logs."""
        return self.section.run_dir, self.section.log_dir

    @property
    def spare_ports(self) -> bool:
        """A port of the guest's QEMU that is taken there may be exchanged for another."""
        return self.section.ports == "any"

    def with_ports(self, ports: str) -> LaunchConfig:
        """Return the same for a guest of which something else is said: ``keep`` or ``any``."""
        return replace(self, section=self.section.model_copy(update={"ports": ports}))


def place(run_dir: RunDirectory) -> TargetEnvironment:
    """Return the environment that the command line needs to know."""
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
