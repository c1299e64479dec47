"""Says what both ends show of a migration whose record is missing or damaged, to a person, who alone may end it.

Without its record nobody knows what was sent. So nothing is done to either end: a destination may hold the guest, or
half of it, and the source the other half.
"""

from __future__ import annotations

from collections.abc import Mapping

from migrator.core.migration.situation import DestinationIs, Intent, Milestone, SourceIs, classify
from migrator.core.model import ProcessState, View
from migrator.engine.migration.services import EndLocation, MigrationSite
from migrator.errors import HostError, QemuError

#: Of a migration that is held because of it.
MISSING, DAMAGED, ORPHANED = "record-missing", "record-damaged", "record-orphaned"
CODES = frozenset({MISSING, DAMAGED, ORPHANED})
_LOOK_SECONDS = 2.0

#: It may have been at any step, the last but one included.
_ANYWHERE = Intent(milestone=Milestone.HANDED_OVER, live=False)

_S, _D = SourceIs, DestinationIs
_OF_SOURCE: Mapping[SourceIs, str] = {
    _S.DEAD: "the source's process is gone",
    _S.ENDED: "the source's process has ended",
    _S.SILENT: "the source does not answer",
    _S.RUNS: "the guest runs at the source, which does not migrate",
    _S.RESTS: "the guest stands still at the source, which does not migrate",
    _S.COPIES: "the source runs the guest and copies it",
    _S.AT_SWITCH: "the source has stopped the guest and waits at the switch",
    _S.SWITCHING: "the source is in the middle of the switch",
    _S.SERVES: "the source has switched to postcopy and holds memory that the destination needs",
    _S.BROKEN: "the source's postcopy stream broke, and it holds memory that the destination needs",
    _S.DONE: "the source has sent everything and stands still",
    _S.FAILING: "the source's migration is failing",
    _S.LEFT_STOPPED: "the source's migration failed and left the guest stopped",
}
_OF_DESTINATION: Mapping[DestinationIs, str] = {
    _D.DEAD: "the destination's process is gone",
    _D.ENDED: "the destination's process has ended",
    _D.SILENT: "the destination does not answer",
    _D.LOADS: "the destination waits for the guest, or is taking it in",
    _D.FAILED: "the destination has rejected the guest",
    _D.LOADED: "the destination has the whole guest, which stands still there",
    _D.READY: "the guest stands still at the destination in postcopy and needs memory from the source",
    _D.RUNS: "the guest runs at the destination, complete",
    _D.FETCHES: "the guest runs at the destination and fetches memory from the source: quit neither",
    _D.BROKEN: "the guest waits at the destination for memory that only the source holds: quit neither",
    _D.STRANGE: "the destination is not what this migration made of it",
}


async def look(site: MigrationSite, places: Mapping[str, EndLocation]) -> dict[str, View]:
    """Look at both ends afresh and let them go; nothing is changed, and what cannot be asked is unknown."""
    seen = {}
    for side in ("source", "destination"):
        seen[side] = View(process=ProcessState.UNKNOWN)
        place = places.get(side)
        if place is None:
            continue
        try:
            end = await site.open(place.host, place.socket, role=side, identity=place.identity or None)
        except (HostError, QemuError):
            continue
        try:
            seen[side] = await end.observe(timeout=_LOOK_SECONDS)
        finally:
            await end.close()
    return seen


def told(views: Mapping[str, View]) -> str:
    """Return what they show, for a person."""
    here, there = classify(_ANYWHERE, views["source"], views["destination"])
    return f"{_OF_SOURCE[here]}; {_OF_DESTINATION[there]}"


def unknown(views: Mapping[str, View]) -> bool:
    """Tell whether an end could not be asked, which may be possible later."""
    return any(view.process is ProcessState.UNKNOWN for view in views.values())


def untouched(view: View) -> bool:
    """Tell whether the source is in no migration, so that whatever waits for its guest elsewhere has nothing of it."""
    return classify(_ANYWHERE, view, View(process=ProcessState.UNKNOWN))[0] in (_S.RUNS, _S.RESTS)
