"""Channels that a guest's memory goes through, and its compression there: the choice before a migration begins. Pure.

What is chosen by itself is never worth a doubt: one plain channel, unless it was measured that something else is faster
where the migration goes (docs/streams.md, docs/benchmarks.md). What a policy asks for is done where both QEMUs can, and
else left out with a note.
"""

from __future__ import annotations

import math
import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from migrator.core.policy import Compression, Policy
from migrator.units import show_rate

#: Over a link that carries at most so much, bytes per second, one CPU compresses ten times what the link takes: what
#: does not compress costs next to nothing there, and program text takes half the time.
NARROW_BYTES_PER_SECOND = 75e6 / 8
#: CPUs without work at both hosts that it takes: one compresses, one expands, the guest's own are not among them.
SPARE_CPUS = 1.0
#: One thread compresses at least so much of memory that does not compress well, bytes per second.
_CHANNEL_BYTES_PER_SECOND = 100 << 20
_MOST_CHANNELS = 4
#: The first QEMU that sends memory through several channels and may still go to postcopy; older ones refuse it, or
#: accept it and lose the guest.
_WITH_POSTCOPY = (10, 1)
_MULTIFD = "multifd"


@dataclass(frozen=True, kw_only=True)
class StreamLayout:
    """Channels of a stream and compression in them; the default is QEMU's own: one, plain."""

    channels: int = 1
    compression: str = "none"

    @property
    def multifd(self) -> bool:
        """Return whether memory has channels of its own."""
        return self.channels > 1 or self.compression != "none"


@dataclass(frozen=True, kw_only=True)
class LayoutChoice:
    """A layout, and what is to be said of it: decisions with their reasons."""

    layout: StreamLayout = field(default_factory=StreamLayout)
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class StreamAbilities:
    """Abilities of both ends, as known before a stream is laid out."""

    #: Capabilities that both QEMUs have, and their versions.
    capabilities: AbstractSet[str]
    versions: tuple[str, str]
    #: The migration may go to postcopy.
    postcopy: bool
    #: What the links let the stream carry; ``None``: not known.
    link_bytes_per_second: float | None = None
    #: CPUs without work, at the host that has fewer; ``None``: not known.
    spare_cpus: float | None = None


def choose_layout(policy: Policy, ends: StreamAbilities) -> LayoutChoice:
    """Choose the layout of a stream."""
    asked = _asked_for(policy, ends)
    if asked is not None:
        if why := _obstacle(ends):
            return LayoutChoice(
                notes=(("plain-stream", f"one plain channel instead of {_words(asked)}: {why}"),)
            )
        return LayoutChoice(layout=asked)
    return _by_itself(policy, ends)


def _asked_for(policy: Policy, ends: StreamAbilities) -> StreamLayout | None:
    if policy.compress is Compression.ZSTD:
        link = ends.link_bytes_per_second or 2 * _CHANNEL_BYTES_PER_SECOND
        fitting = min(_MOST_CHANNELS, max(1, math.ceil(link / _CHANNEL_BYTES_PER_SECOND)))
        return StreamLayout(channels=policy.streams or fitting, compression="zstd")
    if policy.streams is not None and policy.streams > 1:
        return StreamLayout(channels=policy.streams)
    return None


def _obstacle(ends: StreamAbilities) -> str:
    """Return why memory cannot have channels of its own; empty where it can."""
    if _MULTIFD not in ends.capabilities:
        return "one of the QEMUs cannot do that"
    if ends.postcopy and min(map(_version, ends.versions)) < _WITH_POSTCOPY:
        return (
            "the policy allows postcopy, which goes together with that from QEMU 10.1 on (postcopy = never)"
        )
    return ""


def _by_itself(policy: Policy, ends: StreamAbilities) -> LayoutChoice:
    link, spare = ends.link_bytes_per_second, ends.spare_cpus
    if policy.compress is not Compression.AUTO or policy.streams is not None or link is None or spare is None:
        return LayoutChoice()
    ceiling = policy.max_bandwidth_bytes_per_second
    carried = min(link, ceiling) if ceiling is not None else link
    if carried > NARROW_BYTES_PER_SECOND or spare < SPARE_CPUS or _obstacle(ends) or ends.postcopy:
        return LayoutChoice()
    reason = (
        f"memory is compressed (zstd): the stream gets {show_rate(carried)} at most, and both hosts have "
        f"{spare:.1f} CPUs without work"
    )
    return LayoutChoice(layout=StreamLayout(compression="zstd"), notes=(("compress", reason),))


def _words(layout: StreamLayout) -> str:
    count = f"{layout.channels} channels" if layout.channels > 1 else "a channel"
    return f"{count} with {layout.compression}" if layout.compression != "none" else count


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
