"""Takes up what another controller left: from its record, or as the journal tells where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from migrator.core.migration.invariants import Invariant
from migrator.core.migration.situation import Intent, Milestone
from migrator.engine.migration import cleanup, missing_record
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.services import EndLocation
from migrator.engine.migration.session_phase import Attempt
from migrator.errors import HostError, QemuError, RecordError, RecordInUse, RecordUnavailable
from migrator.ports import EndedRecord, Qemu

#: It is held only because a host, or a QEMU, could not be asked when it was to be taken up.
NOT_REACHABLE = "not-reachable"
_SAY_WHERE = "Look at both, then say where the guest is"
_ORPHANED = (
    "the journal does not know this migration, but {path} is the record of its steps, and it had not ended: journal "
    "and records were not restored together; nothing was done to either end"
)


async def take_up(session: JournalledSession) -> None:
    """Go on with what another controller left, from what both QEMUs say.

    Its record says how far it got. Without one it begins anew where the journal says that there never was one, and
    is held where there was: nothing is done to either end then.
    """
    if session.result.held_code == missing_record.ORPHANED or session.result.held_code in set(Invariant):
        return  # only a person knows what it was, or may say that it goes on
    await session.thaw()
    records = session.services.records
    try:
        left = await records.take_up(session.id)
        outcome = await records.outcome(session.id) if left is None else None
    except (RecordInUse, RecordUnavailable) as error:
        session.hold(NOT_REACHABLE, str(error), unreachable=True)
        return
    except RecordError as error:
        await _hold_without_record(session, missing_record.DAMAGED, str(error))
        return
    if left is None:
        await _without_record(session, outcome)
        return
    session.record, facts, intent = left
    session.attempt = replace(session.attempt, recorded=True)
    for side, place in facts.get("places", {}).items():
        session.places.setdefault(side, EndLocation(**place))
    if "destination" not in session.places:
        await session.let_go()
        await _hold_without_record(
            session,
            missing_record.DAMAGED,
            "neither the journal nor the record says where the destination is",
        )
        return
    if (ends := await _open_both(session, facts, intent)) is None:
        session.services.records.release(session.record)
        session.record = None
        return
    await session.go_on(session.record, facts, intent, *ends, anew=True)


async def _open_both(
    session: JournalledSession, facts: Mapping[str, Any], intent: Intent
) -> tuple[Qemu, Qemu] | None:
    """Open both ends; ``None``: one of them cannot be asked, and the migration is held."""
    ends = {}
    for side in ("source", "destination"):
        try:
            try:
                ends[side] = await _open(session, side, facts)
            except (HostError, QemuError):
                if side != "destination" or "source" not in ends or not _may_go_without(session, intent):
                    raise
                ends[side] = await _open(session, side, facts, absent=True)
        except (HostError, QemuError) as error:
            session.hold(NOT_REACHABLE, str(error), unreachable=True)
    if len(ends) == 2:
        return ends["source"], ends["destination"]
    for end in ends.values():
        await end.close()
    return None


async def _without_record(session: JournalledSession, outcome: EndedRecord | None) -> None:
    if outcome is not None and outcome.attempt >= session.attempt.number:
        session.attempt = replace(session.attempt, number=outcome.attempt)
        if not outcome.postponed:  # it ended, and the controller did before the journal knew
            session.adopt_outcome(outcome.fields)
            await session.close(ended=outcome.fields)
            return
    elif session.attempt.recorded:
        await _hold_without_record(
            session,
            missing_record.MISSING,
            "the journal says that the record of its steps was begun, and it is not there",
        )
        return
    elif not session.services.records.whole:
        views = await missing_record.look(session.services.site, {"source": session.places["source"]})
        if not missing_record.untouched(views["source"]):
            await _hold_without_record(
                session,
                missing_record.MISSING,
                "the records of steps are not those of this journal, and it has none there",
            )
            return
    await cleanup.abandon(session, images=True)  # nothing of it was begun
    session.begin_anew()


async def _open(
    session: JournalledSession, side: str, facts: Mapping[str, Any], *, absent: bool = False
) -> Qemu:
    place = session.places[side]
    return await session.services.site.open(
        place.host, place.socket, role=side, identity=facts[side]["identity"], absent=absent
    )


def _may_go_without(session: JournalledSession, intent: Intent) -> bool:
    """Return whether it may go on without its target, which may be gone for good; once, and only before the switch."""
    may = intent.milestone < Milestone.SWITCHING and not session.attempt.went_without
    session.attempt = replace(session.attempt, went_without=session.attempt.went_without or may)
    return may


def orphan(session: JournalledSession, facts: Mapping[str, Any], path: str) -> None:
    """Hold it: the journal does not know it, and this record says what it was begun with.

    :raise KeyError, TypeError: it does not say enough.
    """
    session.places = {
        side: EndLocation(**place | {"identity": facts[side]["identity"]})
        for side, place in facts["places"].items()
    }
    session.attempt = Attempt(number=int(facts["attempt"]), recorded=True)
    session.hold(missing_record.ORPHANED, _ORPHANED.format(path=path))


async def look_at_orphan(session: JournalledSession) -> None:
    """Add what both ends show."""
    views = await missing_record.look(session.services.site, session.places)
    session.hold(
        missing_record.ORPHANED,
        f"{session.result.error}; {missing_record.told(views)}. {_SAY_WHERE}",
    )
    session.announce()


async def _hold_without_record(session: JournalledSession, code: str, error: str) -> None:
    views = await missing_record.look(session.services.site, session.places)
    session.hold(
        code,
        f"{error}; nothing was done to either end; {missing_record.told(views)}. {_SAY_WHERE}",
        unreachable=missing_record.unknown(views),
    )
