"""docs/asyncapi.json is what the models say, and what travels is what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from migrator.api.commands import COMMANDS
from migrator.mqtt import asyncapi
from migrator.testing.lab import until
from tests.broker import Broker, mosquitto
from tests.conftest import missing
from tests.mqtt_peer import peer, settings
from tests.mqtt_service import FAST, SLOW, a_site, serving, set_link

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


@cache
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


async def test_what_travels_is_as_described(broker: Broker, tmp_path: Path) -> None:
    site = a_site(tmp_path / "service")
    async with serving(site, settings(broker)) as service, peer(broker) as scheduler:

        async def answer(verb: str, **fields: Any) -> Any:
            await scheduler.command(verb, id=verb, **fields)
            await until(lambda: scheduler.replies(verb), what="a reply")
            (reply,) = scheduler.replies(verb)
            assert reply["kind"] == "accepted"
            return reply["body"]

        async def ended(verb: str) -> None:
            set_link(site, FAST)
            await until(lambda: len(scheduler.replies(verb)) == 2, what="the outcome")

        set_link(site, SLOW)
        await answer("check", guest="web", to="b")
        await answer("plan", host="a")
        moving = (await answer("migrate", guest="web"))["id"]
        await until(lambda: scheduler.on(f"{moving}/progress"), what="progress")
        await answer("postcopy", migration=moving)
        await ended("migrate")
        set_link(site, SLOW)
        emptying = (await answer("evacuate", host="a", deadline="2999-01-01T00:00:00Z"))["id"]
        await answer("cancel", target=emptying)
        await ended("evacuate")
        await answer("activate", host="a")
        await scheduler.command("nothing", id="bad")
        await until(lambda: scheduler.replies("bad"), what="a refusal")
        assert {command.verb for command, _, _ in service.begun} >= {"migrate", "evacuate", "cancel"}
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
