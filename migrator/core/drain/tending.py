"""What happens to one evacuation before places and links are given: who joins, who is gone, and when it ends. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from migrator.core.drain.actions import Action, CancelMigration, Change, End, LookAgain
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.snapshot import MigrationSnapshot, SiteSnapshot
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.model import State


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


def tend(run: Evacuation, snapshot: SiteSnapshot, before: Tended | None = None) -> Tended:
    """Bring an evacuation up to date.

    :param before: what the last plan made of it; spares looking at every guest where nothing has changed.
    """
    seen = _seen(run, snapshot)
    if before is not None and before.after is run and _same(before.seen, seen):
        after = run
    else:
        after = _brought_up_to_date(run, snapshot)
    announce = _shows_otherwise(run, after)
    actions: list[Action] = []
    if run.deadline is not None and snapshot.now >= run.deadline and not after.late and after.left:
        after, announce = replace(after, late=True), True
        if run.on_deadline == "stop" and run.closing is None:
            after = replace(after, closing=EvacuationState.STOPPED)
            actions += [
                CancelMigration(migration=entry.migration) for entry in after.under_way if entry.migration
            ]
    up, empty = snapshot.is_up(run.host), False
    if run.kind == "evacuate":
        after, empty = _emptied(after, snapshot, up, actions)
        if after.waits_for_contact and not after.under_way:
            actions.append(LookAgain(host=run.host))
    after, state = after.settled(snapshot.clock, host_empty=empty, host_up=up)
    if after is not run:
        actions.insert(0, Change(before=run, after=after, announce=announce and state is None))
    if state is not None:
        actions.append(End(evacuation=run.id, state=state))
    return Tended(after=after, actions=actions, ends=state is not None, seen=seen)


def _emptied(
    run: Evacuation, snapshot: SiteSnapshot, up: bool, actions: list[Action]
) -> tuple[Evacuation, bool]:
    """Whether the host is empty: nobody is left as far as is known, and a look since then showed none."""
    if run.left or run.closing is not None:
        return (run if run.empty_since is None else replace(run, empty_since=None)), False
    if not up:
        return run, False
    if run.empty_since is None:
        actions.append(LookAgain(host=run.host, awaited=True))
        return replace(run, empty_since=snapshot.clock), False
    began, _ = snapshot.looks.get(run.host, (0.0, 0.0))
    return run, began >= run.empty_since and not snapshot.here_or_coming(run.host)


def _seen(run: Evacuation, snapshot: SiteSnapshot) -> tuple[object, ...]:
    concerned = [
        (each.id, each.state, each.unreachable)
        for each in snapshot.migrations
        if each.state is State.HELD or each.target == run.host
    ]
    if run.kind == "restore":
        return (tuple(concerned), *snapshot.guests.values(), *snapshot.hosts.values())
    return (tuple(concerned), snapshot.guests.get(run.host), snapshot.is_up(run.host))


def _same(before: tuple[object, ...], now: tuple[object, ...]) -> bool:
    same = all(was is one for was, one in zip(before[1:], now[1:], strict=False))
    return before[0] == now[0] and len(before) == len(now) and same


def _brought_up_to_date(run: Evacuation, snapshot: SiteSnapshot) -> Evacuation:
    after = _heeding_held(run, snapshot.live)
    if run.kind == "restore":
        up = {host.name for host in snapshot.hosts.values() if host.up}
        return after.followed(snapshot.everybody, up)
    if not snapshot.is_up(run.host):
        return after
    return after.took_in(snapshot.here_or_coming(run.host))


def _heeding_held(run: Evacuation, live: Mapping[str, MigrationSnapshot]) -> Evacuation:
    """Leave to a person whom a migration that somebody else asked for holds, until it is resolved."""
    held = {
        key: each
        for key, each in live.items()
        if each.state is State.HELD and each.evacuation != run.id and key in run.entries
    }
    changed: dict[str, Entry] = {}
    for key, entry in run.entries.items():
        migration = held.get(key)
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
    """Whether somebody's standing, or its reason, is another."""
    if before.entries is after.entries:
        return False
    return len(before.entries) != len(after.entries) or any(
        was is not (now := after.entries[key]) and (was.standing, was.reason) != (now.standing, now.reason)
        for key, was in before.entries.items()
    )
