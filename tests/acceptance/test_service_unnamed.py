"""A guest whose QEMU was started without a uuid is the same guest wherever it goes."""

from __future__ import annotations

import pytest

from migrator.testing import network
from tests.acceptance.service_site import LiveSite, eventually, freeze, guest, served, thaw
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@pytest.mark.matrix
async def test_a_guest_without_a_uuid_moves_and_comes_home_under_one_name() -> None:
    machine = guest("unnamed", extra=("-uuid", "00000000-0000-0000-0000-000000000000"))
    async with served([machine], "a", "b") as site:
        [before] = (await site.get("guests"))["items"]
        assert before["uuid"] == ""
        assert before["guest"] == before["identity"] != ""
        done = await site.cli("evacuate", "a", "--wait")
        assert done.returncode == 0, (done, site.log())
        [there] = (await site.get("guests", refresh="true"))["items"]
        assert (there["identity"], there["host"]) == (before["identity"], "b")
        # A controller that knows nothing of it finds the same guest.
        await site.restart()
        await site.known(1)
        assert [each["identity"] for each in (await site.get("guests"))["items"]] == [before["identity"]]
        done = await site.cli("restore", "a", "--wait")
        assert done.returncode == 0, (done, site.log())
        await site.everyone_at([machine], "a")
        # By name, by place and by our name it is one and the same.
        for which in ("unnamed", "a/unnamed", before["identity"]):
            found = await site.get(f"guests/{which}")
            assert (found["identity"], found["host"]) == (before["identity"], "a")


@pytest.mark.matrix
async def test_a_guest_without_a_uuid_that_cannot_be_asked_is_still_who_it_is() -> None:
    machine = guest("unnamed", extra=("-uuid", "00000000-0000-0000-0000-000000000000"))
    async with served([machine], "a", "b") as site:
        [before] = (await site.get("guests"))["items"]
        assert (await site.cli("evacuate", "a", "--wait")).returncode == 0
        [(pid, _)] = site.processes()
        site.stop()
        freeze(pid)
        try:
            site.serve()
            await site.until_served()
            await site.known(1)
            [there] = (await site.get("guests", refresh="true"))["items"]
            assert (there["run_state"], there["host"]) == ("lost-contact", "b")
            assert there["identity"] == before["identity"]
        finally:
            thaw(pid)
        await eventually(lambda: answers(site), "its answer", site)
        done = await site.cli("restore", "a", "--wait")
        assert done.returncode == 0, (done, site.log())
        [home] = (await site.get("guests", refresh="true"))["items"]
        assert home["host"] == "a"
        assert home["identity"] == before["identity"]
        assert next(site.processes())[1].count("-object") == 1, "the name of before is not kept beside it"


async def answers(site: LiveSite) -> bool:
    return [each["run_state"] for each in (await site.get("guests", refresh="true"))["items"]] == ["running"]
