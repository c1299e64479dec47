"""The audit of commands: who asked for what, from where, and what they got."""

from __future__ import annotations

from migrator import logs
from migrator.api.commands import COMMANDS, Role
from migrator.api.documents import CommandDocument
from migrator.api.events import CommandAnswered
from migrator.api.replies import Reply
from migrator.api.requests import CommandKey, Envelope
from migrator.engine.event_bus import EventBus


def audit(bus: EventBus, envelope: Envelope, reply: Reply) -> None:
    """Log and publish an answered command; one that changes nothing is published only where it was refused."""
    caller = envelope.caller
    if caller.interface != "http":  # which logs its requests, with their ids
        logs.logger(user=caller.user, interface=caller.interface, command=envelope.id).info(
            "command", verb=envelope.verb[:64], answer=reply.code or reply.kind, subject_id=reply.subject_id
        )
    kind = COMMANDS.get(envelope.verb)
    if kind is not None and kind.role is Role.VIEWER and reply.kind != "refused":
        return
    bus.publish(
        CommandAnswered(
            key=str(CommandKey(caller.user, envelope.id or "")),
            command=CommandDocument(
                verb=envelope.verb[:64],
                user=caller.user,
                interface=caller.interface,
                origin=caller.origin,
                id=envelope.id,
                answer=reply.kind,
                code=reply.code,
                message=reply.message,
                subject=reply.subject,
                subject_id=reply.subject_id,
            ),
        )
    )
