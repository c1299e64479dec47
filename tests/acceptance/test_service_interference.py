"""Others at work on the same guests and hosts, at the same time."""

from __future__ import annotations

import asyncio

import pytest

from migrator.testing import network
from migrator.testing.raw_qmp import RawQmpError
from tests.acceptance.service_site import MIB, SLOW, Witness, eventually, guest, made
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@pytest.mark.matrix
async def test_two_evacuations_want_the_same_target_and_two_guests_have_the_same_name() -> None:
    here, there, paused = guest("twin"), guest("twin", region=48 * MIB), guest("paused", region=64 * MIB)
    everyone = [here, there, paused]
    async with made([here, paused], "a", "b", "c", speed=SLOW) as site:
        await site.boot(there, "b")
        site.serve()
        await site.until_served()
        await site.known(3)
        # The name alone is ambiguous, and says who may be meant.
        status, problem = await site.try_post("migrations", guest="twin", to="c")
        assert (status, problem["code"]) == (409, "ambiguous"), problem
        assert str(here.uuid) in problem["detail"]
        assert str(there.uuid) in problem["detail"]
        async with Witness(site, everyone):
            one, two = await asyncio.gather(site.post("hosts/a/evacuate"), site.post("hosts/b/evacuate"))
            [qemu] = await site.running(paused)

            async def copies() -> bool:
                return await qemu.migration_status() == "active"

            await eventually(copies, "the migration of the one to be paused", site)
            with pytest.raises(RawQmpError):  # QEMU itself refuses it: what arrives is what was compared
                await qemu.query("device_add", driver="virtio-rng-pci", id="plugged")
            await qemu.query("stop")
            await asyncio.gather(
                *(site.ended(run["id"], "completed") for run in (one, two)),
            )
        [left] = site.instances(paused)
        assert await left.run_state() == "paused"
        assert site.where(left) == "c"
        await left.query("cont")
        await site.everyone_at(everyone, "c")
        # Nobody was ever sent to a host that is being emptied.
        assert {each["destination"] for each in await site.migrations()} == {"c"}
