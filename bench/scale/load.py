"""Measure one controller with many migrations under way, and what each costs from its beginning to its end."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import statistics
import time
from collections.abc import Sequence

from bench.figures import ms, paragraphs, table
from bench.lateness import p99
from bench.libvirt import Unavailable
from bench.scale.progress import Budget, Progress, say
from bench.scale.service import Service, serving
from bench.scale.site import GuestSpec
from migrator.testing.postgresql import Postgres, programs
from migrator.testing.workload import MIB

_HOSTS = 100
_LINK_BYTES_PER_SECOND = 1000.0 * MIB
#: Guests that never come to rest, each on its own pair of hosts, and some that move beside them.
_UNDER_WAY, _UNDER_WAY_OF_THREE, _BESIDE = 1000, 3000, 200
#: Sent in forty minutes: nobody is at his end while he is watched.
_BUSY_BYTES = 256 << 30
_WATCH_SECONDS, _SETTLE_SECONDS = 30.0, 10.0
#: So many are begun at a time; once all are, so long is waited for the last of them to copy.
_BEGUN_AT_A_TIME, _BEGIN_SECONDS = 8, 60.0
#: Of those that are begun so many have to copy, or nothing is measured.
_UNDER_WAY_RATIO = 0.99
#: From one of those beside them to the next.
_BETWEEN_SECONDS = 0.05
_MOST_CORE, _MOST_BYTES, _MOST_SECONDS = 1.0, 1 << 30, 0.100
COUNTS = (10, 50, 300, 1000, 2000)
_SPREAD_RATIO = 0.20
#: For all of them.
_COST_SECONDS = 330.0


def _busy(count: int, hosts: list[str]) -> list[GuestSpec]:
    """Return guests that never come to rest, on these hosts in turn."""
    return [
        GuestSpec(
            name=f"busy-{number}",
            host=hosts[number % len(hosts)],
            memory_bytes=_BUSY_BYTES,
            working_bytes=_BUSY_BYTES * 9 // 10,
            bytes_per_second=0.9 * _LINK_BYTES_PER_SECOND / 10,
            link_bytes_per_second=_LINK_BYTES_PER_SECOND / 10,
        )
        for number in range(count)
    ]


async def controllers(count: int = _UNDER_WAY_OF_THREE, number: int = 3) -> str:
    """Return what several controllers that share a journal take with so many migrations under way.

    :raise Unavailable: there is no PostgreSQL here.
    """
    if programs() is None:
        raise Unavailable("there is no PostgreSQL here")
    names = [f"h{host}" for host in range(count)]
    busy = _busy(count, names)
    with Postgres("bench", fsync="on", full_page_writes="on") as server:
        store = f'url = "{server.place(server.create()).url}"'
        async with serving(names, busy, controllers=number, store=store) as service:
            await _begin(service, busy, names)
            async with service.used() as used:
                await asyncio.sleep(_WATCH_SECONDS)
            active = await service.active()
    drives = collections.Counter(migration["controller"] for migration in active)
    rows = [
        [
            f"{each + 1}",
            f"{drives[f'c{each}']}",
            f"{usage.steering / usage.seconds:.0%}",
            f"{usage.all_processes / usage.seconds:.0%}",
            f"{usage.resident_bytes / MIB:.0f}",
            ms(p99(list(usage.late))),
            ms(max(usage.late)),
        ]
        for each, usage in enumerate(used)
    ]
    heads = [
        "controller",
        "drives",
        "steering, of a core",
        "all its processes",
        "MiB",
        "loop late p99 ms",
        "at worst ms",
    ]
    return paragraphs(
        f"{number} controllers on one PostgreSQL, {count} migrations under way ({len(active)} at the end), watched for "
        f"{_WATCH_SECONDS:.0f} s on one machine with the server and the QEMUs.",
        table(heads, rows),
    )


async def under_way(count: int = _UNDER_WAY) -> str:
    """Return what one controller takes with so many migrations under way."""
    names = [f"h{number}" for number in range(count)]
    busy = _busy(count, names)
    others = [f"o{number}" for number in range(20)]
    calm = [_idle(number, others) for number in range(_BESIDE)]
    async with serving([*names, *others], [*busy, *calm]) as service:
        await _begin(service, busy, names)
        await service.reactions()
        counts, began = await service.counts(), time.monotonic()
        await asyncio.sleep(_WATCH_SECONDS / 3)
        counts = (await service.counts()).since(counts, count * (time.monotonic() - began))
        async with service.used() as used:
            moving = asyncio.create_task(_move(service, calm, others), name="move some beside")
            await asyncio.sleep(_WATCH_SECONDS)
            moving.cancel()
            await asyncio.wait({moving})
        reactions = await service.reactions() or [0.0]
        still = len(await service.active())
    usage = used[0]
    core, everything = usage.steering / usage.seconds, usage.all_processes / usage.seconds
    rows = [
        _row("processor of the process that steers", f"{core:.0%} of a core", "≤ 100%", core <= _MOST_CORE),
        ["processor of all its processes", f"{everything:.0%} of a core", "", ""],
        _row(
            "memory of all its processes",
            f"{usage.resident_bytes / MIB:.0f} MiB",
            "≤ 1024 MiB",
            usage.resident_bytes <= _MOST_BYTES,
        ),
        _row(
            f"event to action, p99 of {len(reactions)}",
            f"{ms(p99(reactions))} ms",
            f"≤ {ms(_MOST_SECONDS)} ms",
            p99(reactions) <= _MOST_SECONDS,
        ),
        ["event to action, median", f"{ms(statistics.median(reactions))} ms", "", ""],
        ["a timer of the loop that steers is late, p99", f"{ms(p99(list(usage.late)))} ms", "", ""],
        ["... and at worst", f"{ms(max(usage.late))} ms", "", ""],
        ["QMP commands a second, of each that copies", f"{counts.commands:.2f}", "", ""],
        ["writes to the journal a second, of each that copies", f"{counts.writes:.3f}", "", ""],
    ]
    return paragraphs(
        f"{count} migrations of guests that dirty 90 % of what their link carries, watched for {_WATCH_SECONDS:.0f} s "
        f"({still} were under way at the end); beside them idle guests move, and each of their switches is an event to "
        "act upon: from QEMU's announcement until it goes on, as QEMU sees it.",
        table(["what", "found", "aim", "verdict"], rows),
    )


def _row(what: str, found: str, aim: str, met: bool) -> list[str]:
    return [what, found, aim, "aim met" if met else "**aim not met**"]


async def _begin(service: Service, guests: Sequence[GuestSpec], hosts: list[str]) -> None:
    """Begin to move each guest to the next host, and wait until nearly all of them copy.

    :raise RuntimeError: too few do.
    """
    turns, begun = asyncio.Semaphore(_BEGUN_AT_A_TIME), Progress(f"of {len(guests)} migrations begun")

    async def begin(guest: GuestSpec) -> None:
        async with turns:
            await service.migrate(guest.name, hosts[(hosts.index(guest.host) + 1) % len(hosts)])
            begun.step()

    async with asyncio.TaskGroup() as tasks:
        for guest in guests:
            tasks.create_task(begin(guest), name=guest.name)
    until, copying = time.monotonic() + _BEGIN_SECONDS, 0
    while time.monotonic() < until and copying < len(guests):
        await asyncio.sleep(1.0)
        active = await service.active()
        copying = sum(each["state"] == "precopy" for each in active)
        if len(active) == copying:
            break  # whoever does not copy has ended
    if copying < _UNDER_WAY_RATIO * len(guests):
        raise RuntimeError(f"{copying} of {len(guests)} migrations copy; {await service.why_ended()}")
    say(f"{copying} migrations copy")
    await asyncio.sleep(_SETTLE_SECONDS)


async def _move(service: Service, guests: list[GuestSpec], hosts: list[str]) -> None:
    """Move these guests one after the other, each to the next host, until cancelled."""
    while True:
        places = await service.places()
        for guest in guests:
            at = hosts.index(places[guest.name])
            with contextlib.suppress(RuntimeError):  # it is still on its way
                await service.migrate(guest.name, hosts[(at + 1) % len(hosts)])
            await asyncio.sleep(_BETWEEN_SECONDS)


async def cost(counts: tuple[int, ...] = COUNTS) -> str:
    """Return what a migration costs when so many are begun at once."""
    hosts = [f"h{number}" for number in range(_HOSTS)]
    guests = [_idle(number, hosts) for number in range(max(counts))]
    rows, found, budget = [], [], Budget(_COST_SECONDS)
    async with serving(hosts, guests) as service:
        await asyncio.sleep(_SETTLE_SECONDS)
        for count in counts:
            if not budget.allows(count):
                continue
            places = await service.places()
            async with service.used() as used:
                before = await service.counts()
                for guest in guests[:count]:
                    at = hosts.index(places[guest.name])
                    await service.migrate(guest.name, hosts[(at + 1) % len(hosts)])
                await service.until_ended()
                done = (await service.counts()).since(before, count)
            usage = used[0]
            budget.took(count, usage.seconds)
            say(f"{count} migrations took {usage.seconds:.0f} s")
            each = usage.steering / count
            found.append(each)
            rows.append(
                [
                    f"{count}",
                    f"{ms(each)}",
                    f"{ms(usage.all_processes / count)}",
                    f"{done.commands:.0f}",
                    f"{done.writes:.1f}",
                    f"{usage.seconds:.0f}",
                    f"{ms(p99(list(usage.late)))}",
                    f"{ms(max(usage.late))}",
                ]
            )
    middle = statistics.median(found)
    spread = max(abs(each - middle) for each in found) / middle
    return paragraphs(
        f"Idle guests of 16 MiB on {_HOSTS} hosts, so many of them begun at once by HTTP; from the first request until "
        "the last has ended. Computing of the process that steers, and of all processes of the service.",
        table(
            [
                "migrations",
                "ms each",
                "all processes, ms each",
                "QMP commands each",
                "writes to the journal each",
                "took s",
                "loop late p99 ms",
                "at worst ms",
            ],
            rows,
        ),
        f"Aim: what each costs the process that steers is within {_SPREAD_RATIO:.0%} of the median; it is within "
        f"{spread:.0%}. {'Aim met.' if spread <= _SPREAD_RATIO else '**Aim not met.**'}" + budget.text(),
    )


def _idle(number: int, hosts: list[str]) -> GuestSpec:
    return GuestSpec(
        name=f"idle-{number}",
        host=hosts[number % len(hosts)],
        memory_bytes=16 * MIB,
        link_bytes_per_second=_LINK_BYTES_PER_SECOND,
    )
