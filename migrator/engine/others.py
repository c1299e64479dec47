"""Migrations that an evacuation did not begin and has to reckon with.

Of guests that are on their way to its host, which is not empty while one of them may arrive; and of its own guests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from migrator.core.drain.states import GuestStanding
from migrator.core.inventory import Guest
from migrator.core.model import State

if TYPE_CHECKING:
    from migrator.core.drain.evacuation import Evacuation
    from migrator.engine.controller import Engine


def here_or_coming(engine: Engine, host: str) -> list[Guest]:
    """Who is on a host, and who is on the way there by a migration that has not ended: with that as its obstacle."""
    here = engine.inventory.guests(host)
    known = {guest.key for guest in here}
    return [*here, *(guest for guest in _coming(engine, host) if guest.key not in known)]


def heed(engine: Engine, run: Evacuation) -> bool:
    """Leave to a person whom a migration that somebody else asked for holds, until it is resolved. True: it changed."""
    held = {
        job.guest.key: job
        for job in engine.jobs.values()
        if job.state is State.HELD and not job.ended and job.evacuation != run.id
    }
    changed = False
    for key, entry in run.entries.items():
        job = held.get(key)
        aside = entry.standing is GuestStanding.SET_ASIDE and not entry.attempts
        if job is not None and (entry.wants_place or aside):
            entry.standing, entry.migration, entry.awaited = GuestStanding.HELD, job.id, job.unreachable
            entry.reason, changed = f"its migration {job.id} is held: migrator status {job.id}", True
        elif job is None and entry.standing is GuestStanding.HELD and not entry.attempts:
            entry.standing, entry.migration, entry.reason = GuestStanding.WAITING, None, ""
            entry.awaited, changed = False, True
    return changed


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
            yield replace(job.guest, obstacle=text, obstacle_code="arriving")
