"""Two controllers on one PostgreSQL: whoever is asked answers, says who acts, and has commands carried out."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from migrator.testing import network
from migrator.testing.lab import until as wait_until
from migrator.testing.postgresql import Postgres
from tests.acceptance.service_site import MIB, SLOW, LiveSite, eventually, guest, made
from tests.acceptance.test_takeover import LEASE, standing_by
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@asynccontextmanager
async def second_api(site: LiveSite) -> AsyncIterator[httpx2.AsyncClient]:
    """The second controller's own socket."""
    transport = httpx2.AsyncHTTPTransport(uds=str(site.directory / "second.sock"), verify=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://migrator", timeout=60) as client:
        yield client


async def get(client: httpx2.AsyncClient, path: str) -> Any:
    found = await client.get(f"/api/v1/{path}")
    assert found.status_code == 200, found.text
    return found.json()


async def taken(client: httpx2.AsyncClient, path: str, key: str, **body: str) -> httpx2.Response:
    """A command's answer: asked again, as a refusal says, where the one that acts has not got to it in 20 s."""
    answers: list[httpx2.Response] = []

    async def is_taken() -> bool:
        answers.append(await client.post(f"/api/v1/{path}", json=body, headers={"Idempotency-Key": key}))
        return answers[-1].status_code != 503

    await wait_until(is_taken, what=f"{path} to be taken", within=90)
    return answers[-1]


async def events_of(client: httpx2.AsyncClient, after: int, until: str) -> list[tuple[str, str]]:
    """Id and kind of what a stream sends, up to the state that is named."""
    found = []
    async with asyncio.timeout(90), client.stream("GET", "/api/v1/events", params={"after": after}) as stream:
        number = ""
        async for line in stream.aiter_lines():
            if line.startswith("id: "):
                number = line[4:]
            elif line.startswith("event: "):
                found.append((number, line[7:]))
            elif line.startswith("data: ") and until in line:
                return found
    raise AssertionError(f"it ended before {until}: {found}")


async def test_the_one_that_stands_by_answers_everything_and_has_commands_carried_out(
    postgresql: Postgres,
) -> None:
    machines = [guest("one", region=64 * MIB), guest("two", region=64 * MIB)]
    url = postgresql.place(postgresql.create()).url
    async with made(machines, "a", "b", speed=SLOW) as site:
        site.change_config(("[store]\n", f'[controller]\n{LEASE}\n\n[store]\nurl = "{url}"\n'))
        site.serve()
        await site.until_served()
        await site.known(2)
        async with standing_by(site), second_api(site) as second:

            async def follows() -> bool:
                return len((await get(second, "guests"))["items"]) == 2

            await eventually(follows, "the second controller knows the guests", site)
            answer = await second.get("/api/v1/hosts")
            assert [each["host"] for each in answer.json()["items"]] == ["a", "b"]
            assert answer.headers["Migrator-Role"] == "standby"
            assert answer.headers["Migrator-Acting"]
            assert float(answer.headers["Migrator-Stale-Seconds"]) < 5
            service = await get(second, "service")
            assert (service["role"], len(service["controllers"])) == ("standby", 2)
            roles = {each["role"] for each in service["controllers"]}
            assert roles == {"acting", "standby"}
            assert (await get(site._http, "service"))["role"] == "acting"
            assert (await second.get("/readyz")).status_code == 200
            assert (await second.get("/readyz", params={"role": "acting"})).status_code == 503
            assert (await second.get("/healthz")).text.startswith("ok: stands by")
            metrics = (await second.get("/metrics")).text
            assert "\nmigrator_planner_present 1.0" in metrics
            assert 'migrator_lease_age_seconds{lease="site"}' in metrics
            assert "\nmigrator_lease_held" not in metrics
            assert "migrator_host_up{" not in metrics, "the site's figures are shown once"

            async def told_apart() -> bool:
                shown = (await get(second, "service"))["controllers"]
                return any("the same [site] instance" in each["detail"] for each in shown)

            await eventually(told_apart, "both have this machine's name, which is said", site)
            other = site.directory / "other.toml"
            other.write_text(
                site.config.read_text().replace('path = "state/', 'path = "other/')
                + '[site]\nname = "other"\n'
            )
            refused = await site.cli("serve", "--config", str(other))
            assert refused.returncode == 1, refused
            assert "is in use for the site default, and [site] name is other" in refused.stderr

            plan = await taken(second, "plans", "plan", host="a")
            assert plan.status_code == 200, plan.text
            begun = await taken(second, "hosts/a/evacuate", "k")
            assert begun.status_code == 202, begun.text
            identifier = begun.json()["id"]
            same = await site.post("hosts/a/evacuate", key="k")
            assert same["id"] == identifier
            here, there = await asyncio.gather(
                events_of(second, 0, '"state":"maintenance"'),
                events_of(site._http, 0, '"state":"maintenance"'),
            )
            numbered = [[each for each in found if each[1] != "progress"] for found in (here, there)]
            assert numbered[0] == numbered[1], "the same events with the same numbers"
            await site.ended(identifier, "completed")
            await site.everyone_at(machines, "b")


async def test_a_command_and_a_stream_outlive_the_controller_that_acted(postgresql: Postgres) -> None:
    machines = [guest("one", region=64 * MIB)]
    url = postgresql.place(postgresql.create()).url
    async with made(machines, "a", "b", speed=SLOW) as site:
        site.change_config(("[store]\n", f'[controller]\n{LEASE}\n\n[store]\nurl = "{url}"\n'))
        first = site.serve()
        await site.until_served()
        await site.known(1)
        async with standing_by(site), second_api(site) as second:

            async def follows() -> bool:
                return len((await get(second, "guests"))["items"]) == 1

            await eventually(follows, "the second controller knows the guests", site)
            stream = asyncio.create_task(events_of(second, 0, '"state":"maintenance"'), name="stream")
            os.killpg(first.pid, signal.SIGSTOP)
            begun = await second.post("/api/v1/hosts/a/evacuate", json={}, headers={"Idempotency-Key": "k"})
            assert begun.status_code == 202, (begun.text, site.log()[-3000:])
            numbers = [int(number) for number, kind in await stream if kind != "progress"]
            assert numbers == sorted(set(numbers)), "no event is told twice, none out of order"
            journalled = (
                await second.get("/api/v1/events?after=0", headers={"Accept": "application/json"})
            ).json()
            there = [each["event_id"] for each in journalled["items"]]
            assert set(there[: there.index(numbers[-1]) + 1]) == set(numbers), "none is missing"
            os.killpg(first.pid, signal.SIGCONT)
            assert first.wait(timeout=30) == -signal.SIGKILL
            metrics = (await second.get("/metrics")).text
            assert 'migrator_takeovers_total{reason="planner-gone"} 1.0' in metrics

            async def ended() -> bool:
                return (await get(second, f"evacuations/{begun.json()['id']}"))["ended_at"] is not None

            await eventually(ended, "the evacuation has ended", site, within=60)
            await site.everyone_at(machines, "b")


async def test_a_database_that_does_not_answer_makes_neither_of_them_ready() -> None:
    with Postgres("silent") as server:
        url = server.place(server.create()).url
        async with made([], "a", "b") as site:
            site.change_config(("[store]\n", f'[controller]\n{LEASE}\n\n[store]\nurl = "{url}"\n'))
            site.serve()
            await site.until_served()
            await site.known(0)
            async with standing_by(site), second_api(site) as second:

                async def unready(client: httpx2.AsyncClient, why: str) -> bool:
                    found = await client.get("/readyz")
                    return found.status_code == 503 and why in found.text

                server.freeze()
                try:
                    await eventually(
                        lambda: unready(site._http, "could not be renewed in time"),
                        "its lease is over",
                        site,
                        within=8,
                    )
                    await eventually(
                        lambda: unready(second, "the journal does not answer"),
                        "what it shows is old",
                        site,
                        within=8,
                    )
                    service = await get(second, "service")
                    assert "the journal does not answer" in service["complaints"][0]
                    assert all(each["age_seconds"] > 4 for each in service["controllers"]), (
                        "not as when they were seen"
                    )
                finally:
                    server.thaw()

                async def ready() -> bool:
                    return (await second.get("/readyz")).status_code == 200

                await eventually(ready, "it is ready again", site)
