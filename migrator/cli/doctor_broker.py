"""The broker check of ``migrator doctor``: with the service's credentials, under a name of its own."""

from __future__ import annotations

import asyncio

from migrator.cli.diagnosis import DoctorCheck, fail, ok, warn
from migrator.cli.doctor_service import RunningService
from migrator.errors import MigratorError
from migrator.mqtt.config import MqttConfig
from migrator.mqtt.connection import BrokerConnection, BrokerError, NotAllowed, UnsupportedVersion, Version
from migrator.mqtt.topics import Topics
from migrator.settings import Settings

_ALL_SECONDS = 30.0
_ABOUT = "broker"
_ACL = "see its ACL; config/mosquitto.acl shows what the service needs"


async def broker(settings: Settings, service: RunningService) -> list[DoctorCheck]:
    """Connect, ask for what the service asks for, and go; nothing is left there."""
    mqtt = settings.mqtt
    if not mqtt.host:
        return [ok(_ABOUT, "none is configured")]
    try:
        async with asyncio.timeout(_ALL_SECONDS):
            found = [*await _try(_visitor(settings)), *_rights(settings)]
    except TimeoutError:
        found = [fail(_ABOUT, f"{mqtt.host} did not answer within {_ALL_SECONDS:g} s")]
    except MigratorError as error:
        remedy = "see that it runs, its port, and the user and password: mosquitto_pub tries the same"
        found = [fail(_ABOUT, str(error), remedy)]
    if service.answers and service.mqtt is False:
        found.append(fail(_ABOUT, "the service itself is not connected", "see journalctl -u migrator"))
    return found


def _visitor(settings: Settings) -> MqttConfig:
    """Return the service's credentials under another name: of two clients with one name a broker keeps the last.

    Nothing is kept there once it has gone.
    """
    return MqttConfig(
        section=settings.mqtt.model_copy(update={"session_expiry": 0.0}),
        site=settings.site.name,
        instance=f"{settings.site.instance[:57]}-doctor",
    )


async def _try(config: MqttConfig) -> list[DoctorCheck]:
    if config.section.protocol == "3.1.1":
        return await _with(config, Version.V311)
    try:
        return await _with(config, Version.V5)
    except UnsupportedVersion:
        return await _with(config, Version.V311)


async def _with(config: MqttConfig, version: Version) -> list[DoctorCheck]:
    topics = Topics(site=config.site, instance=config.instance)
    # A broker may look at the rights to the will too.
    connection = BrokerConnection(
        config=config, client_id=config.new_client_id(), version=version, will=(topics.service, b"")
    )
    await connection.open()
    found: list[DoctorCheck] = []
    try:
        for topic in (topics.commands, *topics.states):
            try:
                await connection.subscribe(topic, qos=1, retained=False)
            except NotAllowed as error:
                found.append(fail(_ABOUT, str(error), _ACL))
        if not found and not await _comes_back(connection, topics, config.section.timeout):
            text = f"{config.address} does not let the service publish states, or not read them"
            found.append(fail(_ABOUT, text, _ACL))
    finally:
        await connection.close()
    which = "5" if version is Version.V5 else "3.1.1"
    return found or [ok(_ABOUT, f"{config.address} lets the service in, MQTT {which}")]


async def _comes_back(connection: BrokerConnection, topics: Topics, seconds: float) -> bool:
    """Tell whether a message arrives: many brokers take what a client may not publish, and drop it."""
    # Empty, as what is cleared is, and of a migration that never was: nobody keeps it.
    topic = f"{topics.prefix}/migration/{topics.instance}/state"
    try:
        await connection.publish(topic, b"", qos=1)
        async with asyncio.timeout(seconds):
            async for message in connection.messages():
                if message.topic == topic:
                    return True
    except (TimeoutError, BrokerError):
        return False
    return False


def _rights(settings: Settings) -> list[DoctorCheck]:
    mqtt = settings.mqtt
    found = []
    if not mqtt.operators and not mqtt.viewers:
        text = "nobody is among [mqtt] operators or viewers: every command will be refused"
        found.append(warn(_ABOUT, text, 'write operators = ["scheduler"]'))
    if not mqtt.username and mqtt.tls_certificate is None:
        text = "the service has no user there; who publishes a command is only true where the ACL makes it so"
        found.append(warn(_ABOUT, text, "forbid anonymous clients, and use config/mosquitto.acl"))
    if not mqtt.tls and mqtt.host not in ("localhost", "127.0.0.1", "::1"):
        text = f"passwords and commands go to {mqtt.host} without TLS"
        found.append(warn(_ABOUT, text, "tls = true"))
    return found
