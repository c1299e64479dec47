"""Guests of evacuations that want a place now. Pure.

Of those of whom nothing has changed since the last plan the answer is kept: a plan is made a few times for each guest,
and must not go through all of them each time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.snapshot import PolicyRules, SiteSnapshot
from migrator.core.policy import Policy

_UNDER_WAY = "another migration of it is under way"
_MEASURED = "it is measured how fast the guests write their memory"


@dataclass(frozen=True, kw_only=True)
class Wanting:
    """A guest that wants a place now."""

    run: Evacuation
    entry: Entry
    policy: Policy


@dataclass(frozen=True, kw_only=True)
class PlacementRequests:
    """Everybody who wants a place now."""

    #: By the guests' keys.
    wanting: Mapping[str, Wanting]
    #: Who would want one, and why it may not have it yet.
    held_back: Mapping[str, str]
    #: The keys of all of whom something may be different from the last plan; ``None``: of everybody.
    changed: Collection[str] | None
    #: Who has to be looked at again in the next plan, though nothing of him changes: time passes.
    unsettled: Collection[str]
    #: The evacuations that are under way, by their ids, and those of which nobody wants a place yet.
    evacuations: Mapping[str, Evacuation]
    early: Collection[str]
    policies: PolicyRules

    def marked(
        self, wanting: Mapping[str, Wanting], evacuations: Mapping[str, Evacuation]
    ) -> PlacementRequests:
        """Return them with what was noted in these evacuations meanwhile, and in these guests' entries."""
        again = {
            key for key, each in wanting.items() if each.entry.excluded != self.wanting[key].entry.excluded
        }
        return replace(
            self,
            wanting={**self.wanting, **wanting},
            unsettled={*self.unsettled, *again},
            evacuations=dict(evacuations),
        )


def find_placement_requests(
    snapshot: SiteSnapshot, running: Mapping[str, Evacuation], before: PlacementRequests | None = None
) -> PlacementRequests:
    """Return who of these evacuations wants a place now.

    :param before: those of the last plan.
    """
    early = {run.id for run in running.values() if snapshot.clock < run.not_before}
    changed = _changed(snapshot, running, before, early) if before is not None else None
    finding = _Finding(snapshot, running, early)
    if before is None or changed is None:
        for run in running.values():
            for entry in run.wanting:
                finding.add(run, entry)
    else:
        finding.wanting = dict(before.wanting)
        finding.held_back = dict(before.held_back)
        for key in changed:
            finding.wanting.pop(key, None)
            finding.held_back.pop(key, None)
            for run in running.values():
                known = run.entries.get(key)
                if known is not None and known.wants_place and run.closing is None:
                    finding.add(run, known)
    return PlacementRequests(
        wanting=finding.wanting,
        held_back=finding.held_back,
        changed=changed,
        unsettled=finding.unsettled,
        evacuations=dict(running),
        early=early,
        policies=snapshot.policies,
    )


@dataclass
class _Finding:
    """PlacementRequests while they are found."""

    snapshot: SiteSnapshot
    running: Mapping[str, Evacuation]
    early: Collection[str]
    wanting: dict[str, Wanting] = field(default_factory=dict)
    held_back: dict[str, str] = field(default_factory=dict)
    unsettled: set[str] = field(default_factory=set)

    def add(self, run: Evacuation, entry: Entry) -> None:
        """Look at one guest of an evacuation."""
        key, snapshot = entry.guest.key, self.snapshot
        if key in snapshot.live or key in snapshot.coming:
            self.held_back[key] = _UNDER_WAY
        elif run.id in self.early:
            self.held_back[key] = _MEASURED
            return  # looked at again with all the others of its evacuation
        elif snapshot.clock >= entry.not_before:
            policy = snapshot.policies.of(entry.guest, run.policy_of(key))
            if key in self.wanting:  # in two evacuations: neither may be forgotten over the other
                self.unsettled.add(key)
            self.wanting[key] = Wanting(run=run, entry=entry, policy=policy)
            return
        self.unsettled.add(key)


def _changed(
    snapshot: SiteSnapshot,
    running: Mapping[str, Evacuation],
    before: PlacementRequests,
    early: Collection[str],
) -> set[str] | None:
    """Return the keys of all for whom the answer may be another than before; ``None``: everybody's may be."""
    if (
        before.policies is not snapshot.policies
        or before.early != early
        or before.evacuations.keys() != running.keys()
    ):
        return None
    changed = {*before.unsettled, *(before.wanting.keys() & (snapshot.live.keys() | snapshot.coming.keys()))}
    for name, run in running.items():
        then = before.evacuations[name]
        if then is run:
            continue
        entries = run.entries.changed_since(then.entries)
        if entries is None or (then.closing is None) != (run.closing is None) or then.policy != run.policy:
            return None
        changed |= entries
    return changed
