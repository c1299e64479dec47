"""Our controller as the harness sees it: :mod:`migrator.core.migration.convergence`, driven as the engine drives it."""

from __future__ import annotations

from bench.policies.cases import LINK_BYTES_PER_SECOND
from bench.policies.strategy import ASLEEP_RATIO, Action, Do, Setup, Strategy
from migrator.core.guest_experience import GuestPrior
from migrator.core.migration import convergence, convergence_state
from migrator.core.migration.convergence_state import Abilities, ActionKind, ConvergenceState
from migrator.core.migration.forecast import Forecast, Verdict
from migrator.core.migration.traffic_shaping import unsent_limit
from migrator.core.model import Sample
from migrator.core.policy import Policy

_DO = {
    ActionKind.LIMIT: Do.DOWNTIME_LIMIT,
    ActionKind.THROTTLE: Do.THROTTLE,
    ActionKind.START_POSTCOPY: Do.POSTCOPY,
    ActionKind.PAUSE: Do.PAUSE,
    ActionKind.GIVE_UP: Do.ABORT,
}


class Migrator(Strategy):
    """Decides by forecast."""

    name = "migrator"
    interval_seconds = 0.1
    at_rounds = True
    probe_seconds = 1.0
    unsent_bytes = unsent_limit(LINK_BYTES_PER_SECOND)
    by_timers = False
    #: What is known of the guest from before.
    prior: GuestPrior | None = None

    def __init__(self, policy: Policy, memory_bytes: int) -> None:
        super().__init__(policy, memory_bytes)
        self._state = convergence_state.begin(policy, prior=self.prior)
        self._abilities = Abilities(postcopy=self.may_postcopy, throttle=policy.max_throttle_ratio > 0)
        #: The round in which it was first said that nothing the policy allows will do.
        self.cannot_round: int | None = None
        #: As of the last sample.
        self.forecast = Forecast(verdict=Verdict.UNKNOWN)
        #: What was done, when and why.
        self.reasons: list[tuple[float, str, str]] = []

    @property
    def first_forecast_seconds(self) -> float | None:
        """Total time as forecast at the end of the first round."""
        return self._state.first_forecast_seconds

    @property
    def state(self) -> ConvergenceState:
        """State of the decisions so far."""
        return self._state

    @property
    def settled(self) -> bool:
        """Something was done that nothing follows on."""
        return self._state.settled

    @property
    def look_again_seconds(self) -> float:
        near = self._state.look_in_seconds
        return self.interval_seconds if near is None else min(self.interval_seconds, near)

    def setup(self) -> Setup:
        throttles = self._abilities.throttle
        return Setup(
            downtime_limit_seconds=self._state.model.limit_seconds,
            auto_converge=throttles,
            # Asleep until it is told how much to take.
            throttle_initial_ratio=ASLEEP_RATIO,
            throttle_increment_ratio=ASLEEP_RATIO,
            max_throttle_ratio=ASLEEP_RATIO if throttles else 0.99,
            throttle_trigger_ratio=1.0,
        )

    def on_probe(self, elapsed: float, rate: float) -> None:
        self._state = convergence.after_probe(
            self._state, at_seconds=elapsed, period_seconds=self.probe_seconds, dirty_rate=rate
        )

    def on_sample(self, sample: Sample) -> list[Action]:
        self._state, seen, actions = convergence.decide(self._state, sample, self.policy, self._abilities)
        self.forecast = seen
        if seen.verdict is Verdict.CANNOT and self.cannot_round is None:
            self.cannot_round = sample.round
        self.reasons += [(sample.at_seconds, str(action.act), action.reason) for action in actions]
        return [Action(_DO[action.act], action.value) for action in actions if action.act in _DO]
