"""Hooks: commands of the site that are run at fixed points of a migration, and what their answers mean. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.text import clean

#: Characters of a hook's output that are kept.
_MOST_OUTPUT = 300


class HookPoint(StrEnum):
    """Point of a migration at which hooks are run."""

    #: Before anything is started at the target; may veto.
    BEFORE_PLAN = "before-plan"
    #: When the migration's turn has come, before anything is changed at either QEMU; may veto.
    BEFORE = "before"
    #: When the guest is about to be stopped for its switch; nobody waits for it.
    AT_SWITCH = "at-switch"
    #: The guest has arrived.
    AFTER = "after"
    #: ``before`` was asked, and the migration has ended in another way.
    FAILED = "failed"


class RollPoint(StrEnum):
    """Point of a rolling evacuation at which hooks are run for a host."""

    #: It is empty, and in maintenance: it is patched, rebooted. Failing stops the roll.
    AFTER_DRAIN = "after-drain"
    #: Whether guests may come home to it; asked again until it agrees.
    READY = "ready"


class HookPlace(StrEnum):
    """Machine that a hook's command runs on."""

    CONTROLLER = "controller"
    SOURCE = "source"
    DESTINATION = "destination"
    #: The host of a roll.
    HOST = "host"


#: Hooks at these points may keep the guest from moving; nothing is changed then.
VETO_POINTS = frozenset({HookPoint.BEFORE_PLAN, HookPoint.BEFORE})


@dataclass(frozen=True, kw_only=True)
class Hook:
    """One hook that is due for a guest."""

    name: str
    point: HookPoint | RollPoint
    #: The program and its arguments; no shell reads them.
    command: Sequence[str]
    place: HookPlace
    timeout_seconds: float


@dataclass(frozen=True, kw_only=True)
class HookResult:
    """Result of a hook's command."""

    #: Its exit status; ``None`` where it could not be run, or did not end in time.
    status: int | None
    #: What it printed, in one line that is safe on a terminal; where it could not be run, why.
    output: str = ""

    @property
    def agrees(self) -> bool:
        """Return whether it ended well."""
        return self.status == 0


#: Of a point at which there is none.
FINE = HookResult(status=0)


def shown_output(stdout: str, stderr: str) -> str:
    """Return what a command printed as one short line: its standard output, else its standard error."""
    for text in (stdout, stderr):
        # Bounded before it is looked at: there may be megabytes.
        if words := " ".join(clean(word) for word in text[: 8 * _MOST_OUTPUT].split()):
            return words if len(words) <= _MOST_OUTPUT else f"{words[: _MOST_OUTPUT - 1]}…"
    return ""


def describe(hook: Hook, host: str, result: HookResult) -> str:
    """Return in one line what a hook answered."""
    where = "the controller" if hook.place is HookPlace.CONTROLLER else f"the {hook.place} {host}"
    if result.status is None:
        return f"hook {hook.name} ({hook.point}, at {where}) could not be run: {result.output}"
    said = f": {result.output}" if result.output else ""
    if result.agrees:
        return f"hook {hook.name} ({hook.point}, at {where}) ended well{said}"
    if hook.point in VETO_POINTS:
        return f"hook {hook.name} ({hook.point}, at {where}) says no (status {result.status}){said}"
    return f"hook {hook.name} ({hook.point}, at {where}) failed with status {result.status}{said}"


def judge(hook: Hook, host: str, result: HookResult) -> Finding | None:
    """Return what speaks against going on, or what a person should know; ``None`` where the hook ended well."""
    if result.agrees:
        return None
    if hook.point not in VETO_POINTS:
        return finding("hook-failed", describe(hook, host, result))
    code = "hook-veto" if result.status is not None else "hook-not-run"
    return finding(code, describe(hook, host, result))
