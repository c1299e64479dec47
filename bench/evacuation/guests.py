"""The guests of a host that is to be emptied: how large, and what each does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from migrator.testing.workload import MIB, Workload, idle, steady

#: A link of 10 Gbit/s, without what TCP takes of it.
LINK_BYTES_PER_SECOND = 1.25e9 * 0.95
_SIZES = (512 * MIB, 1024 * MIB, 2048 * MIB, 4096 * MIB)
#: Of the link's speed.
_HEAVY_RATIO, _LIGHT_RATIO = (0.3, 0.7), (0.0005, 0.005)
#: Of a guest's memory: what is written to.
_HEAVY_SET, _LIGHT_SET = (0.3, 0.6), (0.02, 0.1)


@dataclass(frozen=True, kw_only=True)
class Guest:
    """One of them."""

    name: str
    memory_bytes: int
    workload: Workload
    #: It dirties a good part of what a link carries.
    heavy: bool = False


def idle_guests(count: int, seed: int) -> list[Guest]:
    """Return guests that sleep; all their memory was used once."""
    mood = random.Random(f"idle {count} {seed}")
    return [_used(f"vm-{number:03}", mood.choice(_SIZES), idle()) for number in range(count)]


def mixed_guests(count: int, seed: int) -> list[Guest]:
    """A third writes much, the others a little."""
    mood = random.Random(f"mixed {count} {seed}")
    heavy = set(mood.sample(range(count), round(count / 3)))
    return [
        _writing(f"vm-{number:03}", mood.choice(_SIZES), number in heavy, mood) for number in range(count)
    ]


def total_bytes(guests: Sequence[Guest]) -> int:
    """Return the bytes that must go over the link at the very least."""
    return sum(guest.memory_bytes for guest in guests)


def needed_bytes(guest: Guest, *, ceiling_seconds: float, postcopy: bool) -> float:
    """Return the least bytes that bring a guest over that has its link for itself all the while.

    By precopy: until what is dirty is sent within the ceiling.

    :param postcopy: or by postcopy after a full first pass, where that is less.
    """
    sent, pending = 0.0, float(guest.memory_bytes)
    while pending > ceiling_seconds * LINK_BYTES_PER_SECOND:
        dirtied = _dirtied_bytes(guest, pending / LINK_BYTES_PER_SECOND)
        if dirtied >= pending:
            break  # it never ends; this much goes at the least
        sent, pending = sent + pending, dirtied
    once_more = guest.memory_bytes + _dirtied_bytes(guest, guest.memory_bytes / LINK_BYTES_PER_SECOND)
    return min(sent + pending, once_more) if postcopy else sent + pending


def _dirtied_bytes(guest: Guest, seconds: float) -> float:
    workload = guest.workload
    rates = workload.phases[-1].rates
    return sum(
        region.distinct_bytes(rate * seconds) for region, rate in zip(workload.regions, rates, strict=True)
    )


def _writing(name: str, memory: int, heavy: bool, mood: random.Random) -> Guest:
    rate = mood.uniform(*(_HEAVY_RATIO if heavy else _LIGHT_RATIO)) * LINK_BYTES_PER_SECOND
    region = int(memory * mood.uniform(*(_HEAVY_SET if heavy else _LIGHT_SET))) // MIB * MIB
    return replace(_used(name, memory, steady(region, rate)), heavy=heavy)


def _used(name: str, memory: int, workload: Workload) -> Guest:
    rest = memory - workload.working_bytes
    return Guest(name=name, memory_bytes=memory, workload=replace(workload, constant_bytes=rest))
