"""Migrations of which one end is a file: a guest is saved into it, or loaded from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from migrator.core.policy import CopiedDisks, LastResort, Policy, TlsUse

#: Such a guest stands still until it is whole at the other end; its disks stay where they are, and nothing is sent from
#: one host to another.
POLICY = Policy(
    name="file",
    max_downtime_seconds=0.3,
    offline=True,
    last_resort=LastResort.PAUSE,
    disks=CopiedDisks.NONE,
    tls=TlsUse.OFF,
)


class FileUse(StrEnum):
    """Direction of such a migration."""

    SAVE = "save"
    LOAD = "load"


@dataclass(frozen=True, kw_only=True)
class FileMove:
    """The file of a migration."""

    use: FileUse
    #: On the host of the guest, or on the one where it is to run.
    path: str
    #: With ``load``: when it was saved, seconds since the epoch.
    saved_at: float = 0.0
    #: With ``save``: as a stream, which every QEMU can load, whatever else its own can write.
    as_stream: bool = False

    def fields(self) -> dict[str, Any]:
        """Return it for the journal: what is as by default is left out, which an older version may not know."""
        defaults = {each.name: each.default for each in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}
