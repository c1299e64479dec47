"""How a controller or its machine is set up otherwise than it should be beside those that share its journal."""

from __future__ import annotations

from collections.abc import Collection

from migrator import logs
from migrator.ports.controllers import ControllerInfo
from migrator.store.presence import Heartbeat, Presence

_NAMESAKE = "another controller has the same [site] instance: give each its own"
#: A machine's clock may be off by so many seconds from the database's before it is said.
_CLOCK_SECONDS = 2.0
#: So many hosts are named.
_NAMED = 5


def watch(heartbeat: Heartbeat) -> None:
    """Say in the log and in ``status --service`` how this controller differs, from now on, with each heartbeat."""
    said: set[str] = set()

    def note(now: Presence) -> None:
        own = heartbeat.info
        found = differences(own, now)
        for each in found:
            if each not in said:
                logs.logger().warning("this controller is set up otherwise", instance=own.instance, what=each)
        said.update(found)
        detail = "; ".join(found)
        if detail != own.detail:
            heartbeat.describe(detail=detail)

    heartbeat.subscribe(note)


def differences(own: ControllerInfo, now: Presence) -> list[str]:
    """Return what has to be put right; the one that acts is what hosts of the others are compared with."""
    found = []
    others = [each.info for each in now.controllers if each.present and each.info.name != own.name]
    if any(each.instance == own.instance for each in others):
        found.append(_NAMESAKE)
    if abs(now.clock_ahead_seconds) > _CLOCK_SECONDS:
        ahead = "ahead of" if now.clock_ahead_seconds > 0 else "behind"
        found.append(
            f"its machine's clock is {ahead} the database's, and deadlines and windows go by it: set it right"
        )
    acting = now.acting
    if acting is None or acting.info.name == own.name or own.hosts is None or acting.info.hosts is None:
        return found
    missing, more = set(acting.info.hosts) - set(own.hosts), set(own.hosts) - set(acting.info.hosts)
    parts = [f"it has not {_some(missing)}"] if missing else []
    parts += [f"it alone has {_some(more)}"] if more else []
    if parts:
        which = f"its [[hosts]] are not those of {acting.info.instance}, which acts"
        found.append(f"{which}: {', and '.join(parts)}")
    return found


def _some(names: Collection[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(ordered[:_NAMED]) + more
