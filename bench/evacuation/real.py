"""A host of real guests is emptied by the service itself: QEMUs under TCG, network namespaces, links of a set speed."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from bench.evacuation.outcome import Moved, Outcome
from bench.evacuation.peers import OURS, PEERS
from migrator.testing.lab import GuestMachine, Habit, binaries, until
from migrator.testing.site import LabSite

#: How many by default.
GUESTS = 10
_MIB = 1 << 20
_LINK_BYTES_PER_SECOND = 100.0 * _MIB
#: Of that, payload; the rest is TCP's.
_PAYLOAD_RATIO = 0.95
_SIZES = (128 * _MIB, 160 * _MIB, 192 * _MIB, 256 * _MIB)
_HEAVY_RATIO, _LIGHT_RATIO = (0.35, 0.6), (0.005, 0.03)
#: Firmware and kernel beside what the guest uses.
_BESIDE_BYTES = 64 * _MIB
_HOSTS = ("leaving", "first", "second")
_POLICY = "precopy"
_PATIENCE_SECONDS = 180.0
LEGEND = (
    f"Guests of 128 to 256 MiB leave a host with a link of {_LINK_BYTES_PER_SECOND / _MIB:.0f} MiB/s (tc) for two "
    "others. `mixed`: a third dirties 35 to 60 % of what the link carries, over all its memory. The policy allows "
    "precopy only, with 300 ms of downtime. The bound is the memory in use by the link. Others are the same service "
    "that begins a fixed number of guests at a time, in their order."
)


async def measure(count: int, runs: int, *, version: str) -> list[Outcome]:
    """Every mix so often; others in the first half of the runs."""
    outcomes = []
    for seed in range(runs):
        others = tuple(PEERS) if 2 * seed < runs else ()
        for mix, strategies in (("idle", (OURS,)), ("mixed", (OURS, *others))):
            for strategy in strategies:
                outcome = await run(mix, count, seed, strategy, version=version)
                took = f"{outcome.makespan_seconds:.1f} s, plan said {outcome.predicted_seconds:.1f} s"
                print(f"{count} {mix}, {strategy}, seed {seed}: {took}", file=sys.stderr)
                outcomes.append(outcome)
    return outcomes


async def run(mix: str, count: int, seed: int, strategy: str, *, version: str) -> Outcome:
    """One evacuation, by a service of its own."""
    machines = machines_of(mix, count, seed)
    policy = f'[policies.{_POLICY}]\nmax_downtime = "300ms"\nmax_throttle = "0%"\npostcopy = "never"'
    with _Site(strategy, *_HOSTS, bytes_per_second=_LINK_BYTES_PER_SECOND, extra=policy) as site:
        booted = (site.boot(machine, _HOSTS[0], binary=binaries()[version]) for machine in machines)
        await asyncio.gather(*booted)
        site.serve()
        await site.until_served()

        def known() -> bool:
            hosts = site.ask("hosts")["items"]
            return all(host["up"] for host in hosts) and len(site.ask("guests")["items"]) == count

        await until(known, what="the guests", within=60)
        plan = site.ask("plan", _HOSTS[0], "--policy", _POLICY)
        # It waits with one process: polling would take the QEMUs' processor time.
        words = ("evacuate", _HOSTS[0], "--policy", _POLICY, "--wait", "--json")
        done = await asyncio.to_thread(site.command, *words, timeout=_PATIENCE_SECONDS)
        if not done.stdout:
            raise RuntimeError(f"migrator {' '.join(words)}: {done.stderr}{site.log()}")
        found = json.loads(done.stdout)
        moved = [_moved(site, guest) for guest in found["guests"]]
    used = sum(machine.habit.region_bytes for machine in machines)
    return Outcome(
        mix=mix,
        policy="precopy only",
        count=count,
        seed=seed,
        strategy=strategy,
        makespan_seconds=_seconds(found["created_at"], found["ended_at"]),
        bound_seconds=used / (_LINK_BYTES_PER_SECOND * _PAYLOAD_RATIO),
        predicted_seconds=plan["takes_p50_seconds"],
        guests=tuple(moved),
    )


def machines_of(mix: str, count: int, seed: int) -> list[GuestMachine]:
    """All have used their memory once; what then becomes of it is the mix."""
    mood = random.Random(f"real {mix} {count} {seed}")
    heavy = set(mood.sample(range(count), round(count / 3))) if mix == "mixed" else set[int]()
    machines = []
    for number in range(count):
        size = mood.choice(_SIZES)
        ratio = mood.uniform(*(_HEAVY_RATIO if number in heavy else _LIGHT_RATIO))
        habit = Habit(region_bytes=size, bytes_per_second=ratio * _LINK_BYTES_PER_SECOND)
        if mix == "idle":
            habit = Habit(region_bytes=size, passes=1)
        machines.append(
            GuestMachine(
                name=f"vm-{number}", memory_bytes=size + _BESIDE_BYTES, habit=habit, image_locking="off"
            )
        )
    return machines


class _Site(LabSite):
    """A site whose service begins guests as that strategy does."""

    def __init__(self, strategy: str, *names: str, **how: Any) -> None:
        super().__init__(*names, **how)
        self._strategy = strategy

    def write_config(self) -> None:
        super().write_config()
        text = self.config.read_text(encoding="utf-8")
        # The others know no reserve either.
        self.config.write_text(text.replace("link_reserve = 0.05", "link_reserve = 0.0"), encoding="utf-8")

    def serve(self, *options: str) -> subprocess.Popen[bytes]:
        command: Sequence[str] = ("-m", "bench.evacuation.served", self._strategy, "serve")
        with (self.directory / "service.log").open("ab") as log:
            self.service = subprocess.Popen(
                [sys.executable, *command, "--config", str(self.config), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.service

    def ask(self, *words: str) -> Any:
        """Return the service's answer to a command."""
        done = self.command(*words, "--json")
        if done.returncode:
            raise RuntimeError(f"migrator {' '.join(words)}: {done.stdout}{done.stderr}{self.log()}")
        return json.loads(done.stdout)


def _moved(site: _Site, guest: dict[str, Any]) -> Moved:
    last = site.ask("status", guest["migration"]) if guest["migration"] else {}
    duration, started, ended = (last.get(key) for key in ("duration_seconds", "started_at", "ended_at"))
    return Moved(
        name=guest["guest_name"],
        state=last.get("state", "failed"),
        downtime_seconds=last.get("downtime_seconds"),
        max_downtime_seconds=last.get("max_downtime_seconds", 0.0),
        max_throttle_ratio=last.get("max_throttle_ratio", 0.0),
        attempts=max(1, guest["attempts"]),
        total_seconds=_seconds(started, ended) if started and ended else 0.0,
        qemu_seconds=duration or 0.0,
    )


def _seconds(since: str, until: str) -> float:
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()
