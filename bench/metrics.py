"""Cost of a scrape: ``python -m bench.metrics``."""

from __future__ import annotations

import asyncio
import statistics
import time

from migrator.metrics import Metrics
from tests.documents import a_guest, a_host, a_migration
from tests.fake_queries import FakeQueries

#: Aim for a scrape with a thousand active migrations.
_AIM_SECONDS = 0.2
_SCRAPES = 20
_ACCEPT = "application/openmetrics-text; version=1.0.0"


def _queries(migrations: int, hosts: int, guests: int) -> FakeQueries:
    queries = FakeQueries()
    for number in range(hosts):
        queries.hosts_by_name[f"host-{number}"] = a_host(f"host-{number}")
    for number in range(guests):
        key = f"00000000-0000-4000-8000-{number:012}"
        queries.guests_by_key[key] = a_guest(key, host=f"host-{number % hosts}")
    for number in range(migrations):
        key = f"00000000-0000-4000-8000-{number:012}"
        where = {"source": f"host-{number % hosts}", "destination": f"host-{(number + 1) % hosts}"}
        queries.by_id[f"m{number}"] = a_migration(f"m{number}", guest=key, **where)
    return queries


async def _delays(loop_delays: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        loop_delays.append(time.perf_counter() - began - 0.001)


async def _measure(migrations: int, hosts: int, guests: int) -> float:
    queries = _queries(migrations, hosts, guests)
    async with Metrics(queries=queries, version="bench") as metrics:
        for number in range(migrations):
            queries.put(queries.by_id[f"m{number}"])
            queries.decide(f"m{number}", "throttle")
        delays: list[float] = []
        watch = asyncio.create_task(_delays(delays), name="watch the loop")
        await asyncio.sleep(0.2)
        idle = max(delays)
        delays.clear()
        took, on_loop, text = [], [], b""
        for _ in range(_SCRAPES):
            began = time.perf_counter()
            metrics.snapshot()
            on_loop.append(time.perf_counter() - began)
            began = time.perf_counter()
            text, _ = await metrics.scrape(_ACCEPT)
            took.append(time.perf_counter() - began)
        watch.cancel()
        await asyncio.wait({watch})
    print(
        f"{migrations:5} migrations, {hosts:4} hosts, {guests:5} guests: {len(text.splitlines()):6} lines, "
        f"{statistics.median(took) * 1e3:5.0f} ms median, {max(took) * 1e3:5.0f} ms at most; "
        f"on the loop {statistics.median(on_loop) * 1e3:.1f} ms; loop late by at most {max(delays) * 1e3:.0f} ms "
        f"(idle {idle * 1e3:.0f} ms)"
    )
    return statistics.median(took)


async def _main() -> None:
    await _measure(10, 10, 100)
    took = await _measure(1000, 100, 1000)
    print(
        f"aim with 1000 migrations: under {_AIM_SECONDS * 1e3:.0f} ms: {'kept' if took < _AIM_SECONDS else 'MISSED'}"
    )
    await _measure(1000, 1000, 20_000)


if __name__ == "__main__":
    asyncio.run(_main())
