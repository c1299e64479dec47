"""Bounds that a plan keeps to, and how long an evacuation waits for what may still change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from migrator.core.schedule.transfers import LinkRules

#: A guest whose migration failed waits so long before it is tried again, doubled each time.
FIRST_PAUSE_SECONDS = 5.0
#: After so many failures it is set aside.
MOST_ATTEMPTS = 3
#: A guest that cannot be asked is waited for so long while nothing else is under way: it may be at its end, or its
#: monitor be held for a moment only.
LOST_SECONDS = 10.0
#: A guest that no host can take is waited for so long while nothing else is under way.
NO_TARGET_SECONDS = 30.0


class Otherwise(StrEnum):
    """The behaviour of a group's guests when one of them does not move, or not in time."""

    #: They move without it.
    GO = "go"
    #: They stay where they are.
    STAY = "stay"


@dataclass(frozen=True, kw_only=True)
class GroupRules:
    """How the guests of one group move."""

    #: In evacuations and restores too: their switches are held until all of them are due.
    together: bool = True
    #: The first of them that could be switched runs on for so long, and waits for the others.
    wait_seconds: float = 300.0
    otherwise: Otherwise = Otherwise.GO


@dataclass(frozen=True, kw_only=True)
class SiteLimits:
    """The site's bounds on migrations."""

    links: LinkRules = field(default_factory=LinkRules)
    #: Migrations that are prepared or run at the same time in the whole site.
    migrations_at_a_time: int = 100
    #: A guest whose migration failed so often is set aside.
    attempts: int = MOST_ATTEMPTS
    #: Before the second attempt; doubled before each further one.
    first_pause_seconds: float = FIRST_PAUSE_SECONDS
    #: By their names; a group that is missing has the defaults.
    groups: Mapping[str, GroupRules] = field(default_factory=dict)

    def group(self, name: str) -> GroupRules:
        """Return how the guests of a group move."""
        return self.groups.get(name, _DEFAULT_GROUP)


_DEFAULT_GROUP = GroupRules()
