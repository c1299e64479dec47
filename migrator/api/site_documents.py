"""Documents of what the site's configuration offers: policies, and hooks of rolls.

See :mod:`migrator.api.documents` for their units.
"""

from __future__ import annotations

from pydantic import Field

from migrator.api.documents import Document


class PolicyDocument(Document):
    """A policy, and what it allows."""

    name: str
    #: The configuration does not mention it: it is as the program has it.
    built_in: bool
    #: Guests that have none of their own get this one.
    default: bool
    #: What it allows, for a person: one sentence each.
    allows: list[str]
    max_downtime_seconds: float
    #: ``null``: what the link's share allows.
    max_bandwidth_bytes_per_second: int | None = None
    max_throttle_ratio: float
    #: ``never``, ``allow`` or ``immediate``.
    postcopy: str
    #: ``null``: as long as it takes.
    max_duration_seconds: float | None = None
    #: ``abort`` or ``pause``.
    last_resort: str
    #: The guest is stopped first, then copied.
    offline: bool
    #: In an evacuation a guest that cannot leave otherwise is saved into a file.
    saves: bool
    #: A guest that cannot move live is shut down and started anew at the target.
    cold: bool
    #: How many guests that are known it is for, where no command names another.
    guests: int = 0


class PoliciesDocument(Document):
    """The policies of the site: those built in, then those that the configuration adds."""

    items: list[PolicyDocument] = Field(default_factory=list)


class HookDocument(Document):
    """A hook that is run for a host that is rolled through."""

    name: str
    #: ``after-drain``: the host is empty, and may be patched and rebooted. ``ready``: whether guests may come home.
    point: str
    #: ``controller``, or ``host``: the machine that it runs on.
    where: str
    #: Then it is killed.
    timeout_seconds: float


class HooksDocument(Document):
    """The hooks that are configured for rolls, by point, in the order in which they are run."""

    items: list[HookDocument] = Field(default_factory=list)
