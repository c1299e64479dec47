"""What every interface says of the controllers that share a journal: who acts, who stands by, how old all of it is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from migrator.api.service_documents import ControllerDocument, LeaseDocument, ServiceDocument
from tests.command import MIGRATOR
from tests.page_browser import ShownPage, chromium
from tests.service_thread import ServiceThread, in_thread

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def controller(name: str, role: str, **fields: Any) -> ControllerDocument:
    given: dict[str, Any] = {
        "name": name,
        "instance": f"machine-{name}",
        "version": "1.2",
        "schema_revision": "0007",
        "role": role,
        "present": True,
        "started_at": NOW,
        "seen_at": NOW,
        "age_seconds": 0.7,
        **fields,
    }
    return ControllerDocument(**given)


def lease(name: str, owner: str, age: float) -> LeaseDocument:
    return LeaseDocument(
        name=name, owner=owner, token=3, taken_at=NOW, left_seconds=6.0 - age, age_seconds=age
    )


STANDBY = ServiceDocument(
    instance="machine-b",
    version="1.2",
    role="standby",
    acting="machine-a",
    acting_url="https://a.example:8443",
    stale_seconds=0.4,
    controllers=[
        controller("a", "acting", url="https://a.example:8443"),
        controller("b", "standby", migrations=3),
        controller("c", "waiting", detail="waits for machine-a to go", version="1.3"),
        controller("d", "standby", present=False, age_seconds=4000.0),
    ],
    leases=[lease("controller/a", "a", 0.7), lease("controller/b", "b", 0.2), lease("site", "a", 0.9)],
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceThread]:
    with in_thread(tmp_path) as service:
        service.place.app.state.dependencies.service = lambda: STANDBY
        yield service


def status(service: ServiceThread, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MIGRATOR, "status", *words],
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "MIGRATOR_SERVER": f"unix:{service.place.socket}"},
    )


def test_the_command_line_shows_controllers_roles_leases_and_who_plans(service: ServiceThread) -> None:
    ended = status(service, "--service")
    assert ended.returncode == 0, ended.stderr
    header, *rows = [line.split("\t") for line in ended.stdout.splitlines() if "\t" in line]
    assert header[:5] == ["INSTANCE", "ROLE", "VERSION", "HEARTBEAT", "LEASE"]
    assert [row[:5] for row in rows] == [
        ["machine-a", "acting", "1.2", "0.7 s ago", "site 0.9 s ago, own 0.7 s ago"],
        ["machine-b", "standby", "1.2", "0.7 s ago", "own 0.2 s ago"],
        ["machine-c", "waiting", "1.3", "0.7 s ago", ""],
        ["machine-d", "gone", "1.2", "67 min ago", ""],
    ]
    assert header[5] == "DRIVES"
    assert [row[5] for row in rows] == ["0", "3", "0", "0"]
    assert "machine-a acts, and plans the site" in ended.stdout
    assert "machine-b answers, and stands by; what it shows is 0.4 s old at most" in ended.stdout
    assert json.loads(status(service, "--service", "--json").stdout)["acting"] == "machine-a"
    assert status(service, "some-id", "--service").returncode == 2


def test_one_that_acted_and_has_lost_its_lease_is_not_shown_as_acting(service: ServiceThread) -> None:
    told = service.place.app.state.dependencies.service()
    controllers = [controller("a", "replaced"), *told.controllers[1:]]
    told = told.model_copy(update={"controllers": controllers})
    service.place.app.state.dependencies.service = lambda: told
    rows = [line.split("\t") for line in status(service, "--service").stdout.splitlines()]
    assert rows[1][:2] == ["machine-a", "replaced"]


def test_the_command_line_says_where_nobody_acts_and_where_one_is_alone(service: ServiceThread) -> None:
    nobody = STANDBY.model_copy(update={"acting": None, "complaints": ["no controller acts"]})
    service.place.app.state.dependencies.service = lambda: nobody
    said = status(service, "--service").stdout
    assert "NOBODY ACTS" in said
    assert "complaint: no controller acts" in said
    alone = ServiceDocument(instance="one", version="1.2", role="alone", acting="one")
    service.place.app.state.dependencies.service = lambda: alone
    assert "one is alone" in status(service, "--service").stdout


def test_the_page_shows_them(service: ServiceThread) -> None:
    with chromium() as browser:
        seen = ShownPage(browser, service.place.url)
        seen.sign_in()
        part = seen.page.get_by_role("region", name="Controllers")
        expect(part).to_contain_text("machine-a acts; this one, machine-b, stands by")
        items = part.get_by_role("listitem")
        expect(items).to_have_count(4)
        expect(items.nth(0)).to_contain_text("acting machine-a at https://a.example:8443, version 1.2")
        expect(items.nth(0)).to_contain_text("plans the site")
        expect(items.nth(2)).to_contain_text("waits for machine-a to go")
        expect(items.nth(3)).to_contain_text("gone machine-d")
        seen.close()
