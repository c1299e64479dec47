"""Measure one controller with many migrations under way, and what each costs from its beginning to its end."""

from __future__ import annotations

import asyncio
import contextlib
import statistics

from bench.figures import ms, paragraphs, table
from bench.lateness import p99
from bench.libvirt import Unavailable
from bench.scale.service import Service, serving
from bench.scale.site import GuestSpec
from migrator.testing.postgresql import Postgres, programs
from migrator.testing.workload import MIB

_HOSTS = 100
_LINK_BYTES_PER_SECOND = 1000.0 * MIB
#: Guests that never come to rest, each on its own pair of hosts, and some that move beside them.
_UNDER_WAY, _UNDER_WAY_OF_THREE, _BESIDE = 1000, 3000, 200
#: Sent in ten minutes: nobody is at his end while he is watched.
_BUSY_BYTES = 64 << 30
_WATCH_SECONDS, _SETTLE_SECONDS, _BEGIN_SECONDS = 30.0, 10.0, 240.0
#: From one of those beside them to the next.
_BETWEEN_SECONDS = 0.05
_MOST_CORE, _MOST_BYTES, _MOST_SECONDS = 1.0, 1 << 30, 0.100
COUNTS = (10, 50, 300, 1000, 2000)
_SPREAD_RATIO = 0.20


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
    with Postgres("bench", fsync="on", full_page_writes="on") as server:
        store = f'url = "{server.place(server.create()).url}"'
        async with serving(names, _busy(count, names), controllers=number, store=store) as service:
            for each in range(count):
                await service.migrate(f"busy-{each}", names[(each + 1) % count])
            await _settled(service, count)
            async with service.used() as used:
                await asyncio.sleep(_WATCH_SECONDS)
            still = len(await service.active())
    rows = [
        [
            f"{each + 1}",
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
        "steering, of a core",
        "all its processes",
        "MiB",
        "loop late p99 ms",
        "at worst ms",
    ]
    return paragraphs(
        f"{number} controllers on one PostgreSQL, {count} migrations under way ({still} at the end), watched for "
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
        for number in range(count):
            await service.migrate(f"busy-{number}", names[(number + 1) % count])
        await _settled(service, count)
        await service.reactions()
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
    ]
    return paragraphs(
        f"{count} migrations of guests that dirty 90 % of what their link carries, watched for {_WATCH_SECONDS:.0f} s "
        f"({still} were under way at the end); beside them idle guests move, and each of their switches is an event to "
        "act upon: from QEMU's announcement until it goes on, as QEMU sees it.",
        table(["what", "found", "aim", "verdict"], rows),
    )


def _row(what: str, found: str, aim: str, met: bool) -> list[str]:
    return [what, found, aim, "aim met" if met else "**aim not met**"]


async def _settled(service: Service, count: int) -> None:
    async with asyncio.timeout(_BEGIN_SECONDS):
        while sum(each["state"] == "precopy" for each in await service.active()) < count:
            await asyncio.sleep(1.0)
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
    rows, found = [], []
    async with serving(hosts, guests) as service:
        await asyncio.sleep(_SETTLE_SECONDS)
        for count in counts:
            places = await service.places()
            async with service.used() as used:
                for guest in guests[:count]:
                    at = hosts.index(places[guest.name])
                    await service.migrate(guest.name, hosts[(at + 1) % len(hosts)])
                await service.until_ended()
            usage = used[0]
            each = usage.steering / count
            found.append(each)
            rows.append(
                [
                    f"{count}",
                    f"{ms(each)}",
                    f"{ms(usage.all_processes / count)}",
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
            ["migrations", "ms each", "all processes, ms each", "took s", "loop late p99 ms", "at worst ms"],
            rows,
        ),
        f"Aim: what each costs the process that steers is within {_SPREAD_RATIO:.0%} of the median; it is within "
        f"{spread:.0%}. {'Aim met.' if spread <= _SPREAD_RATIO else '**Aim not met.**'}",
    )


def _idle(number: int, hosts: list[str]) -> GuestSpec:
    return GuestSpec(
        name=f"idle-{number}",
        host=hosts[number % len(hosts)],
        memory_bytes=16 * MIB,
        link_bytes_per_second=_LINK_BYTES_PER_SECOND,
    )
