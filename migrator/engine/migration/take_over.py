"""What another controller left is taken up: from its record, or as the journal tells where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from migrator.core.migration.invariants import Invariant
from migrator.core.migration.situation import Intent, Milestone
from migrator.engine.migration import cleanup, missing_record
from migrator.engine.migration.services import EndLocation
from migrator.errors import HostError, QemuError, RecordError, RecordInUse
from migrator.ports import SourceQemu

if TYPE_CHECKING:
    from migrator.engine.migration.session import MigrationSession

#: It is held only because a host, or a QEMU, could not be asked when it was to be taken up.
NOT_REACHABLE = "not-reachable"
_ORPHANED = (
    "the journal does not know this migration, but {path} is the record of its steps, and it had not ended: journal "
    "and records were not restored together; nothing was done to either end"
)


async def take_up(job: MigrationSession) -> None:
    """Go on with what another controller left, from what both QEMUs say.

    Its record says how far it got. Without one it begins anew where the journal says that there never was one, and
    is held where there was: nothing is done to either end then.
    """
    if job.result.held_code == missing_record.ORPHANED or job.result.held_code in set(Invariant):
        return  # only a person knows what it was, or may say that it goes on
    try:
        left = job.means.records.take_up(job.id)
    except RecordInUse as error:
        job.unreachable = True
        job.hold(NOT_REACHABLE, str(error))
        return
    except RecordError as error:
        await _hold_without_record(job, missing_record.DAMAGED, str(error))
        return
    if left is None:
        await _without_record(job)
        return
    job.record, facts, intent = left
    job.recorded = True
    for side, place in facts.get("places", {}).items():
        job.places.setdefault(side, EndLocation(**place))
    if "destination" not in job.places:
        await job.let_go()
        await _hold_without_record(
            job, missing_record.DAMAGED, "neither the journal nor the record says where the destination is"
        )
        return
    if (ends := await _open_both(job, facts, intent)) is None:
        job.means.records.release(job.record)
        job.record = None
        return
    await job.go_on(job.record, facts, intent, *ends, anew=True)


async def _open_both(
    job: MigrationSession, facts: Mapping[str, Any], intent: Intent
) -> tuple[SourceQemu, SourceQemu] | None:
    """``None``: one of them cannot be asked, and it is held."""
    ends = {}
    for side in ("source", "destination"):
        try:
            try:
                ends[side] = await _open(job, side, facts)
            except (HostError, QemuError):
                if side != "destination" or "source" not in ends or not _may_go_without(job, intent):
                    raise
                ends[side] = await _open(job, side, facts, absent=True)
        except (HostError, QemuError) as error:
            job.unreachable = True
            job.hold(NOT_REACHABLE, str(error))
    if len(ends) == 2:
        return ends["source"], ends["destination"]
    for end in ends.values():
        await end.close()
    return None


async def _without_record(job: MigrationSession) -> None:
    records = job.means.records
    outcome = records.outcome(job.id)
    if outcome is not None and outcome.attempt >= job.attempt:
        job.attempt = outcome.attempt
        if not outcome.postponed:  # it ended, and the controller did before the journal knew
            job.know(outcome.fields)
            await job.close()
            return
    elif job.recorded:
        await _hold_without_record(
            job,
            missing_record.MISSING,
            "the journal says that the record of its steps was begun, and it is not there",
        )
        return
    elif not records.whole:
        views = await missing_record.look(job.means.site, {"source": job.places["source"]})
        if not missing_record.untouched(views["source"]):
            await _hold_without_record(
                job,
                missing_record.MISSING,
                "the records of steps are not those of this journal, and it has none there",
            )
            return
    await cleanup.abandon(job)
    job.begin_anew()


async def _open(
    job: MigrationSession, side: str, facts: Mapping[str, Any], *, absent: bool = False
) -> SourceQemu:
    place = job.places[side]
    return await job.means.site.open(
        place.host, place.socket, role=side, identity=facts[side]["identity"], absent=absent
    )


def _may_go_without(job: MigrationSession, intent: Intent) -> bool:
    """Before the switch the guest is the source's alone, and the target may be gone for good; tried once."""
    may = intent.milestone < Milestone.SWITCHING and not job.went_without
    job.went_without = job.went_without or may
    return may


def orphan(job: MigrationSession, facts: Mapping[str, Any], path: str) -> None:
    """It is held: the journal does not know it, and this record says what it was begun with.

    :raise KeyError, TypeError: it does not say enough.
    """
    job.places = {
        side: EndLocation(**place | {"identity": facts[side]["identity"]})
        for side, place in facts["places"].items()
    }
    job.attempt, job.recorded = int(facts["attempt"]), True
    job.hold(missing_record.ORPHANED, _ORPHANED.format(path=path))


async def look_at_orphan(job: MigrationSession) -> None:
    """Add what both ends show."""
    views = await missing_record.look(job.means.site, job.places)
    job.hold(missing_record.ORPHANED, f"{job.result.error}; {missing_record.told(views)}. {_say_where(job)}")
    job.announce()


def _say_where(job: MigrationSession) -> str:
    return (
        "Look at both, then say where the guest is: "
        f"migrator resolve {job.id} --guest-at source|destination|lost"
    )


async def _hold_without_record(job: MigrationSession, code: str, error: str) -> None:
    views = await missing_record.look(job.means.site, job.places)
    job.unreachable = missing_record.unknown(views)
    job.hold(
        code,
        f"{error}; nothing was done to either end; {missing_record.told(views)}. {_say_where(job)}",
    )
