"""A host is emptied and filled again by a real service over real QEMUs, as an operator would do it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine, LabQemu, RawMonitor
from migrator.testing.site import LabSite
from tests.acceptance.service_site import FAST, MIB, SLOW, LiveSite, Witness, guest
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@asynccontextmanager
async def served(*names: str, speed: int = FAST, **how: Any) -> AsyncIterator[LiveSite]:
    with LiveSite(*(names or ("a", "b", "c")), bytes_per_second=speed, **how) as site:
        try:
            site.serve()
            await site.until_served()
            await site.known(0)
            yield site
        finally:
            await site.disconnect()


def ask(site: LabSite, *words: str) -> Any:
    done = site.command(*words, "--json")
    assert done.returncode == 0, done
    return json.loads(done.stdout)


async def filled(site: LabSite, machines: list[GuestMachine], host: str = "a") -> list[LabQemu]:
    return await asyncio.gather(*(site.boot(machine, host) for machine in machines))


async def command(site: LabSite, *words: str) -> Any:
    return await asyncio.to_thread(site.command, *words)


async def test_emptied_as_planned_and_brought_home() -> None:
    machines = [guest(name) for name in ("two words, a'b\"c$(touch /tmp/owned)", "line\nbreak")]
    async with served() as site:
        begun = await filled(site, machines)
        await site.known(len(machines))
        plan = ask(site, "plan", "a")
        assert {each["guest_name"] for each in plan["guests"]} == {machine.name for machine in machines}
        assert all(each["target"] in ("b", "c") for each in plan["guests"]), plan
        async with Witness(site, machines):
            left = [site.instances(machine)[0] for machine in machines]
            done = await command(site, "evacuate", "a", "--wait")
            assert done.returncode == 0, (done.stdout, done.stderr, site.log())
            # At the paths of the processes that they have left others answer by now, and are not taken for those.
            assert [await qemu.runs() for qemu in left] == [False] * len(left)
            for machine in machines:
                assert site.where(await site.runs_once(machine)) in ("b", "c")
            hosts = {host["host"]: host for host in ask(site, "hosts")["items"]}
            assert hosts["a"]["state"] == "maintenance"
            assert not [argv for _, argv in site.processes() if "-incoming" in argv and "defer" not in argv]
            assert len(list(site.processes())) == len(machines)
            done = await command(site, "restore", "a", "--wait")
            assert done.returncode == 0, (done.stdout, done.stderr, site.log())
            for machine in machines:
                assert site.where(await site.runs_once(machine)) == "a"
            for qemu in begun:  # by the path that it was started with
                async with RawMonitor(qemu.qmp) as monitor:
                    assert (await monitor.execute("query-name"))["name"] == qemu.machine.name
        assert not Path("/tmp/owned").exists()


@pytest.mark.matrix
async def test_killed_again_and_again_it_goes_on_and_nobody_is_lost_or_doubled() -> None:
    chance = random.Random(7)
    machines = [guest(f"vm-{number}", region=64 * MIB) for number in range(4)]
    async with served(speed=SLOW) as site:
        await filled(site, machines)
        await site.known(len(machines))
        begun = ask(site, "evacuate", "a")
        async with Witness(site, machines):
            for _ in range(4):
                await asyncio.sleep(chance.uniform(0.2, 2.0))  # the instant is what is tested
                site.kill()
                site.serve()
                await site.until_served()
            await site.ended(begun["id"], "completed", within=90)
        for machine in machines:
            assert site.where(await site.runs_once(machine)) in ("b", "c")
        assert len(list(site.processes())) == len(machines), site.log()


async def test_stopped_it_parks_and_started_again_it_goes_on() -> None:
    machines = [guest(f"vm-{number}", region=48 * MIB) for number in range(2)]
    async with served(speed=SLOW) as site:
        await filled(site, machines)
        await site.known(len(machines))
        with site.crawling():
            begun = ask(site, "evacuate", "a")
            await site.until_state("precopy")
            assert site.stop() == 0, site.log()
        # Parked: nobody moves by itself, and everybody runs.
        before = {machine.name: site.where(await site.runs_once(machine)) for machine in machines}
        after = time.monotonic() + 2
        while time.monotonic() < after:
            for machine in machines:
                assert len(await site.running(machine)) == 1
            await asyncio.sleep(0.4)
        assert before == {machine.name: site.where(await site.runs_once(machine)) for machine in machines}
        site.serve()
        await site.until_served()
        await site.ended(begun["id"], "completed", within=90)
        for machine in machines:
            assert site.where(await site.runs_once(machine)) in ("b", "c")


async def test_cancelled_everyone_runs_somewhere_and_the_host_is_active_again() -> None:
    machines = [guest(f"vm-{number}") for number in range(2)]
    async with served(speed=SLOW // 4) as site:  # it goes on for as long as a command takes on a busy machine
        await filled(site, machines)
        await site.known(len(machines))
        with site.crawling():
            begun = ask(site, "evacuate", "a")
            await site.until_state("precopy")
            done = await command(site, "cancel", begun["id"])
        assert done.returncode == 0, done
        await site.ended(begun["id"], "cancelled", within=90)
        places = [site.where(await site.runs_once(machine)) for machine in machines]
        assert "a" in places
        assert {host["host"]: host["state"] for host in ask(site, "hosts")["items"]}["a"] == "active"
        assert len(list(site.processes())) == len(machines), site.log()


@pytest.mark.matrix
async def test_guest_that_cannot_move_stays_with_its_reason_and_the_rest_goes(tmp_path: Path) -> None:
    folder = ("-blockdev", f"driver=vvfat,node-name=folder,dir={tmp_path},rw=on")
    stays, goes = guest("stays", extra=folder), guest("goes")
    async with served() as site:
        await filled(site, [stays, goes])
        await site.known(2)
        done = await command(site, "evacuate", "a", "--wait")
        assert done.returncode == 1, (done, site.log())
        assert "does not support live migration" in done.stdout
        assert site.where(await site.runs_once(stays)) == "a"
        assert site.where(await site.runs_once(goes)) in ("b", "c")


@pytest.mark.matrix
async def test_guest_that_powers_off_on_the_way_is_gone_and_no_failure() -> None:
    busy, off = guest("busy", region=64 * MIB), guest("off", region=64 * MIB)
    async with served(speed=SLOW) as site:
        await filled(site, [busy, off])
        await site.known(2)
        with site.crawling():
            begun = ask(site, "evacuate", "a")
            await site.until_state("precopy")
            for qemu in await site.running(off):
                await qemu.query("quit")
        found = await site.ended(begun["id"], "completed", within=90)
        assert {each["guest_name"]: each["standing"] for each in found["guests"]} == {
            "busy": "moved",
            "off": "gone",
        }
        assert len(list(site.processes())) == 1
