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
from migrator.testing.lab import GuestMachine, Habit, LabQemu, RawMonitor, until
from migrator.testing.site import LabSite
from tests.conftest import missing

MIB = 1 << 20
FAST, SLOW = 400 * MIB, 40 * MIB


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


def guest(name: str, *, region: int = 32 * MIB, speed: int = 4 * MIB, **how: Any) -> GuestMachine:
    return GuestMachine(
        name=name,
        memory_bytes=128 * MIB,
        habit=Habit(region_bytes=region, bytes_per_second=speed),
        image_locking="off",
        **how,
    )


@asynccontextmanager
async def served(*names: str, speed: int = FAST, **how: Any) -> AsyncIterator[LabSite]:
    with LabSite(*(names or ("a", "b", "c")), bytes_per_second=speed, **how) as site:
        site.serve()
        await site.until_served()
        await known(site)
        yield site


async def known(site: LabSite, guests: int = 0) -> None:
    """Every host was looked at, and so many guests are known."""

    def seen() -> bool:
        hosts = ask(site, "hosts")["items"]
        return all(host["up"] for host in hosts) and len(ask(site, "guests")["items"]) >= guests

    await until(seen, what="the hosts", within=30)


def ask(site: LabSite, *words: str) -> Any:
    done = site.command(*words, "--json")
    assert done.returncode == 0, done
    return json.loads(done.stdout)


async def filled(site: LabSite, machines: list[GuestMachine], host: str = "a") -> list[LabQemu]:
    return await asyncio.gather(*(site.boot(machine, host) for machine in machines))


async def command(site: LabSite, *words: str) -> Any:
    return await asyncio.to_thread(site.command, *words)


async def runs_once(site: LabSite, machine: GuestMachine) -> LabQemu:
    """The one process in which it runs, its memory checked."""
    running = await site.running(machine)
    assert len(running) == 1, (machine.name, running, site.log())
    await running[0].check_memory()
    return running[0]


class Witness:
    """Looks again and again whether somebody runs twice."""

    def __init__(self, site: LabSite, machines: list[GuestMachine]) -> None:
        self._site, self._machines = site, machines
        self.doubled: list[str] = []
        self._task = asyncio.create_task(self._look(), name="witness")

    async def _look(self) -> None:
        while True:
            for machine in self._machines:
                first = await self._site.running(machine)
                if len(first) > 1:
                    # Two looks at different moments are no proof: both again.
                    again = await self._site.running(machine)
                    if len(again) > 1:
                        self.doubled.append(machine.name)
            await asyncio.sleep(0.05)

    async def verdict(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled() and (error := self._task.exception()):
            raise error
        assert self.doubled == []


async def test_emptied_as_planned_and_brought_home() -> None:
    machines = [guest(name) for name in ("web", "two words", "a'b\"c$(touch /tmp/owned)", "line\nbreak")]
    async with served() as site:
        begun = await filled(site, machines)
        site.command("status")
        plan = ask(site, "plan", "a")
        assert {each["guest_name"] for each in plan["guests"]} == {machine.name for machine in machines}
        assert all(each["target"] in ("b", "c") for each in plan["guests"]), plan
        witness = Witness(site, machines)
        done = await command(site, "evacuate", "a", "--wait")
        assert done.returncode == 0, (done.stdout, done.stderr, site.log())
        for machine in machines:
            assert site.where(await runs_once(site, machine)) in ("b", "c")
        hosts = {host["host"]: host for host in ask(site, "hosts")["items"]}
        assert hosts["a"]["state"] == "maintenance"
        assert not [argv for _, argv in site.processes() if "-incoming" in argv and "defer" not in argv]
        assert len(list(site.processes())) == len(machines)
        done = await command(site, "restore", "a", "--wait")
        assert done.returncode == 0, (done.stdout, done.stderr, site.log())
        for machine in machines:
            assert site.where(await runs_once(site, machine)) == "a"
        for qemu in begun:  # by the path that it was started with
            async with RawMonitor(qemu.qmp) as monitor:
                assert (await monitor.execute("query-name"))["name"] == qemu.machine.name
        await witness.verdict()
        assert not Path("/tmp/owned").exists()


async def test_killed_again_and_again_it_goes_on_and_nobody_is_lost_or_doubled() -> None:
    chance = random.Random(7)
    machines = [guest(f"vm-{number}", region=64 * MIB) for number in range(4)]
    async with served(speed=SLOW) as site:
        await filled(site, machines)
        await known(site, len(machines))
        begun = ask(site, "evacuate", "a")
        witness = Witness(site, machines)
        for _ in range(6):
            await asyncio.sleep(chance.uniform(0.2, 2.0))  # the instant is what is tested
            site.kill()
            site.serve()
            await site.until_served()
        await ended(site, begun["id"], "completed")
        await witness.verdict()
        for machine in machines:
            assert site.where(await runs_once(site, machine)) in ("b", "c")
        assert len(list(site.processes())) == len(machines), site.log()


async def ended(site: LabSite, identifier: str, state: str, within: float = 90) -> Any:
    found: dict[str, Any] = {}

    def over() -> bool:
        nonlocal found
        done = site.command("status", identifier, "--json")
        found = json.loads(done.stdout) if done.stdout else {}
        return bool(found.get("ended_at"))

    try:
        await until(over, what=f"the end of {identifier}", within=within)
    except TimeoutError:
        raise AssertionError((found, site.log())) from None
    assert found["state"] == state, (found, site.log())
    return found


async def test_stopped_it_parks_and_started_again_it_goes_on() -> None:
    machines = [guest(f"vm-{number}", region=64 * MIB) for number in range(3)]
    async with served(speed=SLOW) as site:
        await filled(site, machines)
        await known(site, len(machines))
        begun = ask(site, "evacuate", "a")
        await until(lambda: bool(moving(site)), what="a migration", within=20)
        assert site.stop() == 0, site.log()
        # Parked: nobody moves by itself, and everybody runs.
        before = {machine.name: site.where(await runs_once(site, machine)) for machine in machines}
        after = time.monotonic() + 2
        while time.monotonic() < after:
            for machine in machines:
                assert len(await site.running(machine)) == 1
            await asyncio.sleep(0.1)
        assert before == {machine.name: site.where(await runs_once(site, machine)) for machine in machines}
        site.serve()
        await site.until_served()
        await ended(site, begun["id"], "completed")
        for machine in machines:
            assert site.where(await runs_once(site, machine)) in ("b", "c")


def moving(site: LabSite) -> list[Any]:
    found = ask(site, "status")
    return [one for one in found["migrations"] if one["state"] == "precopy"]


async def test_cancelled_everyone_runs_somewhere_and_the_host_is_active_again() -> None:
    machines = [guest(f"vm-{number}", region=64 * MIB) for number in range(4)]
    async with served(speed=SLOW) as site:
        await filled(site, machines)
        await known(site, len(machines))
        begun = ask(site, "evacuate", "a")
        await until(lambda: bool(moving(site)), what="a migration", within=20)
        done = await command(site, "cancel", begun["id"])
        assert done.returncode == 0, done
        await ended(site, begun["id"], "cancelled")
        places = [site.where(await runs_once(site, machine)) for machine in machines]
        assert "a" in places
        assert {host["host"]: host["state"] for host in ask(site, "hosts")["items"]}["a"] == "active"
        assert len(list(site.processes())) == len(machines), site.log()


async def test_guest_that_cannot_move_stays_with_its_reason_and_the_rest_goes(tmp_path: Path) -> None:
    folder = ("-blockdev", f"driver=vvfat,node-name=folder,dir={tmp_path},rw=on")
    stays, goes = guest("stays", extra=folder), guest("goes")
    async with served() as site:
        await filled(site, [stays, goes])
        await known(site, 2)
        done = await command(site, "evacuate", "a", "--wait")
        assert done.returncode == 1, (done, site.log())
        assert "does not support live migration" in done.stdout
        assert site.where(await runs_once(site, stays)) == "a"
        assert site.where(await runs_once(site, goes)) in ("b", "c")


async def test_guest_that_powers_off_on_the_way_is_gone_and_no_failure() -> None:
    busy, off = guest("busy", region=64 * MIB), guest("off", region=64 * MIB)
    async with served(speed=SLOW) as site:
        await filled(site, [busy, off])
        await known(site, 2)
        begun = ask(site, "evacuate", "a")
        await until(lambda: bool(moving(site)), what="a migration", within=20)
        for qemu in await site.running(off):
            await qemu.query("quit")
        found = await ended(site, begun["id"], "completed")
        assert {each["guest_name"]: each["standing"] for each in found["guests"]} == {
            "busy": "moved",
            "off": "gone",
        }
        assert len(list(site.processes())) == 1
