"""Ends a held migration as a person says, after a look at both ends that must not contradict them."""

from __future__ import annotations

from typing import Literal

from migrator.core.model import RUNNING_STATES, Process, RunState, State, View
from migrator.engine.job import Job
from migrator.errors import HostError, MigratorError, QemuError
from migrator.ports import Qemu

_Where = Literal["source", "destination", "lost"]


class Contradiction(MigratorError):
    """What both ends show is not what was said; nothing was changed."""


async def resolve(job: Job, guest_at: _Where) -> None:
    """Look at both ends, and end it.

    ``source``: the destination is fenced first, and the guest runs on as it was. ``destination``: the guest runs on
    there, and the source is ended. ``lost``: neither holds the guest any more.

    :raise MigratorError: an end contradicts it, or cannot be asked where that is needed; nothing was changed, but for
        a destination that may have been fenced.
    """
    await job.let_go()  # where the controller itself failed
    ends: dict[str, Qemu] = {}
    try:
        for side, place in job.places.items():
            try:
                ends[side] = await job.means.site.open(
                    place.host, place.socket, role=side, identity=place.identity
                )
            except (HostError, QemuError):
                continue  # how much that matters is said below
        source, destination = ends.get("source"), ends.get("destination")
        views = {side: await end.observe(timeout=2.0) for side, end in ends.items()}
        here, there = views.get("source"), views.get("destination")
        match guest_at:
            case "source":
                await _at_source(source, here, destination, there)
                outcome, error = State.FAILED, "a person said: the guest is at the source"
            case "destination":
                await _at_destination(source, here, destination, there)
                outcome, error = State.COMPLETED, ""
            case _:
                _lost(here, there)
                outcome, error = State.FAILED, "a person said: the guest is lost"
    finally:
        for end in ends.values():
            await end.close()
    await job.means.records.put_away(job.id, {"state": outcome, "resolved": guest_at})
    job.resolved(outcome, error or None)


def _runs(view: View | None) -> bool:
    return view is not None and view.answers and view.run in RUNNING_STATES


def _dead(view: View | None) -> bool:
    return view is not None and view.process is Process.DEAD


async def _at_source(
    source: Qemu | None, here: View | None, destination: Qemu | None, there: View | None
) -> None:
    if _runs(there):
        raise Contradiction("the guest runs at the destination: resolve it with --guest-at destination")
    if source is None or here is None or _dead(here) or not here.answers:
        raise Contradiction("the source's QEMU does not answer: the guest cannot be there")
    if not _dead(there) and (destination is None or not await destination.fence()):
        raise Contradiction(
            "the destination's QEMU cannot be proven dead: end its process on its host first, then ask again"
        )
    if here.run is RunState.FINISH_MIGRATE:
        raise Contradiction(
            "the source's QEMU is stuck in finish-migrate and cannot run the guest any more: it is lost there"
        )
    if here.run not in RUNNING_STATES:
        await source.cont()
        await source.announce()


async def _at_destination(
    source: Qemu | None, here: View | None, destination: Qemu | None, there: View | None
) -> None:
    if _runs(here):
        raise Contradiction("the guest runs at the source: resolve it with --guest-at source")
    if destination is None or there is None or _dead(there) or not there.answers:
        raise Contradiction("the destination's QEMU does not answer: the guest cannot be there")
    if there.run is RunState.INMIGRATE:
        raise Contradiction("the destination still waits for the guest (inmigrate): it has not arrived")
    if not _runs(there):
        if not _dead(here) and (source is None or not await source.fence()):
            raise Contradiction(
                "the source's QEMU cannot be proven dead: end its process on its host first, then ask again"
            )
        await destination.cont()
        await destination.announce()
    elif source is not None and here is not None and here.answers and here.run is RunState.POSTMIGRATE:
        await source.quit()


def _lost(here: View | None, there: View | None) -> None:
    for view, side in ((here, "source"), (there, "destination")):
        if _runs(view):
            raise Contradiction(f"the guest runs at the {side}: resolve it with --guest-at {side}")
