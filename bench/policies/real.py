"""Runs an algorithm on two real QEMUs, over raw QMP and a link of a set speed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from pathlib import Path
from typing import Any

from bench.bare import identity_of
from bench.policies.cases import LINK_BYTES_PER_SECOND, MEMORY_BYTES, Guest, Setting
from bench.policies.ours import Migrator
from bench.policies.outcome import Outcome
from bench.policies.strategy import ASLEEP_RATIO, Action, Do, Strategy
from migrator import process_sockets
from migrator.core.model import Sample
from migrator.core.policy import PostcopyMode
from migrator.testing.guest import TICK_SECONDS
from migrator.testing.lab import GuestMachine, Lab, Pair
from migrator.testing.network import LabHosts
from migrator.testing.raw_qmp import RawMonitor, RawQmpError

#: What Ethernet, IP and TCP take of the line.
_FRAMING_RATIO = 1.05
_UNLIMITED_BYTES_PER_SECOND = 2**40
_ENDS = {"completed", "failed", "cancelled"}


async def run(
    strategy: type[Strategy],
    guest: Guest,
    setting: Setting,
    seed: int,
    *,
    binary: Path,
    horizon_seconds: float,
) -> Outcome:
    """One migration between two QEMUs that are started for it.

    :param horizon_seconds: nobody waits longer than this.
    """
    assert guest.real is not None
    mood = random.Random(f"{guest.name} {setting.name} {seed}")
    machine = GuestMachine(habit=guest.real, memory_bytes=MEMORY_BYTES)
    with LabHosts("alpha", "beta", bytes_per_second=LINK_BYTES_PER_SECOND * _FRAMING_RATIO) as hosts:
        async with Lab() as lab:
            pair = await lab.pair(
                machine,
                source=binary,
                destination=binary,
                source_prefix=hosts["alpha"].prefix,
                destination_prefix=hosts["beta"].prefix,
            )
            await asyncio.sleep(guest.runs_before_seconds + mood.uniform(0, 1))
            async with RawMonitor(pair.source.qmp) as source, RawMonitor(pair.destination.qmp) as destination:
                drive = _Drive(
                    pair, source, destination, strategy(setting.policy, MEMORY_BYTES), horizon_seconds
                )
                await drive.prepare(hosts["beta"].address)
                return await drive.outcome(guest, setting, seed)


class _Drive:
    """Looks as often as the algorithm wants to, does what it says, and hands the guest over."""

    def __init__(
        self,
        pair: Pair,
        source: RawMonitor,
        destination: RawMonitor,
        steering: Strategy,
        horizon_seconds: float,
    ) -> None:
        self._pair, self._source, self._destination = pair, source, destination
        self._steering = steering
        self._horizon_seconds = horizon_seconds
        self._uri = ""
        self._began = 0.0
        self._next_look = steering.interval_seconds
        self._round = 0
        self._probing = False
        self._probed = steering.probe_seconds <= 0
        self._aborted = self._postcopy = self._handed_over = False
        self._max_throttle = 0.0
        self._sent = 0
        self._shaped = steering.unsent_bytes is None
        self._process = identity_of(pair.source.pid)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    async def prepare(self, address: str) -> None:
        """Capabilities, parameters, a destination that listens."""
        policy, setup = self._steering.policy, self._steering.setup()
        both = ["events", "return-path", "pause-before-switchover"]
        both += ["postcopy-ram"] if policy.postcopy is not PostcopyMode.NEVER else []
        await _enable(self._destination, both)
        await _enable(self._source, [*both, *(["auto-converge"] if setup.auto_converge else [])])
        await self._source.execute(
            "migrate-set-parameters",
            {
                "max-bandwidth": _UNLIMITED_BYTES_PER_SECOND,
                "downtime-limit": round(setup.downtime_limit_seconds * 1e3),
                "cpu-throttle-initial": round(setup.throttle_initial_ratio * 100),
                "cpu-throttle-increment": round(setup.throttle_increment_ratio * 100),
                "max-cpu-throttle": round(setup.max_throttle_ratio * 100),
                "throttle-trigger-threshold": round(setup.throttle_trigger_ratio * 100),
            },
        )
        await self._destination.execute("migrate-incoming", uri=f"tcp:{address}:0")
        where = (await self._destination.execute("query-migrate"))["socket-address"][0]
        self._uri = f"tcp:{where['host']}:{where['port']}"

    async def outcome(self, guest: Guest, setting: Setting, seed: int) -> Outcome:
        """From ``migrate`` to the end."""
        before = await self._pair.source.counters()
        counted = self._began = time.monotonic()
        await self._source.execute("migrate", uri=self._uri)
        status = await self._watch()
        seconds = self._elapsed
        after = await (self._pair.destination if self._handed_over else self._pair.source).counters()
        lost = time.monotonic() - counted - (after.ticks - before.ticks) * TICK_SECONDS
        stop, resume = _stamps(self._source, "STOP"), _stamps(self._destination, "RESUME")
        ours = self._steering if isinstance(self._steering, Migrator) else None
        return Outcome(
            strategy=self._steering.name,
            guest=guest.name,
            setting=setting.name,
            seed=seed,
            end="completed" if status == "completed" else "aborted" if self._aborted else "unfinished",
            seconds=seconds,
            downtime_seconds=resume[0] - stop[-1] if stop and resume else None,
            lost_seconds=max(0.0, lost),
            sent_bytes=self._sent,
            max_throttle_ratio=self._max_throttle,
            postcopy=self._postcopy,
            forecast_seconds=ours.first_forecast_seconds if ours else None,
            cannot_round=ours.cannot_round if ours else None,
        )

    async def _watch(self) -> str:
        continued = False
        while True:
            answer = await self._source.execute("query-migrate")
            status = str(answer.get("status", "none"))
            sample = _sample(answer, self._elapsed)
            self._sent = max(self._sent, sample.transferred_bytes)
            self._max_throttle = max(self._max_throttle, sample.throttle_ratio)
            if status in ("postcopy-active", "completed") and not self._handed_over:
                await self._hand_over()
            if status in _ENDS or self._elapsed > self._horizon_seconds:
                return status
            if status == "pre-switchover" and not continued:
                continued = True
                await self._source.execute("migrate-continue", state="pre-switchover")
            elif status == "active" and not self._aborted:
                self._shape()
                await self._look(sample)
            with contextlib.suppress(TimeoutError):
                await self._source.event(within=min(0.02, self._steering.look_again_seconds))

    def _shape(self) -> None:
        """Give the stream's socket what the algorithm gives it, once it is there."""
        if self._shaped:
            return
        host, _, port = self._uri.removeprefix("tcp:").rpartition(":")
        found = process_sockets.streams(self._process, [[host, port]], unsent=self._steering.unsent_bytes)
        self._shaped = bool(found["sockets"])

    async def _hand_over(self) -> None:
        while (await self._destination.execute("query-status"))["status"] == "inmigrate":
            await asyncio.sleep(0.001)
        await self._destination.execute("cont")
        while not (await self._destination.execute("query-status"))["running"]:
            await asyncio.sleep(0.001)
        self._handed_over = True

    async def _look(self, sample: Sample) -> None:
        steering = self._steering
        if not self._probed:
            await self._probe(sample.at_seconds)
        new_round = sample.round != self._round
        if sample.at_seconds < self._next_look and not (new_round and steering.at_rounds):
            return
        self._round = sample.round
        for action in steering.on_sample(sample):
            with contextlib.suppress(RawQmpError):  # it may just have ended
                await self._do(action)
        self._next_look = sample.at_seconds + steering.look_again_seconds

    async def _probe(self, elapsed: float) -> None:
        if not self._probing:
            self._probing = True
            await self._source.execute("calc-dirty-rate", calc_time=round(self._steering.probe_seconds))
        elif elapsed >= self._steering.probe_seconds:
            found = await self._source.execute("query-dirty-rate")
            if found["status"] == "measured":
                self._probed = True
                self._steering.on_probe(elapsed, float(found["dirty-rate"] << 20))

    async def _do(self, action: Action) -> None:
        value = action.value
        match action.do:
            case Do.DOWNTIME_LIMIT:
                await self._tune({"downtime-limit": max(1, round(value * 1e3))})
            case Do.BANDWIDTH:
                await self._tune({"max-bandwidth": round(value)})
            case Do.THROTTLE:
                share = round(max(ASLEEP_RATIO, value) * 100)
                names = ("cpu-throttle-initial", "cpu-throttle-increment", "max-cpu-throttle")
                trigger = {"throttle-trigger-threshold": 1 if value > 0 else 100}
                await self._tune(dict.fromkeys(names, share) | trigger)
            case Do.POSTCOPY:
                self._postcopy = True
                await self._source.execute("migrate-start-postcopy")
            case Do.PAUSE:
                await self._source.execute("stop")
            case Do.ABORT:
                self._aborted = True
                await self._source.execute("migrate_cancel")

    async def _tune(self, parameters: dict[str, int]) -> None:
        await self._source.execute("migrate-set-parameters", parameters)


async def _enable(monitor: RawMonitor, names: list[str]) -> None:
    wanted = [{"capability": name, "state": True} for name in names]
    await monitor.execute("migrate-set-capabilities", capabilities=wanted)


def _sample(answer: dict[str, Any], elapsed: float) -> Sample:
    ram = answer.get("ram", {})
    return Sample(
        at_seconds=elapsed,
        round=ram.get("dirty-sync-count", 0),
        total_bytes=ram.get("total", 0),
        remaining_bytes=ram.get("remaining", 0),
        transferred_bytes=ram.get("transferred", 0),
        dirty_rate_bytes_per_second=float(ram.get("dirty-pages-rate", 0) * ram.get("page-size", 4096)),
        bandwidth_bytes_per_second=ram.get("mbps", 0) * 1e6 / 8,
        throttle_ratio=answer.get("cpu-throttle-percentage", 0) / 100,
        expected_downtime_seconds=answer.get("expected-downtime", 0) / 1e3,
        postcopy_requests=ram.get("postcopy-requests", 0),
    )


def _stamps(monitor: RawMonitor, name: str) -> list[float]:
    stamps = [event["timestamp"] for event in monitor.events if event["event"] == name]
    return [stamp["seconds"] + stamp["microseconds"] / 1e6 for stamp in stamps]
