"""Requests are answered by a process of their own: what becomes of it costs no guest anything, nor the other way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import httpx2
import pytest

from migrator.testing.lab import until
from tests.acceptance.service_site import MIB, SLOW, LiveSite, guest, made, served


def entrance_of(site: LiveSite) -> int:
    """Process id of the process that answers; 0: there is none now."""
    assert site.service is not None
    own = site.service.pid
    for children in Path(f"/proc/{own}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            with contextlib.suppress(OSError):
                if b"migrator.service.entrance" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return child
    return 0


async def entrance_there(site: LiveSite) -> int:
    """Process id of the process that answers, once there is one: to send it a signal."""
    found: list[int] = []

    def there() -> bool:
        found.append(entrance_of(site))
        return found[-1] != 0  # a signal to 0 would be one to ourselves

    await until(there, what="a process that answers", within=30)
    return found[-1]


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


async def answers(site: LiveSite, status: int = 200) -> bool:
    """Whether the service says of itself that it lives."""
    try:
        return (await site.probe("/healthz"))[0] == status
    except httpx2.TransportError:
        return False


async def test_a_migration_and_who_waits_for_it_go_on_when_what_answers_is_killed() -> None:
    machine = guest("web", region=48 * MIB, speed=2 * MIB)
    async with served([machine], speed=SLOW) as site:
        with site.crawling():
            waiting = asyncio.create_task(site.cli("migrate", "web", "--to", "b", "--wait"))
            under_way = await site.until_state("precopy")
            first = entrance_of(site)
            os.kill(first, signal.SIGKILL)
        await until(lambda: answers(site), what="answers from another process")
        assert entrance_of(site) not in (0, first)
        assert [each["why"] for each in site.said("entrances have ended")] == [
            "it has closed the connection; ended by SIGKILL"
        ]
        # What was said while nobody answered is there too: who waits has missed nothing.
        done = await waiting
        assert done.returncode == 0, done
        told = await site.events("migration", under_way["id"])
        assert [each["sequence"] for each in told] == list(range(1, len(told) + 1))
        assert (await site.get(f"migrations/{under_way['id']}"))["state"] == "completed"
        assert (await site.probe("/readyz"))[0] == 200
        await site.everyone_at([machine], "b")


async def test_a_service_that_is_killed_takes_what_answers_with_it() -> None:
    async with made([]) as site:
        site.serve()
        await site.until_served()
        entrance = entrance_of(site)
        # Not even one that does not run outlives it, or keeps its socket from the next service.
        os.kill(entrance, signal.SIGSTOP)
        site.kill()
        await until(lambda: gone(entrance), what="the end of the process that answers")
        site.serve()
        await site.until_served()


async def test_a_service_that_does_not_run_is_said_not_to() -> None:
    async with made([]) as site:
        site.serve()
        await site.until_served()
        await site.known(0)
        assert site.service is not None
        site.service.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: answers(site, 503), what="the truth", within=30)
            status, text = await site.probe("/healthz")
            assert (status, text[:56]) == (503, "the process that drives migrations has not answered for ")
            assert (await site.probe("/readyz"))[0] == 503
            assert len((await site.get("hosts"))["items"]) == 3, "what it said last is shown"
        finally:
            site.service.send_signal(signal.SIGCONT)
        await until(lambda: answers(site), what="a service that runs again")
        await until(
            lambda: bool(site.said("the process that drives migrations answers again")), what="the log"
        )
        assert not site.said("entrances"), "one that did not run does not take the other for dead"


@pytest.mark.matrix
async def test_what_answers_but_does_not_run_is_said_not_to_and_begun_anew() -> None:
    machine = guest("web", region=16 * MIB, speed=2 * MIB)
    async with served([machine]) as site:
        await site.post("hosts/a/evacuate")
        first = entrance_of(site)
        os.kill(first, signal.SIGSTOP)
        await until(lambda: bool(site.said("entrances do not answer")), what="the log", within=10)
        await until(lambda: gone(first), what="the end of the process that does not answer", within=20)
        await until(lambda: answers(site), what="answers from another process", within=10)
        # Meanwhile the service drove.
        await site.everyone_at([machine], "b", "c")


async def test_a_stopped_service_ends_streams_in_order_and_leaves_no_process() -> None:
    async with made([]) as site:
        site.serve()
        await site.until_served()
        entrance = entrance_of(site)
        transport = httpx2.AsyncHTTPTransport(uds=str(site.directory / "api.sock"), verify=False)
        async with (
            httpx2.AsyncClient(transport=transport, base_url="http://migrator", timeout=30) as client,
            client.stream("GET", "/api/v1/events?after=0") as stream,
        ):
            assert stream.status_code == 200
            stopping = asyncio.create_task(asyncio.to_thread(site.stop))
            async for _ in stream.aiter_raw():
                pass  # to its end, which is no error
            assert await stopping == 0
        assert gone(entrance)
        assert not (site.directory / "api.sock").exists()
        assert "Traceback" not in site.log()
