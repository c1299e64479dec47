"""A message into a command: what is wrong with it is found here as far as it is about MQTT, else by the dispatcher."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from migrator.api import field_errors, trace_context
from migrator.api.commands import COMMANDS, Moment, Name, Role
from migrator.api.replies import Refusal, Reply
from migrator.api.requests import Caller, Envelope
from migrator.api.trace_context import TRACEPARENT, TRACESTATE, TraceContext
from migrator.mqtt.config import MqttConfig
from migrator.mqtt.connection import Received
from migrator.mqtt.topics import Topics
from migrator.settings.values import NAME
from migrator.units import show_seconds

#: What may be asked for by MQTT.
VERBS = tuple(COMMANDS)

_MAX_CORRELATION_BYTES = 1024
#: Stands for correlation data that there was none; it is no base64.
_NO_CORRELATION = "-"
#: Stands for the id in the topic of a refusal, where the command had none that can be in a topic.
NAMELESS = "unknown"


class CommandHead(BaseModel):
    """Fields that every command has beside its own."""

    model_config = ConfigDict(frozen=True)

    #: The caller's own. The same id again does nothing and gets the current reply.
    id: Name
    sent_at: Moment
    #: Until when it may be begun; ten minutes after `sent_at` if it is not said, and a day after it at the latest.
    expires_at: Moment | None = None


@dataclass(frozen=True, kw_only=True)
class ReplyTo:
    """Where a reply goes."""

    topic: str
    correlation: bytes | None = None

    def origin(self, topic: str) -> str:
        """Whence a command came and where its replies go, in the words of the journal; see :meth:`of`."""
        if self.correlation is None:
            # A blank in a topic would pass for the one before the correlation data.
            return f"{topic} -> {self.topic}{f' {_NO_CORRELATION}' if ' ' in self.topic else ''}"
        return f"{topic} -> {self.topic} {b64encode(self.correlation).decode()}"

    @classmethod
    def of(cls, origin: str, *, topics: Topics, user: str) -> ReplyTo | None:
        """Read what :meth:`origin` wrote; ``None`` where it is something else, or not that user's."""
        _, _, where = origin.partition(" -> ")
        if topics.may_reply(user, where) and " " not in where:
            return cls(topic=where)
        topic, _, correlation = where.rpartition(" ")
        if not topics.may_reply(user, topic):
            return None
        if correlation == _NO_CORRELATION:
            return cls(topic=topic)
        try:
            return cls(topic=topic, correlation=b64decode(correlation, validate=True))
        except ValueError:
            return cls(topic=where)


@dataclass(frozen=True, kw_only=True)
class IncomingCommand:
    """A command that may go to the dispatcher."""

    envelope: Envelope
    user: str
    id: str
    reply_to: ReplyTo


class RejectedMessage(Exception):
    """A message that does not get as far as the dispatcher.

    :ivar reply_to: where that can be said, if anywhere.
    """

    def __init__(
        self, refusal: Refusal, *, verb: str, identifier: str | None, reply_to: ReplyTo | None
    ) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal
        self.verb = verb
        self.id = identifier
        self.reply_to = reply_to

    def reply(self) -> Reply:
        """Return the reply for its sender."""
        return Reply(
            kind="refused",
            id=self.id,
            verb=self.verb[:64],
            code=self.refusal.code,
            message=str(self.refusal),
        )


def read(received: Received, *, topics: Topics, config: MqttConfig, now: datetime) -> IncomingCommand:
    """The command in a message.

    :raise RejectedMessage: there is none that may be carried out.
    """
    where = topics.command(received.topic)
    if where is None:
        raise RejectedMessage(
            Refusal("invalid", f"commands go to {topics.prefix}/command/USER/VERB"),
            verb="unknown",
            identifier=None,
            reply_to=None,
        )
    user, verb = where
    body: dict[str, Any] = {}
    identifier: str | None = None
    reply_to = _response(received, user, topics)
    # Without an id that can be in a topic its sender is told here.
    nameless = ReplyTo(topic=topics.reply(user, NAMELESS))
    try:
        body = _parse(received, config)
        if isinstance(body.get("id"), str) and NAME.fullmatch(body["id"]):
            identifier = body["id"]
            reply_to = reply_to or ReplyTo(topic=topics.reply(user, identifier))
        reply_to = reply_to or nameless
        role = _allowed(received, user, verb, topics, config)
        head = _head(body, config, now)
    except Refusal as refusal:
        raise RejectedMessage(
            refusal, verb=verb, identifier=identifier, reply_to=reply_to or nameless
        ) from None
    if reply_to is nameless:
        reply_to = ReplyTo(topic=topics.reply(user, head.id))
    return IncomingCommand(
        envelope=Envelope(
            verb=verb,
            body={name: value for name, value in body.items() if name not in CommandHead.model_fields},
            caller=Caller(
                user=user,
                role=role,
                interface="mqtt",
                origin=reply_to.origin(received.topic),
                trace=_trace(received),
                hosts=config.hosts(user),
            ),
            id=head.id,
            expires_at=head.expires_at or head.sent_at + timedelta(seconds=config.section.command_lifetime),
        ),
        user=user,
        id=head.id,
        reply_to=reply_to,
    )


def _trace(received: Received) -> TraceContext | None:
    given = received.user_properties
    return trace_context.read(
        [value for name, value in given if name == TRACEPARENT],
        [value for name, value in given if name == TRACESTATE],
    )


def _response(received: Received, user: str, topics: Topics) -> ReplyTo | None:
    topic, correlation = received.response_topic, received.correlation
    if topic is None or not topics.may_reply(user, topic):
        return None
    if correlation is not None and len(correlation) > _MAX_CORRELATION_BYTES:
        correlation = None
    return ReplyTo(topic=topic, correlation=correlation)


def _parse(received: Received, config: MqttConfig) -> dict[str, Any]:
    if len(received.payload) > config.section.max_command_size:
        raise Refusal(
            "invalid",
            f"a command has at most {config.section.max_command_size} bytes (mqtt.max_command_size)",
        )
    try:
        body = json.loads(received.payload)
    except (ValueError, RecursionError) as error:
        raise Refusal("invalid", f"the command is not JSON: {str(error)[:200]}") from None
    if not isinstance(body, dict):
        raise Refusal("invalid", "the command is not a JSON object")
    return body


def _allowed(received: Received, user: str, verb: str, topics: Topics, config: MqttConfig) -> Role:
    if received.retain:
        raise Refusal("invalid", "a retained command is not carried out: publish it without the retain flag")
    if received.response_topic is not None and not topics.may_reply(user, received.response_topic):
        raise Refusal("invalid", f"the response topic must lie below {topics.prefix}/reply/{user}/")
    if received.correlation is not None and len(received.correlation) > _MAX_CORRELATION_BYTES:
        raise Refusal("invalid", f"correlation data has at most {_MAX_CORRELATION_BYTES} bytes")
    role = config.role(user)
    if role is None:
        raise Refusal("forbidden", f"{user} may ask for nothing here")
    if verb not in VERBS:
        raise Refusal("invalid", f"there is no command {verb[:64]!r} here; there are {', '.join(VERBS)}")
    if verb == "resolve" and user not in config.section.resolvers:
        # It is for a person who has looked: a scheduler that may move guests must not say where one is.
        raise Refusal("forbidden", f"{user} may not resolve by MQTT: [mqtt] resolvers has who may")
    return role


def _head(body: dict[str, Any], config: MqttConfig, now: datetime) -> CommandHead:
    try:
        head = CommandHead.model_validate(
            {name: body[name] for name in CommandHead.model_fields if name in body}
        )
    except ValidationError as error:
        raise Refusal("invalid", field_errors.describe(error.errors(include_url=False))) from None
    if head.sent_at > now + timedelta(seconds=config.section.clock_tolerance):
        raise Refusal(
            "invalid",
            f"sent_at is {head.sent_at.isoformat()}, here it is {now.isoformat()}: set the clocks right, or allow more "
            "by mqtt.clock_tolerance",
        )
    latest = head.sent_at + timedelta(seconds=config.longest_lifetime_seconds)
    if head.expires_at is not None and head.expires_at > latest:
        raise Refusal(
            "invalid",
            f"expires_at is {head.expires_at.isoformat()}; a command is good for "
            f"{show_seconds(config.longest_lifetime_seconds)} at most: until {latest.isoformat()}",
        )
    return head


def too_many(incoming: IncomingCommand, what: str) -> RejectedMessage:
    """Return the refusal of a command that would wait behind too many."""
    return RejectedMessage(
        Refusal("not-now", f"{what}; wait for their replies, then send it again"),
        verb=incoming.envelope.verb,
        identifier=incoming.id,
        reply_to=incoming.reply_to,
    )
