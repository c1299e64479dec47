"""A service that dies while guests stand still, and migrations that only a person can end."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine, LabQemu, until
from tests.acceptance.service_site import MIB, SLOW, LiveSite, Witness, guest, served
from tests.conftest import missing

#: The whole region is sent while the guest stands still, which takes seconds on a slow link.
_LONG = '[policies.long]\nmax_downtime = "20s"\npostcopy = "never"\nmax_throttle = "0%"'


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


async def states(site: LiveSite, machine: GuestMachine) -> dict[str, LabQemu]:
    """Its processes by their run states."""
    found = {}
    for qemu in site.instances(machine):
        try:
            found[await qemu.run_state()] = qemu
        except OSError:
            pass  # it has just ended, or is not up yet
    return found


async def killed_at_the_switch(
    site: LiveSite, machine: GuestMachine, to: str
) -> tuple[dict[str, Any], LabQemu]:
    """Begin a migration and kill the service while the guest stands still; returns when both ends are complete.

    Nobody runs the guest then, and nobody will but a service that looks after it. With the source's process.
    """
    [source] = await site.running(machine)
    # A question is no way to see it: QEMU answers none while it sends the rest, and then the service ends it.
    async with source.monitor(timeout=30) as monitor:
        begun = await site.post("migrations", guest=machine.name, to=to, policy="long")
        while (await monitor.event("MIGRATION"))["data"]["status"] != "device":
            pass  # before that it waits for the service
        site.kill()

    async def complete() -> bool:
        return set(await states(site, machine)) == {"postmigrate", "paused"}

    await until(complete, what="both ends complete", within=30)
    return begun, (await states(site, machine))["postmigrate"]


async def held(site: LiveSite, identifier: str) -> Any:
    async def is_held() -> bool:
        return bool((await site.get(f"migrations/{identifier}"))["state"] == "held")

    await until(is_held, what=f"{identifier} held", within=20)
    return await site.get(f"migrations/{identifier}")


async def test_killed_at_the_switch_the_guest_runs_soon_after_the_start_and_what_cannot_be_known_is_held(
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine = guest("db", region=64 * MIB, speed=200 * MIB)
    async with served([machine], speed=SLOW, extra=_LONG) as site, Witness(site, [machine]):
        begun, _ = await killed_at_the_switch(site, machine, "b")
        assert await site.running(machine) == []
        started = time.monotonic()
        site.serve()

        async def runs() -> bool:
            return bool(await site.running(machine))

        await until(runs, what="the guest to run again", within=20)
        took = time.monotonic() - started
        await site.until_served()
        served_after = time.monotonic() - started
        with capsys.disabled():
            print(f"\nfrom the service's start until the guest runs again: {took:.2f} s")  # noqa: T201
        assert took < max(5, 2 * served_after), "a busy machine delays both"
        await site.migration_ended(begun["id"], "completed")
        await site.everyone_at([machine], "b")
        await site.known(1)

        # Once more, and the source dies while nobody watches: it may have run on after the switch.
        begun, source = await killed_at_the_switch(site, machine, "c")
        os.kill(source.pid, signal.SIGKILL)
        site.serve()
        await site.until_served()
        document = await held(site, begun["id"])
        assert document["held_code"] == "source-gone-unwatched"
        assert await site.running(machine) == []
        await site.restart()
        assert (await held(site, begun["id"]))["held_code"] == "source-gone-unwatched"
        assert await site.running(machine) == []
        shown = await site.cli("status")
        assert begun["id"] in shown.stdout
        assert "held" in shown.stdout

        refused = await site.cli("resolve", begun["id"], "--guest-at", "source")
        assert refused.returncode != 0
        assert "source's QEMU does not answer" in refused.stderr + refused.stdout
        assert (await site.get(f"migrations/{begun['id']}"))["state"] == "held"
        taken = await site.cli("resolve", begun["id"], "--guest-at", "destination")
        assert taken.returncode == 0, (taken, site.log()[-4000:])
        ended = await site.get(f"migrations/{begun['id']}")
        assert ended["state"] == "completed"
        assert ended["ended_at"] is not None
        await site.everyone_at([machine], "c")
        again, problem = await site.try_post(f"migrations/{begun['id']}/resolve", guest_at="source")
        assert again in (404, 409), problem
        # It is a guest like every other again.
        moved = await site.post("migrations", guest=machine.name, to="a", policy="offline")
        await site.migration_ended(moved["id"], "completed")
        await site.everyone_at([machine], "a")


async def test_guest_whose_process_was_killed_is_held_until_a_person_says_that_it_is_lost() -> None:
    dies, stays = guest("dies", region=64 * MIB, speed=30 * MIB), guest("stays")
    async with served([dies, stays], speed=SLOW) as site:
        begun = await site.post("hosts/a/evacuate", policy="gentle")

        async def copies() -> Any:
            found = [each for each in await site.migrations("precopy") if each["guest_name"] == "dies"]
            return found[0] if found else None

        await until(copies, what="its migration", within=60)  # it does not converge
        [source] = await site.running(dies)
        os.kill(source.pid, signal.SIGKILL)
        migration = (await site.until_state("held"))["id"]
        assert (await held(site, migration))["held_code"] == "source-died"

        ended = await site.ended(begun["id"], "incomplete")
        assert {each["guest_name"]: each["standing"] for each in ended["guests"]} == {
            "dies": "held",
            "stays": "moved",
        }
        assert "dies: the source's process died" in ended["error"]
        await site.restart()
        await held(site, migration)
        for where in ("source", "destination"):
            status, problem = await site.try_post(f"migrations/{migration}/resolve", guest_at=where)
            assert (status, problem["code"]) == (409, "conflict"), problem
        await site.post(f"migrations/{migration}/resolve", guest_at="lost")
        assert (await site.get(f"migrations/{migration}"))["state"] == "failed"
        assert await site.migrations("held") == []
        await site.everyone_at([stays], "b", "c")
        assert site.instances(dies) == []
