"""The plan of a site: who is begun where, who gets the links, and what becomes of each evacuation. Pure.

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
from dataclasses import dataclass, field, replace
from functools import cached_property

from migrator.core.drain import places as placing
from migrator.core.drain.actions import Action, Admit, Begin, Change, Drive, SetShare
from migrator.core.drain.active_moves import ActiveMoves
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.groups import tend_groups, together
from migrator.core.drain.hurrying import hurried, next_seconds
from migrator.core.drain.places import Places
from migrator.core.drain.snapshot import Name, SiteSnapshot
from migrator.core.drain.states import GuestStanding
from migrator.core.drain.tending import Tended, tend
from migrator.core.drain.wanting import PlacementRequests, Wanting, find_placement_requests
from migrator.core.model import State
from migrator.core.placement import NoHost
from migrator.core.schedule import ScheduleDecision, decide, partition
from migrator.core.schedule.queues import Queues, requeued
from migrator.core.schedule.transfers import Move

#: While something is under way a plan is made so often at least.
LIVE_SECONDS = 1.0
#: ... and while nothing is: time alone changes deadlines, and a journal that cannot be written is waited for.
IDLE_SECONDS = 5.0
#: A share of a link is changed by this much at least.
_SHARE_STEP_RATIO = 0.05


@dataclass(frozen=True, kw_only=True)
class DrainPlan:
    """The actions that are due now, and the intermediate results that the next plan can reuse."""

    #: In this order.
    actions: Sequence[Action]
    #: Evacuations as they are once that is done, but for what is begun and ended.
    evacuations: Mapping[str, Evacuation]
    #: Who wants a place now, by the guests' keys.
    wanting: Mapping[str, Wanting]
    #: Make the next plan in so many seconds at the latest.
    next_seconds: float
    #: For guests that nothing is done for: why, as far as the schedule does not say it.
    held_back: Mapping[str, str]
    tended: Mapping[str, Tended]
    places: Places | None = None
    candidates: PlacementRequests | None = None
    #: Those of :attr:`wanting` that have a place, as the schedule wants them.
    queues: Queues = field(default_factory=dict)
    #: Those of :attr:`queues` and of the migrations that are queued.
    waiting: Queues = field(default_factory=dict)
    under_way: ActiveMoves = field(default_factory=ActiveMoves)
    decided: ScheduleDecision | None = None

    @cached_property
    def targets(self) -> Mapping[str, Target]:
        """Return the guests that want a place and have one, by their keys, in the order of turn."""
        if self.places is None:
            return {}
        return {
            key: _target(self.wanting[key], move.transfer.target, self.evacuations)
            for key, move in self.places.moves.items()
            if key in self.wanting
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


class ManyPlaces(Exception):
    """A place has to be looked for for many guests at once, which takes a while; nothing was made."""


def make_plan(
    snapshot: SiteSnapshot, before: DrainPlan | None = None, *, places_at_once: int | None = None
) -> DrainPlan:
    """Say what is to be done now.

    :param before: the plan before this one, which this one begins from.
    :param places_at_once: for more guests no place is looked for here.
    :raise ManyPlaces: it would take that: ask again without a bound, where it may take longer.
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
            wanting={},
            next_seconds=IDLE_SECONDS,
            held_back={},
            tended=tended,
        )
    running, more = tend_groups(snapshot, running)
    actions += more
    return _Planning(snapshot, before, actions, tended, running, places_at_once).make()


class _Planning:
    """One plan while it is made."""

    def __init__(
        self,
        snapshot: SiteSnapshot,
        before: DrainPlan | None,
        actions: list[Action],
        tended: Mapping[str, Tended],
        running: dict[str, Evacuation],
        places_at_once: int | None,
    ) -> None:
        self._snapshot, self._before, self._at_once = snapshot, before, places_at_once
        self._actions, self._tended, self._running = actions, tended, running
        self._held_back: dict[str, str] = {}
        self._soon = False

    def make(self) -> DrainPlan:
        snapshot, before = self._snapshot, self._before
        known = before.places if before is not None else None
        found = find_placement_requests(
            snapshot, self._running, before.candidates if before is not None else None
        )
        self._held_back.update(found.held_back)
        held = known is not None and known.hold(found, snapshot)
        places = known if held and known is not None else self._ask(found)
        active = self._active(places)
        queues = self._queues(found, places)
        decided = self._decide(queues, places, active)
        if held and not self._fit(decided, found.wanting, places):
            places = self._ask(found)
            active = self._active(places)
            queues = self._queues(found, places)
            decided = self._decide(queues, places, active)
        found = self._mark(found, places)
        self._order(decided, found.wanting)
        idle = not decided.active and not any(decided.waiting.values()) and not self._running
        again = decided.recheck_seconds(snapshot.limits.links)
        return DrainPlan(
            actions=self._actions,
            evacuations=self._running,
            wanting=found.wanting,
            next_seconds=0.0
            if self._soon
            else IDLE_SECONDS
            if idle
            else min(LIVE_SECONDS, again or LIVE_SECONDS, next_seconds(snapshot, decided)),
            held_back=self._held_back,
            tended=self._tended,
            places=places,
            candidates=found,
            queues=queues,
            waiting=decided.waiting,
            under_way=active,
            decided=decided,
        )

    # --- places ------------------------------------------------------------------------------------------------------

    def _ask(self, found: PlacementRequests) -> Places:
        if self._at_once is not None and len(found.wanting) > self._at_once:
            raise ManyPlaces
        return placing.ask(found, self._snapshot, self._before.places if self._before is not None else None)

    def _mark(self, found: PlacementRequests, places: Places) -> PlacementRequests:
        """Note in the evacuations what placement said; the candidates with that."""
        changed: dict[str, dict[str, Entry]] = {}
        marked: dict[str, Wanting] = {}
        told: set[str] = set()
        same = self._before is not None and places is self._before.places and found.changed is not None
        for key in found.wanting.keys() & found.changed if same else found.wanting:  # type: ignore[operator]
            each, answer = found.wanting[key], places.answers[key]
            entry = placing.marked(each.entry, answer)
            if entry is each.entry:
                continue
            run = each.run.id
            changed.setdefault(run, {})[key] = entry
            marked[key] = replace(each, entry=entry)
            if isinstance(answer, NoHost):
                if entry.excluded != each.entry.excluded:
                    self._soon = True
                else:
                    told.add(run)
        for name, these in changed.items():
            after = self._running[name].marked(these)
            self._actions.append(Change(before=self._running[name], after=after, announce=name in told))
            self._running[name] = after
        return found.marked(marked, self._running)

    def _fit(self, decided: ScheduleDecision, wanting: Mapping[str, Wanting], places: Places) -> bool:
        """Tell whether the guests that are about to be begun still have room at their places."""
        begun = {
            move.transfer.guest: move.transfer.target
            for move in decided.prepare
            if move.transfer.guest in wanting
        }
        if not begun:
            return True
        guests = [wanting[key].entry.guest for key in begun]
        fleet = placing.fleet_of_targets(self._snapshot, set(begun.values()), guests)
        return all(places.fits(wanting[key], fleet) for key in begun)

    # --- turns -------------------------------------------------------------------------------------------------------

    def _active(self, places: Places) -> ActiveMoves:
        """Return the migrations that are queued or under way, as the schedule sees them."""
        before = self._before.under_way if self._before is not None else ActiveMoves()
        return before.brought_up_to_date(self._snapshot, places.network, deadlines_from=places.made_at)

    def _queues(self, found: PlacementRequests, places: Places) -> Queues:
        """Return those who want a place and have one, in the order of turn, by the links that they will take."""
        before = self._before
        if before is None or places is not before.places or found.changed is None:
            waiting = (move for key, move in places.moves.items() if key in found.wanting)
            return partition(waiting)[1]
        moves = [(key, places.moves[key]) for key in found.changed if key in places.moves]
        return requeued(
            before.queues,
            remove=[move for key, move in moves if key not in found.wanting],
            add=[move for key, move in moves if key in found.wanting],
        )

    def _decide(self, queues: Queues, places: Places, active: ActiveMoves) -> ScheduleDecision:
        before = self._before
        if before is not None and (queues is before.queues or not (queues or before.queues)):
            then = before.under_way.queued
            waiting = requeued(before.waiting, remove=then - active.queued, add=active.queued - then)
        else:
            waiting = requeued(queues, add=active.queued)
        since = (self._snapshot.now - places.made_at).total_seconds()
        return decide(active.begun, waiting, self._snapshot.limits.links, now=since)

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
        self._actions += hurried(self._snapshot, decided)
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
                moved_with=guest.group
                if together(run, guest.key, self._snapshot.limits.group(guest.group))
                else "",
            )
        )


def _about(share: int | None, speed: int) -> bool:
    """Tell whether a share of a link changes too little to tell QEMU."""
    return share is not None and abs(share - speed) <= _SHARE_STEP_RATIO * share
