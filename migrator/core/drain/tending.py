"""Upkeep of one evacuation before places and links are given: who joins, who is gone, and when it ends. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import is_

from migrator.core.drain.actions import Action, CancelMigration, Change, End, LookAgain
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.groups import retried_with_group
from migrator.core.drain.saving import guests_to_save
from migrator.core.drain.snapshot import SiteSnapshot
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.inventory import Guest


@dataclass(frozen=True, kw_only=True)
class Tended:
    """One evacuation, and what is to be done about it."""

    #: As it is now; compare it with ``before`` by identity.
    after: Evacuation
    actions: Sequence[Action]
    #: It has ended.
    ends: bool
    #: What was taken into account; nothing of it is different as long as these are the same.
    seen: tuple[object, ...]
    #: The guests that were last taken into account, by their keys: of its host (evacuate), or all (restore).
    guests: Mapping[str, Guest] | None
    #: The hosts that answered then.
    up: frozenset[str]


def tend(run: Evacuation, snapshot: SiteSnapshot, before: Tended | None = None) -> Tended:
    """Bring an evacuation up to date.

    :param before: what the last plan made of it; spares looking at guests of whom nothing has changed.
    """
    seen = _seen(run, snapshot)
    if before is not None and before.after is run and _same(before.seen, seen):
        after, guests, up_then = run, before.guests, before.up
    else:
        after, guests, up_then = _brought_up_to_date(run, snapshot, before)
    after = retried_with_group(after)
    announce = _shows_otherwise(run, after)
    actions: list[Action] = []
    if run.deadline is not None and snapshot.now >= run.deadline and after.left_count:
        if not after.late:
            after, announce = replace(after, late=True), True
        if (run.on_deadline == "stop" or run.window.ends_at is not None) and run.closing is None:
            after, announce = replace(after, closing=EvacuationState.STOPPED), True
            actions += _stopping(after, snapshot)
    if after.closing is EvacuationState.STOPPED and run.window.ends_at is not None and not after.left_count:
        after = replace(after, closing=None)  # what was under way when the window ended was all there was
    up, empty = snapshot.is_up(run.host) if run.host else True, False
    if run.kind == "evacuate":
        after, empty = _emptied(after, snapshot, up, actions)
        if after.waits_for_contact and not after.under_way:
            actions.append(LookAgain(host=run.host))
    to_save = list(guests_to_save(after, snapshot)) if up else []
    after, state = after.settled(snapshot.clock, host_empty=empty, host_up=up, saves=bool(to_save))
    if to_save and state is EvacuationState.INCOMPLETE:
        state = None
        actions += to_save
    if after is not run:
        actions.insert(0, Change(before=run, after=after, announce=announce and state is None))
    if state is not None:
        actions.append(End(evacuation=run.id, state=state))
    return Tended(after=after, actions=actions, ends=state is not None, seen=seen, guests=guests, up=up_then)


def _stopping(run: Evacuation, snapshot: SiteSnapshot) -> Sequence[Action]:
    """Return what stops it: all that is under way, or at the end of a window what copies nothing yet."""
    every = run.on_deadline == "stop"
    return [
        CancelMigration(migration=entry.migration)
        for entry in run.under_way
        if entry.migration
        and (
            every
            or ((its := snapshot.live.get(entry.guest.key)) is not None and not its.copies and not its.sure)
        )
    ]


def _emptied(
    run: Evacuation, snapshot: SiteSnapshot, up: bool, actions: list[Action]
) -> tuple[Evacuation, bool]:
    """Return it and whether the host is empty: no guest is known there, and a look since then showed none."""
    if run.left_count or run.closing is not None:
        return (run if run.empty_since is None else replace(run, empty_since=None)), False
    if not up:
        return run, False
    if run.empty_since is None:
        actions.append(LookAgain(host=run.host, awaited=True))
        return replace(run, empty_since=snapshot.clock), False
    began, _ = snapshot.looks.get(run.host, (0.0, 0.0))
    return run, began >= run.empty_since and not snapshot.here_or_coming(run.host)


def _seen(run: Evacuation, snapshot: SiteSnapshot) -> tuple[object, ...]:
    concerned = [*snapshot.held, *snapshot.bound_for.get(run.host, ())]
    states = tuple((each.id, each.state, each.unreachable) for each in concerned)
    if run.kind != "evacuate":
        return (states, *snapshot.world)
    return (states, snapshot.guests.get(run.host), snapshot.is_up(run.host))


def _same(before: tuple[object, ...], now: tuple[object, ...]) -> bool:
    return before[0] == now[0] and len(before) == len(now) and all(map(is_, before[1:], now[1:]))


def _brought_up_to_date(
    run: Evacuation, snapshot: SiteSnapshot, before: Tended | None
) -> tuple[Evacuation, Mapping[str, Guest] | None, frozenset[str]]:
    """Return it as it is now, with the guests and the hosts that were taken into account."""
    after = _heeding_held(run, snapshot)
    known = before.guests if before is not None else None
    if run.kind != "evacuate":
        guests, up = snapshot.everybody, frozenset(host.name for host in snapshot.hosts.values() if host.up)
        only = None
        if before is not None and before.up == up:
            only = _different(after, before, {key: guests.get(key) for key in after.entries})
        return after.followed(guests, up, only=only), guests, up
    if not snapshot.is_up(run.host):
        return after, known, frozenset()
    here = snapshot.here_or_coming_by_key(run.host)
    only = _different(after, before, here) if before is not None else None
    return after.took_in_these(here, only=only), here, frozenset()


def _different(run: Evacuation, before: Tended, guests: Mapping[str, Guest | None]) -> Collection[str] | None:
    """Return the keys of those of whom the entry or the guest is another than when ``before`` was made."""
    if before.guests is None:
        return None
    changed = run.entries.changed_since(before.after.entries)
    if changed is None:
        return None
    was = before.guests
    changed.update(key for key, guest in guests.items() if was.get(key) is not guest)
    if before.after.kind == "evacuate":
        changed.update(was.keys() - guests.keys())
    return changed


def _heeding_held(run: Evacuation, snapshot: SiteSnapshot) -> Evacuation:
    """Leave to a person whom a migration that somebody else asked for holds, until it is resolved."""
    held = {
        each.guest.key: each
        for each in snapshot.held
        if each.evacuation != run.id
        and each.guest.key in run.entries
        and snapshot.live.get(each.guest.key) is each
    }
    concerned = held.keys() | {entry.guest.key for entry in run.entries.at(GuestStanding.HELD)}
    changed: dict[str, Entry] = {}
    for key in concerned:
        entry, migration = run.entries[key], held.get(key)
        if migration is not None and (entry.wants_place or entry.aside):
            changed[key] = replace(
                entry,
                standing=GuestStanding.HELD,
                migration=migration.id,
                awaited=migration.unreachable,
                reason=f"its migration {migration.id} is held: migrator status {migration.id}",
            )
        elif migration is None and entry.standing is GuestStanding.HELD and not entry.attempts:
            changed[key] = replace(
                entry, standing=GuestStanding.WAITING, migration=None, reason="", awaited=False
            )
    return run.marked(changed)


def _shows_otherwise(before: Evacuation, after: Evacuation) -> bool:
    """Tell whether the standing of a guest, or the reason of that, has changed."""
    if before.entries is after.entries:
        return False
    changed = after.entries.changed_since(before.entries)
    for key in after.entries if changed is None else changed:
        was, now = before.entries.get(key), after.entries[key]
        if was is None or (was.standing, was.reason) != (now.standing, now.reason):
            return True
    return False
