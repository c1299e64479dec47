"""kill -9 at any instant of an evacuation: nobody is lost, doubled or forgotten; what was acknowledged is done once."""

from __future__ import annotations

import asyncio
import random

import pytest

from migrator.testing import network
from tests.acceptance.service_site import MIB, SLOW, Witness, guest, served
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@pytest.mark.parametrize("times", [3, pytest.param(200, marks=pytest.mark.soak)], ids=["short", "long"])
async def test_killed_at_random_instants_everything_acknowledged_is_done_once(times: int) -> None:
    seed = random.randrange(1 << 30)  # every long run looks elsewhere
    print(f"seed {seed}")  # noqa: T201 - pytest shows it with a failed test
    chance = random.Random(seed)
    machines = [guest("calm"), guest("busy", region=48 * MIB, speed=20 * MIB)]
    if times > 3:  # it stands still for long at its switch, and is slow to come there
        machines.append(guest("wild", region=48 * MIB, speed=150 * MIB))
    places = {"evacuate": ("b", "c"), "restore": ("a",)}
    async with served(machines, speed=SLOW) as site, Witness(site, machines):
        kills = begun = 0
        while kills < times:
            verb = "restore" if begun % 2 else "evacuate"
            key = f"{verb}-{begun}"
            begun += 1
            run = await site.post(f"hosts/a/{verb}", key=key)
            for _ in range(chance.randint(1, 4) if times > 3 else times):
                await asyncio.sleep(chance.uniform(0.0, 2.0))  # the instant is what is tested
                await site.restart()
                kills += 1
                # Asked for again: the same answer, and nothing more is begun.
                assert (await site.post(f"hosts/a/{verb}", key=key))["id"] == run["id"]
            await site.ended(run["id"], "completed", within=120)
            await site.everyone_at(machines, *places[verb])
            assert len((await site.get("evacuations", limit=500))["items"]) == begun
        done = [each for each in await site.migrations() if each["ended_at"] is None]
        assert done == []
