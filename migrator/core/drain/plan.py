"""What to do next at a site: who is begun where, who gets the links, and what becomes of each evacuation. Pure.

::

    plan = make_plan(snapshot)                      # snapshot: migrator.core.drain.snapshot.SiteSnapshot
    for action in plan.actions: ...                 # carried out by migrator.engine.reconciler
    plan.stays()                                    # of every guest that is not on its way: why
    plan = make_plan(later_snapshot, plan)          # the same answers as without it, sooner

The reconciler asks at every change and does what it is told; ``migrator plan`` asks with an evacuation that nobody has
begun, and nobody carries it out. Places come from :mod:`migrator.core.placement`, turns and bandwidth from
:mod:`migrator.core.schedule`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from migrator.core.drain import places as placing
from migrator.core.drain.actions import Action, Admit, Begin, Change, Drive, SetShare
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.places import Places, Wanting
from migrator.core.drain.snapshot import Name, SiteSnapshot
from migrator.core.drain.states import GuestStanding
from migrator.core.drain.tending import Tended, tend
from migrator.core.drain.transfers import Transfers
from migrator.core.model import State
from migrator.core.placement import NoHost
from migrator.core.schedule import ScheduleDecision, decide, partition
from migrator.core.schedule.transfers import Move

#: While something is under way a plan is made so often at least.
LIVE_SECONDS = 1.0
#: ... and while nothing is: time alone changes deadlines, and a journal that cannot be written is waited for.
IDLE_SECONDS = 5.0
#: A share of a link is changed by this much at least.
_SHARE_STEP_RATIO = 0.05


@dataclass(frozen=True, kw_only=True)
class DrainPlan:
    """What to do now, and what the next plan can use of how that was found."""

    #: In this order.
    actions: Sequence[Action]
    #: Evacuations as they are once that is done, but for what is begun and ended.
    evacuations: Mapping[str, Evacuation]
    #: Who wants a place now.
    wanting: Sequence[Wanting]
    #: Make the next plan in so many seconds at the latest.
    next_seconds: float
    #: For guests that nothing is done for: why, as far as the schedule does not say it.
    held_back: Mapping[str, str]
    tended: Mapping[str, Tended]
    places: Places | None = None
    decided: ScheduleDecision | None = None

    @cached_property
    def targets(self) -> Mapping[str, Target]:
        """Those who want a place and have one, by the guests' keys, in the order of turn."""
        if self.places is None:
            return {}
        wanting = {each.entry.guest.key: each for each in self.wanting}
        return {
            key: _target(wanting[key], move.transfer.target, self.evacuations)
            for key, move in self.places.moves.items()
            if key in wanting
        }

    def stays(self) -> dict[str, str]:
        """Return, of every guest that is to move and is not on its way, why it is still where it is."""
        said = {
            entry.guest.key: entry.reason or "it was not looked at yet"
            for run in self.evacuations.values()
            for entry in run.left
            if entry.standing is not GuestStanding.MIGRATING
        }
        if self.decided is not None:
            reasons = self.decided.reasons().items()
            said |= {
                move.transfer.guest: reason for move, reason in reasons if move.transfer.guest in self.targets
            }
        said |= self.held_back
        begun = {each.guest.key for each in self.actions if isinstance(each, Begin)}
        return {key: reason for key, reason in said.items() if key not in begun}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a guest of an evacuation is to go."""

    evacuation: Evacuation
    wanting: Wanting
    host: str
    reason: str


def _target(wanting: Wanting, host: str, evacuations: Mapping[str, Evacuation]) -> Target:
    run = evacuations[wanting.run.id]
    reason = run.entries[wanting.entry.guest.key].reason
    return Target(evacuation=run, wanting=wanting, host=host, reason=reason)


def make_plan(snapshot: SiteSnapshot, before: DrainPlan | None = None) -> DrainPlan:
    """Say what is to be done now.

    :param before: the plan before this one, which this one begins from.
    """
    actions: list[Action] = []
    tended: dict[str, Tended] = {}
    for run in snapshot.evacuations:
        tended[run.id] = tend(run, snapshot, before.tended.get(run.id) if before else None)
        actions += tended[run.id].actions
    running = {name: each.after for name, each in tended.items() if not each.ends}
    if snapshot.stopping:
        return DrainPlan(
            actions=actions,
            evacuations=running,
            wanting=(),
            next_seconds=IDLE_SECONDS,
            held_back={},
            tended=tended,
        )
    return _Planning(snapshot, before, actions, tended, running).make()


class _Planning:
    """One plan while it is made."""

    def __init__(
        self,
        snapshot: SiteSnapshot,
        before: DrainPlan | None,
        actions: list[Action],
        tended: Mapping[str, Tended],
        running: dict[str, Evacuation],
    ) -> None:
        self._snapshot, self._before = snapshot, before
        self._actions, self._tended, self._running = actions, tended, running
        self._held_back: dict[str, str] = {}
        self._soon = False

    def make(self) -> DrainPlan:
        snapshot = self._snapshot
        before = self._before.places if self._before is not None else None
        wanting = self._wanting(before)
        held = before is not None and before.hold(wanting, snapshot)
        places = before if held and before is not None else placing.ask(wanting, snapshot)
        active = self._active(places)
        decided = self._decide(wanting, places, active)
        if held and not self._fit(decided, wanting, places):
            places = placing.ask(wanting, snapshot)
            active = self._active(places)
            decided = self._decide(wanting, places, active)
        self._mark(wanting, places)
        self._order(decided, {each.entry.guest.key: each for each in wanting})
        idle = not decided.active and not any(decided.waiting.values()) and not self._running
        again = decided.recheck_seconds(snapshot.limits.links)
        return DrainPlan(
            actions=self._actions,
            evacuations=self._running,
            wanting=wanting,
            next_seconds=0.0
            if self._soon
            else IDLE_SECONDS
            if idle
            else min(LIVE_SECONDS, again or LIVE_SECONDS),
            held_back=self._held_back,
            tended=self._tended,
            places=places,
            decided=decided,
        )

    # --- places ------------------------------------------------------------------------------------------------------

    def _wanting(self, before: Places | None) -> list[Wanting]:
        """Return those who want a place now."""
        snapshot, found = self._snapshot, list[Wanting]()
        live, coming, policies = snapshot.live, snapshot.coming, snapshot.policies
        for run in self._running.values():
            early = snapshot.clock < run.not_before
            for entry in run.wanting:
                key = entry.guest.key
                if key in live or key in coming:
                    self._held_back[key] = "another migration of it is under way"
                elif early:
                    self._held_back[key] = "it is measured how fast the guests write their memory"
                elif snapshot.clock >= entry.not_before:
                    known = before.wanting(run, entry, policies) if before is not None else None
                    policy = known.policy if known is not None else policies.of(entry.guest, run.policy)
                    found.append(known or Wanting(run=run, entry=entry, policy=policy))
        return found

    def _mark(self, wanting: Sequence[Wanting], places: Places) -> None:
        """Note in the evacuations what placement said."""
        changed: dict[str, dict[str, Entry]] = {}
        told: set[str] = set()
        for each in wanting:
            key, run = each.entry.guest.key, each.run.id
            answer = places.answers[key]
            entry = placing.marked(each.entry, answer)
            if entry is each.entry:
                continue
            changed.setdefault(run, {})[key] = entry
            if isinstance(answer, NoHost):
                if entry.excluded != each.entry.excluded:
                    self._soon = True
                else:
                    told.add(run)
        for name, these in changed.items():
            after = self._running[name].marked(these)
            self._actions.append(Change(before=self._running[name], after=after, announce=name in told))
            self._running[name] = after

    def _fit(self, decided: ScheduleDecision, wanting: Sequence[Wanting], places: Places) -> bool:
        """Whether those that are about to be begun still have their places."""
        by_key = {each.entry.guest.key: each for each in wanting}
        begun = [by_key[move.transfer.guest] for move in decided.prepare if move.transfer.guest in by_key]
        if not begun:
            return True
        fleet = placing.fleet_of(self._snapshot)
        return all(places.fits(each, fleet) for each in begun)

    # --- turns -------------------------------------------------------------------------------------------------------

    def _active(self, places: Places) -> list[Move]:
        """Return the migrations that are queued or under way, as the schedule sees them."""
        snapshot = self._snapshot
        transfers = Transfers(snapshot, deadlines_from=places.made_at)
        return [
            Move(transfers.running(each), places.network, snapshot.limits.links)
            for each in snapshot.live.values()
            if each.state not in (State.HELD, State.WAITING)
        ]

    def _decide(self, wanting: Sequence[Wanting], places: Places, active: Sequence[Move]) -> ScheduleDecision:
        keys = {each.entry.guest.key for each in wanting}
        waiting = [move for key, move in places.moves.items() if key in keys]
        moves = sorted((*waiting, *active), key=lambda move: move.key)
        since = (self._snapshot.now - places.made_at).total_seconds()
        return decide(*partition(moves), self._snapshot.limits.links, now=since)

    def _order(self, decided: ScheduleDecision, wanting: Mapping[str, Wanting]) -> None:
        """Say what is to be done of what was decided: shares and turns first, as they wait for nothing."""
        live = self._snapshot.live
        for move, speed in decided.bandwidth.items():
            migration, share = live.get(move.transfer.guest), max(1, int(speed))
            if migration is not None and not _about(migration.share_bytes_per_second, share):
                self._actions.append(SetShare(migration=migration.id, bytes_per_second=share))
        for move in decided.begin:
            if (migration := live.get(move.transfer.guest)) is not None and not migration.admitted:
                self._actions.append(Admit(migration=migration.id))
        self._prepare(decided.prepare, wanting)

    def _prepare(self, order: Sequence[Move], wanting: Mapping[str, Wanting]) -> None:
        live, most = self._snapshot.live, self._snapshot.limits.migrations_at_a_time
        under_way = sum(1 for each in live.values() if each.driven and each.state is not State.WAITING)
        for move in order:
            key = move.transfer.guest
            if under_way >= most:
                self._held_back[key] = f"{most} migrations are under way (limits.migrations_at_a_time)"
                continue
            if key in wanting:
                self._begin(_target(wanting[key], move.transfer.target, self._running))
            elif key in live and not live[key].driven:
                self._actions.append(Drive(migration=live[key].id))
            under_way += 1

    def _begin(self, target: Target) -> None:
        guest, run = target.wanting.entry.guest, target.evacuation
        names: list[Name] = [("evacuation", run.id), ("guest", guest.key), ("host", target.host)]
        if any(name in self._snapshot.reserved for name in names):
            self._held_back[guest.key] = "a command changes its host, its target or itself just now"
            return
        self._actions.append(
            Begin(
                evacuation=run.id,
                guest=guest,
                target=target.host,
                reason=target.reason,
                policy=target.wanting.policy,
            )
        )


def _about(share: int | None, speed: int) -> bool:
    """Whether it is too little a change to tell QEMU."""
    return share is not None and abs(share - speed) <= _SHARE_STEP_RATIO * share
