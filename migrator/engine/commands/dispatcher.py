"""Every command is validated, authorised, journalled and carried out the same way, whoever sends it.

HTTP, MQTT and, through HTTP, the command line make an :class:`Envelope` and give it to :meth:`Dispatcher.execute`. Its
reply is journalled before it is given: the same id again gets the same answer and does nothing, also after a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from migrator import logs
from migrator.api import received
from migrator.api.commands import Command, Role
from migrator.api.documents import CheckDocument, MigrationDocument, ResolutionDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.inventory_documents import HostDocument
from migrator.api.plan_documents import PlanDocument, RestorePlanDocument
from migrator.api.replies import Answer, Refusal, Reply
from migrator.api.requests import Caller, CommandKey, Envelope
from migrator.api.saved_documents import SavedGuestDocument, SavedGuestsDocument
from migrator.api.site_documents import HooksDocument, PoliciesDocument
from migrator.errors import JournalError
from migrator.ports import CommandLog


class Controller(Protocol):
    """The part that carries commands out: :class:`migrator.engine.commands.handlers.CommandHandlers`."""

    async def carry_out(self, command: Command, caller: Caller, *, key: str) -> Answer:
        """Begin it; returns once it is journalled.

        :param key: of the command, or empty. What was begun with the same key is not begun again: a controller that
            died between the beginning and the reply is asked once more.
        :raise Refusal: it was not begun and nothing was changed.
        """


@dataclass(kw_only=True)
class Dispatcher:
    """Takes commands from every interface.

    :param count: is called with interface, verb and result (``accepted``, ``refused``, ``repeated``) of every command.
    :param audit: is called with every command that was answered for the first time, and its answer.
    """

    controller: Controller
    log: CommandLog
    count: Callable[[str, str, str], None] = field(default=lambda interface, verb, result: None)
    audit: Callable[[Envelope, Reply], None] = field(default=lambda envelope, reply: None)
    #: What is being carried out, by the command's key, with the hash of its body.
    _running: dict[str, tuple[str, asyncio.Task[Reply]]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[Reply]] = field(default_factory=set)

    async def execute(self, envelope: Envelope) -> Reply:
        """Carry it out, once. Never raises but for cancellation: what is wrong is said in the reply.

        One that changes something is carried out to its end, also when whoever asked goes away meanwhile: the journal
        would have what nobody does. The same id again waits for that, and gets the same.

        An accepted or refused command is in the journal when this returns, but for one without a caller's id that
        changes nothing.
        """
        try:
            command = received.parse(envelope)
        except Refusal as refusal:
            self.count(envelope.caller.interface, received.known_verb(envelope.verb), "refused")
            reply = received.refused(envelope, refusal)
            self.audit(envelope, reply)
            return reply
        key = str(envelope.key or "")
        digest = received.digest(command)
        if key in self._running:
            its, task = self._running[key]
            reply = received.reused(envelope) if its != digest else await asyncio.shield(task)
            self.count(envelope.caller.interface, command.verb, "refused" if its != digest else "repeated")
            return reply
        task = asyncio.create_task(self._once(command, envelope, key, digest), name=f"command {command.verb}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if key:
            self._running[key] = (digest, task)
            task.add_done_callback(lambda _: self._running.pop(key))
        if command.role is Role.VIEWER and not key:
            return await task  # it changes nothing
        return await asyncio.shield(task)

    async def _once(self, command: Command, envelope: Envelope, key: str, digest: str) -> Reply:
        caller = envelope.caller
        body = command.model_dump(mode="json")
        new = True
        try:
            if key:
                claim = await self.log.claim_command(
                    key=key,
                    verb=command.verb,
                    body_hash=digest,
                    body=body,
                    caller={
                        "user": caller.user,
                        "role": caller.role,
                        "interface": caller.interface,
                        "origin": caller.origin,
                    },
                )
                if claim.other_body:
                    self.count(caller.interface, command.verb, "refused")
                    return received.reused(envelope)
                if claim.reply is not None:
                    self.count(caller.interface, command.verb, "repeated")
                    return Reply.model_validate(claim.reply)
                new = claim.new
            reply = await self._carry_out(command, envelope, key, new=new)
        except JournalError as error:
            self.count(caller.interface, command.verb, "refused")
            return received.refused(envelope, Refusal("unavailable", str(error)))
        if key:
            try:
                await self.log.answer_command(key=key, reply=reply.model_dump(mode="json"))
            except JournalError as error:
                # It was begun, and the journal says so: a repetition finds it claimed and is told what it began.
                logs.logger(command=key).warning("reply not journalled", error=str(error))
        self.count(caller.interface, command.verb, "refused" if reply.kind == "refused" else "accepted")
        self.audit(envelope, reply)
        return reply

    async def carry_out_waiting(self, envelope: Envelope, *, begun_before: bool) -> Reply | None:
        """Carry out a command that another controller has claimed; whoever calls this journals the reply.

        :param begun_before: a controller that has gone may have begun it.
        :return: ``None``: it is being carried out, and journalled, for somebody who sent it here too.
        """
        key = str(envelope.key or "")
        if key in self._running:
            await asyncio.wait({self._running[key][1]})
            return None
        try:
            command = received.parse(envelope)
        except Refusal as refusal:
            return received.refused(envelope, refusal)
        carrying_out = self._carry_out(command, envelope, key, new=not begun_before)
        task = asyncio.create_task(carrying_out, name=f"command {command.verb}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._running[key] = (received.digest(command), task)
        task.add_done_callback(lambda _: self._running.pop(key))
        reply = await asyncio.shield(task)
        self.count(
            envelope.caller.interface, command.verb, "refused" if reply.kind == "refused" else "accepted"
        )
        self.audit(envelope, reply)
        return reply

    async def _carry_out(self, command: Command, envelope: Envelope, key: str, *, new: bool) -> Reply:
        try:
            if new:  # one that a controller died over was in time, and may have been begun
                received.in_time(envelope)
            answer = await self.controller.carry_out(command, envelope.caller, key=key)
            return _accepted(envelope, answer)
        except Refusal as refusal:
            return received.refused(envelope, refusal)

    async def keep_outcome(self, *, key: CommandKey, reply: Reply, told: bool = True) -> None:
        """See :meth:`migrator.ports.commands.Commands.keep_outcome`."""
        if str(key) in self._running:
            await asyncio.wait({self._running[str(key)][1]})  # its first reply goes into the journal before
        await self.log.answer_command(key=str(key), reply=reply.model_dump(mode="json"), told=told)


def _accepted(envelope: Envelope, answer: Answer) -> Reply:
    subject, subject_id = _subject(answer)
    return Reply.model_validate(
        {
            "kind": "accepted",
            "id": envelope.id,
            "verb": envelope.verb,
            "subject": subject,
            "subject_id": subject_id,
            "body": answer.model_dump(mode="json"),
        }
    )


def _subject(answer: Answer) -> tuple[str, str]:
    match answer:
        case MigrationDocument():
            return "migration", answer.id
        case EvacuationDocument():
            return "evacuation", answer.id
        case HostDocument():
            return "host", answer.host
        case PlanDocument():
            return "plan", answer.host
        case RestorePlanDocument():
            return "restore-plan", answer.host
        case ResolutionDocument():
            return "resolution", answer.migration
        case SavedGuestDocument():
            return "saved", answer.migration
        case SavedGuestsDocument():
            return "saved", ""
        case PoliciesDocument():
            return "policies", ""
        case HooksDocument():
            return "hooks", ""
        case CheckDocument():
            return "check", answer.guest
