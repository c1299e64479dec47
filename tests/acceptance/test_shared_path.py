"""Guests that leave a host together over a path that is narrower than its card says."""

from __future__ import annotations

import asyncio

import pytest

from migrator.core.migration.convergence_state import ActionKind
from migrator.testing import network
from migrator.testing.lab import GuestMachine, Habit
from tests.acceptance.service_site import MIB, LiveSite
from tests.conftest import missing

#: 100 Mbit/s.
PATH = 12.5e6
POLICY = '[policies.quick]\nmax_downtime = "500ms"\nmax_throttle = "80%"\npostcopy = "allow"'


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@pytest.mark.matrix
@pytest.mark.timeout(300)
async def test_idle_guest_beside_two_busy_streams_is_neither_throttled_nor_sent_to_postcopy() -> None:
    busy = Habit(region_bytes=24 * MIB, bytes_per_second=2e6)
    idle = Habit(region_bytes=24 * MIB, bytes_per_second=0.2e6)
    machines = [GuestMachine(name=f"busy-{number}", habit=busy) for number in range(2)]
    machines.append(GuestMachine(name="idle", habit=idle))
    with LiveSite("a", "b", extra=POLICY) as site:
        site.host("a").set_speed(PATH)
        try:
            site.serve()
            await site.until_served()
            await asyncio.gather(*(site.boot(machine, "a") for machine in machines))
            await site.known(len(machines))
            before = await site.post("plans", host="a")
            assert [each["basis"] for each in before["paths"]] == ["assumed"], before["paths"]
            assert before["takes_p90_seconds"] > before["takes_p50_seconds"]
            asked = await site.post("hosts/a/evacuate", policy="quick")
            await site.ended(asked["id"], "completed", within=120)
            for guest in (await site.get(f"evacuations/{asked['id']}"))["guests"]:
                one = await site.get(f"migrations/{guest['migration']}")
                acts = {each["action"] for each in one["decisions"]}
                assert one["mode"] == "precopy", one["decisions"]
                if guest["guest_name"] == "idle":
                    assert ActionKind.THROTTLE not in acts, one["decisions"]
            await site.everyone_at(machines, "b")
            # It goes by what was seen, and not by the card any more.
            host = next(each for each in (await site.get("hosts"))["items"] if each["host"] == "a")
            assert host["state"] == "maintenance"
            await site.restart()
            asked = await site.post("hosts/a/restore")
            await site.ended(asked["id"], "completed", within=120)
            after = await site.post("plans", host="a")
            found = after["paths"][0]
            assert found["basis"] == "measured", after["paths"]
            assert 0.6 * PATH < found["bytes_per_second"] < PATH
        finally:
            await site.disconnect()
