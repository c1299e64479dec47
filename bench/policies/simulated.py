"""Runs an algorithm on the simulator."""

from __future__ import annotations

import random
from dataclasses import replace

from bench.policies.cases import LINK_BYTES_PER_SECOND, MEMORY_BYTES, Guest, Setting
from bench.policies.ours import Migrator
from bench.policies.outcome import Outcome
from bench.policies.strategy import ASLEEP_RATIO, Action, Do, Strategy
from migrator.core.model import MigrationStatus
from migrator.testing.simulator import Costs, Link, Parameters, Simulator

#: Nobody waits longer than this.
HORIZON_SECONDS = 600.0
#: What a link's speed varies by from one turn of sending to the next, as measured between two hosts on one machine.
JITTER_RATIO = 0.03
#: How often the harness looks whether anything is due; at first as soon as an event would tell of a round.
_STEP_SECONDS, _FIRST_STEP_SECONDS, _FIRST_SECONDS = 0.02, 0.004, 0.5
#: So many pages a GiB are looked at by a dirty-rate probe, by default.
_PROBE_PAGES_PER_GIB = 512


def run(strategy: type[Strategy], guest: Guest, setting: Setting, seed: int) -> Outcome:
    """One migration; the same arguments, the same outcome."""
    return steered(strategy, guest, setting, seed)[0]


def steered(strategy: type[Strategy], guest: Guest, setting: Setting, seed: int) -> tuple[Outcome, Strategy]:
    """Run like :func:`run`, and return the algorithm as it was at the end as well."""
    mood = random.Random(f"{guest.name} {setting.name} {seed}")
    link = Link(LINK_BYTES_PER_SECOND, jitter_ratio=JITTER_RATIO, seed=mood.getrandbits(32))
    steering = strategy(setting.policy, MEMORY_BYTES)
    setup = steering.setup()
    parameters = Parameters(
        max_bandwidth_bytes_per_second=0,
        downtime_limit_seconds=setup.downtime_limit_seconds,
        auto_converge=setup.auto_converge,
        throttle_initial_ratio=setup.throttle_initial_ratio,
        throttle_increment_ratio=setup.throttle_increment_ratio,
        max_throttle_ratio=setup.max_throttle_ratio,
        throttle_trigger_ratio=setup.throttle_trigger_ratio,
    )
    costs = Costs() if strategy.unsent_bytes is None else Costs(buffer_bytes=strategy.unsent_bytes)
    simulator = Simulator(
        guest.simulated(), memory_bytes=MEMORY_BYTES, link=link, parameters=parameters, costs=costs
    )
    simulator.jump(guest.runs_before_seconds + mood.uniform(0, 1))
    worked = simulator.memory.work_seconds
    simulator.start()
    return _Drive(simulator, steering, mood).outcome(guest, setting, seed, worked), steering


class _Drive:
    """Looks as often as the algorithm wants to, and does what it says."""

    def __init__(self, simulator: Simulator, steering: Strategy, mood: random.Random) -> None:
        self._simulator = simulator
        self._steering = steering
        self._mood = mood
        self._next_look = steering.interval_seconds
        self._round = 0
        self._probed = steering.probe_seconds <= 0
        self._aborted = self._postcopy = False
        self._max_throttle = 0.0

    def outcome(self, guest: Guest, setting: Setting, seed: int, worked: float) -> Outcome:
        """Let it run to its end."""
        simulator, steering = self._simulator, self._steering
        simulator.memory.probe()
        while not simulator.ended and simulator.duration_seconds < HORIZON_SECONDS:
            step = _FIRST_STEP_SECONDS if simulator.duration_seconds < _FIRST_SECONDS else _STEP_SECONDS
            simulator.advance(min(step, steering.look_again_seconds))
            self._max_throttle = max(self._max_throttle, simulator.sample().throttle_ratio)
            if simulator.status is MigrationStatus.ACTIVE:
                self._look()
        now = simulator.resumed_seconds or simulator.now
        ours = steering if isinstance(steering, Migrator) else None
        completed = simulator.status is MigrationStatus.COMPLETED
        return Outcome(
            strategy=steering.name,
            guest=guest.name,
            setting=setting.name,
            seed=seed,
            end="completed" if completed else "aborted" if self._aborted else "unfinished",
            seconds=max(simulator.duration_seconds, now - simulator.started_seconds),
            downtime_seconds=simulator.downtime_seconds if completed else None,
            lost_seconds=simulator.now - simulator.started_seconds - (simulator.memory.work_seconds - worked),
            sent_bytes=simulator.transferred_bytes,
            max_throttle_ratio=self._max_throttle,
            postcopy=self._postcopy,
            forecast_seconds=ours.first_forecast_seconds if ours else None,
            cannot_round=ours.cannot_round if ours else None,
        )

    def _look(self) -> None:
        simulator, steering = self._simulator, self._steering
        elapsed = simulator.duration_seconds
        if not self._probed and elapsed >= steering.probe_seconds:
            self._probed = True
            steering.on_probe(elapsed, self._probe() / elapsed)
        sample = simulator.sample()
        new_round = sample.round != self._round
        if elapsed < self._next_look and not (new_round and steering.at_rounds):
            return
        self._round = sample.round
        for action in steering.on_sample(sample):
            self._do(action)
        self._next_look = elapsed + steering.look_again_seconds

    def _probe(self) -> float:
        """Bytes dirtied since the last call, as a sample of all pages tells."""
        total = self._simulator.memory.total_bytes
        share = self._simulator.memory.probe() / total
        pages = round(_PROBE_PAGES_PER_GIB * total / 2**30)
        return sum(self._mood.random() < share for _ in range(pages)) / pages * total

    def _do(self, action: Action) -> None:
        simulator, value = self._simulator, action.value
        match action.do:
            case Do.DOWNTIME_LIMIT:
                simulator.parameters = replace(simulator.parameters, downtime_limit_seconds=value)
            case Do.BANDWIDTH:
                simulator.parameters = replace(simulator.parameters, max_bandwidth_bytes_per_second=value)
            case Do.THROTTLE:
                share = max(ASLEEP_RATIO, value)
                simulator.parameters = replace(
                    simulator.parameters,
                    throttle_initial_ratio=share,
                    throttle_increment_ratio=share,
                    max_throttle_ratio=share,
                    throttle_trigger_ratio=ASLEEP_RATIO if value > 0 else 1.0,
                )
            case Do.POSTCOPY:
                self._postcopy = True
                simulator.start_postcopy()
            case Do.PAUSE:
                simulator.stop()
            case Do.ABORT:
                self._aborted = True
                simulator.cancel()
