"""What is known of hosts and guests while they are looked at."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from migrator.core.inventory import Guest, Host, HostFacts
from migrator.core.model import RunState
from migrator.engine.inventory import Inventory
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
