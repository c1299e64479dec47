"""The service is killed while a guest moves: nobody stands still until it is back, and the migration begins again."""

from __future__ import annotations

import asyncio

import pytest

from migrator.testing import network
from migrator.testing.lab import until
from tests.acceptance.service_site import MIB, Witness, guest, served
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@pytest.mark.matrix
async def test_guest_whose_service_is_away_runs_on_and_its_migration_goes_on_or_begins_anew() -> None:
    machine = guest("busy", region=48 * MIB, speed=4 * MIB)
    async with served([machine], speed=10 * MIB) as site, Witness(site, [machine]):
        begun = await site.post("migrations", guest=str(machine.uuid), to="b")
        await site.until_state("precopy")
        (source,) = [each for each in site.instances(machine) if site.where(each) == "a"]

        async def parked() -> bool:
            found = await source.query("query-migrate-parameters")
            return int(found["max-bandwidth"]) == 4096

        async def goes_on() -> bool:
            return not await parked()

        assert await asyncio.to_thread(site.stop) == 0
        await until(parked, what="the guard holds the stream back")
        assert (await source.migration_status(), await source.run_state()) == ("active", "running")
        site.serve()
        await until(goes_on, what="the next controller goes on")

        site.kill()
        await until(parked, what="the guard holds the stream back")
        # As if there were next to nothing to send any more.
        await source.query("migrate-set-parameters", {"max-bandwidth": 1 << 30, "downtime-limit": 2000})

        async def runs_on() -> bool:
            return await source.migration_status() == "cancelled" and await source.run_state() == "running"

        await until(runs_on, what="the guest goes on at the source", within=60)
        await site.restart()
        await site.migration_ended(begun["id"], "completed")
        await site.everyone_at([machine], "b")
        assert "the guard had it go on at the source" in str(await site.events("migration", begun["id"]))
