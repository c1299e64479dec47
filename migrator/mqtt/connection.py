"""One connection to a broker. The only place that knows aiomqtt, and paho below it."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import traceback
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import aiomqtt
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from migrator.errors import MigratorError, UsageError
from migrator.mqtt.config import MqttConfig
from migrator.tls import File, client_context

T = TypeVar("T")

#: Of commands that were not acknowledged; what a broker takes if nothing is said is 65535.
_RECEIVE_MAXIMUM = 64
#: What a broker sends; larger than a command may be, so that one which is too large is told so instead of vanishing.
_PACKET_BYTES = 2 << 20
#: CONNACK: unsupported protocol version.
_UNSUPPORTED_VERSION = 132
#: DISCONNECT: session taken over.
_SESSION_TAKEN = 142
#: What paho makes of a connection that was closed without one.
_UNSPECIFIED = 128


# What goes wrong is raised; what aiomqtt and paho would say beside it is about answers that nobody waits for any more.
_SILENT = logging.getLogger("migrator.mqtt")
_SILENT.setLevel(logging.CRITICAL)


class BrokerError(MigratorError):
    """The broker cannot be reached, refuses us, or the connection is lost; says which broker and why."""


class NotAllowed(BrokerError):
    """The broker's ACL is against it; the connection stands."""


class SessionTaken(BrokerError):
    """Another client has connected under our client's id, and has the session now."""


class ClosedByBroker(BrokerError):
    """The connection was closed at the broker's side, without a reason."""


class UnsupportedVersion(BrokerError):
    """The broker does not speak this version of MQTT."""


class Version(Enum):
    """Version of the MQTT protocol."""

    V5 = aiomqtt.ProtocolVersion.V5
    V311 = aiomqtt.ProtocolVersion.V311


@dataclass(frozen=True, kw_only=True, eq=False)
class Received:
    """A message from the broker."""

    topic: str
    payload: bytes
    retain: bool
    #: Version 5: where the sender wants its answer, and what it will know it by.
    response_topic: str | None = None
    correlation: bytes | None = None
    #: Version 5: whatever else the sender says, in order.
    user_properties: tuple[tuple[str, str], ...] = ()
    qos: int = 0
    mid: int = 0


class BrokerConnection:
    """Open it once, close it in any case. Everything else raises :class:`BrokerError` once it is lost.

    :param client_id: the same at every connection, so that the broker finds the session again.
    :param will: what the broker publishes, retained, when this connection ends without :meth:`close`: topic, payload;
        ``None``: nothing.
    """

    def __init__(
        self, *, config: MqttConfig, client_id: str, version: Version, will: tuple[str, bytes] | None
    ) -> None:
        self._config = config
        self._v5 = version is Version.V5
        self._client = aiomqtt.Client(
            config.section.host,
            config.section.broker_port,
            username=config.section.username or None,
            password=config.section.password.get_secret_value() or None,
            identifier=client_id,
            protocol=version.value,
            logger=_SILENT,
            will=aiomqtt.Will(will[0], will[1], qos=1, retain=True) if will is not None else None,
            timeout=config.section.timeout,
            keepalive=int(config.section.keepalive),
            tls_context=_tls(config) if config.section.tls else None,
            properties=self._connect_properties() if self._v5 else None,
            # A reply does not wait until the broker's machine has confirmed the packet before: that takes it 40 ms.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            clean_start=False if self._v5 else MQTT_CLEAN_START_FIRST_ONLY,
            clean_session=None if self._v5 else False,
        )
        self._client.pending_calls_threshold = _RECEIVE_MAXIMUM
        # aiomqtt acknowledges what its user has not yet seen, and offers no other way. What is used of its private
        # parts, and of paho's, is used in this class and nowhere else; a test names it.
        self._paho = self._client._client  # noqa: SLF001
        self._paho.manual_ack_set(True)
        self._paho.connect_timeout = config.section.timeout
        self._open = False

    def _connect_properties(self) -> Properties:
        properties = _properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = int(self._config.section.session_expiry)
        properties.ReceiveMaximum = _RECEIVE_MAXIMUM
        properties.MaximumPacketSize = max(_PACKET_BYTES, 2 * self._config.section.max_command_size)
        return properties

    async def open(self) -> None:
        """Connect, with the session that the broker kept.

        :raise UnsupportedVersion: another version may do.
        :raise BrokerError: not connected, and nothing is left behind.
        """
        # What connects runs in a thread that cannot be interrupted; left alone it would connect after we have gone.
        opening = asyncio.create_task(self._enter(), name="mqtt opening")
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait({opening}, timeout=self._config.closing_seconds)
            opening.cancel()
            opening.add_done_callback(_heard)
            self._cut()
            raise
        except aiomqtt.MqttError as error:
            self._cut()
            if error.__context__ is not None:
                # paho leaves the socket of a handshake that failed to whoever holds the exception.
                traceback.clear_frames(error.__context__.__traceback__)
            kind = BrokerError
            if isinstance(error, aiomqtt.MqttCodeError) and _code(error.rc) == _UNSUPPORTED_VERSION:
                kind = UnsupportedVersion
            raise kind(f"broker {self._config.address}: not connected: {error}") from error
        self._open = True

    async def _enter(self) -> None:
        await self._client.__aenter__()

    async def close(self) -> None:
        """Say goodbye, so that the broker keeps the will to itself. Never raises, and takes its time-out at most."""
        if self._open:
            self._open = False
            try:
                await _whole(self._client.__aexit__(None, None, None))
            except aiomqtt.MqttError:
                pass  # then without a goodbye
            finally:
                self._cut()

    def _cut(self) -> None:
        # A socket that no goodbye has closed would stay with the loop, and answer should the broker wake up.
        self._paho._sock_close()  # noqa: SLF001
        # Why it was lost is known by now; asyncio would say that nobody asked.
        lost = self._client._disconnected  # noqa: SLF001
        if lost.done() and not lost.cancelled():
            lost.exception()

    async def publish(
        self, topic: str, payload: bytes, *, qos: int, retain: bool = False, correlation: bytes | None = None
    ) -> None:
        """Returns once the broker has taken it (QoS 1), or it is on the wire (QoS 0)."""
        properties = None
        if self._v5 and correlation is not None:
            properties = _properties(PacketTypes.PUBLISH)
            properties.CorrelationData = correlation
        try:
            await _whole(self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties))
        except (aiomqtt.MqttError, ValueError) as error:
            raise BrokerError(f"broker {self._config.address}: {topic} not published: {error}") from error

    async def subscribe(self, topic: str, *, qos: int, retained: bool) -> None:
        """Have what is published there delivered.

        :param retained: what is retained now, too. Version 3.1.1 delivers it in any case.
        :raise NotAllowed: the broker refuses it.
        """
        options = None
        if self._v5:
            options = SubscribeOptions(
                qos=qos,
                # So that a command that was published as retained is known as such.
                retainAsPublished=not retained,
                retainHandling=SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
                if retained
                else SubscribeOptions.RETAIN_DO_NOT_SEND,
            )
        try:
            granted = await _whole(self._client.subscribe(topic, qos=0 if options else qos, options=options))
        except aiomqtt.MqttError as error:
            raise BrokerError(f"broker {self._config.address}: {topic} not subscribed: {error}") from error
        if any(_code(each) >= 128 for each in granted):
            raise NotAllowed(f"broker {self._config.address} does not let us read {topic}: see its ACL")

    async def unsubscribe(self, topic: str) -> None:
        """Have it delivered no more."""
        try:
            await _whole(self._client.unsubscribe(topic))
        except aiomqtt.MqttError as error:
            raise BrokerError(f"broker {self._config.address}: {topic} not unsubscribed: {error}") from error

    async def messages(self) -> AsyncIterator[Received]:
        """Yield messages until the connection is lost. Each with a QoS wants :meth:`acknowledge`, in this order."""
        try:
            async for message in self._client.messages:
                properties = message.properties
                yield Received(
                    topic=message.topic.value,
                    payload=message.payload,
                    retain=message.retain,
                    response_topic=getattr(properties, "ResponseTopic", None),
                    correlation=getattr(properties, "CorrelationData", None),
                    user_properties=tuple(getattr(properties, "UserProperty", ())),
                    qos=message.qos,
                    mid=message.mid,
                )
        except aiomqtt.MqttError as error:
            reason = error.__cause__ or error
            raise BrokerError(f"broker {self._config.address}: connection lost: {reason}") from error

    def why_lost(self, error: BrokerError) -> BrokerError:
        """Return the reason for the loss of the connection, whichever call found out first."""
        lost = self._client._disconnected  # noqa: SLF001
        cause = lost.exception() if lost.done() and not lost.cancelled() else None
        code = _code(cause.rc) if isinstance(cause, aiomqtt.MqttCodeError) else 0
        if code == _SESSION_TAKEN:
            return SessionTaken(f"broker {self._config.address}: another client has taken our session")
        # A broker may close a connection without a word, as mosquitto does with one whose session is taken.
        return ClosedByBroker(str(error)) if code == _UNSPECIFIED else error

    def acknowledge(self, received: Received) -> None:
        """Done with it: the broker may forget it. Until then it is delivered again at the next connection."""
        if self._open and received.qos:
            self._paho.ack(received.mid, received.qos)


async def _whole(call: Coroutine[Any, Any, T]) -> T:
    """Return or raise what a call does; a cancellation is never lost in it.

    aiomqtt waits with :func:`asyncio.wait_for`, which in Python 3.11 returns as if nothing had been if the answer comes
    in the same moment as a cancellation.
    """
    task = asyncio.create_task(call, name="mqtt call")
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        task.add_done_callback(_heard)
        raise
    return await task


def _heard(task: asyncio.Task[Any]) -> None:
    """Take the result of a task that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def _tls(config: MqttConfig) -> ssl.SSLContext:
    given = {
        "ca": config.section.tls_ca,
        "certificate": config.section.tls_certificate,
        "key": config.section.tls_key,
    }
    files = {
        kind: File(name=f"[mqtt] tls_{kind}", path=path) for kind, path in given.items() if path is not None
    }
    try:
        return client_context(**files)
    except UsageError as error:
        raise BrokerError(str(error)) from error


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]


def _code(reason: Any) -> int:
    value = getattr(reason, "value", reason)
    return int(value) if isinstance(value, int) else 0
