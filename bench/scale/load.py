"""Measure one controller with many migrations under way, and what each costs from its beginning to its end."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.figures import ms, paragraphs, table
from bench.lateness import p99
from bench.libvirt import Unavailable
from bench.scale.progress import Budget, Progress, say
from bench.scale.service import Counts, Service, Usage, serving
from bench.scale.site import GuestSpec
from migrator.testing.postgresql import Postgres, programs
from migrator.testing.workload import MIB

_HOSTS = 100
_LINK_BYTES_PER_SECOND = 1000.0 * MIB
#: Guests that never come to rest, each on its own pair of hosts, and some that move beside them.
UNDER_WAY = (10, 100, 300, 1000, 2000)
_UNDER_WAY_OF_THREE, _BESIDE = 3000, 200
#: For all of them.
_UNDER_WAY_SECONDS = 700.0
#: Sent in forty minutes: nobody is at his end while he is watched.
_BUSY_BYTES = 256 << 30
_WATCH_SECONDS, _SETTLE_SECONDS = 30.0, 10.0
#: What moves beside them is watched for longer: one in a hundred shall be a few.
_MOVES_SECONDS = 60.0
#: So many are begun at a time; once all are, so long is waited for the last of them to copy.
_BEGUN_AT_A_TIME, _BEGIN_SECONDS = 8, 60.0
#: Of those that are begun so many have to copy, or nothing is measured.
_UNDER_WAY_RATIO = 0.99
#: So many of those beside them begin to move each second, whether or not the ones before have arrived.
_MOVES_A_SECOND = 4.0
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


@dataclass(frozen=True, kw_only=True)
class _Watched:
    """Figures of one controller with so many migrations under way."""

    count: int
    #: Seconds that beginning all of them took, and how many there were at the end.
    begun_seconds: float
    still: int
    usage: Usage
    #: While nothing moved beside them.
    alone: Usage
    #: Of each migration, a second, while nothing moved beside them.
    counts: Counts
    reactions: Sequence[float]
    #: Of the simulated QEMUs, of a core.
    farms: float

    @property
    def core(self) -> float:
        """Return the share of a core that the process that steers used."""
        return self.usage.steering / self.usage.seconds

    def row(self) -> list[str]:
        """Return it as a row of the table."""
        late = list(self.usage.late)
        return [
            f"{self.count}",
            f"{self.count / self.begun_seconds:.0f}",
            f"{self.still}",
            f"{self.alone.steering / self.alone.seconds:.0%}",
            f"{self.core:.0%}",
            f"{self.usage.all_processes / self.usage.seconds:.0%}",
            f"{self.farms:.0%}",
            f"{self.usage.resident_bytes / MIB:.0f}",
            f"{ms(statistics.median(self.reactions))} / {ms(p99(list(self.reactions)))} ({len(self.reactions)})",
            f"{ms(p99(late))} / {ms(max(late))}",
            f"{self.counts.commands:.2f}",
            f"{self.counts.writes:.3f}",
        ]


async def under_way(counts: Sequence[int] = UNDER_WAY) -> str:
    """Return what one controller takes with so many migrations under way."""
    fixed = 0.5 * _WATCH_SECONDS + _MOVES_SECONDS + _SETTLE_SECONDS
    watched, budget = list[_Watched](), Budget(_UNDER_WAY_SECONDS, fixed_seconds=fixed)
    for count in counts:
        if not budget.allows(count):
            continue
        began = time.monotonic()
        watched.append(await _watch(count))
        budget.took(count, time.monotonic() - began)
    heads = [
        *("migrations", "begun a second", "at the end", "steering, of a core", "the same, with moves beside"),
        *(
            "all its processes",
            "simulated QEMUs",
            "MiB",
            "event to action ms, median / p99 (of)",
            "loop late ms, p99 / worst",
        ),
        *("QMP commands a second each", "writes a second each"),
    ]
    aims = [
        f"{each.count}: {_verdict('a core', each.core <= _MOST_CORE)}, "
        f"{_verdict('1 GiB', each.usage.resident_bytes <= _MOST_BYTES)}, "
        f"{_verdict('100 ms', p99(list(each.reactions)) <= _MOST_SECONDS)}"
        for each in watched
    ]
    return paragraphs(
        f"Migrations of guests that dirty 90 % of what their link carries, watched for {_MOVES_SECONDS:.0f} s; beside "
        f"them {_MOVES_A_SECOND:g} idle guests begin to move each second, and each of their switches is an event to "
        "act upon: from QEMU's announcement until it goes on, as QEMU sees it. The simulated QEMUs share the machine "
        "with the service. Commands and writes are those of the time in which nothing moved beside them.",
        table(heads, [each.row() for each in watched]),
        "Aims of 1,000: the process that steers takes at most a core, all processes at most 1 GiB, and from an event "
        f"to the action pass at most 100 ms (p99). {'; '.join(aims)}." + budget.text(),
    )


async def _watch(count: int) -> _Watched:
    names = [f"h{number}" for number in range(count)]
    busy = _busy(count, names)
    others = [f"o{number}" for number in range(20)]
    calm = [_idle(number, others) for number in range(_BESIDE)]
    async with serving([*names, *others], [*busy, *calm]) as service:
        began = time.monotonic()
        await _begin(service, busy, names)
        begun_seconds = time.monotonic() - began - _SETTLE_SECONDS
        await service.reactions()
        counts, began = await service.counts(), time.monotonic()
        async with service.used() as alone:
            await asyncio.sleep(_WATCH_SECONDS / 2)
        each = (await service.counts()).since(counts, count * (time.monotonic() - began))
        farms = service.farm_seconds()
        async with service.used() as used:
            moving = asyncio.create_task(_move(service, calm, others), name="move some beside")
            await asyncio.sleep(_MOVES_SECONDS)
            moving.cancel()
            await asyncio.wait({moving})
        farms = service.farm_seconds() - farms
        found = _Watched(
            count=count,
            begun_seconds=begun_seconds,
            still=sum(each["guest_name"].startswith("busy") for each in await service.active()),
            usage=used[0],
            alone=alone[0],
            counts=each,
            reactions=await service.reactions() or [0.0],
            farms=farms / used[0].seconds,
        )
    say(" | ".join(found.row()))
    return found


def _verdict(what: str, met: bool) -> str:
    return f"{what} {'met' if met else '**not met**'}"


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
    """Move these guests at an even rate, each in its turn to the next host, until cancelled."""

    async def move(guest: GuestSpec, at: int) -> None:
        with contextlib.suppress(RuntimeError):  # it is still on its way
            await service.migrate(guest.name, hosts[(at + 1) % len(hosts)])

    async with asyncio.TaskGroup() as tasks:
        due = time.monotonic()
        while True:
            places = await service.places()
            for guest in guests:
                tasks.create_task(move(guest, hosts.index(places[guest.name])), name=guest.name)
                due += 1.0 / _MOVES_A_SECOND
                await asyncio.sleep(max(0.0, due - time.monotonic()))


async def cost(counts: Sequence[int] = COUNTS) -> str:
    """Return what a migration costs when so many are begun at once."""
    hosts = [f"h{number}" for number in range(_HOSTS)]
    guests = [_idle(number, hosts) for number in range(max(counts))]
    rows, found, budget = [], [], Budget(_COST_SECONDS)
    async with serving(hosts, guests) as service:
        await asyncio.sleep(_SETTLE_SECONDS)
        for count in counts:
            if not budget.allows(count):
                continue
            places, before = await service.places(), await service.counts()
            async with service.used() as used:
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
