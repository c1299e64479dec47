"""Holds the switch of one migration until the others of its group are due."""

from __future__ import annotations

from dataclasses import replace

from migrator.core.migration import held_switch
from migrator.core.migration.convergence_state import Action, ActionKind, ConvergenceState
from migrator.core.migration.held_switch import HeldPace
from migrator.core.model import Sample
from migrator.core.policy import Compression, Policy
from migrator.engine.migration.intent_log import IntentLog
from migrator.engine.migration.requests import MigrationRequests

#: The action of decisions about it.
GROUP = "group"
#: What it is held back from.
_SWITCHES = (ActionKind.LIMIT, ActionKind.START_POSTCOPY, ActionKind.PAUSE)


class GroupHold:
    """Holds one migration; :mod:`migrator.core.migration.held_switch` says how.

    :param group: empty: it is switched when it can be.
    :ivar switch_in_seconds: with a group: how soon it can be switched; ``None`` where it cannot.
    """

    def __init__(self, group: str, *, requests: MigrationRequests, intent_log: IntentLog) -> None:
        self.group = group
        self._requests, self._intent_log = requests, intent_log
        self._pace = HeldPace()
        self.switch_in_seconds: float | None = None
        self._switchable_at: float | None = None
        #: Since when it has been waiting, ``None`` while it could not be switched; and for how long before that.
        self._waiting_since: float | None = None
        self._waited_seconds = 0.0
        self._due_at: float | None = None

    @property
    def holds(self) -> bool:
        """Return whether it may not be switched."""
        return bool(self.group) and not self._requests.switch

    @property
    def bytes_per_second(self) -> int | None:
        """Return what its stream may send, so that it does not come to its switch by itself; ``None``: no bound."""
        return self._pace.bytes_per_second if self.holds else None

    @property
    def look_in_seconds(self) -> float | None:
        """Return in how many seconds the source is to be looked at, as its pace is kept; ``None`` where it is not."""
        return None if self.bytes_per_second is None else held_switch.LOOK_SECONDS

    def one_channel(self, policy: Policy) -> Policy:
        """Return the policy with one channel, where it leaves that open: through several QEMU sends pages by the
        hundred, whatever the pace.
        """
        if not self.holds or policy.streams is not None or policy.compress is Compression.ZSTD:
            return policy
        return replace(policy, streams=1, compress=Compression.NEVER)

    def begin(self, memory_bytes: int, to_send_bytes: float) -> None:
        """Set the pace of a copy that has not begun.

        :param to_send_bytes: of its memory, what is not empty.
        """
        if self.holds:
            self._pace = held_switch.first_pace(memory_bytes, to_send_bytes)

    def keep_pace(self, sample: Sample, state: ConvergenceState) -> Sample:
        """Find the pace for what a look has shown; the sample as forecasts are to see it."""
        if not self.holds:
            return sample
        self._pace = self._pace.after(sample, state.model)
        if self._pace.bytes_per_second is None:
            return sample
        # Under a pace the path carries what it shows, or more.
        least = state.model.bandwidth_bytes_per_second
        shown = sample.bandwidth_bytes_per_second
        return replace(
            sample,
            bandwidth_bytes_per_second=shown if shown >= least else 0.0,
            allowed_bytes_per_second=float(self._pace.bytes_per_second),
        )

    def policy(self, policy: Policy) -> Policy:
        """Return what may be done to it now."""
        if not self.group:
            return policy
        at = self._intent_log.elapsed
        if self.holds:
            if self._waiting_since is not None:
                return held_switch.policy_while_held(policy, at_seconds=at)
            return held_switch.policy_after_waiting(policy, waited_seconds=self._waited_seconds)
        if self._due_at is None:
            self._due_at = at
            self._intent_log.decide(GROUP, self._requests.switch)
        return held_switch.policy_when_due(
            policy, due_at_seconds=self._due_at, switchable_at_seconds=self._switchable_at
        )

    def hold_back(
        self, before: ConvergenceState, state: ConvergenceState, actions: tuple[Action, ...], sample: Sample
    ) -> tuple[ConvergenceState, tuple[Action, ...]]:
        """Return the state and the actions without those that would switch it, and note whether it could be."""
        if not self.group:
            return state, actions
        soon = held_switch.switch_in_seconds(state, sample, kept_back=self._pace.trickles)
        if not self.holds:
            self.switch_in_seconds = soon
            return state, actions
        wanted = {action.act for action in actions}
        if wanted & {ActionKind.START_POSTCOPY, ActionKind.PAUSE}:
            soon = 0.0
            state = replace(state, settled=before.settled)
        if ActionKind.LIMIT in wanted:
            parked = replace(state.switch, given=False, for_short_pass=False)
            limit = before.model.limit_seconds
            state = replace(state, switch=parked, model=replace(state.model, limit_seconds=limit))
        self.note(soon)
        return state, tuple(action for action in actions if action.act not in _SWITCHES)

    def note(self, switch_in_seconds: float | None) -> None:
        """Note how soon it could be switched."""
        if switch_in_seconds is not None and self._switchable_at is None:
            self._switchable_at = self._intent_log.elapsed
            reason = (
                f"it could be switched, and runs on until the others of its group {self.group} can be too"
            )
            self._intent_log.decide(GROUP, reason)
        at, since = self._intent_log.elapsed, self._waiting_since
        if switch_in_seconds is None and since is not None:
            self._waited_seconds, self._waiting_since = self._waited_seconds + at - since, None
        elif switch_in_seconds is not None and since is None:
            self._waiting_since = at
        self.switch_in_seconds = switch_in_seconds
