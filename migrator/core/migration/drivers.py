"""The driver of a QEMU: its mark, and the rule by which one controller may follow another. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: Name of the mark; a QEMU has one at the most.
MARK = "driver"
_TYPES = {"process": dict, "was": dict, "lease": int}
#: Characters; ours has some 3,000, most of them the settings that were.
_LONGEST = 65_536


@dataclass(frozen=True, kw_only=True)
class Driver:
    """One controller, as it marks every QEMU that it is about to change."""

    #: Unique for this run of the controller.
    token: str
    #: Stays the same over restarts: whoever has the same journal, or takes up the same record.
    controller: str
    #: For people: ``migrator direct, pid 4711 on host-a``.
    who: str
    #: Tells its process from any other, for ever; see :func:`migrator.machine.own_process`.
    process: Mapping[str, Any] = field(default_factory=dict)
    #: Where several controllers share a journal: whoever was given the right later has a larger one
    #: (:func:`migrator.ports.assignments.assignment_number`). 0: it has the journal for itself.
    lease: int = 0
    #: The migration that it drives; empty where it only looks after what another has left.
    migration: str = ""
    #: How things were before: ``runs``, whether the guest ran, and ``settings``, the source's. For whoever finds it
    #: left standing, and no record of it.
    was: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Return the text that the mark holds."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> Driver:
        """Return the driver whose :meth:`text` this is; of a mark that this version cannot read, one nobody may
        follow.
        """
        try:
            found = json.loads(text[:_LONGEST])
            for key, value in found.items():
                if type(value) is not _TYPES.get(key, str):
                    raise TypeError
            return cls(**found)
        except (AttributeError, TypeError, ValueError, RecursionError):
            return cls(token=text, controller="", who="another version of migrator")

    def __str__(self) -> str:
        return self.who + (f" (migration {self.migration})" if self.migration else "")


def may_follow(mine: Driver, other: Driver, *, other_is_gone: bool | None) -> bool:
    """Tell whether a mark of `other` may be replaced by one of `mine`.

    Yes where it is the same controller after a restart, or one whose process is proven dead. A controller that is only
    silent, or stopped, may wake up and go on at any time. Of controllers that share a journal the one with the later
    lease may follow whoever had it before: that one looks at the mark before each command once its lease may have ended
    (:class:`migrator.qemu.claim.DriverClaim`), and finds another's.

    :param other_is_gone: ``None`` where that cannot be told from here.
    """
    if other.token == mine.token or other_is_gone is True:
        return True
    if not other.controller or other.controller != mine.controller:
        return False
    if mine.lease or other.lease:
        return other.lease < mine.lease
    return other_is_gone is not False
