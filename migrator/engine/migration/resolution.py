"""Ends a held migration as a person says: what :mod:`migrator.core.migration.answer_review` makes of the word, no more.

The answer comes before anything is done. What is done is the lifecycle table's, with the word on record: a controller
that dies on the way is followed by one that knows it. Whatever both ends show then is looked at again before each step.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from migrator.api.documents import ResolutionDocument
from migrator.core.migration import answer_review as core
from migrator.core.migration import managed_lifecycle
from migrator.core.migration.answer_review import PLACES, AnswerReview, OperatorAction
from migrator.core.migration.lifecycle import Next, Step, decide
from migrator.core.migration.managed_lifecycle import ManagerCall
from migrator.core.migration.situation import Intent, Milestone, OperatorAnswer
from migrator.core.model import ProcessState, State, View
from migrator.core.policy import to_fields
from migrator.engine.migration import missing_record
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.errors import HostError, MigratorError, QemuError, RecordError
from migrator.ports import Qemu, Record
from migrator.ports.managed import ManagedMigration

_LOOK_SECONDS = 2.0
_NOWHERE = View(process=ProcessState.UNKNOWN)


class Contradiction(MigratorError):
    """Both ends show something else than was said, or have changed since it was answered; nothing was changed."""


@dataclass(frozen=True, kw_only=True)
class ResolutionRequest:
    """The answer of a person who has looked at one held migration."""

    word: OperatorAnswer
    #: An end whose host cannot be asked is off: the person has seen to that.
    off: bool = False
    #: Of the answer that the person agreed to; empty where none was asked for.
    agreed: str = ""


@dataclass(kw_only=True)
class HeldCase:
    """A held migration, its record claimed and both ends looked at."""

    session: JournalledSession
    source: Qemu | None
    destination: Qemu | None
    here: View
    there: View
    intent: Intent
    record: Record | None
    #: As the record has them; empty without one.
    facts: Mapping[str, Any]
    #: Why an end could not even be opened.
    errors: list[str]
    #: The session has ends and record now.
    driven: bool = False

    @property
    def held_code(self) -> str | None:
        """Return the row that holds it; ``None`` where nothing tells what was meant."""
        return self.session.result.held_code if self.record is not None else None

    @property
    def managed(self) -> bool:
        """Return whether the guest's manager carries it out."""
        return isinstance(self.source, ManagedMigration)

    def next(self) -> Next:
        """Return the next step for what both ends show now."""
        if self.managed:
            return managed_lifecycle.decide(
                self.intent, self.here, self.there, ManagerCall(), overdue=True, lapsed=True
            )
        return decide(self.intent, self.here, self.there)

    def _review_managed(self, word: OperatorAnswer) -> AnswerReview:
        others = [each for each in OperatorAnswer if each is not word]
        why = managed_lifecycle.agrees(word, self.here, self.there)
        return AnswerReview(
            word=word,
            accepted=not why,
            code=f"managed-{word}",
            why=why or "both ends show so",
            state=State.COMPLETED if word is OperatorAnswer.DESTINATION else State.FAILED,
            instead=tuple(
                each for each in others if not managed_lifecycle.agrees(each, self.here, self.there)
            )
            if why
            else (),
        )

    def review(self, said: ResolutionRequest) -> AnswerReview:
        """Return what the answer comes to."""
        if self.managed:
            return self._review_managed(said.word)
        intent = replace(self.intent, said_off=said.off)
        return core.review_answer(said.word, intent, self.here, self.there, held_code=self.held_code)


@asynccontextmanager
async def inspect(session: JournalledSession) -> AsyncIterator[HeldCase]:
    """Look at both ends of a held migration and its record; all of it is let go in the end, unless it is driven.

    :raise RecordError: a living controller holds the record.
    """
    await session.let_go()  # where the controller itself failed
    record: Record | None = None
    facts: Mapping[str, Any] = {}
    intent: Intent | None = None
    try:
        left = await session.services.records.take_up(session.id)
    except RecordError:
        if session.result.held_code not in missing_record.CODES:
            raise
        left = None  # damaged: that is why it is held
    if left is not None:
        record, facts, intent = left
    ends: dict[str, Qemu] = {}
    errors = []
    held: HeldCase | None = None
    try:
        views = {"source": _NOWHERE, "destination": _NOWHERE}
        for side, place in session.places.items():
            identity = facts.get(side, {}).get("identity") or place.identity or None
            try:
                ends[side] = await session.services.site.open(
                    place.host, place.socket, role=side, identity=identity, absent=True
                )
            except (HostError, QemuError) as error:
                errors.append(str(error))
                continue
            views[side] = await ends[side].observe(timeout=_LOOK_SECONDS)
        here, there = views["source"], views["destination"]
        if intent is not None and intent.milestone >= Milestone.HANDED_OVER and there.answers:
            try:
                ran = intent.ran_there or await ends["destination"].was_run()
                intent = replace(intent, ran_there=ran)
            except QemuError:
                pass  # what both ends show tells enough
        held = HeldCase(
            session=session,
            source=ends.get("source"),
            destination=ends.get("destination"),
            here=here,
            there=there,
            intent=intent or core.unrecorded_intent(here, there),
            record=record,
            facts=facts,
            errors=errors,
        )
        yield held
    finally:
        if held is None or not held.driven:
            for end in ends.values():
                await end.close()
            if record is not None:
                session.services.records.release(record)


def document(
    session: JournalledSession, said: ResolutionRequest, answer: AnswerReview, *, errors: list[str]
) -> ResolutionDocument:
    """Return what is said to the person."""
    return ResolutionDocument(
        migration=session.id,
        guest_at=said.word.value,
        accepted=answer.accepted,
        code=answer.code,
        ends_process=any(each.step in (Step.FENCE_SOURCE, Step.FENCE_DESTINATION) for each in answer.steps),
        will=_will(session, said, answer) if answer.accepted else [],
        refused="" if answer.accepted else refusal(session, answer, errors),
        instead=[word.value for word in answer.instead],
    )


_DOES: Mapping[Step, str] = {
    Step.FENCE_DESTINATION: "kill the destination's QEMU{at_destination} and see it dead",
    Step.FENCE_SOURCE: "kill the source's QEMU{at_source} and see it dead",
    Step.HAND_OVER: "let the guest run at the destination{at_destination}",
    Step.RETIRE: "end the source's QEMU{at_source}, which the guest has left",
    Step.CANCEL: "cancel the migration at the source{at_source}: the guest goes on there",
    Step.REVIVE: "let the guest go on at the source{at_source}, from the moment at which it was stopped for the switch",
    Step.RESUME: "let the guest go on at the source{at_source}",
    Step.RESTORE: "put the source{at_source} back as it was",
    Step.DISMISS: "end the destination's QEMU{at_destination}, which holds nothing",
}
_ENDS: Mapping[State, str] = {
    State.COMPLETED: "it ends completed, the guest at the destination{at_destination}",
    State.FAILED: "it ends failed, the guest at the source{at_source}",
    State.CANCELLED: "it ends cancelled, the guest at the source{at_source}",
    State.GUEST_ENDED: "it ends guest-ended: the guest ended by itself",
}
_GOES_ON = (
    "it is driven on, and ends by itself as soon as both ends let it; nothing is ended before, and if nothing changes "
    "it is held again"
)


def _will(session: JournalledSession, said: ResolutionRequest, answer: AnswerReview) -> list[str]:
    where = _where(session)
    lines = [_DOES[each.step].format(**where) for each in answer.steps]
    if any(each.step is Step.REVIVE for each in answer.steps):
        lines.append(
            "what the guest may have written to its disks elsewhere since then stays: look at them first"
        )
    if said.off:
        lines.append("a host that cannot be asked is taken to be off: a guest that runs there will run twice")
    if answer.state is None:
        return [*lines, _GOES_ON]
    if said.word is OperatorAnswer.LOST and answer.state is State.FAILED:
        return [*lines, "it ends failed, the guest lost: start it from its disks"]
    return [*lines, _ENDS[answer.state].format(**where)]


def _where(session: JournalledSession) -> dict[str, str]:
    found = {}
    for side in ("source", "destination"):
        place = session.places.get(side)
        pid = place.identity.get("pid") if place is not None else None
        host = (
            place.host
            if place is not None
            else {"source": session.guest.host, "destination": session.target}[side]
        )
        found[f"at_{side}"] = f" on {host}" + (f" (pid {pid})" if pid else "")
    return found


_ADVICE: Mapping[OperatorAction, str] = {
    OperatorAction.REACH_SOURCE: (
        "see to it that the source's QEMU{at_source} answers (wake it, free its monitor, mend the way to its "
        "host; a host that is off for good: say that it is, unreachable_is_off)"
    ),
    OperatorAction.REACH_DESTINATION: (
        "see to it that the destination's QEMU{at_destination} answers (wake it, free its monitor, mend the way "
        "to its host; a host that is off for good: say that it is, unreachable_is_off)"
    ),
    OperatorAction.MEND: (
        "mend the way between both hosts, or the stream (docs/held.md): it then goes on by itself"
    ),
    OperatorAction.END_SOURCE: (
        "end the source's process{at_source} yourself, once you are certain that nobody needs it"
    ),
    OperatorAction.END_DESTINATION: (
        "end the destination's process{at_destination} yourself, once you are certain that nobody needs it"
    ),
}


def refusal(session: JournalledSession, answer: AnswerReview, errors: list[str]) -> str:
    """Return in one line why it is refused, and what would be taken."""
    text = "; ".join([answer.why, *errors])
    if answer.instead:
        places = " or ".join(PLACES[word] for word in answer.instead)
        return f"{text}: what can be said instead is that the guest is {places}"
    return f"{text}: {', or '.join(_ADVICE[act].format(**_where(session)) for act in answer.acts)}"


async def review(session: JournalledSession, said: ResolutionRequest) -> ResolutionDocument:
    """Return what would be done; nothing is.

    :raise MigratorError: it cannot be told.
    """
    async with inspect(session) as held:
        return document(session, said, held.review(said), errors=held.errors)


async def resolve(session: JournalledSession, said: ResolutionRequest, *, agreed: Callable[[], None]) -> None:
    """Look at both ends, and do what was said, to its end or until it is held again.

    :param agreed: called once the word is taken and on record.
    :raise Contradiction: it is refused, or no longer what was agreed to; nothing was changed.
    :raise MigratorError: the record cannot be had; nothing was changed.
    """
    async with inspect(session) as held:
        answer = held.review(said)
        if not answer.accepted:
            raise Contradiction(refusal(session, answer, held.errors))
        if said.agreed and said.agreed != answer.code:
            will = "; ".join(_will(session, said, answer))
            raise Contradiction(
                f"both ends have changed since it was answered, and now this would be done: {will}"
            )
        source, destination = held.source, held.destination
        if source is None or destination is None:
            raise Contradiction("; ".join(held.errors) or "where its destination is, nobody knows")
        intent = replace(core.with_answer(held.intent, said.word), said_off=said.off)
        record, facts = held.record, held.facts
        if record is None:
            record, facts = await _begin(session, source, destination, intent)
        await record.note(intent)
        held.driven = True  # from here on the session has all of it
        agreed()
        await session.go_on(record, facts, intent, source, destination)


async def _begin(
    session: JournalledSession, source: Qemu, destination: Qemu, intent: Intent
) -> tuple[Record, Mapping[str, Any]]:
    """Begin a record for what a person said, where there was none."""
    settings: Mapping[str, Any] = {"capabilities": {}, "parameters": {}}
    try:
        now = await source.settings()
        settings = {"capabilities": dict(now.capabilities), "parameters": dict(now.parameters)}
    except QemuError:
        pass  # then there is nothing to put back
    facts = {
        "source": {"address": source.address_text, "identity": dict(source.identity)},
        "destination": {"address": destination.address_text, "identity": dict(destination.identity)},
        "uuid": session.guest.uuid,
        "guest": session.guest.name,
        "policy": to_fields(session.policy),
        "settings": settings,
        "abilities": {"postcopy": intent.postcopy, "throttle": False},
        **session.about(),
    }
    # One that cannot be read is kept, out of the way.
    await session.services.records.put_away(session.id, {"by": "resolve"})
    record = session.services.records.create(session.id)
    await record.begin(facts, intent)
    return record, facts
