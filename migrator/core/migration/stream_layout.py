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
from migrator.units import show_bytes, show_rate

#: Over a link that carries at most so much, bytes per second, one CPU compresses ten times what the link takes: what
#: does not compress costs next to nothing there, and program text takes half the time.
NARROW_BYTES_PER_SECOND = 75e6 / 8
#: What does not compress takes two hundredths longer there, and half a second besides (60 Mbit/s: 24.5 to
#: 25.3 s, 7.4 to 7.9 s): less than three hundredths where it takes so long as it is, seconds.
WORTH_COMPRESSING_SECONDS = 40.0
#: CPUs without work at both hosts that it takes: one compresses, one expands, the guest's own are not among them.
SPARE_CPUS = 1.0
#: Over a faster link comparing pages takes longer than sending them.
DELTAS_BYTES_PER_SECOND = 1e9 / 8
#: A guest that writes less than this share of what the stream carries gets there with whole pages, and as soon.
DELTAS_WRITTEN_RATIO = 0.8
#: Its working set takes no more than this share of the memory that pages are kept in.
_CACHE_RATIO = 0.75
#: One thread of QEMU sends so much, bytes per second, plain and encrypted: a link that carries more has another.
PLAIN_CHANNEL_BYTES_PER_SECOND, ENCRYPTED_CHANNEL_BYTES_PER_SECOND = float(512 << 20), float(200 << 20)
#: One thread compresses at least so much of memory that does not compress well, bytes per second.
_CHANNEL_BYTES_PER_SECOND = 100 << 20
_MOST_CHANNELS = 4
#: The first QEMU that sends memory through several channels and may still go to postcopy; older ones refuse it, or
#: accept it and lose the guest.
_WITH_POSTCOPY = (10, 1)
_MULTIFD, _XBZRLE = "multifd", "xbzrle"
#: What the source's QEMU keeps of pages that were sent, so that only what changed is sent again: a power of two.
_LEAST_CACHE_BYTES, _MOST_CACHE_BYTES = 16 << 20, 512 << 20


@dataclass(frozen=True, kw_only=True)
class StreamLayout:
    """Channels of a stream and compression in them; the default is QEMU's own: one, plain."""

    channels: int = 1
    compression: str = "none"

    @property
    def multifd(self) -> bool:
        """Return whether memory has channels of its own."""
        return self.channels > 1 or self.compression == "zstd"

    @property
    def deltas(self) -> bool:
        """Return whether only what changed is sent of a page that is sent again."""
        return self.compression == _XBZRLE


@dataclass(frozen=True, kw_only=True)
class LayoutChoice:
    """A layout, and what is to be said of it: decisions with their reasons."""

    layout: StreamLayout = field(default_factory=StreamLayout)
    notes: tuple[tuple[str, str], ...] = ()
    #: Memory that the source keeps of pages it has sent; 0: none.
    delta_cache_bytes: int = 0


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
    #: The guest's memory, and what of it has something in it; 0: not known.
    memory_bytes: int = 0
    to_send_bytes: int = 0
    #: The stream is encrypted by QEMU.
    encrypted: bool = False
    #: It goes through a tunnel, whose one thread encrypts all of it.
    tunnelled: bool = False
    #: What was seen of the guest before: distinct bytes written a second, and in how much memory; ``None``: nothing.
    written_bytes_per_second: float | None = None
    working_set_bytes: float | None = None


def choose_layout(policy: Policy, ends: StreamAbilities) -> LayoutChoice:
    """Choose the layout of a stream."""
    asked = _asked_for(policy, ends)
    if asked is not None:
        if why := _deltas_obstacle(policy, ends) if asked.deltas else _obstacle(ends):
            return LayoutChoice(
                notes=(("plain-stream", f"one plain channel instead of {_words(asked)}: {why}"),)
            )
        return LayoutChoice(layout=asked, delta_cache_bytes=_delta_cache(ends) if asked.deltas else 0)
    return _by_itself(policy, ends)


def _asked_for(policy: Policy, ends: StreamAbilities) -> StreamLayout | None:
    if policy.compress is Compression.ZSTD:
        link = ends.link_bytes_per_second or 2 * _CHANNEL_BYTES_PER_SECOND
        fitting = min(_MOST_CHANNELS, max(1, math.ceil(link / _CHANNEL_BYTES_PER_SECOND)))
        return StreamLayout(channels=policy.streams or fitting, compression="zstd")
    if policy.compress is Compression.XBZRLE:
        return StreamLayout(compression=_XBZRLE)
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


def _deltas_obstacle(policy: Policy, ends: StreamAbilities) -> str:
    """Return why pages that are sent again have to be sent whole; empty where they have not."""
    if _XBZRLE not in ends.capabilities:
        return "one of the QEMUs cannot do that"
    if policy.streams is not None and policy.streams > 1:
        return "the policy has several channels, which QEMU refuses together with it, or accepts wrongly"
    return ""


def _delta_cache(ends: StreamAbilities) -> int:
    """Return the power of two that holds the guest's memory, within bounds."""
    size = _LEAST_CACHE_BYTES
    while size < min(ends.memory_bytes, _MOST_CACHE_BYTES):
        size *= 2
    return size


def _by_itself(policy: Policy, ends: StreamAbilities) -> LayoutChoice:
    link, spare = ends.link_bytes_per_second, ends.spare_cpus
    if policy.compress is not Compression.AUTO or policy.streams is not None or link is None or spare is None:
        return LayoutChoice()
    ceiling = policy.max_bandwidth_bytes_per_second
    carried = min(link, ceiling) if ceiling is not None else link
    if spare < SPARE_CPUS or ends.postcopy:
        return LayoutChoice()
    if _deltas_pay(policy, ends, carried):
        reason = (
            f"of pages that are sent again only what changed is sent (xbzrle): in earlier migrations the guest wrote "
            f"{show_rate(ends.written_bytes_per_second or 0)} in {show_bytes(ends.working_set_bytes or 0)} of memory, "
            f"of a stream that gets {show_rate(carried)}"
        )
        layout = StreamLayout(compression=_XBZRLE)
        return LayoutChoice(
            layout=layout, notes=(("send-changes", reason),), delta_cache_bytes=_delta_cache(ends)
        )
    if _obstacle(ends):
        return LayoutChoice()
    if carried > NARROW_BYTES_PER_SECOND:
        return LayoutChoice() if ends.tunnelled else _channels(ends, carried, spare)
    if ends.to_send_bytes and ends.to_send_bytes < WORTH_COMPRESSING_SECONDS * carried:
        return LayoutChoice()
    reason = (
        f"memory is compressed (zstd): the stream gets {show_rate(carried)} at most, and both hosts have "
        f"{spare:.1f} CPUs without work"
    )
    return LayoutChoice(layout=StreamLayout(compression="zstd"), notes=(("compress", reason),))


def _deltas_pay(policy: Policy, ends: StreamAbilities, carried: float) -> bool:
    """Return whether whole pages would not do: the guest writes as fast as they are sent, in few of them."""
    written, working_set = ends.written_bytes_per_second, ends.working_set_bytes
    if written is None or working_set is None or carried > DELTAS_BYTES_PER_SECOND:
        return False
    fits = 0 < working_set <= _delta_cache(ends) * _CACHE_RATIO
    return written >= DELTAS_WRITTEN_RATIO * carried and fits and not _deltas_obstacle(policy, ends)


def _channels(ends: StreamAbilities, carried: float, spare: float) -> LayoutChoice:
    """Return as many channels as the link takes threads to fill, one for each CPU without work at the most."""
    each = ENCRYPTED_CHANNEL_BYTES_PER_SECOND if ends.encrypted else PLAIN_CHANNEL_BYTES_PER_SECOND
    channels = min(_MOST_CHANNELS, int(spare), math.ceil(carried / each))
    if channels < 2:
        return LayoutChoice()
    kind = " encrypted" if ends.encrypted else ""
    reason = (
        f"memory goes through {channels} channels: the stream gets {show_rate(carried)}, of which one thread of QEMU "
        f"fills {show_rate(each)}{kind}, and both hosts have {spare:.1f} CPUs without work"
    )
    return LayoutChoice(layout=StreamLayout(channels=channels), notes=(("channels", reason),))


def _words(layout: StreamLayout) -> str:
    count = f"{layout.channels} channels" if layout.channels > 1 else "one"
    return f"{count} with {layout.compression}" if layout.compression != "none" else count


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
