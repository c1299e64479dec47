"""A rolling evacuation: hosts are emptied a few at a time, handed over to the site, and filled again. Pure.

::

    waiting → emptying → handed-over → awaited → restoring → done
                 └─────────────┴───────────┴──────────┴────→ failed

A host that is not well (guests are left, a hook says no, it is not ready in time, its guests do not come home) stops
the roll: no other host is begun, and those that are under way are brought to their end. :func:`step` is asked again and
again with what is seen of the hosts; it says what each has come to and what is to be done, also after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from migrator.core.drain.states import EvacuationState
from migrator.core.hooks import HookResult, RollPoint
from migrator.units import show_seconds

#: Whether a host is ready is asked again after so long.
READY_AGAIN_SECONDS = 10.0


class RollStage(StrEnum):
    """How far a host of a roll is."""

    #: Its turn has not come.
    WAITING = "waiting"
    #: Its evacuation is under way.
    EMPTYING = "emptying"
    #: It is empty, in maintenance, and the hooks ``after-drain`` run.
    HANDED_OVER = "handed-over"
    #: It is waited for: that it is up, and that the hooks ``ready`` agree.
    AWAITED = "awaited"
    #: Its guests are brought home.
    RESTORING = "restoring"
    #: It is in use again.
    DONE = "done"
    #: It is not well: its reason says why, and the roll stops.
    FAILED = "failed"
    #: Nothing more is done about it, as the roll has stopped or was cancelled.
    LEFT = "left"


_UNDER_WAY = (RollStage.EMPTYING, RollStage.HANDED_OVER, RollStage.AWAITED, RollStage.RESTORING)
_ENDED = (RollStage.DONE, RollStage.FAILED, RollStage.LEFT)


@dataclass(frozen=True, kw_only=True)
class RollHost:
    """One host of a roll."""

    host: str
    stage: RollStage = RollStage.WAITING
    #: What it waits for, or why it failed, in one sentence.
    reason: str = ""
    #: Ids of its evacuation and its restore, once they are begun.
    evacuation: str = ""
    restore: str = ""
    #: When it came to this stage, seconds since the epoch.
    since: float = 0.0
    #: Before it was handed over; another one shows that it was rebooted.
    boot_id: str = ""
    #: How often its hooks ``after-drain`` were begun: more than once where the service was started again meanwhile.
    attempts: int = 0

    @property
    def under_way(self) -> bool:
        """True while its guests are away, going or coming."""
        return self.stage in _UNDER_WAY


@dataclass(frozen=True, kw_only=True)
class RollProgress:
    """Hosts that are rolled through, in their order, and how."""

    hosts: tuple[RollHost, ...]
    max_unavailable: int = 1
    #: Names of the hooks that are run, by point; a point that is missing has all that are configured for it.
    hooks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: The hooks ``after-drain`` reboot it: it is ready once it has another boot id.
    reboots: bool = False
    #: A host that is not ready after so long is not well.
    ready_timeout_seconds: float = 1800.0

    @property
    def failed(self) -> bool:
        """True where a host has failed."""
        return any(each.stage is RollStage.FAILED for each in self.hosts)

    @property
    def ended(self) -> bool:
        """True once nothing more is to be done about any of its hosts."""
        return all(each.stage in _ENDED for each in self.hosts)


@dataclass(frozen=True, kw_only=True)
class HostObservation:
    """The observations of one host of a roll."""

    up: bool = False
    #: Why it is not, in one line.
    error: str = ""
    boot_id: str = ""
    #: Guests that its libvirt has shut off, which stay on it; ``None``: it could not be asked.
    shut_off: int | None = 0
    #: When the last look at it began that it answered, seconds since the epoch.
    looked_at: float = 0.0
    #: What has become of its evacuation and its restore; ``None``: they have not ended.
    evacuation: EvacuationState | None = None
    restore: EvacuationState | None = None
    #: Why they ended otherwise than well.
    evacuation_error: str = ""
    restore_error: str = ""
    #: The hooks of its stage are being run.
    hooks_run: bool = False
    #: How they ended: the first that did not end well, or the last; ``None``: none has ended yet.
    hooks: HookResult | None = None
    #: When, seconds since the epoch.
    hooks_at: float = 0.0
    #: Why what is due could not be begun: it will not be begun later either; empty: nothing speaks against it.
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Empty:
    """A host's evacuation is to be begun."""

    host: str


@dataclass(frozen=True, kw_only=True)
class RunHooks:
    """The hooks of a point are to be run for a host."""

    host: str
    point: RollPoint


@dataclass(frozen=True, kw_only=True)
class Refill:
    """A host's restore is to be begun."""

    host: str


@dataclass(frozen=True, kw_only=True)
class CancelRun:
    """An evacuation of the roll is to be cancelled."""

    evacuation: str


@dataclass(frozen=True, kw_only=True)
class LookAt:
    """A host is to be looked at."""

    host: str


RollAction = Empty | RunHooks | Refill | CancelRun | LookAt


def step(
    roll: RollProgress, seen: Mapping[str, HostObservation], *, now: float, cancelled: bool = False
) -> tuple[RollProgress, Sequence[RollAction]]:
    """Say what each host has come to, and what is to be done.

    What is to be begun is named each time until it is seen: whoever carries it out does so once.

    :param now: seconds since the epoch.
    :param cancelled: nothing more is begun; a host that is handed over keeps what its hooks do.
    """
    actions: list[RollAction] = []
    hosts = [
        _step(each, roll, seen.get(each.host, HostObservation()), now, cancelled, actions)
        for each in roll.hosts
    ]
    stops = cancelled or any(each.stage is RollStage.FAILED for each in hosts)
    unavailable = sum(each.under_way or each.stage is RollStage.FAILED for each in hosts)
    for place, each in enumerate(hosts):
        if each.stage is not RollStage.WAITING:
            continue
        if stops:
            hosts[place] = replace(each, stage=RollStage.LEFT, since=now, reason="it was not begun")
        elif unavailable < roll.max_unavailable:
            unavailable += 1
            hosts[place] = replace(each, stage=RollStage.EMPTYING, since=now, reason="it is being emptied")
            actions.append(Empty(host=each.host))
        elif not each.reason:
            hosts[place] = replace(each, reason=f"waits for its turn ({roll.max_unavailable} at a time)")
    after = tuple(hosts)
    return (roll if after == roll.hosts else replace(roll, hosts=after)), actions


def _step(
    one: RollHost,
    roll: RollProgress,
    seen: HostObservation,
    now: float,
    cancelled: bool,
    actions: list[RollAction],
) -> RollHost:
    if seen.refused and one.under_way:
        return _to(one, RollStage.FAILED, now, seen.refused)
    match one.stage:
        case RollStage.EMPTYING:
            return _emptying(one, seen, now, cancelled, actions)
        case RollStage.HANDED_OVER:
            return _handed_over(one, seen, now, cancelled, actions)
        case RollStage.AWAITED if cancelled:
            return _to(
                one, RollStage.LEFT, now, f"{_empty(seen)}: migrator restore {one.host} fills it again"
            )
        case RollStage.AWAITED:
            return _awaited(one, roll, seen, now, actions)
        case RollStage.RESTORING:
            return _restoring(one, seen, now, actions)
    return one


def _emptying(
    one: RollHost, seen: HostObservation, now: float, cancelled: bool, actions: list[RollAction]
) -> RollHost:
    if not one.evacuation:
        if cancelled:
            return _to(one, RollStage.LEFT, now, "it was not begun")
        actions.append(Empty(host=one.host))
        return one
    match seen.evacuation:
        case None:
            if cancelled:
                actions.append(CancelRun(evacuation=one.evacuation))
            return one
        case EvacuationState.COMPLETED if cancelled:
            return _to(
                one, RollStage.LEFT, now, f"{_empty(seen)}: migrator restore {one.host} fills it again"
            )
        case EvacuationState.COMPLETED:
            actions.append(RunHooks(host=one.host, point=RollPoint.AFTER_DRAIN))
            handed = _to(one, RollStage.HANDED_OVER, now, f"{_empty(seen)}; hooks after-drain run")
            return replace(handed, boot_id=seen.boot_id, attempts=1)
    if cancelled:
        return _to(one, RollStage.LEFT, now, "its evacuation was cancelled")
    why = f": {seen.evacuation_error}" if seen.evacuation_error else ""
    return _to(one, RollStage.FAILED, now, f"its evacuation {one.evacuation} is {seen.evacuation}{why}")


def _handed_over(
    one: RollHost, seen: HostObservation, now: float, cancelled: bool, actions: list[RollAction]
) -> RollHost:
    if seen.hooks_run:
        return one
    if seen.hooks is None:
        if cancelled:
            return _to(
                one, RollStage.LEFT, now, f"{_empty(seen)}: migrator restore {one.host} fills it again"
            )
        actions.append(RunHooks(host=one.host, point=RollPoint.AFTER_DRAIN))
        return replace(one, attempts=one.attempts + 1)
    if not seen.hooks.agrees:
        return _to(
            one, RollStage.FAILED, now, f"{seen.hooks.output or 'a hook after-drain failed'}; {_empty(seen)}"
        )
    if cancelled:
        return _to(one, RollStage.LEFT, now, f"{_empty(seen)}: migrator restore {one.host} fills it again")
    actions.append(LookAt(host=one.host))
    return _to(one, RollStage.AWAITED, now, "it is looked at")


def _awaited(
    one: RollHost, roll: RollProgress, seen: HostObservation, now: float, actions: list[RollAction]
) -> RollHost:
    wants = _not_ready(one, roll, seen)
    if not wants and seen.hooks is not None and seen.hooks.agrees and not seen.hooks_run:
        actions.append(Refill(host=one.host))
        return _to(one, RollStage.RESTORING, now, "it is ready; its guests come home")
    if not wants and seen.hooks is not None and not seen.hooks.agrees:
        wants = seen.hooks.output or "a hook ready says no"
    if now - one.since >= roll.ready_timeout_seconds:
        waited = show_seconds(roll.ready_timeout_seconds)
        why = f"it was not ready within {waited}: {wants or 'its hooks ready take too long'}; {_empty(seen)}"
        return _to(one, RollStage.FAILED, now, why)
    if _not_ready(one, roll, seen):
        actions.append(LookAt(host=one.host))
    elif not seen.hooks_run and (seen.hooks is None or now - seen.hooks_at >= READY_AGAIN_SECONDS):
        actions.append(RunHooks(host=one.host, point=RollPoint.READY))
    reason = f"it is waited for: {wants or 'hooks ready run'}"
    return one if reason == one.reason else replace(one, reason=reason)


def _not_ready(one: RollHost, roll: RollProgress, seen: HostObservation) -> str:
    """Return what keeps it from being asked whether it is ready; empty: nothing."""
    if seen.looked_at < one.since and seen.up:
        return "it was not looked at since"
    if not seen.up:
        return f"it does not answer{seen.error and f': {seen.error}'}"
    if roll.reboots and seen.boot_id in ("", one.boot_id):
        return "it was not rebooted yet"
    return ""


def _restoring(one: RollHost, seen: HostObservation, now: float, actions: list[RollAction]) -> RollHost:
    if not one.restore:
        actions.append(Refill(host=one.host))
        return one
    match seen.restore:
        case None:
            return one
        case EvacuationState.COMPLETED:
            return _to(one, RollStage.DONE, now, "it is in use again")
    why = f": {seen.restore_error}" if seen.restore_error else ""
    return _to(one, RollStage.FAILED, now, f"its restore {one.restore} is {seen.restore}{why}")


def _empty(seen: HostObservation) -> str:
    """Say that a host is empty, and who is on it for all that."""
    if seen.shut_off is None:
        return "it is empty, but its libvirt could not be asked which guests it has shut off"
    if not seen.shut_off:
        return "it is empty"
    return f"it is empty but for {seen.shut_off} guest{'s' * (seen.shut_off > 1)} that libvirt has shut off"


def _to(one: RollHost, stage: RollStage, now: float, reason: str) -> RollHost:
    return replace(one, stage=stage, since=now, reason=reason)


def outcome(roll: RollProgress, *, cancelled: bool) -> tuple[EvacuationState, str]:
    """Return how a roll has ended, and why it is not whole; :attr:`RollProgress.ended`."""
    failed = [each for each in roll.hosts if each.stage is RollStage.FAILED]
    left = [each.host for each in roll.hosts if each.stage is RollStage.LEFT]
    parts = [f"{each.host}: {each.reason}" for each in failed]
    if failed and left:
        parts.append(f"not begun: {', '.join(left)}; once it is well: migrator roll {' '.join(left)}")
    if failed:
        return EvacuationState.INCOMPLETE, "; ".join(parts)
    if left or cancelled:
        return EvacuationState.CANCELLED, ""
    return EvacuationState.COMPLETED, ""
