"""A service whose journal is on a PostgreSQL server: used as any other, and while the server is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine, until
from migrator.testing.postgresql import Postgres
from tests.acceptance.service_site import MIB, SLOW, LiveSite, eventually, guest, made
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@asynccontextmanager
async def on_server(
    server: Postgres, machines: list[GuestMachine], *names: str, lease: str = "60s", **how: float
) -> AsyncIterator[LiveSite]:
    """A site whose service is not started yet, and has its journal in a database of its own there.

    :param lease: by default long enough for a switch that comes while the server is away.
    """
    url = server.place(server.create()).url
    async with made(machines, *names, **how) as site:
        site.change_config(("[store]\n", f'[controller]\nlease = "{lease}"\n\n[store]\nurl = "{url}"\n'))
        yield site


@pytest.mark.matrix
async def test_serves_is_killed_and_goes_on_and_keeps_a_second_one_away(postgresql: Postgres) -> None:
    machines = [guest("moving", region=64 * MIB)]
    async with on_server(postgresql, machines, "a", "b", speed=SLOW) as site:
        site.serve()
        await site.until_served()
        await site.known(1)
        with site.crawling():
            begun = await site.post("migrations", key="k1", guest="moving", to="b")
            await site.until_state("precopy")
        await site.restart()  # at once: its lease is its own
        await site.migration_ended(begun["id"], "completed")
        assert (await site.post("migrations", key="k1", guest="moving", to="b"))["id"] == begun["id"]
        listed = await site.cli("token", "create", "ann", "--role", "viewer", "--config", str(site.config))
        assert listed.returncode == 0, listed
        second = await site.cli("serve", "--config", str(site.config))
        assert second.returncode == 1
        assert "in use by another service" in second.stderr
        await site.everyone_at(machines, "b")
        assert site.stop() == 0
        assert not (site.directory / "state" / "journal.db").exists()


async def test_while_the_server_is_away_what_runs_is_finished_and_nothing_begins() -> None:
    machines = [guest("moving", region=64 * MIB), guest("waiting")]
    with Postgres("away") as server:
        async with on_server(server, machines, speed=SLOW) as site:
            site.serve()
            await site.until_served()
            await site.known(2)
            with site.crawling():
                begun = await site.post("migrations", guest="moving", to="b")
                await site.until_state("precopy")
                server.kill()

            async def arrived() -> bool:
                return {site.where(qemu) for qemu in await site.running(machines[0])} == {"b"}

            await eventually(arrived, "the guest at its target", site)

            async def complains() -> bool:
                status, text = await site.probe("/readyz")
                return status == 503 and "the server cannot be reached" in text

            await eventually(complains, "a complaint", site)
            status, problem = await site.try_post("migrations", guest="waiting", to="b")
            assert (status, problem["code"]) == (503, "unavailable"), problem
            assert [site.where(qemu) for qemu in await site.running(machines[1])] == ["a"]
            server.start()

            async def ready() -> bool:
                return (await site.probe("/readyz"))[0] == 200

            await eventually(ready, "work is taken again", site)
            await site.migration_ended(begun["id"], "completed")
            again = await site.post("migrations", guest="waiting", to="b")
            await site.migration_ended(again["id"], "completed")
            await site.everyone_at(machines, "b")
            assert site.stop() == 0


async def test_what_would_switch_after_the_lease_is_parked_and_goes_on_when_the_server_is_back() -> None:
    machines = [guest("moving", region=64 * MIB, speed=MIB)]
    with Postgres("longer") as server:
        async with on_server(server, machines, "a", "b", lease="2s", speed=SLOW // 4) as site:
            site.serve()
            await site.until_served()
            await site.known(1)
            with site.crawling():
                begun = await site.post("migrations", guest="moving", to="b")
                await site.until_state("precopy")
                server.kill()

            def parked() -> bool:
                return "the stream waits for the next one" in site.log()

            await until(parked, what="it is parked", within=30)
            assert [site.where(qemu) for qemu in await site.running(machines[0])] == ["a"]
            server.start()
            await site.migration_ended(begun["id"], "completed")
            await site.everyone_at(machines, "b")
            assert site.stop() == 0
