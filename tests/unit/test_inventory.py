"""What is known of hosts and guests while they are looked at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from migrator.core.inventory import Guest, Host, HostFacts
from migrator.core.model import RunState
from migrator.engine.inventory import Inventory
from migrator.errors import HostError
from migrator.ports import HostLook

pytestmark = pytest.mark.looptime


class SlowSite:
    """A look takes a second, and shows how things were when it began."""

    def __init__(self, *guests: Guest) -> None:
        self.guests = {guest.key: guest for guest in guests}

    async def look(self, host: str) -> HostLook:
        guests = tuple(guest for guest in self.guests.values() if guest.host == host)
        await asyncio.sleep(1)
        return HostLook(facts=HostFacts(), guests=guests)


async def known(site: Any) -> Inventory:
    inventory = Inventory([Host(name="a"), Host(name="b")], site=site)
    await inventory.look_at_all()
    return inventory


def where(inventory: Inventory) -> dict[str, list[str]]:
    return {name: [guest.key for guest in inventory.guests(name)] for name in ("a", "b")}


async def test_a_look_that_began_before_a_guest_moved_does_not_bring_it_back() -> None:
    site = SlowSite(Guest(key="vm", host="a"), Guest(key="other", host="a"))
    inventory = await known(site)
    vm = site.guests["vm"]
    looking = asyncio.create_task(inventory.look_at_all())
    await asyncio.sleep(0.5)
    site.guests["vm"] = replace(vm, host="b", run=RunState.RUNNING)
    inventory.moved(vm, "b", "/run/vm.sock", 7)
    assert where(inventory) == {"a": ["other"], "b": ["vm"]}
    await looking
    assert where(inventory) == {"a": ["other"], "b": ["vm"]}
    await inventory.look_at_all()
    assert where(inventory) == {"a": ["other"], "b": ["vm"]}


async def test_a_look_that_began_before_a_guest_ended_does_not_bring_it_back() -> None:
    site = SlowSite(Guest(key="vm", host="a"))
    inventory = await known(site)
    looking = asyncio.create_task(inventory.look_at_all())
    await asyncio.sleep(0.5)
    inventory.gone(site.guests["vm"])
    await looking
    assert where(inventory) == {"a": [], "b": []}
    # It was started again meanwhile: the next look says so.
    await inventory.look_at_all()
    assert where(inventory) == {"a": ["vm"], "b": []}


class WatchedSite(SlowSite):
    """Counts looks, and lets a test notice something; a look takes as long as it is told."""

    def __init__(self, *guests: Guest, takes: float = 0.01) -> None:
        super().__init__(*guests)
        self.takes = takes
        self.looks: list[float] = []
        self.changed: Callable[[], None] = lambda: None
        self.down = False

    async def look(self, host: str) -> HostLook:
        self.looks.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.takes)
        if self.down:
            raise HostError(host, "no route")
        return HostLook(facts=HostFacts(), guests=tuple(self.guests.values()))

    async def watch(self, host: str, changed: Callable[[], None]) -> None:
        self.changed = changed
        await asyncio.Event().wait()


@asynccontextmanager
async def running(site: Any) -> AsyncIterator[Inventory]:
    inventory = Inventory([Host(name="a")], site=site)
    task = asyncio.create_task(inventory.schedule.run())
    await inventory.first_look(60)
    await asyncio.sleep(6)  # it is watched once it is known to be up
    yield inventory
    task.cancel()
    await asyncio.wait({task})


async def test_what_is_noticed_is_looked_at_within_a_second_or_two() -> None:
    site = WatchedSite()
    async with running(site) as inventory:
        site.guests["new"] = Guest(key="new", host="a")
        site.changed()
        await asyncio.sleep(1.5)
        assert [guest.key for guest in inventory.guests("a")] == ["new"]


async def test_where_much_happens_looks_take_a_small_part_of_the_time() -> None:
    site = WatchedSite(takes=1.0)
    async with running(site):
        site.looks.clear()
        for _ in range(1000):
            site.changed()
            await asyncio.sleep(0.1)
    assert len(site.looks) <= 10  # of 100 seconds


async def test_a_host_that_is_back_is_seen_within_seconds() -> None:
    site = WatchedSite()
    async with running(site) as inventory:
        site.down = True
        inventory.schedule.look_soon("a")
        await asyncio.sleep(2)
        tried = site.looks[-2:]
        assert tried[1] - tried[0] <= 1.1
        await asyncio.sleep(600)
        site.down = False
        await asyncio.sleep(16)
        host = inventory.host("a")
        assert host is not None
        assert host.up


async def test_a_refresh_begins_after_it_was_asked_for_and_serves_all_who_wait() -> None:
    site = WatchedSite(takes=1.0)
    async with running(site) as inventory:
        site.looks.clear()
        first = asyncio.create_task(inventory.refresh())
        await asyncio.sleep(0.5)
        site.guests["new"] = Guest(key="new", host="a")
        asking = [asyncio.create_task(inventory.refresh("a")) for _ in range(20)]
        await asyncio.sleep(0.1)
        asking[0].cancel()  # the others do not depend on it
        await asyncio.gather(first, *asking[1:])
        assert [guest.key for guest in inventory.guests("a")] == ["new"]
        assert len(site.looks) <= 3


async def test_a_look_that_began_before_a_reload_is_not_lost() -> None:
    site = SlowSite()
    inventory = await known(site)
    site.guests["vm"] = Guest(key="vm", host="a")
    looking = asyncio.create_task(inventory.look_at_all())
    await asyncio.sleep(0.5)
    inventory.configure([Host(name="a", labels={"rack": "1"}), Host(name="b")], rules=lambda guest: guest)
    await looking
    assert where(inventory) == {"a": ["vm"], "b": []}
    host = inventory.host("a")
    assert host is not None
    assert (host.labels, host.up) == ({"rack": "1"}, True)


def one(key: str, host: str, **how: Any) -> Guest:
    return Guest(key=key, uuid=how.pop("uuid", "u-1"), host=host, run=how.pop("run", RunState.RUNNING), **how)


class TestUuidThatRunsTwice:
    async def test_it_is_believed_once_the_other_host_was_looked_at_since(self) -> None:
        site: Any = SlowSite(one("one", "a"), one("two", "b"))
        inventory = Inventory([Host(name="a"), Host(name="b")], site=site)
        await inventory.look("a")
        await inventory.look("b")
        assert inventory.doubled() == {}, "it may have moved between the two looks"
        assert all(not guest.obstacle for guest in inventory.guests())
        await inventory.look("a")
        assert inventory.doubled() == {"u-1": ("a", "b")}
        assert {guest.obstacle_code for guest in inventory.guests()} == {"duplicate"}
        assert "here and on b" in inventory.guests("a")[0].obstacle
        del site.guests["two"]
        await inventory.look("b")
        assert inventory.doubled() == {}
        assert inventory.guests("a")[0].obstacle == ""

    async def test_the_host_that_was_looked_at_before_is_looked_at_again_at_once(self) -> None:
        site: Any = SlowSite(one("one", "a"), one("two", "b"))
        inventory = Inventory([Host(name="a"), Host(name="b")], site=site)
        await inventory.look("a")
        looks = asyncio.create_task(inventory.schedule._watch("a"))
        await asyncio.sleep(3)
        await inventory.look("b")
        await asyncio.sleep(2)
        assert inventory.doubled() == {"u-1": ("a", "b")}
        looks.cancel()
        await asyncio.wait({looks})

    async def test_a_guest_that_moved_between_two_looks_is_not_doubled(self) -> None:
        site: Any = SlowSite(one("one", "a"))
        inventory = Inventory([Host(name="a"), Host(name="b")], site=site)
        await inventory.look("a")
        site.guests = {"one": one("one", "b")}
        await inventory.look("b")
        await inventory.look("a")
        assert inventory.doubled() == {}

    async def test_on_one_host_it_is_believed_at_once(self) -> None:
        inventory = await known(SlowSite(one("one", "a"), one("two", "a")))
        assert inventory.doubled() == {"u-1": ("a", "a")}

    async def test_a_paused_one_and_one_without_uuid_are_nobodys_double(self) -> None:
        paused = one("two", "b", run=RunState.PAUSED)
        others = [one(f"{host}/x", host, uuid="") for host in ("a", "b")]
        inventory = await known(SlowSite(one("one", "a"), paused, *others))
        await inventory.look_at_all()
        assert inventory.doubled() == {}


class TestProcessThatTwoHostsShow:
    """Two hosts of the configuration may be one machine."""

    async def test_it_is_no_emergency_but_its_guest_stays(self) -> None:
        both = [one("one", host, process="boot net 7 100", pid=7) for host in ("a", "b")]
        site: Any = SlowSite(both[0])
        site.guests["again"] = both[1]
        inventory = await known(site)
        await inventory.look_at_all()
        assert inventory.doubled() == {}
        for guest in inventory.guests():
            assert guest.obstacle_code == "not-movable"
            assert "pid 7) is shown by hosts a and b, which are one machine" in guest.obstacle
        del site.guests["again"]
        await inventory.look("b")
        assert [guest.obstacle for guest in inventory.guests()] == [""]

    @pytest.mark.parametrize(
        "processes", [("boot net 7 100", "boot net 8 100"), ("boot net 7 100", ""), ("", "")]
    )
    async def test_what_may_be_two_is_an_emergency(self, processes: tuple[str, str]) -> None:
        site: Any = SlowSite(one("one", "a", process=processes[0]), one("two", "b", process=processes[1]))
        inventory = await known(site)
        await inventory.look_at_all()
        assert inventory.doubled() == {"u-1": ("a", "b")}

    async def test_one_that_runs_once_more_besides_is_an_emergency(self) -> None:
        guests = [one(f"at {host}", host, process="boot net 7 100") for host in ("a", "b")]
        inventory = await known(SlowSite(*guests, one("two", "b", process="boot net 8 100")))
        await inventory.look_at_all()
        assert inventory.doubled() == {"u-1": ("a", "b", "b")}
