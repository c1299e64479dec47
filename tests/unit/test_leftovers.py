"""What was left at hosts that went away: removed once they are back, tried again, and known to the next controller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from migrator.core.inventory import Guest
from migrator.engine.migration.leftovers import KIND, Leftovers
from migrator.errors import HostError

pytestmark = pytest.mark.looptime


class UnreliableHosts:
    def __init__(self) -> None:
        self.up: set[str] = set()
        self.under_way: set[str] = set()
        self.refuses = ""
        self.asked: list[tuple[str, str]] = []
        self.images: list[bool] = []
        self.journal: dict[str, Mapping[str, Any]] = {}

    async def abandon(self, host: str, *, migration: str, images: bool) -> None:
        self.asked.append((host, migration))
        self.images.append(images)
        if self.refuses:
            raise HostError(host, self.refuses)

    async def clear(self, guest: Guest) -> None:
        self.asked.append((guest.host, guest.socket))
        if self.refuses:
            raise HostError(guest.host, self.refuses)

    def keep(self, kind: str, document: Mapping[str, Any]) -> None:
        assert kind == KIND
        self.journal[document["id"]] = document

    @asynccontextmanager
    async def leftovers(self) -> AsyncIterator[Leftovers]:
        found = Leftovers(
            abandon=self.abandon,
            clear=self.clear,
            up=self.up.__contains__,
            under_way=self.under_way.__contains__,
            keep=self.keep,
        )
        running = asyncio.create_task(found.run(), name="leftovers")
        try:
            yield found
            assert not running.done()
        finally:
            running.cancel()
            await asyncio.wait({running})


@pytest.fixture
def hosts() -> UnreliableHosts:
    return UnreliableHosts()


async def test_waits_for_its_host_and_is_removed_once(hosts: UnreliableHosts) -> None:
    async with hosts.leftovers() as leftovers:
        leftovers.add("b", "m1")
        leftovers.wake()
        await asyncio.sleep(300)
        assert hosts.asked == []
        assert hosts.journal["m1"]["ended_at"] is None
        assert leftovers.of("b") == ["m1"]
        hosts.up.add("b")
        leftovers.wake()
        await asyncio.sleep(1)
        assert hosts.asked == [("b", "m1")]
        assert hosts.journal["m1"]["ended_at"] is not None
        assert leftovers.of("b") == []
        leftovers.wake()
        await asyncio.sleep(300)
        assert len(hosts.asked) == 1


async def test_one_that_cannot_be_removed_is_tried_again(hosts: UnreliableHosts) -> None:
    hosts.up.add("b")
    hosts.refuses = "it does not answer"
    async with hosts.leftovers() as leftovers:
        leftovers.add("b", "m1")
        await asyncio.sleep(100)
        assert 3 <= len(hosts.asked) <= 5  # not at once again, whatever wakes it
        for _ in range(20):
            leftovers.wake()
            await asyncio.sleep(0.1)
        assert len(hosts.asked) <= 5
        assert hosts.journal["m1"]["ended_at"] is None
        hosts.refuses = ""
        await asyncio.sleep(60)
        assert hosts.journal["m1"]["ended_at"] is not None


async def test_nothing_of_a_migration_that_goes_on_is_touched(hosts: UnreliableHosts) -> None:
    hosts.up.add("b")
    hosts.under_way.add("m1")
    async with hosts.leftovers() as leftovers:
        leftovers.add("b", "m1")
        leftovers.add("b", "m2")
        await asyncio.sleep(100)
        assert hosts.asked == [("b", "m2")]


async def test_the_next_controller_knows_them(hosts: UnreliableHosts) -> None:
    async with hosts.leftovers() as leftovers:
        leftovers.add("b", "m1")
    hosts.up.add("b")
    async with hosts.leftovers() as leftovers:
        leftovers.take_over(hosts.journal["m1"])
        await asyncio.sleep(1)
        assert hosts.asked == [("b", "m1")]
        assert hosts.journal["m1"]["ended_at"] is not None


async def test_what_is_left_at_a_source_is_removed_too_by_the_next_controller_as_well(
    hosts: UnreliableHosts,
) -> None:
    guest = Guest(key="g", host="a", socket="/run/migrator/guests/x-abcdef/control.qmp")
    async with hosts.leftovers() as leftovers:
        leftovers.add_source(guest, "m1")
        leftovers.add("b", "m1")
        await asyncio.sleep(1)
    assert set(hosts.journal) == {"m1", "m1.source"}
    async with hosts.leftovers() as leftovers:
        for saved in list(hosts.journal.values()):
            leftovers.take_over(saved)
        hosts.up |= {"a", "b"}
        leftovers.wake()
        await asyncio.sleep(1)
    assert sorted(hosts.asked) == [("a", guest.socket), ("b", "m1")]
    assert all(each["ended_at"] for each in hosts.journal.values())


@pytest.mark.parametrize("images", [True, False])
async def test_images_in_which_the_guest_never_ran_go_too_also_by_the_next_controller(
    hosts: UnreliableHosts, images: bool
) -> None:
    async with hosts.leftovers() as leftovers:
        leftovers.add("b", "m1", images=images)
        await asyncio.sleep(1)
    hosts.up.add("b")
    async with hosts.leftovers() as leftovers:
        leftovers.take_over(hosts.journal["m1"])
        await asyncio.sleep(1)
    assert hosts.images == [images]
