"""What is left to be done on the hosts once a migration has ended. What cannot be done is said in its result."""

from __future__ import annotations

from dataclasses import replace

from migrator.engine.migration.session_state import SessionState
from migrator.errors import MigratorError

_WILL_GO = "bring that host back, or wait: it is removed by itself once its host answers again"
_BY_HAND = "remove what it names by hand"


async def let_be(job: SessionState) -> None:
    """The guest stays where it is: who manages it there may do as before."""
    try:
        await job.means.site.let_be(job.guest)
    except MigratorError as error:
        job.result.warn("left-over", str(error), _BY_HAND)


async def clear(job: SessionState, *, arrived: bool) -> None:
    """Remove what is left of the source; a guest that has arrived is found from now on where the operator knows it."""
    try:
        await job.means.site.clear(job.guest)
    except MigratorError as error:
        job.source_left_over = True
        job.result.warn("left-over", str(error), _WILL_GO)
    if not arrived:
        return
    try:
        await _settle(job)
    except MigratorError as error:
        job.result.warn(
            "path-moved", str(error), "bring that host back; until then use the path that it has there"
        )


async def _settle(job: SessionState) -> None:
    """Where the operator finds the guest's process from now on."""
    there = replace(job.guest, host=job.target, socket=job.arrived_socket, pid=job.arrived_pid)
    if lacking := await job.means.site.settle(there):
        job.result.warn(
            "path-moved",
            "; ".join(lacking),
            "free that path there, or make its directory; until then use the one that is named",
        )


async def abandon(job: SessionState) -> None:
    """Remove what another controller may have started at the target."""
    try:
        await job.means.site.abandon(job.target, migration=job.id)
    except MigratorError as error:
        leave(job, error)


def leave(job: SessionState, error: MigratorError) -> None:
    """Something of it stays at its target; the planner has it removed once that answers."""
    job.left_over = True
    job.result.warn("left-over", str(error), _WILL_GO)
