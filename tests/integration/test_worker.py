"""The process that computes for the service: its answers are those of the functions, and it is begun anew."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from migrator.core.drain import preview
from migrator.core.drain.forecast import (
    ForecastRequest,
    forecast_from_portions,
    forecast_request_portions,
    joined,
)
from migrator.core.drain.snapshot import SiteSnapshot
from migrator.errors import Fault, Unavailable
from migrator.machine import wait_readable
from migrator.worker.client import Worker
from tests.moving_site import MovingSite


@asynccontextmanager
async def working(*, timeout_seconds: float = 30.0, waiting: int = 8) -> AsyncIterator[Worker]:
    worker = Worker(timeout_seconds=timeout_seconds, waiting=waiting)
    try:
        yield worker
    finally:
        pid = worker.pid
        await worker.close()
        if pid is not None:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def evacuation(count: int) -> tuple[SiteSnapshot, list[ForecastRequest]]:
    """An evacuation of so many guests, and the request for its forecast."""
    site = MovingSite()
    site.fill(count, "a")
    site.turn()
    snapshot = site.snapshot()
    assert site.plan is not None
    return snapshot, list(forecast_request_portions(snapshot, site.plan))


async def test_forecasts_are_the_same_there() -> None:
    _, portions = evacuation(250)
    assert len(portions) > 1
    async with working() as worker:
        assert await worker.compute(forecast_from_portions, portions) == forecast_from_portions(portions)


async def test_previews_are_the_same_there() -> None:
    site = MovingSite()
    site.fill(230, "a")
    snapshot, placed = site.snapshot(), frozenset(site.run.entries)
    given = list(preview.portions(snapshot, site.run, placed=placed))
    async with working() as worker:
        assert await worker.compute(preview.places, given) == preview.places(given)
        found = await worker.compute(preview.outlook, given)
    assert found == preview.outlook(given)
    assert sorted(each.order or 0 for each in found.guests.values()) == list(range(1, 231))


async def test_one_that_takes_too_long_is_ended_and_the_next_finds_another_process() -> None:
    _, long = evacuation(3000)
    _, short = evacuation(3)
    async with working() as worker:
        await worker.compute(forecast_from_portions, short)
        first = worker.pid
        worker.timeout_seconds = 0.05
        with pytest.raises(Unavailable, match="not computed within"):
            await worker.compute(forecast_from_portions, long)
        worker.timeout_seconds = 30.0
        assert await worker.compute(forecast_from_portions, short) == forecast_from_portions(short)
        assert worker.pid not in (None, first)


async def test_a_process_that_dies_is_begun_anew() -> None:
    _, short = evacuation(3)
    async with working() as worker:
        await worker.compute(forecast_from_portions, short)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        try:
            await worker.compute(forecast_from_portions, short)
        except Unavailable:
            pass  # it was not seen to be dead yet
        assert await worker.compute(forecast_from_portions, short) == forecast_from_portions(short)


async def test_who_goes_away_leaves_the_answer_of_the_next_its_own() -> None:
    _, long = evacuation(600)
    _, short = evacuation(3)
    async with working() as worker:
        await worker.compute(forecast_from_portions, short)
        pid = worker.pid
        gone = asyncio.create_task(worker.compute(forecast_from_portions, long), name="gone")
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait({gone})
        assert await worker.compute(forecast_from_portions, short) == forecast_from_portions(short)
        assert worker.pid == pid


async def test_only_so_many_wait() -> None:
    _, short = evacuation(3)
    async with working(waiting=1) as worker:
        asked = [
            asyncio.create_task(worker.compute(forecast_from_portions, short), name=f"ask {n}")
            for n in range(4)
        ]
        found = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(each, Unavailable) for each in found] == [False, False, True, True]


async def test_an_error_there_is_said_and_ends_nothing() -> None:
    _, short = evacuation(3)
    async with working() as worker:
        with pytest.raises(Fault, match="IndexError"):
            await worker.compute(joined, [])
        pid = worker.pid
        await worker.compute(forecast_from_portions, short)
        assert worker.pid == pid


@pytest.mark.parametrize("when", ["it starts", "it waits"])
async def test_it_ends_with_the_process_that_it_computes_for_however_that_ends(when: str) -> None:
    script = (
        "import asyncio, contextlib\n"
        "from migrator.core.drain.forecast import forecast_from_portions\n"
        "from migrator.errors import Fault\n"
        "from migrator.worker.client import Worker\n"
        "async def main():\n"
        "    worker = Worker()\n"
        "    with contextlib.suppress(Fault):  # there is nothing to compute\n"
        f"        await worker.{'_running()' if when == 'it starts' else 'compute(forecast_from_portions, [])'}\n"
        "    print(worker.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=PIPE)
    assert parent.stdout is not None
    pidfd = os.pidfd_open(int(await parent.stdout.readline()))
    try:
        parent.kill()
        await parent.wait()
        assert await wait_readable(pidfd, 30), "it has not ended"
    finally:
        os.close(pidfd)
