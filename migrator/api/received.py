"""A command as it was received: parsed, authorised, told from others; wherever that is done it comes to the same."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import sha256

from pydantic import TypeAdapter, ValidationError

from migrator.api import field_errors
from migrator.api.commands import COMMANDS, Command, Role
from migrator.api.replies import Refusal, Reply
from migrator.api.requests import Caller, Envelope

#: Reads and writes commands that go from one process to another.
ENVELOPE: TypeAdapter[Envelope] = TypeAdapter(Envelope)


def parse(envelope: Envelope) -> Command:
    """The command in it.

    :raise Refusal: unknown verb, wrong or unknown fields, or not allowed to this caller: his role, or the hosts that he
        is limited to.
    """
    kind = COMMANDS.get(envelope.verb)
    if kind is None:
        raise Refusal("invalid", f"there is no command {envelope.verb!r}; there are {', '.join(COMMANDS)}")
    if kind.role is Role.OPERATOR and envelope.caller.role is not Role.OPERATOR:
        raise Refusal(
            "forbidden", f"{envelope.verb} takes the role operator; {envelope.caller.user} is a viewer"
        )
    try:
        command = kind.model_validate(dict(envelope.body))
    except ValidationError as error:
        raise Refusal(
            "invalid", field_errors.describe(error.errors(include_url=False), known=kind.model_fields)
        ) from None
    _within(envelope.caller, command)
    return command


def _within(caller: Caller, command: Command) -> None:
    """Refuse what is about hosts that the caller's rights do not reach, or nobody knows about which.

    Where that has to be found, whoever carries it out looks.
    """
    for host in command.hosts_named:
        if not caller.covers(host):
            raise caller.outside(f"no {command.verb} for {host}")
    known = command.about_what_is_found or command.about_no_host or bool(command.hosts_named)
    if caller.hosts is not None and not known:
        raise caller.outside(f"{command.verb} is about every host, so name one of these")


def digest(command: Command) -> str:
    """Return what tells a command from another one: its verb and its fields."""
    text = json.dumps([command.verb, command.model_dump(mode="json")], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def reused(envelope: Envelope) -> Reply:
    """Return the reply to a command whose id was used before for another one."""
    return refused(
        envelope, Refusal("id-reused", f"the id {envelope.id} was used before for another command")
    )


def in_time(envelope: Envelope) -> None:
    """:raise Refusal: it was to be begun before now."""
    if envelope.expires_at is not None and datetime.now(UTC) > envelope.expires_at:
        raise Refusal("expired", f"it was to be begun before {envelope.expires_at.isoformat()}")


def known_verb(verb: str) -> str:
    """Return the verb, or ``unknown``."""
    return verb if verb in COMMANDS else "unknown"


def refused(envelope: Envelope, refusal: Refusal) -> Reply:
    """Return the reply to a command that was refused."""
    return Reply(
        kind="refused",
        id=envelope.id,
        verb=envelope.verb,
        code=refusal.code,
        message=str(refusal),
        findings=refusal.findings,
    )
