"""docs/asyncapi.json is what the models say, and what travels is what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from migrator.api.commands import COMMANDS
from migrator.core.inventory import HostState
from migrator.mqtt import asyncapi
from migrator.testing.lab import until
from tests.broker import Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_fakes import Service
from tests.mqtt_peer import peer, settings

WRITTEN = Path(__file__).parents[2] / "docs" / "asyncapi.json"


def test_written_document_is_up_to_date() -> None:
    assert WRITTEN.read_text(encoding="utf-8") == asyncapi.text(), (
        "run: python -m migrator.mqtt.asyncapi > docs/asyncapi.json"
    )


def test_every_reference_leads_somewhere() -> None:
    document = asyncapi.document()
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)))
    assert len(references) > 30
    for reference in references:
        assert reference.startswith("#/"), reference
        place = document
        for step in reference[2:].split("/"):
            assert step in place, reference
            place = place[step]


def test_every_command_but_resolve_has_a_channel_and_a_reply() -> None:
    document = asyncapi.document()
    channels = {name for name in document["channels"] if name.startswith("command-")}
    assert channels == {f"command-{verb}" for verb in COMMANDS}
    for name in channels:
        operation = document["operations"][f"receive-{name}"]
        assert operation["bindings"]["mqtt"] == {"qos": 1, "retain": False}
        assert operation["reply"]["channel"] == {"$ref": "#/channels/reply"}


def _validator(message: str) -> jsonschema_rs.Validator:
    document = asyncapi.document()
    return jsonschema_rs.validator_for(
        {**document["components"]["messages"][message]["payload"], "components": document["components"]}
    )


@pytest.mark.parametrize(
    ("body", "good"),
    [
        ({"id": "c1", "sent_at": "2026-01-01T00:00:00Z", "guest": "g"}, True),
        ({"id": "c1", "sent_at": "2026-01-01T00:00:00Z", "guest": "g", "to": "b", "policy": "gentle"}, True),
        ({"sent_at": "2026-01-01T00:00:00Z", "guest": "g"}, False),
        ({"id": "c1", "guest": "g"}, False),
        ({"id": "c/1", "sent_at": "2026-01-01T00:00:00Z", "guest": "g"}, False),
        ({"id": "c1", "sent_at": "2026-01-01T00:00:00Z", "guest": "g", "force": True}, False),
        ({"id": "c1", "sent_at": "2026-01-01T00:00:00Z"}, False),
    ],
)
def test_schema_of_a_command_takes_what_the_service_takes(body: dict[str, Any], good: bool) -> None:
    assert _validator("command-migrate").is_valid(body) is good


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker


async def test_what_travels_is_as_described(broker: Broker) -> None:
    async with Service(settings(broker)).running() as service, peer(broker) as scheduler:
        service.controller.host("alpha", HostState.DRAINING)
        bodies: dict[str, dict[str, Any]] = {
            "migrate": {"guest": "web"},
            "evacuate": {"host": "a", "deadline": datetime.now(UTC).isoformat()},
            "restore": {"host": "a"},
            "activate": {"host": "a"},
            "cancel": {"target": "m0"},
            "postcopy": {"migration": "m0"},
            "plan": {"host": "a"},
            "check": {"guest": "g", "to": "b"},
        }
        for verb, body in bodies.items():
            await scheduler.command(verb, id=verb, **body)
            await until(lambda: scheduler.replies(verb), what="a reply")  # noqa: B023 - awaited here
            assert scheduler.replies(verb)[0]["kind"] == "accepted"
        service.controller.decide("m0", "throttle")
        service.controller.progress("m0", 0.5)
        await until(lambda: scheduler.on("m0/progress"), what="progress")
        service.controller.end("m0")
        await until(lambda: len(scheduler.replies("migrate")) == 2, what="the outcome")
        await scheduler.command("nothing", id="bad")
        await until(lambda: scheduler.replies("bad"), what="a refusal")
    document = asyncapi.document()
    addresses = {
        re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(channel["address"]))): (
            next(iter(channel["messages"])),
            document["operations"][f"send-{name}"]["bindings"]["mqtt"]["retain"],
        )
        for name, channel in document["channels"].items()
        if not name.startswith("command-")
    }
    seen = set()
    for got in scheduler.got:
        ((message, _),) = [found for address, found in addresses.items() if address.fullmatch(got.topic)]
        _validator(message).validate(got.json if got.payload.startswith(b"{") else got.payload.decode())
        seen.add(message)
    assert seen == {message for message, _ in addresses.values()}
