"""A copy that goes on until the others of its guest's group are due: how soon it could end, and its pace. Pure.

QEMU's limit is parked all the while, so a guest that writes is copied round after round and never stopped. One that
writes next to nothing would be stopped all the same as soon as nothing is left to send. So the end of a pass that
might be the last is sent ever more slowly, and a little of it is kept back, to be sent in a moment once the group is
due.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from migrator.core.migration.convergence_state import ConvergenceState
from migrator.core.migration.forecast import Model
from migrator.core.model import Sample
from migrator.core.policy import Policy, Preference

#: What is kept back takes the stream so long, seconds, and is no less than this.
_KEPT_SECONDS, _LEAST_KEPT_BYTES = 0.15, 2 << 20
#: A pass after which so many times as much is dirty is not the last: it need not be slowed down.
_SURELY_MORE = 2.0
#: One page, or ninety that are empty, in each of QEMU's windows of a tenth of a second: the slowest it can be had.
TRICKLE_BYTES_PER_SECOND = 8192
#: What is left above that is to take so long at the least, seconds: several of those windows.
_ENDS_SECONDS, _WINDOW_SECONDS = 0.4, 0.1
#: What is sent of an empty page, as a share of it; a pass in which more is sent of each is not over empty pages.
_EMPTY_RATIO, _FULL_RATIO = 9 / 4096, 0.5
#: The rest of the first pass may be over empty pages, which take no time, once so much of the others was sent.
_SENT_RATIO = 0.7
#: A pass that makes no progress at its pace has it raised by this.
_FASTER = 8.0
#: A stream is not held to more than so many times what it carries.
_FASTER_THAN_PATH = 4.0
#: A guest of which nothing has been copied begins with this share of its memory each second: were all of it empty
#: pages, it would be gone through in a second even so.
_FIRST_RATIO = 1 / 400
#: By then it is known how fast a guest writes, where that can be measured at all, seconds.
_MEASURED_SECONDS = 2.0
#: A guest whose memory goes in less than this, seconds, is not begun before its group is due.
_QUICK_SECONDS = 0.5
#: The source is looked at so often while its pace is kept, seconds.
LOOK_SECONDS = 0.03
#: A guest that waits has all the time that it likes; once its group is due it has so long, seconds, at the least.
_WAITING_SECONDS, _LAST_SECONDS = 86400.0, 30.0


@dataclass(frozen=True, kw_only=True)
class HeldPace:
    """Bandwidth that the stream may use while the switch is held."""

    #: ``None``: whatever it likes.
    bytes_per_second: int | None = None
    #: What the first pass is expected to send: the rest of the guest's memory is empty.
    to_send_bytes: float = math.inf
    last: Sample | None = None

    @property
    def trickles(self) -> bool:
        """Tell whether the end of a pass is kept back, and next to nothing is sent."""
        return self.bytes_per_second == TRICKLE_BYTES_PER_SECOND

    def after(self, sample: Sample, model: Model) -> HeldPace:
        """Return the pace after one more look."""
        spare = sample.remaining_bytes - _kept_bytes(model)
        if _dirtied_since(sample, model) >= _SURELY_MORE * _kept_bytes(model):
            return replace(self, bytes_per_second=None, last=sample)
        if spare <= 0:
            return replace(self, bytes_per_second=TRICKLE_BYTES_PER_SECOND, last=sample)
        before = self.last
        if before is None or before.round != sample.round or sample.at_seconds < before.at_seconds:
            return replace(self, last=sample)
        passed = sample.at_seconds - before.at_seconds
        if passed < _WINDOW_SECONDS:
            return self
        pace = self._pace(before, sample, spare)
        sent = max(0, sample.transferred_bytes - before.transferred_bytes)
        if pace > _FASTER_THAN_PATH * max(sent / passed, model.bandwidth_bytes_per_second):
            return replace(self, bytes_per_second=None, last=sample)
        return replace(self, bytes_per_second=max(TRICKLE_BYTES_PER_SECOND, int(pace)), last=sample)

    def _pace(self, before: Sample, sample: Sample, spare: float) -> float:
        """Return the bytes per second with which what is left is sent in good time."""
        sent = max(0, sample.transferred_bytes - before.transferred_bytes)
        done = before.remaining_bytes - sample.remaining_bytes
        now = self.bytes_per_second or math.inf
        if done <= 0:
            return _FASTER * now
        # Of pages that are empty next to nothing is sent, so it is progress that counts.
        ratio = sent / done
        empty = sample.round == 1 and sample.transferred_bytes >= _SENT_RATIO * self.to_send_bytes
        if empty and ratio < _FULL_RATIO:
            ratio = min(ratio, _EMPTY_RATIO)
        elif empty:
            return min(spare / _ENDS_SECONDS * ratio, _FASTER * now)
        return spare / _ENDS_SECONDS * ratio


def first_pace(memory_bytes: int, to_send_bytes: float) -> HeldPace:
    """Return the pace of a guest of which nothing is copied yet.

    :param to_send_bytes: of its memory, what is not empty.
    """
    pace = max(TRICKLE_BYTES_PER_SECOND, int(memory_bytes * _FIRST_RATIO))
    return HeldPace(bytes_per_second=pace, to_send_bytes=to_send_bytes)


def quick_seconds(to_send_bytes: float, bytes_per_second: float | None) -> float | None:
    """Return the seconds that all of a guest's memory takes, where it is not worth while to begin before its group is
    due; else ``None``.
    """
    if not bytes_per_second or to_send_bytes > _QUICK_SECONDS * bytes_per_second:
        return None
    return to_send_bytes / bytes_per_second


def _kept_bytes(model: Model) -> float:
    return max(_LEAST_KEPT_BYTES, _KEPT_SECONDS * model.bandwidth_bytes_per_second)


def _dirtied_since(sample: Sample, model: Model) -> float:
    """Return what the guest has dirtied since the last look at its dirty pages, as far as is known."""
    began = model.round_began
    if not model.known or began is None:
        return 0.0
    since = max(0.0, sample.at_seconds - began.at_seconds)
    most = model.working_set_bytes() if model.copied_once else math.inf
    return min(most, model.latest_rate() * since)


def switch_in_seconds(state: ConvergenceState, sample: Sample, *, kept_back: bool) -> float | None:
    """Return how soon the guest could be stopped inside its ceiling; ``None``: no such end is in sight.

    :param kept_back: the end of a pass is kept back.
    """
    model, ending = state.model, state.switch.ending
    if kept_back and (
        model.known or sample.at_seconds > _MEASURED_SECONDS
    ):  # nobody can say how fast it writes
        left = sample.remaining_bytes + _dirtied_since(sample, model)
        speed = model.bandwidth_bytes_per_second
        return left / speed if speed > 0 else None
    if ending is None or not model.known or not state.judged.as_it_goes:
        return None
    return max(0.0, ending.stop_in_seconds - (sample.at_seconds - state.switch.planned_at_seconds))


def policy_while_held(policy: Policy, *, at_seconds: float) -> Policy:
    """Return the policy of a guest that could be switched and waits: the time that it waits is not its own."""
    return replace(policy, max_duration_seconds=at_seconds + _WAITING_SECONDS)


def policy_after_waiting(policy: Policy, *, waited_seconds: float) -> Policy:
    """Return the policy of a guest that could be switched and waited for so long, and cannot be now."""
    limit = policy.max_duration_seconds
    if limit is None or not waited_seconds:
        return policy
    return replace(policy, max_duration_seconds=limit + waited_seconds)


def policy_when_due(policy: Policy, *, due_at_seconds: float, switchable_at_seconds: float | None) -> Policy:
    """Return the policy of a guest whose group is due: it ends as soon as it can.

    :param switchable_at_seconds: when it could have been switched for the first time; ``None``: it never could.
    """
    limit = policy.max_duration_seconds
    if switchable_at_seconds is not None:
        left = _LAST_SECONDS if limit is None else max(_LAST_SECONDS, limit - switchable_at_seconds)
        limit = due_at_seconds + left
    return replace(policy, prefer=Preference.TIME, max_duration_seconds=limit)
