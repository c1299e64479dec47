"""Which controller a migration is given to: what it takes to choose does not grow with how many are under way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from migrator.core.model import State
from migrator.core.policy import Start
from migrator.engine.handing_over import HandingOver
from migrator.engine.registry import Registry
from migrator.ports.assignments import AvailableDriver

pytestmark = pytest.mark.looptime
HOSTS = frozenset({"a", "b"})


class NeverGoneThrough(Registry):
    """Fails whoever goes through all migrations."""

    def live(self) -> Any:
        raise AssertionError("all migrations were gone through")


def migration(number: int, *, driver: str = "", group: str = "") -> Any:
    return SimpleNamespace(
        id=f"m{number}",
        guest=SimpleNamespace(key=f"g{number}", host="a"),
        target="b",
        driver_name=driver,
        driven_elsewhere=bool(driver),
        ended=False,
        state=State.QUEUED,
        policy=SimpleNamespace(start=Start.NOW),
        evacuation="e",
        moved_with=group,
        trace=None,
    )


def handing_over(registry: Registry, *others: str, hosts: frozenset[str] = HOSTS) -> HandingOver:
    drivers = [AvailableDriver(name=name, token=1, instance=name, hosts=hosts) for name in others]
    nothing: Any = None
    return HandingOver(
        registry=registry,
        services=nothing,
        assignments=nothing,
        site=nothing,
        pool=cast(Any, SimpleNamespace(name="plans", available=lambda: drivers)),
        controller="c",
        number=lambda: 1,
    )


async def ended(registry: Registry) -> None:
    """Have nobody drive anything any more."""
    await asyncio.sleep(0)
    tasks = registry.driving()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_each_of_thousands_is_given_to_who_drives_the_fewest_without_going_through_all() -> None:
    registry = NeverGoneThrough()
    chooser = handing_over(registry, "one", "two")
    given: dict[str, int] = {}
    for number in range(3000):
        session = migration(number)
        registry.add(session)
        driver = chooser.choose(session)
        name = driver.name if driver is not None else "plans"
        given[name] = given.get(name, 0) + 1
        if driver is None:
            registry.start(session, asyncio.sleep(3600))
        else:
            registry.replace(migration(number, driver=driver.name))
    assert given == {"plans": 1000, "one": 1000, "two": 1000}
    await ended(registry)


async def test_one_that_has_ended_or_was_taken_back_does_not_count_for_its_driver() -> None:
    registry = Registry()
    chooser = handing_over(registry, "one")
    busy = [migration(number) for number in range(2)]
    for each in busy:
        registry.add(each)
        registry.start(each, asyncio.sleep(3600))
    remote = [migration(number, driver="one") for number in range(2, 5)]
    for each in remote:
        registry.replace(each)
    new = migration(9)
    registry.add(new)
    assert chooser.choose(new) is None
    remote[0].ended = True
    registry.live()
    registry.replace(migration(3))  # taken back, and nobody drives it yet
    chosen = chooser.choose(new)
    assert chosen is not None
    assert chosen.name == "one"
    await ended(registry)


async def test_guests_of_a_group_have_one_driver_however_many_groups_there_were() -> None:
    registry = Registry()
    chooser = handing_over(registry, "one", "two")
    for number in range(200):
        members = [migration(2 * number + place, group=f"group-{number}") for place in range(2)]
        chosen = []
        for each in members:
            registry.add(each)
            driver = chooser.choose(each)
            chosen.append(driver and driver.name)
            registry.replace(
                migration(int(each.id[1:]), driver=(driver and driver.name) or "", group=each.moved_with)
            )
        assert chosen[0] == chosen[1]
        for each in members:
            registry.migrations[each.id].ended = True  # type: ignore[misc]  # a stand-in
        registry.live()
    assert len(chooser._groups) < 100
