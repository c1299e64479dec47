"""Guests of one group are switched together, on real QEMUs."""

from __future__ import annotations

import os
import signal
from datetime import datetime, timedelta
from typing import Any

import pytest

from migrator.testing.lab import until
from migrator.testing.postgresql import Postgres
from tests.acceptance.service_site import MIB, LiveSite, freeze, guest, served, thaw
from tests.acceptance.two_controllers import two_controllers

pytestmark = pytest.mark.timeout(180)

GROUP = '[[guests]]\nmatch = "*"\ngroup = "shop"\n'
#: An idle guest, one that writes a little, and one that writes all the time.
MACHINES = (
    guest("front", region=8 * MIB, speed=MIB // 8),
    guest("web", region=16 * MIB, speed=4 * MIB),
    guest("db", region=48 * MIB, speed=16 * MIB),
)

#: Within a second and half of one where nothing else runs.
_TOGETHER_SECONDS = 3.0


def switched_at(one: dict[str, Any]) -> datetime:
    (switch,) = [each for each in one["decisions"] if each["action"] == "hand-over"]
    return datetime.fromisoformat(one["started_at"]) + timedelta(seconds=switch["at_seconds"])


async def moved(site: LiveSite, run: dict[str, Any]) -> list[dict[str, Any]]:
    return [await site.get(f"migrations/{each['migration']}") for each in run["guests"]]


async def test_guests_of_a_group_that_leave_a_host_are_switched_together() -> None:
    async with served(MACHINES, "a", "b", speed=60 * MIB, extra=GROUP) as site:
        asked = await site.post("hosts/a/evacuate")
        run = await site.ended(asked["id"], "completed")
        migrations = await moved(site, run)
        assert {each["moved_with"] for each in migrations} == {"shop"}
        times = sorted(map(switched_at, migrations))
        spread = (times[-1] - times[0]).total_seconds()
        told = {each["guest_name"]: each["decisions"] for each in migrations}
        assert spread < _TOGETHER_SECONDS, (spread, told)
        for each in migrations:
            assert each["downtime_seconds"] < _TOGETHER_SECONDS, each["decisions"]
            assert each["mode"] == "precopy"
        await site.everyone_at(MACHINES, "b")


@pytest.mark.matrix
async def test_guests_of_a_group_are_switched_together_where_two_controllers_share_the_work(
    postgresql: Postgres,
) -> None:
    async with two_controllers(postgresql, guests=MACHINES, rules=f"{GROUP}\n") as both:
        site = both.site
        await site.known(len(MACHINES))
        asked = await site.post("hosts/a/evacuate")
        run = await site.ended(asked["id"], "completed")
        migrations = await moved(site, run)
        assert len({each["controller"] for each in migrations}) == 1, "one drives all of them"
        times = sorted(map(switched_at, migrations))
        assert (times[-1] - times[0]).total_seconds() < _TOGETHER_SECONDS
        await site.everyone_at(MACHINES, "b")
        # And back, with the one that acts killed while one of them waits for the others.
        await site.post("hosts/a/activate")
        asked = await site.post("migrations", group="shop", to="a")

        async def one_waits() -> bool:
            return any(each["switch_in_seconds"] is not None for each in await site.migrations())

        await until(one_waits, what="a guest that waits for its group", within=60)
        gone = await both.ask_acting()
        both.kill(gone)

        async def another_acts() -> bool:
            return await both.acting() not in ("", gone)

        await until(another_acts, what="another controller", within=30)
        await both.ask_acting()
        run = await site.ended(asked["id"], "completed", within=90)
        assert {each["standing"] for each in run["guests"]} == {"moved"}
        await site.everyone_at(MACHINES, "a")


@pytest.mark.matrix
async def test_a_controller_that_is_killed_leaves_guests_that_wait_in_one_place_each() -> None:
    async with served(MACHINES, "a", "b", speed=60 * MIB, extra=GROUP) as site:
        asked = await site.post("migrations", group="shop", to="b")
        assert (asked["kind"], asked["group"]) == ("group", "shop")

        async def one_waits() -> bool:
            return any(each["switch_in_seconds"] is not None for each in await site.migrations())

        await until(one_waits, what="a guest that waits for its group", within=60)
        await site.restart()
        run = await site.ended(asked["id"], "completed", within=90)
        assert {each["standing"] for each in run["guests"]} == {"moved"}
        await site.everyone_at(MACHINES, "b")


@pytest.mark.matrix
@pytest.mark.parametrize("otherwise", ["go", "stay"])
async def test_a_guest_that_answers_no_more_is_waited_for_as_long_as_its_group_says(otherwise: str) -> None:
    rules = f'{GROUP}[groups.shop]\nwait = "2s"\notherwise = "{otherwise}"\n'
    async with served(MACHINES, "a", "b", speed=60 * MIB, extra=rules) as site:
        (db,) = site.instances(MACHINES[2])
        asked = await site.post("migrations", group="shop", to="b")

        async def each(*names: str) -> list[dict[str, Any]]:
            return [one for one in await site.migrations() if one["guest_name"] in names]

        async def copies() -> bool:
            return any(one["state"] == "precopy" for one in await each("db"))

        await until(copies, what="a guest that is copied", within=60)
        freeze(db.pid)
        try:
            # All or none before anybody is switched, and the others once it has been waited for.
            state = "completed" if otherwise == "go" else "cancelled"

            async def over() -> bool:
                return [one["state"] for one in await each("front", "web")] == [state] * 2

            await until(over, what="the others", within=90)
        finally:
            thaw(db.pid)
        run = await site.ended(asked["id"], "completed" if otherwise == "go" else "incomplete", within=120)
        told = [one["reason"] for each in await moved(site, run) for one in each["decisions"]]
        if otherwise == "go":
            waited = "db was not switched in the 2.0 s that its group shop waits: it is moved all the same"
            assert waited in told, told
        await site.everyone_at(MACHINES, "b" if otherwise == "go" else "a")


@pytest.mark.matrix
@pytest.mark.parametrize("otherwise", ["go", "stay"])
async def test_a_guest_whose_target_dies_while_the_others_wait_has_them_wait_on(otherwise: str) -> None:
    rules = f'{GROUP}[groups.shop]\notherwise = "{otherwise}"\n'
    async with served(MACHINES, "a", "b", speed=60 * MIB, extra=rules) as site:
        site.change_config(("[limits]\n", '[limits]\nfirst_pause = "200ms"\nattempts = 9\n'))
        await site.restart()
        await site.known(len(MACHINES))
        asked = await site.post("migrations", group="shop", to="b")

        async def one_waits() -> bool:
            states = {each["guest_name"]: each for each in await site.migrations()}
            waits = any(each["switch_in_seconds"] is not None for each in states.values())
            return waits and states.get("db", {}).get("state") == "precopy"

        await until(one_waits, what="a guest that waits for one that is copied", within=60)
        (waiting,) = [
            pid for pid, argv in site.processes() if "-incoming" in argv and str(MACHINES[2].uuid) in argv
        ]
        os.kill(waiting, signal.SIGKILL)
        run = await site.ended(asked["id"], "completed", within=120)
        times = sorted(map(switched_at, await moved(site, run)))
        assert (times[-1] - times[0]).total_seconds() < _TOGETHER_SECONDS
        assert max(each["attempts"] for each in run["guests"]) > 1
        await site.everyone_at(MACHINES, "b")


@pytest.mark.matrix
async def test_a_persons_word_on_one_that_is_held_lets_the_others_of_its_group_go() -> None:
    # It writes more than the path carries and is not throttled: it is not due before that word.
    steady = '[policies.steady]\nmax_throttle = "0%"\npostcopy = "never"\n'
    machines = (*MACHINES[:2], guest("db", region=96 * MIB, speed=200 * MIB))
    async with served(machines, "a", "b", speed=60 * MIB, extra=GROUP + steady) as site:
        (db,) = site.instances(machines[2])
        asked = await site.post("migrations", group="shop", to="b", policy="steady")

        async def of(name: str) -> dict[str, Any]:
            found = [each for each in await site.migrations() if each["guest_name"] == name]
            return found[0] if found else {}

        async def one_waits() -> bool:
            waits = (await of("front")).get("switch_in_seconds") is not None
            return waits and (await of("db")).get("state") == "precopy"

        await until(one_waits, what="a guest that waits for one that is copied", within=60)
        db.kill()

        async def is_held() -> bool:
            return (await of("db")).get("state") == "held"

        await until(is_held, what="a guest of which nobody knows where it is", within=60)
        # The others run where they were, for as long as nobody has said what became of it.
        assert not {(await of(name))["state"] for name in ("front", "web")} & {"completed", "switchover"}
        identifier = (await of("db"))["id"]
        said = await site.cli("resolve", identifier, "--guest-at", "lost", "--yes")
        assert said.returncode == 0, said.stderr
        run = await site.ended(asked["id"], "completed", within=90)
        standing = {each["guest_name"]: each["standing"] for each in run["guests"]}
        assert standing == {"front": "moved", "web": "moved", "db": "gone"}, run
        await site.everyone_at(MACHINES[:2], "b")
        assert site.instances(machines[2]) == []
