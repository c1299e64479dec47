"""Guests are known within seconds, however seldom hosts are looked at."""

from __future__ import annotations

import json

import pytest

from migrator.testing import network
from tests.acceptance.service_site import eventually, guest, made
from tests.conftest import missing

#: Within two seconds on a machine that has time. Looks are a tenth of the time at most, and up to 30 s apart: where one
#: takes a second, for want of a processor, what is noticed right after it is looked at ten seconds later.
NOTICED_SECONDS = 45.0


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


async def test_a_guest_that_is_started_or_ends_is_known_within_seconds() -> None:
    first, second = guest("first"), guest("second")
    async with made([first], "a", "b", refresh_interval="600s") as site:
        site.serve()
        await site.until_served()
        await site.known(1)

        async def names() -> set[str]:
            return {each["name"] for each in (await site.get("guests"))["items"]}

        qemu = await site.boot(second, "b")

        async def both() -> bool:
            return await names() == {"first", "second"}

        await eventually(both, "the new one", site, within=NOTICED_SECONDS)
        await qemu.query("quit")

        async def one() -> bool:
            return await names() == {"first"}

        await eventually(one, "its end", site, within=NOTICED_SECONDS)
        third = await site.boot(guest("third"), "a")
        done = await site.cli("guests", "--refresh", "--json")
        assert done.returncode == 0, done
        assert {each["name"] for each in json.loads(done.stdout)["items"]} == {"first", "third"}
        third.kill()
        await third.wait_dead()
        found = await site.get("guests", refresh="true", host="a")
        assert [each["name"] for each in found["items"]] == ["first"]
