"""Two controllers of a real site while their database is away or fails over, and while they are upgraded in turn."""

from __future__ import annotations

import asyncio

import pytest

from migrator.testing import network
from migrator.testing.postgresql import Postgres
from tests.acceptance.two_controllers import LEASE_SECONDS, Standstills, two_controllers
from tests.conftest import missing

pytestmark = pytest.mark.matrix


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@pytest.mark.timeout(400)
async def test_a_database_that_fails_over_in_the_middle_of_an_evacuation_costs_no_guest_and_no_command() -> (
    None
):
    with Postgres("first") as first, first.standby("second") as second:
        # What only the lost one knew would be lost.
        first.sql("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        name = first.create()
        hosts = "&".join(f"host={each.directory}:5432" for each in (first, second))
        url = f"postgresql+asyncpg://migrator@/{name}?{hosts}"

        async def fail_over() -> None:
            first.kill()
            await asyncio.to_thread(second.promote)

        async with two_controllers(first, url=url) as both, Standstills(both.site, both.guests) as watch:
            await both.evacuation(0, watch=watch, meanwhile=fail_over)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_database_that_is_away_for_longer_than_the_leases_costs_no_guest_and_no_command(
    how: str,
) -> None:
    with Postgres("away") as server:

        async def go_away() -> None:
            if how == "killed":
                server.kill()
            else:
                server.freeze()
            await asyncio.sleep(2 * LEASE_SECONDS)  # for so long it is away
            if how == "killed":
                await asyncio.to_thread(server.start)
            else:
                server.thaw()

        async with two_controllers(server) as both, Standstills(both.site, both.guests) as watch:
            await both.evacuation(0, watch=watch, meanwhile=go_away)


@pytest.mark.timeout(400)
async def test_controllers_that_are_stopped_and_started_in_turn_lose_nothing(postgresql: Postgres) -> None:
    async with two_controllers(postgresql) as both, Standstills(both.site, both.guests) as watch:

        async def in_turn() -> None:
            acting = await both.ask_acting()
            await both.stop(acting)
            await both.ask_acting()
            await both.stop({"one": "two", "two": "one"}[acting])

        await both.evacuation(0, watch=watch, meanwhile=in_turn)
