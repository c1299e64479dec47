"""Guests of one group whose switches are held until all of them are due. Pure.

Each of them runs while it waits: its memory is copied on, and QEMU does not get the limit with which it would stop it.
:func:`judge` says who may be switched now; the plan asks it for every group that is under way in an evacuation:

1. where one of them was switched, the others follow as soon as each can;
2. where one does not move (it failed for good, was set aside or cancelled), the others go on without it, or all stay,
   as :class:`~migrator.core.drain.limits.Otherwise` says;
3. where all could be switched, the one that takes longest until its STOP goes first, and each other when it takes as
   long as those that have not stopped yet;
4. where the first that could be switched has waited as long as it may, the others count as in 2.

One that is held is waited for: nobody knows where it will be, and the others can still stay with it, or follow. Those
that stayed follow where one of them turns out to have been switched after all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from migrator.core.drain.actions import Action, AllowSwitch, CancelMigration, Change
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.limits import GroupRules, Otherwise
from migrator.core.drain.snapshot import MigrationSnapshot, SiteSnapshot
from migrator.core.drain.states import GuestStanding
from migrator.core.model import State
from migrator.units import show_seconds

#: Guests that stop within so many seconds of each other are taken to stop together: well within the second that is
#: promised, as what is foretold of a STOP is off by some.
TOGETHER_SECONDS = 0.3
#: States that only a guest is in that was stopped for its switch. (Finishing is undoing, too.)
_PAST_STOP = (State.SWITCHOVER, State.POSTCOPY, State.RECOVERING)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One guest of a group, as far as its switch is concerned."""

    #: Its key, and what people call it.
    guest: str
    label: str = ""
    #: It could be stopped in so many seconds; ``None``: not yet.
    switch_in_seconds: float | None = None
    #: When it could be for the first time, on the snapshot's clock; it may not be able to at the moment.
    since: float | None = None
    #: It was told that it may be switched.
    allowed: bool = False
    #: Nothing holds it any more: it is past its STOP, or was.
    switched: bool = False
    #: Why it does not move; empty where it does.
    stays: str = ""
    #: That is so only because others of the group do not move either.
    with_others: bool = False
    #: Its migration is held.
    in_doubt: bool = False

    def __str__(self) -> str:
        """Return what people call it."""
        return self.label or self.guest


@dataclass(frozen=True, kw_only=True)
class GroupDecision:
    """The decision on a group for now."""

    #: The guests that may be switched now, each with the reason; those that may already are not among them.
    switch: Mapping[str, str]
    #: Why none of them moves; empty where that is not so.
    stay: str = ""


_WAIT = GroupDecision(switch={})


def judge(group: str, members: Sequence[Member], rules: GroupRules, *, now: float) -> GroupDecision:
    """Return who of a group may be switched now, or why all of them stay."""
    going = [each for each in members if not each.stays]
    held = [each for each in going if not (each.switched or each.allowed)]
    if not held:
        return _WAIT
    if first := next((each for each in going if each.switched), None):
        reason = f"{first} of its group {group} has been switched"
        return GroupDecision(switch={each.guest: reason for each in held})
    may_stay = rules.otherwise is Otherwise.STAY and not any(each.allowed for each in going)
    out = next((each for each in members if each.stays), None)
    if out is not None and may_stay:
        why = out.stays if out.with_others else f"its group {group} stays: {out} does not move: {out.stays}"
        return GroupDecision(switch={}, stay=why)
    late = [each for each in held if each.switch_in_seconds is None]
    since = min((each.since for each in held if each.since is not None), default=now)
    if now - since < rules.wait_seconds:
        return _WAIT if late else GroupDecision(switch=_due(group, going, held))
    awaited = (late or [each for each in going if each.allowed] or held)[0]
    doubt = ", whose migration is held," if awaited.in_doubt else ""
    waited = (
        f"{awaited}{doubt} was not switched in the {show_seconds(rules.wait_seconds)} that its group {group} "
        "waits"
    )
    if may_stay and late:
        return GroupDecision(switch={}, stay=waited)
    return GroupDecision(
        switch={
            each.guest: f"{waited}: it is moved all the same"
            for each in held
            if each.switch_in_seconds is not None
        }
    )


def _due(group: str, going: Sequence[Member], held: Sequence[Member]) -> dict[str, str]:
    """Return those that would not stop earlier than the last of those that have not stopped yet."""
    last = max(each.switch_in_seconds or 0.0 for each in going)
    reason = f"all {len(going)} guests of its group {group} that move can be switched"
    return {
        each.guest: reason
        for each in held
        if each.switch_in_seconds is not None and each.switch_in_seconds >= last - TOGETHER_SECONDS
    }


def together(run: Evacuation, guest: str, rules: GroupRules) -> bool:
    """Tell whether a guest of an evacuation is switched together with others of it."""
    group = run.entries[guest].guest.group
    if not group or not (rules.together or bool(run.group)):
        return False
    others = (entry for entry in run.entries.values() if entry.guest.group == group)
    return any(
        entry.guest.key != guest and (entry.going or entry.standing is GuestStanding.HELD) for entry in others
    )


def retried_with_group(run: Evacuation) -> Evacuation:
    """Return an evacuation in which guests that stayed only because their group did are tried again, where one of the
    group has moved after all.
    """
    stayed = [entry for entry in run.entries.at(GuestStanding.SET_ASIDE) if entry.stays]
    if not stayed or run.closing is not None:
        return run
    moved = {entry.guest.group: entry.guest.label for entry in run.entries.at(GuestStanding.MOVED)}
    return run.marked(
        {
            entry.guest.key: replace(
                entry,
                standing=GuestStanding.WAITING,
                reason=f"{moved[entry.guest.group]} of its group {entry.guest.group} has moved",
                stays="",
            )
            for entry in stayed
            if entry.guest.group in moved
        }
    )


def tend_groups(
    snapshot: SiteSnapshot, running: Mapping[str, Evacuation]
) -> tuple[dict[str, Evacuation], list[Action]]:
    """Return the evacuations with what became of the groups that are under way in them, and what is to be done."""
    after, actions = dict(running), list[Action]()
    groups: dict[tuple[str | None, str], None] = {}
    for each in snapshot.live.values():
        if each.moved_with and each.evacuation in running:
            groups[each.evacuation, each.moved_with] = None
        elif each.moved_with and not each.switch_allowed:
            actions += _without_group(each, snapshot.limits.group(each.moved_with))
    groups |= dict.fromkeys(_staying(snapshot, running))
    for identifier, group in groups:
        assert identifier is not None
        run = after[identifier]
        entries = [entry for entry in run.entries.values() if entry.guest.group == group]
        rules = snapshot.limits.group(group)
        members = [
            member for entry in entries if (member := _member(entry, run, rules, snapshot)) is not None
        ]
        verdict = judge(group, members, rules, now=snapshot.clock)
        for key, reason in verdict.switch.items():
            if (migration := snapshot.live.get(key)) is not None:
                actions.append(AllowSwitch(migration=migration.id, reason=reason))
        if verdict.stay and run.closing is None:
            changed, more = _stay(entries, run, snapshot, verdict.stay)
            actions += more
            if changed is not run:
                actions.append(Change(before=run, after=changed, announce=True))
                after[identifier] = changed
    return after, actions


def _without_group(migration: MigrationSnapshot, rules: GroupRules) -> Iterator[Action]:
    """Yield what becomes of a migration that waits for a group which nobody moves together any more: the
    evacuation has ended while it was held, or cannot be read. Nobody is to wait for ever.
    """
    reason = f"nobody moves its group {migration.moved_with} together any more"
    if rules.otherwise is Otherwise.GO:
        yield AllowSwitch(migration=migration.id, reason=reason)
    elif migration.state is not State.HELD and not migration.sure:
        yield CancelMigration(migration=migration.id, reason=f"{reason}, and none of it moves alone")


def _staying(snapshot: SiteSnapshot, running: Mapping[str, Evacuation]) -> Iterator[tuple[str, str]]:
    """Yield the groups of which nobody may move without the others, and one wants to that is not under way.

    As one does whose migration was undone when the others were cancelled.
    """
    for identifier, run in running.items():
        for entry in run.entries.values():
            group = entry.guest.group
            if not group or not entry.wants_place:
                continue
            rules = snapshot.limits.group(group)
            if rules.otherwise is Otherwise.STAY and (rules.together or run.group):
                yield identifier, group


def _member(entry: Entry, run: Evacuation, rules: GroupRules, snapshot: SiteSnapshot) -> Member | None:
    """Return a guest as a member of its group; ``None`` where nobody waits for it: it is gone, or is not held."""
    key, label = entry.guest.key, entry.guest.label
    match entry.standing:
        case GuestStanding.MOVED:
            return Member(guest=key, label=label, switched=True)
        case GuestStanding.SET_ASIDE:
            why = entry.stays or entry.reason or "it was set aside"
            return Member(guest=key, label=label, stays=why, with_others=bool(entry.stays))
        case GuestStanding.HELD:
            return Member(guest=key, label=label, in_doubt=True)
        case GuestStanding.NO_TARGET if rules.otherwise is Otherwise.GO:
            return Member(guest=key, label=label, stays=entry.reason or "no host can take it")
        case GuestStanding.GONE | GuestStanding.SAVED:
            return None
        case GuestStanding.MIGRATING:
            migration = snapshot.live.get(key)
            if migration is not None and migration.evacuation == run.id:
                return _under_way(label, migration)
    return Member(guest=key, label=label)


def _under_way(label: str, migration: MigrationSnapshot) -> Member | None:
    if not migration.moved_with:
        return None
    return Member(
        guest=migration.guest.key,
        label=label,
        switch_in_seconds=migration.switch_in_seconds,
        since=migration.switchable_since,
        allowed=migration.switch_allowed,
        switched=migration.state in _PAST_STOP,
    )


def _stay(
    entries: Sequence[Entry], run: Evacuation, snapshot: SiteSnapshot, reason: str
) -> tuple[Evacuation, list[Action]]:
    actions: list[Action] = []
    changed: dict[str, Entry] = {}
    for entry in entries:
        key = entry.guest.key
        if entry.wants_place:
            changed[key] = replace(entry, standing=GuestStanding.SET_ASIDE, reason=reason, stays=reason)
        elif entry.standing is GuestStanding.MIGRATING and (migration := snapshot.live.get(key)) is not None:
            if entry.stays != reason:
                changed[key] = replace(entry, stays=reason)
            actions.append(CancelMigration(migration=migration.id, reason=reason))
    return run.marked(changed), actions
