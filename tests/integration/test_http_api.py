"""The API over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from migrator import logs
from migrator.api.commands import Migrate
from migrator.api.documents import MigrationDocument
from migrator.core.model import State
from migrator.http.limits import Limits
from migrator.testing.lab import until
from migrator.testing.simulated_service import RunningEngine, SimulatedService
from migrator.testing.workload import MIB, steady
from tests.http_service import HOSTILE, OF_ALPHA, OPERATOR, VIEWER, Place, hold_commands, serving, two_hosts


@pytest.fixture
def service(tmp_path: Path) -> SimulatedService:
    return two_hosts(tmp_path / "records")


@pytest.fixture
async def running(service: SimulatedService) -> AsyncIterator[RunningEngine]:
    async with service.running(killed=True) as running:  # its end would wait for whom it prepares
        yield running


@pytest.fixture
async def place(running: RunningEngine, tmp_path: Path) -> AsyncIterator[Place]:
    async with serving(running.dispatcher, running.queries, tmp_path) as place:
        yield place


def accepted(running: RunningEngine) -> list[str]:
    """The verbs of commands that were carried out."""
    return [verb for _, verb, result in running.counted if result == "accepted"]


def takes_long(service: SimulatedService) -> None:
    """Whoever is begun from now on is prepared for as long as a test lasts."""
    for host in service.site.hosts.values():
        host.start_seconds = 600.0


async def moved(running: RunningEngine, guest: str, to: str) -> MigrationDocument:
    """One that has ended."""
    begun = await running.ask(Migrate(guest=guest, to=to))
    await until(lambda: not running.queries.active_migrations(), what="its end")
    found: MigrationDocument = await running.queries.migration(begun.id)
    return found


@asynccontextmanager
async def by_socket(place: Place) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.AsyncHTTPTransport(uds=str(place.socket), verify=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://migrator/api/v1/") as client:
        yield client


@asynccontextmanager
async def by_tcp(place: Place, token: str | None = OPERATOR) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(base_url=f"{place.url}/api/v1/", headers=headers, verify=False) as client:
        yield client


@pytest.fixture
async def client(place: Place) -> AsyncIterator[httpx2.AsyncClient]:
    async with by_socket(place) as client:
        yield client


def problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """It is that problem, in the form of RFC 9457, under its request's id."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status
    assert found["code"] == code
    assert found["title"]
    assert found["detail"]
    assert "\n" not in found["detail"]
    assert found["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return found


class TestReading:
    async def test_hosts_and_guests(self, client: httpx2.AsyncClient):
        hosts = (await client.get("hosts")).json()["items"]
        assert [(host["host"], host["guests"], host["state"]) for host in hosts] == [
            ("alpha", 3, "active"),
            ("beta", 2, "active"),
        ]
        assert (await client.get("hosts/beta")).json() == hosts[1]
        guests = (await client.get("guests", params={"host": "alpha"})).json()["items"]
        assert {guest["name"] for guest in guests} == {"web", "db", HOSTILE}
        by_name = (await client.get("guests/beta/web")).json()
        assert (await client.get(f"guests/{by_name['uuid']}")).json() == by_name

    async def test_a_part_of_the_guests_is_asked_for_and_again_only_where_it_is_different(
        self, client: httpx2.AsyncClient, service: SimulatedService
    ):
        asked: dict[str, Any] = {"search": "W", "state": ["running", "paused"], "sort": "-name", "limit": 1}
        first = await client.get("guests", params=asked)
        page = first.json()
        assert (page["total"], page["next"], page["counts"]["run_state"]) == (2, 1, {"running": 2})
        again = {"If-None-Match": f'"another", W/{first.headers["etag"]}'}
        unchanged = await client.get("guests", params=asked, headers=again)
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        service.site.add_guest("zw", host="alpha")
        changed = await client.get("guests", params={**asked, "refresh": "true"}, headers=again)
        assert [guest["name"] for guest in changed.json()["items"]] == ["zw"]
        hosts = (await client.get("hosts", params={"search": "ALPHA", "up": "true", "limit": 5})).json()
        assert (hosts["total"], hosts["counts"]["guests"]) == (1, 4)
        for wrong in ({"sort": "nothing"}, {"limit": "501"}, {"offset": "-1"}, {"state": "a\0b"}):
            problem(await client.get("guests", params=wrong), 422, "invalid")

    async def test_guests_are_looked_at_where_that_is_asked_for(
        self, client: httpx2.AsyncClient, service: SimulatedService
    ):
        async def seen(**query: str) -> set[str]:
            items = (await client.get("guests", params=query)).json()["items"]
            return {guest["name"] for guest in items} - {"web", "db", "mail", HOSTILE}

        service.site.add_guest("new", host="alpha")
        service.site.add_guest("newer", host="beta")
        assert await seen(refresh="true", host="alpha") >= {"new"}
        assert await seen(refresh="true") == {"new", "newer"}

    async def test_an_ambiguous_name_is_refused_with_the_candidates(self, client: httpx2.AsyncClient):
        found = problem(await client.get("guests/web"), 409, "ambiguous")
        assert "alpha/web" in found["detail"]
        assert "beta/web" in found["detail"]

    @pytest.mark.parametrize(
        "path", ["hosts/gamma", "guests/nobody", "migrations/m9", "evacuations/e9", "nothing"]
    )
    async def test_what_is_not_there(self, client: httpx2.AsyncClient, path: str):
        problem(await client.get(path), 404, "not-found")

    async def test_pages_have_everything_once(self, client: httpx2.AsyncClient, running: RunningEngine):
        ended = [(await moved(running, "db", to)).id for to in ("beta", "alpha", "beta", "alpha", "beta")]
        seen, before, pages = [], None, 0
        while True:
            page = (
                await client.get("migrations", params={"limit": 2, **({"before": before} if before else {})})
            ).json()
            seen += [one["id"] for one in page["items"]]
            before, pages = page["next"], pages + 1
            if before is None:
                break
        assert (seen, pages) == (ended[::-1], 3)

    async def test_filters(
        self, client: httpx2.AsyncClient, service: SimulatedService, running: RunningEngine
    ):
        service.site.hosts["beta"].refuses = "no space left on device"
        first = await moved(running, "db", "beta")
        service.site.hosts["beta"].refuses = ""
        takes_long(service)
        second = await running.ask(Migrate(guest="db", to="beta"))
        failed = (await client.get("migrations", params={"state": "failed"})).json()["items"]
        assert [one["id"] for one in failed] == [first.id]
        active = (await client.get("migrations", params={"active": "true", "host": "alpha"})).json()["items"]
        assert [one["id"] for one in active] == [second.id]
        assert (await client.get("migrations", params={"active": "true", "host": "gone"})).json()[
            "items"
        ] == []

    @pytest.mark.parametrize(
        ("query", "says"),
        [
            ("limit=0", "query.limit: must be 1 or more"),
            ("limit=501", "query.limit: must be 500 or less"),
            ("limit=x", "query.limit: must be a whole number"),
            ("state=odd", "query.state: must be 'queued', "),
            ("before=a/b", "query.before: is not a name: 1 to 64 of A-Z a-z 0-9 . _ -"),
            ("guest=%00", "query.guest: must match"),
            ("active=maybe", "query.active: must be true or false"),
        ],
    )
    async def test_a_wrong_query(self, client: httpx2.AsyncClient, query: str, says: str):
        assert problem(await client.get(f"migrations?{query}"), 422, "invalid")["detail"].startswith(says)

    @pytest.mark.parametrize("path", ["guests?host=gamma", "saved?host=gamma", "hosts/gamma"])
    async def test_a_host_that_there_is_not_is_no_empty_list(self, client: httpx2.AsyncClient, path: str):
        said = problem(await client.get(path), 404, "not-found")["detail"]
        assert said == "there is no host gamma; there are alpha, beta"

    async def test_policies_and_what_each_allows(self, client: httpx2.AsyncClient):
        found = {one["name"]: one for one in (await client.get("policies")).json()["items"]}
        assert [one["name"] for one in found.values() if one["default"]] == ["default"]
        assert (found["default"]["guests"], found["gentle"]["guests"]) == (5, 0)
        assert "It is never slowed down." in found["gentle"]["allows"]
        assert (await client.get("guests", params={"policy": "gentle"})).json()["total"] == 0
        assert (await client.get("guests", params={"policy": "default"})).json()["total"] == 5
        assert (await client.get("hooks")).json() == {"items": []}


class TestCommands:
    async def test_a_migration_is_begun_once_for_one_id(
        self, client: httpx2.AsyncClient, running: RunningEngine
    ):
        headers = {"Idempotency-Key": "mine-1"}
        first = await client.post("migrations", json={"guest": "db", "to": "beta"}, headers=headers)
        again = await client.post("migrations", json={"guest": "db", "to": "beta"}, headers=headers)
        assert first.status_code == again.status_code == 202
        assert first.json() == again.json()
        assert first.headers["location"] == f"/api/v1/migrations/{first.json()['id']}"
        assert first.json()["requested_by"] == f"unix:{os.getuid()}"
        other = await client.post("migrations", json={"guest": "db"}, headers=headers)
        problem(other, 422, "id-reused")
        assert accepted(running) == ["migrate"]
        assert len((await client.get("migrations")).json()["items"]) == 1

    async def test_the_same_id_at_the_same_time_is_begun_once(
        self, client: httpx2.AsyncClient, running: RunningEngine
    ):
        headers = {"Idempotency-Key": "mine-2"}
        answers = await asyncio.gather(
            *(client.post("migrations", json={"guest": "db"}, headers=headers) for _ in range(8))
        )
        assert len({answer.text for answer in answers}) == 1
        assert len((await client.get("migrations")).json()["items"]) == 1

    async def test_a_command_outlives_its_client(
        self, place: Place, service: SimulatedService, running: RunningEngine
    ):
        may_answer = asyncio.Event()
        asked = hold_commands(service, may_answer)
        reader, writer = await asyncio.open_unix_connection(str(place.socket))
        body = b'{"guest": "db"}'
        writer.write(
            b"POST /api/v1/migrations HTTP/1.1\r\nHost: x\r\nIdempotency-Key: gone\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        await asyncio.wait_for(asked.wait(), 5)
        writer.close()
        may_answer.set()
        async with by_socket(place) as client:
            again = await client.post("migrations", json={"guest": "db"}, headers={"Idempotency-Key": "gone"})
            [begun] = (await client.get("migrations")).json()["items"]
        assert again.json()["id"] == begun["id"]
        assert accepted(running) == ["migrate"]
        del reader

    async def test_a_refusal_of_preflight_has_its_findings(self, client: httpx2.AsyncClient):
        found = problem(await client.post("migrations", json={"guest": "mail"}), 409, "preflight")
        assert [finding["code"] for finding in found["findings"]] == ["not-movable"]
        assert found["type"] == "urn:migrator:problem:preflight"

    @pytest.mark.parametrize(
        ("path", "body", "says"),
        [
            ("migrations", {}, "the command takes either guest or group"),
            (
                "migrations",
                {"guest": "db", "force": True},
                "force: there is no such field (there are guest, group, to, policy, accept)",
            ),
            (
                "migrations",
                {"guest": "db", "to": "a b"},
                "to: is not a name: 1 to 64 of A-Z a-z 0-9 . _ -",
            ),
            (
                "migrations",
                {"guest": "", "accept": ["libvirt", ""]},
                "guest: must not be empty; accept[1]: is not a name: 1 to 64 of A-Z a-z 0-9 . _ -",
            ),
            (
                "migrations",
                {"guest": 1, "to": 2, "policy": 3, "accept": 4},
                "guest: must be text; to: must be text; policy: must be text (and 1 more)",
            ),
            ("migrations", {"guest": "x" * 1025}, "guest: must not have more than 1024 characters"),
            ("rolls", {"hosts": []}, "hosts: must not be empty"),
            (
                "rolls",
                {"hosts": ["alpha"], "ready_timeout_seconds": "soon", "max_unavailable": 0},
                "max_unavailable: must be 1 or more; ready_timeout_seconds: must be a number",
            ),
            (
                "hosts/alpha/evacuate",
                {"deadline": "2027-01-01T00:00:00", "on_deadline": "panic"},
                "deadline: must be a time with its zone, as 2026-01-31T22:00:00Z; on_deadline: must be 'continue'",
            ),
            ("hosts/alpha/evacuate", {"host": "beta"}, "host"),
            ("plans", {"host": ["alpha"]}, "host: must be text"),
        ],
    )
    async def test_wrong_fields(self, client: httpx2.AsyncClient, path: str, body: Any, says: str):
        assert says in problem(await client.post(path, json=body), 422, "invalid")["detail"]

    @pytest.mark.parametrize("body", [b"{", b"[1]", b'"x"', b"\xff", b"[" * 50_000, b'{"guest": NaN}'])
    async def test_what_is_no_object_of_json(self, client: httpx2.AsyncClient, body: bytes):
        problem(await client.post("migrations", content=body), 422, "invalid")

    async def test_an_evacuation_and_its_end(self, client: httpx2.AsyncClient, service: SimulatedService):
        takes_long(service)
        begun = await client.post("hosts/alpha/evacuate", json={"deadline": "2027-01-01T00:00:00+01:00"})
        assert begun.status_code == 202
        identifier = begun.json()["id"]
        assert begun.json()["deadline"] == "2026-12-31T23:00:00Z" or begun.json()["deadline"].endswith(
            "+01:00"
        )
        problem(await client.post("hosts/alpha/evacuate"), 409, "conflict")
        problem(await client.post(f"migrations/{identifier}/cancel"), 404, "not-found")
        assert (await client.post(f"evacuations/{identifier}/cancel")).status_code == 202

        async def ended() -> bool:
            return bool((await client.get(f"evacuations/{identifier}")).json()["state"] == "cancelled")

        await until(ended, what="its end")

    async def test_plan_and_check_change_nothing(self, client: httpx2.AsyncClient):
        plan = (await client.post("plans", json={"host": "alpha"})).json()
        assert len(plan["guests"]) == 3
        assert (await client.post("checks", json={"guest": "db", "to": "beta"})).json()["possible"] is True
        assert (await client.get("migrations")).json() == {"items": [], "next": None}

    async def test_resolve_what_is_not_held(
        self, client: httpx2.AsyncClient, service: SimulatedService, running: RunningEngine
    ):
        # One that writes nothing is at its switch at once, however slow its link: its memory is not sent.
        machine = next(each for each in service.site.machines.values() if each.name == "db")
        machine.workload = steady(128 * MIB, 0.1 * MIB)
        service.site.hosts["alpha"].out.bytes_per_second = 1.0 * MIB
        one = await running.ask(Migrate(guest="db", to="beta"))
        answer = await client.post(f"migrations/{one.id}/resolve", json={"guest_at": "source"})
        problem(answer, 409, "not-now")
        (session,) = running.sessions()
        await until(lambda: session.state is State.PRECOPY, what="its precopy")

        (stream,) = service.site.streams.values()
        next(end for end in stream.listeners if not end.is_destination).die()
        await until(lambda: session.state is State.HELD, what="a migration that is held", within=30)
        answer = await client.post(f"migrations/{one.id}/resolve", json={"guest_at": "lost"})
        assert answer.status_code == 202, answer.text


class TestAccess:
    @pytest.mark.parametrize("token", [None, "wrong", OPERATOR + "x", "é" * 3, "x" * 5000])
    async def test_nobody_gets_in_by_tcp_without_a_token(self, place: Place, token: str | None):
        async with by_tcp(place, None) as client:
            headers = [(b"Authorization", f"Bearer {token}".encode())] if token else []
            for path in ("hosts", "guests", "migrations", "events", "session"):
                answer = await client.get(path, headers=headers)
                problem(answer, 401, "unauthenticated")
                assert answer.headers["www-authenticate"].startswith("Bearer")
            assert (await client.get(f"{place.url}/metrics", headers=headers)).status_code == 401
            problem(
                await client.post("migrations", json={"guest": "db"}, headers=headers), 401, "unauthenticated"
            )

    async def test_who_is_limited_to_a_host_is_answered_about_it_and_nothing_else(self, place: Place):
        async with by_tcp(place, OF_ALPHA) as client:
            assert (await client.get("session")).json()["hosts"] == ["alpha"]
            assert [each["host"] for each in (await client.get("hosts")).json()["items"]] == ["alpha"]
            assert {each["host"] for each in (await client.get("guests")).json()["items"]} == {"alpha"}
            assert (await client.get("service")).json()["hosts"] == 2
            for path in (
                "hosts/beta",
                "guests?host=beta",
                "guests/beta/web",
                "migrations/m-1",
                "evacuations/e-1",
            ):
                refused = await client.get(path)
                assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), path
                assert refused.json()["detail"].startswith("drain-alpha is limited to alpha: ")
            assert (await client.get(f"{place.url}/metrics")).status_code == 403
            assert (await client.get("saved")).status_code == 200
            assert (await client.get("saved?host=beta")).status_code == 403
            assert (await client.post("hosts/beta/evacuate")).status_code == 403
            assert (await client.post("migrations", json={"guest": "beta/web"})).status_code == 403
            begun = await client.post("hosts/alpha/evacuate")
            assert begun.status_code == 202
            assert (await client.get(f"evacuations/{begun.json()['id']}")).status_code == 200
            assert (await client.get("service")).json()["emptied_by"] == {"drain-alpha": 1}
            events = await client.get("events", params={"after": 0}, headers={"Accept": "application/json"})
            assert {each["subject_id"] for each in events.json()["items"] if each["subject"] == "host"} <= {
                "alpha"
            }

    async def test_a_viewer_may_look_plan_and_check_and_no_more(self, place: Place, running: RunningEngine):
        async with by_tcp(place, VIEWER) as client:
            assert (await client.get("hosts")).status_code == 200
            assert (await client.get("session")).json() == {
                "user": "vera",
                "role": "viewer",
                "hosts": None,
                "ends_at": None,
            }
            assert (await client.post("plans", json={"host": "alpha"})).status_code == 200
            assert (await client.post("checks", json={"guest": "db", "to": "beta"})).status_code == 200
            running.counted.clear()
            one = await running.ask(Migrate(guest="db", to="beta"))
            for path in (
                "migrations",
                "hosts/alpha/evacuate",
                "hosts/alpha/restore",
                "hosts/alpha/activate",
                f"migrations/{one.id}/cancel",
                f"migrations/{one.id}/postcopy",
                f"migrations/{one.id}/resolve",
            ):
                problem(await client.post(path, json={}), 403, "forbidden")
        assert accepted(running) == []

    @pytest.mark.parametrize("says", [{}, {"X-Forwarded-For": "unix:0"}], ids=["", "from elsewhere"])
    async def test_the_tokens_name_is_who_asked_and_where_from_is_not_what_it_says(
        self, place: Place, service: SimulatedService, says: dict[str, str]
    ):
        async with by_tcp(place) as client:
            await client.post("migrations", json={"guest": "db"}, headers={"Idempotency-Key": "k", **says})
        (asked,) = service.journal.commands.values()
        caller = asked["caller"]
        assert (caller["user"], caller["interface"], caller["origin"]) == ("olga", "http", "127.0.0.1")

    async def test_a_wrong_token_on_the_socket_is_not_waved_through(self, client: httpx2.AsyncClient):
        problem(await client.get("hosts", headers={"Authorization": "Bearer wrong"}), 401, "unauthenticated")

    async def test_guessing_is_slowed(self, running: RunningEngine, tmp_path: Path):
        slow = Limits(requests_per_second=0.5, burst=200)  # however slow this machine is
        async with (
            serving(running.dispatcher, running.queries, tmp_path, limits=slow) as place,
            by_tcp(place, "wrong") as client,
        ):
            statuses = [(await client.get("hosts")).status_code for _ in range(40)]
            assert statuses[0] == 401
            last = await client.get("hosts")
        problem(last, 429, "too-many-requests")
        assert int(last.headers["retry-after"]) >= 1


class TestCookie:
    async def test_a_token_becomes_a_cookie_that_writes_only_from_our_page(
        self, place: Place, running: RunningEngine
    ):
        ours = {"Origin": place.url}
        async with by_tcp(place, None) as client:
            problem(await client.post("session", json={"token": OPERATOR}), 403, "foreign-origin")
            problem(
                await client.post("session", json={"token": "wrong"}, headers=ours), 401, "unauthenticated"
            )
            answer = await client.post("session", json={"token": OPERATOR}, headers=ours)
            session = answer.json()
            assert (session["user"], session["role"]) == ("olga", "operator")
            assert datetime.fromisoformat(session["ends_at"]) > datetime.now(UTC)
            assert OPERATOR not in str(answer.headers)
            cookie = answer.headers["set-cookie"].lower()
            assert "httponly" in cookie
            assert "samesite=strict" in cookie
            assert (await client.get("hosts")).status_code == 200
            for foreign in (
                {},
                {"Origin": "null"},
                {"Origin": "http://evil.example"},
                {"Origin": f"{place.url}.evil"},
            ):
                problem(await client.post("hosts/alpha/evacuate", headers=foreign), 403, "foreign-origin")
            assert accepted(running) == []
            assert (await client.post("hosts/alpha/evacuate", headers=ours)).status_code == 202
            kept = dict(client.cookies)
            assert (await client.delete("session", headers=ours)).status_code == 204
            problem(await client.get("hosts"), 401, "unauthenticated")
            client.cookies.update(kept)  # whoever has kept it has nothing any more
            problem(await client.get("hosts"), 401, "unauthenticated")

    async def test_a_token_is_no_cookie_and_a_session_no_token(self, place: Place):
        async with by_tcp(place, None) as client:
            client.cookies.set("migrator_session", OPERATOR)
            problem(await client.get("hosts"), 401, "unauthenticated")
            client.cookies.clear()
            await client.post("session", json={"token": OPERATOR}, headers={"Origin": place.url})
            secret = client.cookies["migrator_session"]
            client.cookies.clear()
            answer = await client.get("hosts", headers={"Authorization": f"Bearer {secret}"})
            problem(answer, 401, "unauthenticated")


class TestLimits:
    async def test_large_bodies(self, client: httpx2.AsyncClient, running: RunningEngine):
        large = b'{"guest": "' + b"x" * 70_000 + b'"}'
        problem(await client.post("migrations", content=large), 413, "too-large")

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(large), 1000):
                yield large[start : start + 1000]

        problem(await client.post("migrations", content=pieces()), 413, "too-large")
        assert running.counted == []

    async def test_the_rate_of_one_caller_is_not_anothers(self, running: RunningEngine, tmp_path: Path):
        async with serving(
            running.dispatcher, running.queries, tmp_path, limits=Limits(requests_per_second=0.5, burst=3)
        ) as place:
            async with by_socket(place) as client:
                statuses = [(await client.get("hosts")).status_code for _ in range(5)]
                assert statuses == [200, 200, 200, 429, 429]
            async with by_tcp(place) as client:
                assert (await client.get("hosts")).status_code == 200

    async def test_an_answer_that_takes_too_long(
        self, service: SimulatedService, running: RunningEngine, tmp_path: Path
    ):
        async with serving(
            running.dispatcher, running.queries, tmp_path, limits=Limits(request_seconds=1.0)
        ) as place:
            may_answer = asyncio.Event()
            hold_commands(service, may_answer)
            async with by_socket(place) as client:
                headers = {"Idempotency-Key": "slow"}
                answer = await client.post("migrations", json={"guest": "db"}, headers=headers)
                assert "Idempotency-Key" in problem(answer, 504, "too-slow")["detail"]
                may_answer.set()
                again = await client.post("migrations", json={"guest": "db"}, headers=headers)
                assert again.status_code == 202
            assert accepted(running) == ["migrate"]

    async def test_a_body_that_does_not_come(self, running: RunningEngine, tmp_path: Path):
        async with serving(
            running.dispatcher, running.queries, tmp_path, limits=Limits(body_seconds=0.1)
        ) as place:
            reader, writer = await asyncio.open_unix_connection(str(place.socket))
            writer.write(b"POST /api/v1/migrations HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert b" 408 " in head.splitlines()[0]
            writer.close()

    async def test_streams_are_counted(self, running: RunningEngine, tmp_path: Path):
        async with (
            serving(
                running.dispatcher, running.queries, tmp_path, limits=Limits(streams_per_caller=2)
            ) as place,
            by_socket(place) as client,
        ):
            async with client.stream("GET", "events") as one, client.stream("GET", "events") as two:
                assert one.status_code == two.status_code == 200
                problem(await client.get("events"), 429, "too-many-streams")
            for _ in range(100):  # the end of a stream is seen a moment later
                async with client.stream("GET", "events") as three:
                    if three.status_code == 200:
                        break
            else:
                pytest.fail("a stream that ended still counts")


class TestEverywhere:
    async def test_a_fault_of_ours_shows_nothing_of_itself(
        self, client: httpx2.AsyncClient, running: RunningEngine
    ):
        running.queries.hosts = lambda: 1 / 0
        found = problem(await client.get("hosts", headers={"X-Request-Id": "find-me"}), 500, "internal")
        assert found["request_id"] == "find-me"
        assert "ZeroDivision" not in json.dumps(found)

    async def test_the_log_has_the_fault_and_who_asked_but_no_token(
        self, place: Place, running: RunningEngine, capfd: pytest.CaptureFixture[str]
    ):
        logs.configure(verbose=True, json=True)
        try:
            async with by_tcp(place) as client:
                await client.post("migrations", json={"guest": "db"}, headers={"X-Request-Id": "find-me"})
                running.queries.hosts = lambda: 1 / 0
                await client.get("hosts")
                await client.get("hosts", headers={"Authorization": "Bearer another-secret"})
        finally:
            logs.configure()
        said = capfd.readouterr().err
        lines = [json.loads(line) for line in said.splitlines()]
        asked = next(line for line in lines if line["event"] == "command")
        assert (asked["user"], asked["origin"], asked["verb"], asked["answer"], asked["request"]) == (
            *("olga", "127.0.0.1", "migrate", "accepted", "find-me"),
        )
        assert any("ZeroDivisionError" in line.get("exception", "") for line in lines)
        assert OPERATOR not in said
        assert "another-secret" not in said

    async def test_request_ids(self, client: httpx2.AsyncClient):
        given = await client.get("hosts", headers={"X-Request-Id": "a-b.c_1"})
        assert given.headers["x-request-id"] == "a-b.c_1"
        for odd in ("a b", "x" * 65, "<script>"):
            made = (await client.get("hosts", headers={"X-Request-Id": odd})).headers["x-request-id"]
            assert re.fullmatch(r"[0-9a-f]{32}", made)

    async def test_a_method_that_does_not_go_here(self, client: httpx2.AsyncClient):
        answer = await client.put("migrations", json={})
        problem(answer, 405, "method-not-allowed")
        assert answer.headers["allow"] == "GET, HEAD, POST"

    async def test_what_is_not_http(self, place: Place):
        reader, writer = await asyncio.open_unix_connection(str(place.socket))
        writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert b"application/problem+json" in answer
        writer.close()

    async def test_probes(
        self, place: Place, service: SimulatedService, running: RunningEngine, client: httpx2.AsyncClient
    ):
        for base in (place.probes, place.url):
            async with httpx2.AsyncClient(base_url=base, verify=False) as probe:
                assert (await probe.get("/healthz")).text == "ok\n"
                assert (await probe.get("/readyz")).json() == {"ready": True, "complaints": []}
        async with httpx2.AsyncClient(base_url=place.probes, verify=False) as probe:
            metrics = await probe.get("/metrics")
            assert metrics.text == "migrator_up 1\n"
            assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            for path in ("/", "/api/v1/hosts", "/openapi.json"):
                problem(await probe.get(path), 404, "not-found")
        service.journal.broken = "the journal's disk is full"
        await service.journal.probe()
        answer = await client.get("http://migrator/readyz")
        assert answer.status_code == 503
        assert answer.json()["complaints"] == ["the journal's disk is full"]

    async def test_the_page_asks_nothing_from_elsewhere(self, place: Place):
        async with httpx2.AsyncClient() as browser:
            page = await browser.get(place.url + "/")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page.text)
        assert not re.search(r"<[^>]*\s(on\w+|style)\s*=|innerHTML", page.text)
