"""Measurements that QEMU makes while it sends, and its conclusions: bandwidth, dirty rate, auto-converge."""

from __future__ import annotations

from typing import Any

from migrator.core.model import Sample
from migrator.testing.settings import Parameters

#: QEMU measures the bandwidth, and spends max-bandwidth, in windows of so many seconds.
WINDOW_SECONDS = 0.1
#: Auto-converge and the dirty rate look back over at least so long.
PERIOD_SECONDS = 1.0
#: A throttled vCPU runs for so long at a time, then sleeps for as long as its share demands.
SLICE_SECONDS = 0.01
#: With less than this sent in a window there is no new estimate of the downtime.
_ENOUGH_BYTES = 10000


class SendGauges:
    """The counters of one migration. Times are the simulator's, bytes those on the wire."""

    def __init__(self, parameters: Parameters, now: float) -> None:
        self.round = 0
        self.bandwidth = 0.0
        #: Less than this left: time for another look, and then for the switch.
        self.threshold_bytes = 0.0
        self.expected_downtime_seconds = parameters.downtime_limit_seconds
        self.dirty_rate = 0.0
        self.throttle_ratio = 0.0
        self.window_ends = now + WINDOW_SECONDS
        self._window_start = self._period_start = now
        self._window_sent = self._period_sent = 0.0
        self._period_dirtied = 0.0
        self._left_at_sync = 0.0
        self._high_periods = 0

    def sample(self, **others: Any) -> Sample:
        """Return the figures that query-migrate shows.

        :param others: those that are not of these gauges.
        """
        return Sample(
            round=self.round,
            dirty_rate_bytes_per_second=self.dirty_rate,
            bandwidth_bytes_per_second=self.bandwidth,
            throttle_ratio=self.throttle_ratio,
            expected_downtime_seconds=self.expected_downtime_seconds,
            **others,
        )

    def budget(self, parameters: Parameters, sent: float) -> float:
        """Return the bytes that max-bandwidth leaves to be sent in this window."""
        most = parameters.max_bandwidth_bytes_per_second
        return float("inf") if most <= 0 else most * WINDOW_SECONDS - (sent - self._window_sent)

    def end_window(self, parameters: Parameters, now: float, sent: float) -> None:
        """Bandwidth, and with it the threshold and the expected downtime."""
        size = sent - self._window_sent
        self.bandwidth = size / (now - self._window_start)
        self.threshold_bytes = self.bandwidth * parameters.downtime_limit_seconds
        if self.dirty_rate and size > _ENOUGH_BYTES:
            self.expected_downtime_seconds = self._left_at_sync / self.bandwidth
        self._window_start, self._window_sent, self.window_ends = now, sent, now + WINDOW_SECONDS

    def begin_round(
        self, parameters: Parameters, now: float, sent: float, dirtied: float, left: float
    ) -> None:
        """A look at the dirty bitmap found so much newly dirtied, and so much to send in all."""
        self.round += 1
        self._period_dirtied += dirtied
        self._left_at_sync = left
        if self.round == 1:
            self._period_start, self._period_dirtied = now, 0.0
            return
        period = now - self._period_start
        if period <= PERIOD_SECONDS:
            return
        self._throttle(parameters, (sent - self._period_sent) * parameters.throttle_trigger_ratio)
        self.dirty_rate = self._period_dirtied / period
        self._period_start, self._period_sent, self._period_dirtied = now, sent, 0.0

    def _throttle(self, parameters: Parameters, allowed: float) -> None:
        """The second period in which too much was dirtied takes the next step."""
        if not parameters.auto_converge or self._period_dirtied <= allowed:
            return
        self._high_periods += 1
        if self._high_periods < 2:
            return
        self._high_periods = 0
        if self.throttle_ratio == 0:
            self.throttle_ratio = parameters.throttle_initial_ratio
            return
        step = parameters.throttle_increment_ratio
        if parameters.throttle_tailslow:
            speed = 1 - self.throttle_ratio
            step = min(step, speed - speed * allowed / self._period_dirtied)
        self.throttle_ratio = min(self.throttle_ratio + step, parameters.max_throttle_ratio)

    @property
    def vcpu_wait_seconds(self) -> float:
        """How long a vCPU that auto-converge has put to sleep lets a look at the dirty bitmap wait, on average."""
        asleep = SLICE_SECONDS * self.throttle_ratio / (1 - self.throttle_ratio)
        return asleep * self.throttle_ratio / 2
