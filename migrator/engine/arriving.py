"""Guests that are on their way to a host: it is not empty while one of them may arrive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from migrator.core.inventory import Guest
from migrator.core.model import State

if TYPE_CHECKING:
    from migrator.engine.controller import Engine

#: Code of what keeps one from leaving: it is not there yet.
ARRIVING = "arriving"


def here_or_coming(engine: Engine, host: str) -> list[Guest]:
    """Who is on a host, and who is on the way there by a migration that has not ended: with that as its obstacle."""
    here = engine.inventory.guests(host)
    known = {guest.key for guest in here}
    return [*here, *(guest for guest in _coming(engine, host) if guest.key not in known)]


def _coming(engine: Engine, host: str) -> Iterator[Guest]:
    for job in engine.jobs.values():
        if (job.ended and not engine.busy(job)) or job.target != host:
            continue
        if job.state is State.HELD:
            text = f"its migration {job.id} to here is held, so it may be here: migrator resolve {job.id}"
            yield replace(job.guest, obstacle=text, obstacle_code="not-movable")
        else:
            text = (
                f"migration {job.id} brings it here: it can leave once it has arrived, or that is cancelled"
            )
            yield replace(job.guest, obstacle=text, obstacle_code=ARRIVING)
