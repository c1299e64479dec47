"""Guests are known within seconds, however seldom hosts are looked at."""

from __future__ import annotations

import json
import time

import pytest

from migrator.testing import network
from tests.acceptance.service_site import eventually, guest, made
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


async def test_a_guest_that_is_started_or_ends_is_known_within_seconds() -> None:
    first, second = guest("first"), guest("second")
    async with made([first], "a", "b") as site:
        site.change_config(('refresh_interval = "5s"', 'refresh_interval = "600s"'))
        site.serve()
        await site.until_served()
        await site.known(1)

        async def names() -> set[str]:
            return {each["name"] for each in (await site.get("guests"))["items"]}

        # A host is watched once it has answered.
        began = time.monotonic()
        qemu = await site.boot(second, "b")

        async def both() -> bool:
            return await names() == {"first", "second"}

        await eventually(both, "the new one", site, within=15)
        assert time.monotonic() - began < 15
        await qemu.query("quit")

        async def one() -> bool:
            return await names() == {"first"}

        await eventually(one, "its end", site, within=10)
        third = await site.boot(guest("third"), "a")
        done = await site.cli("guests", "--refresh", "--json")
        assert done.returncode == 0, done
        assert {each["name"] for each in json.loads(done.stdout)["items"]} == {"first", "third"}
        third.kill()
        await third.wait_dead()
        found = await site.get("guests", refresh="true", host="a")
        assert [each["name"] for each in found["items"]] == ["first"]
