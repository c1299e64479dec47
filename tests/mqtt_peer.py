"""Clients of a broker beside the service, and the service's settings at it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import SecretStr

from migrator.mqtt import MqttConfig
from migrator.settings.models import MqttSettings
from tests.broker import USERS, Broker

PREFIX = "migrator/v1/site"


_OF_SERVICE = ("instance", "shared", "longest_lifetime_seconds", "longest_pause_seconds", "closing_seconds")


def settings(broker: Broker | int, **fields: Any) -> MqttConfig:
    """Return those of a service at that broker, or port.

    :param fields: keys of the section, unchecked; or fields of :class:`MqttConfig`.
    """
    own = {name: fields.pop(name) for name in _OF_SERVICE if name in fields}
    section = MqttSettings(
        host="127.0.0.1",
        port=broker if isinstance(broker, int) else broker.port,
        username="migrator",
        password=SecretStr(fields.pop("password", USERS["migrator"])),
        operators=("scheduler",),
        viewers=("other",),
        timeout=2.0,
        keepalive=3.0,
    )
    return MqttConfig(section=section.model_copy(update=fields), site="site", **{"instance": "one", **own})


@dataclass(frozen=True)
class Got:
    """A message that a client got."""

    topic: str
    payload: bytes
    retain: bool
    properties: Any = None

    @property
    def json(self) -> Any:
        """Its payload."""
        return json.loads(self.payload)


class Peer:
    """Another client of the broker: a scheduler, a dashboard, anyone. It remembers all that it gets."""

    def __init__(self, client: aiomqtt.Client, user: str) -> None:
        self.client = client
        self.user = user
        self.got: list[Got] = []
        #: The broker is gone, and all that it sent before has been taken.
        self.ended = False

    async def _listen(self) -> None:
        try:
            await self._take()
        finally:
            self.ended = True

    async def _take(self) -> None:
        async for message in self.client.messages:
            assert isinstance(message.payload, bytes)
            self.got.append(
                Got(message.topic.value, message.payload, bool(message.retain), message.properties)
            )

    def on(self, ending: str) -> list[Got]:
        """What came on topics that end so."""
        return [each for each in self.got if each.topic.endswith(ending)]

    def replies(self, identifier: str) -> list[Any]:
        """To that command, in its usual place."""
        return [each.json for each in self.on(f"reply/{self.user}/{identifier}")]

    async def command(
        self,
        verb: str,
        *,
        id: str,  # noqa: A002 - as in the payload
        user: str | None = None,
        retain: bool = False,
        response: str | None = None,
        correlation: bytes | None = None,
        user_properties: Sequence[tuple[str, str]] = (),
        **fields: Any,
    ) -> None:
        """Ask for something; returns once the broker has it."""
        body = {"id": id, "sent_at": datetime.now(UTC).isoformat(), **fields}
        properties = None
        if response is not None or correlation is not None or user_properties:
            properties = Properties(PacketTypes.PUBLISH)
            if response is not None:
                properties.ResponseTopic = response
            if correlation is not None:
                properties.CorrelationData = correlation
            if user_properties:
                properties.UserProperty = list(user_properties)
        await self.client.publish(
            f"{PREFIX}/command/{user or self.user}/{verb}",
            json.dumps({k: v for k, v in body.items() if v is not None}),
            qos=1,
            retain=retain,
            properties=properties,
        )


@asynccontextmanager
async def peer(
    broker: Broker,
    user: str = "scheduler",
    *,
    topics: Sequence[str] | None = None,
    protocol: aiomqtt.ProtocolVersion = aiomqtt.ProtocolVersion.V5,
    session: str | None = None,
) -> AsyncIterator[Peer]:
    """A client that has subscribed to all that its role may read, or to `topics`.

    :param session: a client id whose session the broker keeps.
    """
    options: dict[str, Any] = {}
    if session is not None:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 600
        options = {"identifier": session, "clean_start": False, "properties": properties}
    async with aiomqtt.Client(
        "127.0.0.1",
        broker.port,
        username=user,
        password=USERS[user],
        protocol=protocol,
        timeout=5,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        **options,
    ) as client:
        each = Peer(client, user)
        listening = asyncio.create_task(each._listen(), name=f"peer {user}")
        try:
            for topic in topics if topics is not None else (f"{PREFIX}/#",):
                await client.subscribe(topic, qos=1)
            yield each
        finally:
            listening.cancel()
            await asyncio.wait({listening})
            if not listening.cancelled():
                listening.exception()
