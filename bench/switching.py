"""``python -m bench.switching``: how QEMU comes to its switch, seen from outside; docs/switch.md says what follows.

Real QEMUs in two namespaces with a link of a set speed (root), or on loopback. What is printed, for each version:

1. at which parked limit a migration stays, for guests that write and guests that do not, and what it costs where it
   does not stay;
2. how long after ``migrate-set-parameters`` the switch comes;
3. what ``remaining`` and ``mbps`` show between two syncs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from bench.figures import table
from migrator.testing.guest import Habit
from migrator.testing.lab import GuestMachine, Lab, Pair, binaries
from migrator.testing.network import LabHosts, possible
from migrator.testing.raw_qmp import RawMonitor

_MEMORY_BYTES = 256 << 20
#: A migration that has not switched so long after its first pass is taken to stay.
_STAYS_SECONDS = 3.0
_HORIZON_SECONDS = 60.0
_UNLIMITED_BYTES_PER_SECOND = 2**40
_CONSTANT_BYTES = 24 << 20

GUESTS = {
    "idle": Habit(),
    "2 MiB/s": Habit(region_bytes=16 << 20, bytes_per_second=2 << 20),
    "20 MiB/s": Habit(region_bytes=64 << 20, bytes_per_second=20 << 20),
    "hot 16 MiB": Habit(region_bytes=16 << 20, bytes_per_second=400 << 20),
}
#: Megabits a second; ``None``: not slowed.
LINKS: tuple[int | None, ...] = (60, 1000, None)


@dataclass(frozen=True)
class Parking:
    """Parameters that shall keep QEMU from its switch."""

    name: str
    parameters: dict[str, int]
    #: The least version that knows them.
    since: float = 0.0


PARKINGS = (
    Parking("0 ms", {"downtime-limit": 0}),
    Parking("1 ms", {"downtime-limit": 1}),
    Parking(
        "1 ms, avail-switchover-bandwidth 1 MB/s",
        {"downtime-limit": 1, "avail-switchover-bandwidth": 10**6},
        since=8.2,
    ),
)


@dataclass
class Trace:
    """One migration as a client saw it that asked all the time."""

    #: Seconds since ``migrate``, bytes remaining, round, megabits a second.
    seen: list[tuple[float, int, int, float]] = field(default_factory=list)
    #: Seconds since ``migrate``.
    stopped: float | None = None
    first_pass: float | None = None
    downtime: float = 0.0
    #: From the command that gave the limit until STOP.
    lag: float | None = None


@contextlib.asynccontextmanager
async def _pair(habit: Habit, megabits: int | None, version: str) -> AsyncIterator[tuple[Pair, str]]:
    speed = None if megabits is None else megabits * 1e6 / 8
    binary = binaries()[version]
    with contextlib.ExitStack() as stack:
        hosts = None
        if possible() is None:
            hosts = stack.enter_context(LabHosts("alpha", "beta", bytes_per_second=speed or 10e9))
        async with Lab() as lab:
            yield (
                await lab.pair(
                    GuestMachine(habit=habit, memory_bytes=_MEMORY_BYTES),
                    source=binary,
                    destination=binary,
                    source_prefix=hosts["alpha"].prefix if hosts else (),
                    destination_prefix=hosts["beta"].prefix if hosts else (),
                ),
                hosts["beta"].address if hosts else "127.0.0.1",
            )


async def _move(
    habit: Habit,
    megabits: int | None,
    version: str,
    parking: Parking,
    *,
    after_seconds: float = _STAYS_SECONDS,
) -> Trace:
    """Migrate with the limit parked, and give it so long after the first pass."""
    trace = Trace()
    async with _pair(habit, megabits, version) as (pair, address):
        await asyncio.sleep(0.3)
        async with RawMonitor(pair.source.qmp) as source, RawMonitor(pair.destination.qmp) as destination:
            names = ["events", "return-path", "pause-before-switchover"]
            both = [{"capability": name, "state": True} for name in names]
            for monitor in (source, destination):
                await monitor.execute("migrate-set-capabilities", capabilities=both)
            await source.execute(
                "migrate-set-parameters", {"max-bandwidth": _UNLIMITED_BYTES_PER_SECOND} | parking.parameters
            )
            await destination.execute("migrate-incoming", uri=f"tcp:{address}:0")
            where = (await destination.execute("query-migrate"))["socket-address"][0]
            began, wall = time.monotonic(), time.time()
            await source.execute("migrate", uri=f"tcp:{where['host']}:{where['port']}")
            given = None
            while True:
                answer = await source.execute("query-migrate")
                now = time.monotonic() - began
                if answer.get("status") not in ("setup", "active", "none"):
                    break
                ram = answer.get("ram", {})
                trace.seen.append(
                    (now, ram.get("remaining", 0), ram.get("dirty-sync-count", 0), ram.get("mbps", 0.0))
                )
                if trace.first_pass is None and ram.get("dirty-sync-count", 0) > 1:
                    trace.first_pass = now
                waited = trace.first_pass is not None and now > trace.first_pass + after_seconds
                if given is None and (waited or now > _HORIZON_SECONDS):
                    given = time.time()
                    await source.execute(
                        "migrate-set-parameters",
                        {"downtime-limit": 100_000}
                        | ({"avail-switchover-bandwidth": 0} if parking.since else {}),
                    )
                await asyncio.sleep(0.002)
            stop = _stamp(source, "STOP")
            trace.stopped = stop - wall
            trace.lag = None if given is None else stop - given
            await source.execute("migrate-continue", state="pre-switchover")
            while (await source.execute("query-migrate"))["status"] != "completed":
                await asyncio.sleep(0.001)
            while (await destination.execute("query-status"))["status"] == "inmigrate":
                await asyncio.sleep(0.001)
            await destination.execute("cont")
            while not (await destination.execute("query-status"))["running"]:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            await destination.execute("query-status")
            trace.downtime = _stamp(destination, "RESUME") - stop
    return trace


def _stamp(monitor: RawMonitor, name: str) -> float:
    stamps = [event["timestamp"] for event in monitor.events if event["event"] == name]
    return float(stamps[-1]["seconds"] + stamps[-1]["microseconds"] / 1e6)


def _link(megabits: int | None) -> str:
    return "not slowed" if megabits is None else f"{megabits} Mbit/s"


async def _parked(version: str) -> str:
    rows = []
    for megabits in LINKS:
        for name, habit in GUESTS.items():
            cells = []
            for parking in PARKINGS:
                if float(version) < parking.since:
                    cells.append("–")
                    continue
                trace = await _move(habit, megabits, version, parking)
                rounds = trace.seen[-1][2] if trace.seen else 0
                how = f"{trace.downtime * 1e3:.0f} ms down, {rounds} rounds"
                if trace.lag is None:
                    cells.append(f"switched at {trace.stopped:.2f} s, {how}")
                else:
                    cells.append(f"**stayed**; after {trace.lag * 1e3:.0f} ms: {how}")
                print(f"{version} {_link(megabits)} {name} {parking.name}: {cells[-1]}", file=sys.stderr)
            rows.append([_link(megabits), name, *cells])
    return table(["link", "guest", *(parking.name for parking in PARKINGS)], rows)


async def _lags(version: str, runs: int) -> str:
    rows = []
    parking = PARKINGS[2] if float(version) >= PARKINGS[2].since else PARKINGS[1]
    for megabits in (60, 1000):
        for name in ("20 MiB/s", "hot 16 MiB"):
            lags, downs = [], []
            for _ in range(runs):
                after = random.uniform(0.3, 0.8)
                trace = await _move(GUESTS[name], megabits, version, parking, after_seconds=after)
                if trace.lag is not None:
                    lags.append(trace.lag * 1e3)
                    downs.append(trace.downtime * 1e3)
            if lags:
                text = f"{min(lags):.0f} · {statistics.median(lags):.0f} · {max(lags):.0f} ms"
                rows.append(
                    [_link(megabits), name, str(len(lags)), text, f"{statistics.median(downs):.0f} ms"]
                )
                print(version, *rows[-1], file=sys.stderr)
    return table(["link", "guest", "runs", "least · median · most until STOP", "downtime"], rows)


async def _between(version: str) -> str:
    rows = []
    for megabits, name in ((60, "idle"), (1000, "20 MiB/s"), (1000, "hot 16 MiB")):
        parking = PARKINGS[2] if float(version) >= PARKINGS[2].since else PARKINGS[1]
        trace = await _move(GUESTS[name], megabits, version, parking, after_seconds=1.5)
        rises = falls = 0
        steps: list[int] = []
        windows: list[float] = []
        at, speed = 0.0, -1.0
        least_before_sync: list[int] = []
        for before, after in zip(trace.seen, trace.seen[1:], strict=False):
            if after[2] == before[2]:
                rises += after[1] > before[1]
                falls += after[1] < before[1]
                if after[1] != before[1]:
                    steps.append(abs(after[1] - before[1]))
            else:
                least_before_sync.append(before[1])
            if after[3] != speed:
                windows.append(after[0] - at)
                at, speed = after[0], after[3]
        rows.append(
            [
                _link(megabits),
                name,
                f"{len(trace.seen)}",
                f"{falls} · {rises}",
                f"{statistics.median(steps) / 1024:.0f} KiB" if steps else "–",
                f"{statistics.median(least_before_sync) / 1024:.0f} KiB" if least_before_sync else "–",
                f"{statistics.median(windows[2:]) * 1e3:.0f} ms" if len(windows) > 3 else "–",
            ]
        )
        print(version, *rows[-1], file=sys.stderr)
    head = [
        "link",
        "guest",
        "looks",
        "falls · rises within a round",
        "step",
        "left at a sync",
        "mbps changes every",
    ]
    return table(head, rows)


async def _measure(version: str, runs: int, parts: set[str]) -> str:
    texts: list[str] = [f"### QEMU {version}"]
    if "parked" in parts:
        texts.append(await _parked(version))
    if "lag" in parts:
        texts.append(await _lags(version, runs))
    if "between" in parts:
        texts.append(await _between(version))
    return "\n\n".join(texts)


def main(arguments: list[str]) -> int:
    """Measure and print; some minutes a version."""
    parser = argparse.ArgumentParser(prog="python -m bench.switching", description=__doc__)
    parser.add_argument("parts", nargs="*", help="parked, lag, between; all by default")
    parser.add_argument("--qemu", choices=list(binaries()), action="append")
    parser.add_argument("--runs", type=int, default=6, help="runs of each lag")
    given = parser.parse_args(arguments)
    parts = set(given.parts or ("parked", "lag", "between"))
    for version in given.qemu or binaries():
        print(asyncio.run(_measure(version, given.runs, parts)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
