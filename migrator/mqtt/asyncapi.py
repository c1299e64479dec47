"""The AsyncAPI 3 document of the MQTT interface, made from the models that the service itself uses.

``python -m migrator.mqtt.asyncapi`` prints it; ``docs/asyncapi.json`` is its output.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import BaseModel, create_model
from pydantic.json_schema import models_json_schema

from migrator.api.commands import COMMANDS, Command
from migrator.api.documents import CheckDocument, DecisionDocument, MigrationDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.events import EventDocument, Subject
from migrator.api.inventory_documents import HostDocument
from migrator.api.plan_documents import PlanDocument
from migrator.mqtt.inbound import VERBS, CommandHead
from migrator.mqtt.reply_message import ReplyMessage
from migrator.mqtt.topics import Topics
from migrator.settings.values import NAME

_NAME = NAME.pattern

#: The prefix with the parameters of a channel's address.
_TOPICS = Topics("{site}", "{instance}")

_SUBJECTS: dict[Subject, tuple[str, type[BaseModel], str]] = {
    Subject.MIGRATION: ("migration", MigrationDocument, "Its id; cleared 24 hours after its end."),
    Subject.EVACUATION: ("evacuation", EvacuationDocument, "Its id; cleared 24 hours after its end."),
    Subject.HOST: ("host", HostDocument, "Its name; cleared when it is no longer configured."),
}


def document() -> dict[str, Any]:
    """All channels, operations and messages; schemas are those of the models."""
    commands = {verb: _with_head(COMMANDS[verb]) for verb in VERBS}
    models: list[type[BaseModel]] = [
        *commands.values(),
        ReplyMessage,
        EventDocument,
        DecisionDocument,
        PlanDocument,
        CheckDocument,
        *(model for _, model, _ in _SUBJECTS.values()),
    ]
    made, found = models_json_schema(
        [(model, "validation" if model in commands.values() else "serialization") for model in models],
        ref_template="#/components/schemas/{model}",
    )
    schemas = found["$defs"]
    references = {model: schema for (model, _), schema in made.items()}
    described = _Described()
    for verb, model in commands.items():
        _command(described, verb, references[model])
    described.add_reply(references[ReplyMessage])
    for subject, (name, model, meaning) in _SUBJECTS.items():
        described.add_event(
            subject, "state", references[EventDocument], references[model], meaning, retained=True
        )
        if name == "migration":
            described.add_event(
                subject, "progress", references[EventDocument], references[model], meaning, retained=False
            )
            described.add_event(
                subject,
                "decision",
                references[EventDocument],
                references[DecisionDocument],
                meaning,
                retained=False,
            )
    described.add_service()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "migrator over MQTT",
            "version": "1.0.0",
            "description": (
                "Commands in, replies, states, decisions and progress out. Version 1 only gains fields. "
                "Units: bytes, bytes per second, seconds, ratios of 0 to 1; times are RFC 3339. "
                "Operations are the service's: it receives commands and sends the rest."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": described.channels,
        "operations": described.operations,
        "components": {"messages": described.messages, "schemas": dict(sorted(schemas.items()))},
    }


def _with_head(command: type[Command]) -> type[BaseModel]:
    return create_model(
        f"{command.__name__}Command", __base__=(CommandHead, command), __doc__=command.__doc__
    )


class _Described:
    """The parts of the document that are written so far."""

    def __init__(self) -> None:
        self.channels: dict[str, Any] = {}
        self.operations: dict[str, Any] = {}
        self.messages: dict[str, Any] = {}

    def add(
        self,
        channel: str,
        address: str,
        message: str,
        *,
        action: str,
        description: str,
        payload: Any,
        parameters: dict[str, str],
        qos: int,
        retain: bool,
        message_extras: dict[str, Any] | None = None,
        operation_extras: dict[str, Any] | None = None,
    ) -> None:
        """One channel with one message and the service's operation on it."""
        self.messages[message] = {"name": message, "payload": payload, **(message_extras or {})}
        self.channels[channel] = {
            "address": address,
            "description": description,
            "messages": {message: {"$ref": f"#/components/messages/{message}"}},
            "parameters": {name: {"description": meaning} for name, meaning in parameters.items()},
        }
        self.operations[f"{action}-{channel}"] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": [{"$ref": f"#/channels/{channel}/messages/{message}"}],
            "bindings": {"mqtt": {"qos": qos, "retain": retain}},
            **(operation_extras or {}),
        }

    def add_reply(self, schema: Any) -> None:
        """Replies, wherever they go."""
        self.add(
            "reply",
            _TOPICS.reply("{user}", "{id}"),
            "reply",
            action="send",
            description=(
                "`accepted` or `refused`, and `outcome` when what the command began has ended; or to the response "
                "topic of the command, which must lie below `reply/{user}/`, with its correlation data. QoS 1. "
                "May come more than once."
            ),
            payload=schema,
            parameters={**_SITE, "user": "Who gave the command.", "id": "The command's id."},
            qos=1,
            retain=False,
        )

    def add_event(
        self, subject: Subject, what: str, event: Any, body: Any, meaning: str, *, retained: bool
    ) -> None:
        """A kind of event of a kind of subject."""
        address = f"{_TOPICS.prefix}/{subject}/{{{subject}}}/{what}"
        description = {
            "state": "The present state, without its lists. Retained. An empty payload clears it.",
            "progress": "At most once a second; lost while the broker is away.",
            "decision": "Every decision of the controller, with its reason and the numbers behind it.",
        }[what]
        self.add(
            f"{subject}-{what}",
            address,
            f"{subject}-{what}",
            action="send",
            description=description,
            payload={"allOf": [event, {"type": "object", "properties": {"body": body}}]},
            parameters={**_SITE, str(subject): meaning},
            qos=0 if what == "progress" else 1,
            retain=retained,
        )

    def add_service(self) -> None:
        """Describe the topic that tells whether the service is there."""
        self.add(
            "service",
            _TOPICS.service,
            "presence",
            action="send",
            description="Retained, plain text; `offline` is the last will too.",
            payload={"type": "string", "enum": ["online", "offline"]},
            parameters={**_SITE, "instance": "Which service."},
            qos=1,
            retain=True,
            message_extras={"contentType": "text/plain"},
        )


_SITE = {"site": "As configured."}


def _command(described: _Described, verb: str, schema: Any) -> None:
    described.add(
        f"command-{verb}",
        f"{_TOPICS.prefix}/command/{{user}}/{verb}",
        f"command-{verb}",
        action="receive",
        description=f"{(COMMANDS[verb].__doc__ or '').strip()} Takes the role {COMMANDS[verb].role}.",
        payload=schema,
        parameters={**_SITE, "user": f"Who asks, as the broker knows it; matches {_NAME}."},
        qos=1,
        retain=False,
        operation_extras={
            "reply": {
                "channel": {"$ref": "#/channels/reply"},
                "messages": [{"$ref": "#/channels/reply/messages/reply"}],
            }
        },
    )


def text() -> str:
    """Return the text of ``docs/asyncapi.json``."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
