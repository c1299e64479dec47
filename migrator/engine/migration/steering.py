"""Carries out at the source what :mod:`migrator.core.migration.convergence` decides while memory is copied."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from migrator import logs
from migrator.core.migration import convergence, convergence_state
from migrator.core.migration.convergence_state import Abilities, Action, ActionKind
from migrator.core.migration.forecast import Forecast, Verdict
from migrator.core.migration.postcopy_bandwidth import forecast_stall
from migrator.core.model import Mode, Sample, State
from migrator.core.policy import Policy, PostcopyMode
from migrator.engine.migration.group_hold import GroupHold
from migrator.engine.migration.guarding import Guarding
from migrator.engine.migration.intent_log import IntentLog
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.stream_shaper import StreamShaper
from migrator.errors import CommandFailed, QemuError
from migrator.ports import Qemu, StreamPath, Tuning
from migrator.units import show_seconds

if TYPE_CHECKING:
    from migrator.core.guest_experience import GuestPrior

#: A decision: more than the policy allows is forecast.
STALL_FORECAST = "postcopy-stall-forecast"
#: So long after a probe that found the network broken it is not probed again, where postcopy waits for it.
_PROBE_AGAIN_SECONDS = 2.0
#: So many times as long as it was watched the guest is taken to go on as it did.
_KNOWN_RATIO = 2.0
#: The shortest that every QEMU can measure.
_PROBE_SECONDS = 1.0


class Steering:
    """Steers one precopy.

    :ivar forecast: as of the last sample.
    """

    def __init__(
        self,
        source: Qemu,
        *,
        policy: Policy,
        intent_log: IntentLog,
        result: MigrationOutcome,
        shaper: StreamShaper,
        guarding: Guarding,
        group_hold: GroupHold,
        path: StreamPath | None = None,
        prior: GuestPrior | None = None,
    ) -> None:
        self._source = source
        self._shaper = shaper
        self._guarding = guarding
        self._group_hold = group_hold
        self._path = path
        self._not_before = 0.0
        self._policy = policy
        self._intent_log = intent_log
        self._result = result
        self._prior = prior
        self._state = convergence_state.begin(policy, prior=prior)
        self.forecast = Forecast(verdict=Verdict.UNKNOWN)
        self._probe_began: float | None = None
        self._probed = False
        self._log = logs.logger(migration=result.id)

    @property
    def limit_seconds(self) -> float:
        """Return the downtime limit that QEMU shall have now."""
        return self._state.model.limit_seconds

    @property
    def look_in_seconds(self) -> float | None:
        """Return in how many seconds the source is to be looked at, as the switch is near; ``None`` where it is not."""
        looks = (self._state.look_in_seconds, self._group_hold.look_in_seconds)
        return min((look for look in looks if look is not None), default=None)

    @property
    def far_seconds(self) -> float:
        """Return the seconds for which there is nothing to decide, as the switch is far; less while little is known."""
        last = self._state.model.last
        if last is None or self._state.settled:
            return 0.0
        limit = self._policy.max_duration_seconds
        left = math.inf if limit is None else max(0.0, limit - last.at_seconds)
        return min(self._state.switch.far_seconds, _KNOWN_RATIO * last.at_seconds, left)

    @property
    def bandwidth_bytes_per_second(self) -> float:
        """Return what the stream was seen to carry; 0 while nothing is known."""
        return self._state.model.bandwidth_bytes_per_second

    def govern(self, policy: Policy) -> None:
        """Take this policy from now on; before anything is copied."""
        self._policy, self._state = policy, convergence_state.begin(policy, prior=self._prior)

    async def resume(self, bandwidth_bytes_per_second: int) -> None:
        """Give QEMU its parameters again: another controller may have parked it.

        :raise QemuError: the source refused it or did not answer.
        """
        await self._source.tune(
            Tuning(
                max_bandwidth_bytes_per_second=bandwidth_bytes_per_second,
                downtime_limit_seconds=self.limit_seconds,
            )
        )

    async def switch_to_postcopy(self, reason: str) -> None:
        """Switch because a person wants it; nothing is left to decide after that.

        :raise QemuError: the source did not answer.
        """
        if await self._act(Action(act=ActionKind.START_POSTCOPY, reason=reason), {}):
            self.settle()

    def settle(self) -> None:
        """Decide nothing any more: postcopy was begun by somebody else."""
        self._state = replace(self._state, settled=True)

    async def begin_copying(self, uri: str, abilities: Abilities) -> None:
        """Have the source begin, and where the policy asks for postcopy at once, have it switch in the same breath: a
        moment later the first long turn of sending is under way, and the switch would wait for it.

        :raise QemuError: the source refused to begin, or did not answer; :meth:`step` will try to switch again.
        """
        at_once = self._policy.postcopy is PostcopyMode.IMMEDIATE and abilities.postcopy
        if not at_once or not await self._carries_postcopy():
            await self._source.migrate(uri)
            return
        self._intent_log.decide(ActionKind.START_POSTCOPY, "the policy asks for postcopy at once")
        await self._start_postcopy(uri)
        self.settle()

    async def step(self, sample: Sample, abilities: Abilities) -> None:
        """Take one more sample into account and do what is due.

        :raise QemuError: the source refused something or did not answer.
        """
        try:
            await self._probe(sample)
        except QemuError as error:
            self._probed = True  # an old QEMU, or one that measures for somebody else: the rounds will tell
            self._log.info("no dirty-rate probe", error=str(error))
        before = self._state
        sample = self._group_hold.keep_pace(sample, before)
        policy = self._group_hold.policy(self._policy)
        state, self.forecast, actions = convergence.decide(before, sample, policy, abilities)
        self._state, actions = self._group_hold.hold_back(before, state, actions, sample)
        for action in actions:
            if self._intent_log.intent.undo is None and not await self._act(action, self._numbers(sample)):
                self._state = replace(self._state, settled=before.settled)  # it is decided again

    async def _probe(self, sample: Sample) -> None:
        """Measure the guest's dirty rate beside the first round: it is over before the rounds can tell.

        By a sample of the pages: whatever is exact uses the log of dirty pages, and that is the migration's now.
        """
        if self._probe_began is None:
            self._probe_began = sample.at_seconds
            await self._source.start_dirty_rate(_PROBE_SECONDS)
        elif not self._probed and sample.at_seconds >= self._probe_began + _PROBE_SECONDS:
            rate = await self._source.dirty_rate()
            if rate is not None:
                self._probed = True
                self._state = convergence.after_probe(
                    self._state, at_seconds=sample.at_seconds, period_seconds=_PROBE_SECONDS, dirty_rate=rate
                )

    async def stop_guest(self, reason: str, numbers: Mapping[str, Any] | None = None) -> None:
        """Let the guest stand still until its memory has arrived."""
        await self._intent_log.commit(stopped_by_us=True)
        self._intent_log.decide(ActionKind.PAUSE, reason, numbers)
        await self._guarding.begin()  # before the guest stands still
        await self._source.stop()

    def begin(self, overhead_seconds: float | None) -> None:
        """Begin with what was learned of the part of downtime that is not memory over the network."""
        if overhead_seconds is not None:
            self._state = convergence_state.begin(
                self._policy, overhead_seconds=overhead_seconds, prior=self._prior
            )

    def overhead(self, left_at_switch: Sample) -> float | None:
        """Return the part of the measured downtime that was not memory over the network, in seconds."""
        downtime, bandwidth = self._result.downtime_seconds, self._state.model.bandwidth_bytes_per_second
        if downtime is None or bandwidth <= 0 or self._result.mode is not Mode.PRECOPY:
            return None
        left = left_at_switch.remaining_bytes + (self._result.queued_at_stop_bytes or 0)
        return max(0.0, downtime - left / bandwidth)

    def judge(self, duration_seconds: float) -> None:
        """Note how far the forecast of the first round was off, once the truth is known."""
        model = self._state.model
        if model.rounds:
            self._result.write_rate_bytes_per_second = model.measured_rate()
        if model.last is not None and (model.copied_once or self._result.mode is Mode.PRECOPY):
            self._result.working_set_bytes = model.most_dirty_bytes
            self._result.first_pass_ratio = model.first_pass_ratio
            self._result.watched_seconds = model.last.at_seconds
            self._result.habit_changes = self._state.habit_changes
        predicted = self._state.first_forecast_seconds
        if predicted is not None and self._result.mode is Mode.PRECOPY and duration_seconds > 0:
            self._result.forecast_error_ratio = abs(predicted - duration_seconds) / duration_seconds

    async def _carries_postcopy(self) -> bool:
        """Tell whether the network was just seen to carry a postcopy: once that has begun there is no way back."""
        if self._path is None:
            return True
        if self._intent_log.elapsed < self._not_before:
            return False
        health = await self._path.probe(self._path.addresses[0])
        if health.carries is False:
            self._not_before = self._intent_log.elapsed + _PROBE_AGAIN_SECONDS
            self._intent_log.decide("no-postcopy", f"not over this network: {health.why}")
        return health.carries is not False

    async def _act(self, action: Action, numbers: Mapping[str, Any]) -> bool:
        """Do it; False where it cannot be done now, and may be later."""
        match action.act:
            case ActionKind.PAUSE:
                await self.stop_guest(action.reason, numbers)
                return True
            case ActionKind.GIVE_UP:
                self._intent_log.undo(State.FAILED, action.reason, numbers, by_choice=True)
                return True
            case ActionKind.START_POSTCOPY if not (
                await self._carries_postcopy() and await self._guarding.release()
            ):
                return False
        self._intent_log.decide(action.act, action.reason, numbers)
        match action.act:
            case ActionKind.LIMIT:
                await self._source.tune(Tuning(downtime_limit_seconds=action.value))
            case ActionKind.THROTTLE:
                await self._source.tune(Tuning(throttle_ratio=action.value))
            case ActionKind.START_POSTCOPY:
                await self._start_postcopy()
        return True

    async def _start_postcopy(self, uri: str | None = None) -> None:
        """Stop the guest and switch, without waiting in between; QEMU does in order what it is sent in order.

        Stopped by us, because QEMU 10.0 takes a connection that breaks after it has sent everything for a precopy that
        failed, and lets a guest that it stopped itself run again, whatever runs at the destination by then.

        :param uri: begin to migrate to there first.
        """
        runs = self._intent_log.intent.guest_runs
        await self._intent_log.commit(
            postcopy=True, stopped_by_us=self._intent_log.intent.stopped_by_us or runs
        )
        if self._intent_log.intent.undo is not None:
            return  # that could not be put on record
        self._shaper.end_pacing()
        self._forecast_stall()
        if uri is None:
            await self._shaper.before_postcopy()
        begin = [self._source.migrate(uri)] if uri is not None else []
        stop = [self._source.stop()] if runs else []
        outcomes = await asyncio.gather(*begin, *stop, self._source.start_postcopy(), return_exceptions=True)
        failed = next((outcome for outcome in outcomes if outcome is not None), None)
        if isinstance(failed, CommandFailed) and failed not in outcomes[: len(begin)]:
            self._intent_log.undo(
                State.FAILED, f"the source refused to switch to postcopy: {failed.description}"
            )
        elif failed is not None:
            raise failed

    def _forecast_stall(self) -> None:
        """Note how long the guest will wait for pages, and say so where its policy allows less."""
        model = self._state.model
        left = model.last.remaining_bytes if model.last is not None else math.inf
        stall = forecast_stall(
            missing_bytes=left,
            working_set_bytes=model.working_set_bytes() if model.known else left,
            path_bytes_per_second=model.bandwidth_bytes_per_second,
        )
        if stall is None or not math.isfinite(stall):
            return
        self._result.postcopy_stall_forecast_seconds = stall
        if stall > self._policy.max_postcopy_stall_seconds:
            ceiling = self._policy.max_postcopy_stall_seconds
            self._intent_log.decide(
                STALL_FORECAST,
                f"the guest may wait {show_seconds(stall)} for pages in postcopy, and its policy allows "
                f"{show_seconds(ceiling)}",
                {"postcopy_stall_forecast_seconds": stall, "max_postcopy_stall_seconds": ceiling},
            )

    def _numbers(self, sample: Sample) -> dict[str, Any]:
        shown = {**asdict(sample), **asdict(self.forecast)}
        return {key: value for key, value in shown.items() if value and value != math.inf}
