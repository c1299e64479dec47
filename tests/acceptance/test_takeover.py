"""Two controllers on one PostgreSQL: one acts, and when it dies or is frozen the other goes on with what it left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from migrator.testing import network
from migrator.testing.lab import until
from migrator.testing.postgresql import Postgres
from tests.acceptance.service_site import ANSWER_SECONDS, MIB, SLOW, LiveSite, eventually, guest, made
from tests.conftest import missing

#: A controller is replaced after this, and the time that looking at its migrations takes.
LEASE = 'lease = "3s"'


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@asynccontextmanager
async def standing_by(
    site: LiveSite, *, more: str = "", instance: str = ""
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A second controller of the same site, with everything of its own but the journal.

    :param more: of its configuration.
    :param instance: what people call it; like the first one where it is empty.
    """
    text = site.config.read_text(encoding="utf-8")
    for mine, other in (
        ('socket = "api.sock"', 'socket = "second.sock"'),
        ('path = "state/', 'path = "second/'),
    ):
        assert mine in text, text
        text = text.replace(mine, other)
    if instance:
        text = f'[site]\ninstance = "{instance}"\n\n{text}'
    (site.directory / "second").mkdir()
    config = site.directory / "second.toml"
    config.write_text(text + more, encoding="utf-8")
    with (site.directory / "service.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "migrator", "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        await until(
            lambda: bool(site.said("answers while it stands by")),
            what="the second controller stands by",
            within=60,
        )
        yield process
    finally:
        process.kill()
        process.wait(timeout=10)


async def ask_second(site: LiveSite) -> None:
    """From now on the site is asked through its second controller, once that one acts."""
    await site.disconnect()
    transport = httpx2.AsyncHTTPTransport(uds=str(site.directory / "second.sock"), verify=False)
    site._http = httpx2.AsyncClient(transport=transport, base_url="http://migrator", timeout=ANSWER_SECONDS)

    async def acts() -> bool:
        try:
            return (await site.probe("/readyz?role=acting"))[0] == 200
        except httpx2.TransportError:
            return False

    await eventually(acts, "the second controller acts", site)


# Without chance, for whoever looks into one; what happens at random instants is `test_takeover_random.py`.
@pytest.mark.matrix
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_controller_that_is_gone_is_replaced_and_its_evacuation_goes_on(
    postgresql: Postgres, how: str
) -> None:
    machines = [guest("one", region=64 * MIB), guest("two", region=64 * MIB)]
    url = postgresql.place(postgresql.create()).url
    async with made(machines, "a", "b", speed=SLOW) as site:
        site.change_config(("[store]\n", f'[controller]\n{LEASE}\n\n[store]\nurl = "{url}"\n'))
        first = site.serve()
        await site.until_served()
        await site.known(2)
        async with standing_by(site) as second:
            with site.crawling():
                begun = await site.post("hosts/a/evacuate", key="k1")
                await site.until_state("precopy")
                os.killpg(first.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            await ask_second(site)
            same = await site.post("hosts/a/evacuate", key="k1")
            assert same["id"] == begun["id"], "a command is known to whoever goes on"
            await site.ended(begun["id"], "completed")
            if how == "frozen":
                os.killpg(first.pid, signal.SIGCONT)
                assert first.wait(timeout=30) == -signal.SIGKILL, "the one that wakes up ends itself"
            await site.everyone_at(machines, "b")
            second.terminate()
            assert second.wait(timeout=60) == 0


async def drivers(site: LiveSite) -> dict[str, str]:
    """Return which controller drives the migration of each guest."""
    found = (await site.get("migrations", limit=100))["items"]
    return {each["guest_name"]: each["controller"] for each in found if each["controller"]}


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_one_that_drives_for_the_planner_is_followed_when_it_is_gone(
    postgresql: Postgres, how: str
) -> None:
    machines = [guest("one", region=64 * MIB), guest("two", region=64 * MIB)]
    url = postgresql.place(postgresql.create()).url
    async with made(machines, "a", "b", speed=SLOW) as site:
        site.change_config(("[store]\n", f'[controller]\n{LEASE}\n\n[store]\nurl = "{url}"\n'))
        site.serve()
        await site.until_served()
        await site.known(2)
        async with standing_by(site, instance="second") as second:

            async def known() -> bool:
                return len((await site.get("service"))["controllers"]) == 2

            await eventually(known, "the planner knows of the other", site)
            with site.crawling():
                begun = await site.post("hosts/a/evacuate")

                async def spread() -> bool:
                    return "second" in (await drivers(site)).values()

                await eventually(spread, "the other drives one of them", site)
                await site.until_state("precopy")
                os.killpg(second.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            await site.ended(begun["id"], "completed")
            if how == "frozen":
                os.killpg(second.pid, signal.SIGCONT)
            await site.everyone_at(machines, "b")
            assert "second" not in (await drivers(site)).values(), "the planner went on with it"


async def test_one_that_stands_by_ends_when_it_is_told_to_and_has_done_nothing(postgresql: Postgres) -> None:
    machines = [guest("one")]
    url = postgresql.place(postgresql.create()).url
    async with made(machines, "a", "b") as site:
        site.change_config(("[store]\n", f'[controller]\n{LEASE}\n\n[store]\nurl = "{url}"\n'))
        site.serve()
        await site.until_served()
        await site.known(1)
        only_there = '\n[[hosts]]\nname = "c"\nssh = "root@127.0.0.1:1"\n'
        async with standing_by(site, more=only_there) as second:

            async def told() -> bool:
                controllers = (await site.get("service"))["controllers"]
                return any("which acts: it alone has c" in each["detail"] for each in controllers)

            await eventually(told, "it is said which host the one that acts has not", site)
            second.send_signal(signal.SIGHUP)
            await until(lambda: bool(site.said("configuration reloaded")), what="it has reloaded", within=30)
            second.terminate()
            assert second.wait(timeout=30) == 0
        begun = await site.post("migrations", guest="one", to="b")
        await site.migration_ended(begun["id"], "completed")
        await site.everyone_at(machines, "b")
