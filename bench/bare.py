"""The floor: a bare script that moves a guest between two QEMUs by events, with every safety rule and nothing else.

It is what an unattended `migrator direct` cannot be much faster than. It checks no compatibility, keeps no record,
decides nothing, and when something goes wrong it stops where it is. What it does keep:

* a return path and pause-before-switchover, so that a destination that rejects the guest cannot cost it;
* before the switch the destination lives, answers, and waits with an active migration;
* the destination is sent ``cont`` only when the source can no longer run the guest by itself;
* for postcopy the guest is stopped by whoever moves it, as QEMU 10.0 lets one that it stopped itself run again when the
  connection breaks late. What this one costs is measured by leaving it out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench import bare_disks
from migrator import process_sockets
from migrator.machine import LocalProcess
from migrator.testing.lab import Pair
from migrator.testing.raw_qmp import RawMonitor

#: More than any link carries, as `migrator` sets it: QEMU's default would be the limit otherwise.
UNLIMITED_BYTES_PER_SECOND = 2**40
_PATIENCE_SECONDS = 60.0


class Broken(RuntimeError):
    """The migration did not go as it should; nothing was undone."""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Times of one move."""

    #: From the first command that changes anything until the guest was seen to run at the destination.
    duration_seconds: float
    #: From STOP at the source to RESUME at the destination, as QEMU stamped them.
    downtime_seconds: float
    #: What the source's socket held when the guest had been stopped; ``None``: not asked for, or not to be told.
    queued_at_stop_bytes: int | None = None


async def move(
    pair: Pair,
    *,
    max_downtime_seconds: float,
    postcopy: bool = False,
    stopping: bool = True,
    listen: str = "tcp:127.0.0.1:0",
    bandwidth_bytes_per_second: int = UNLIMITED_BYTES_PER_SECOND,
    look_at_socket: bool = False,
    channels: int = 0,
    zero_copy: bool = False,
    disks: Sequence[str] = (),
) -> Moved:
    """Move the guest and quit the source.

    :param max_downtime_seconds: QEMU's downtime-limit.
    :param postcopy: switch to postcopy at once.
    :param stopping: false: leave the guest's stop before a postcopy to QEMU, which is not safe with QEMU 10.0.
    :param look_at_socket: see what it holds when the guest has been stopped.
    :param channels: of memory; 0: one, with the rest.
    :param zero_copy: the source's channels send without copying.
    :param disks: devices whose disks are copied to the destination's before, with :mod:`bench.bare_disks`.
    :raise Broken: when it does not come through.
    """
    several = ["multifd"] if channels else []
    async with RawMonitor(pair.source.qmp) as source, RawMonitor(pair.destination.qmp) as destination:
        began = time.monotonic()
        mirrors = await bare_disks.mirror(pair, source, destination, disks, listen) if disks else None
        uri, _ = await asyncio.gather(
            _listen(destination, listen, postcopy=postcopy, channels=channels),
            _prepare(
                source,
                max_downtime_seconds,
                bandwidth_bytes_per_second,
                postcopy=postcopy,
                channels=channels,
                besides=[*several, *(["zero-copy-send"] if zero_copy else [])],
            ),
        )
        begin: list[tuple[str, dict[str, Any]]] = [("migrate", {"uri": uri})]
        if postcopy:
            # In one go: else the first long turn of sending comes before the switch.
            begin += [("stop", {})] if stopping else []
            begin += [("migrate-start-postcopy", {})]
        await source.execute_all(begin)
        await _status(source, "pre-switchover")
        queued = _queued(pair.source.pid, uri) if look_at_socket else None
        await _check_before_switch(destination, lambda: pair.destination.alive)
        if mirrors is not None:
            await bare_disks.end(source, destination, mirrors)
        await source.execute("migrate-continue", state="pre-switchover")
        if postcopy:
            await _status(source, "postcopy-active", "completed")  # precopy may have got there first
            # No event tells when such a destination is ready.
            await _until(lambda: _stands(destination, {"paused"}, {"postcopy-active", "completed"}))
            await _until(
                lambda: _stands(
                    source, {"finish-migrate", "postmigrate", "paused"}, {"postcopy-active", "completed"}
                )
            )
        else:
            await asyncio.gather(_status(source, "completed"), _status(destination, "completed"))
            await _until(lambda: _stands(source, {"postmigrate"}, {"completed"}))
            await _until(lambda: _stands(destination, {"paused"}, {"completed"}))
        await destination.execute("cont")
        await _until(lambda: _runs(destination))
        duration = time.monotonic() - began
        if postcopy:
            await _until(lambda: _stands(source, {"postmigrate", "paused"}, {"completed"}))
            await _until(lambda: _stands(destination, {"running"}, {"completed"}))
        await source.execute("quit")
        downtime = _stamp(destination, "RESUME") - _stamp(source, "STOP")
    return Moved(duration_seconds=duration, downtime_seconds=downtime, queued_at_stop_bytes=queued)


def _queued(pid: int, uri: str) -> int | None:
    host, _, port = uri.removeprefix("tcp:").rpartition(":")
    queued: int | None = process_sockets.streams(identity_of(pid), [[host, port]])["queued"]
    return queued


async def _listen(destination: RawMonitor, uri: str, *, postcopy: bool, channels: int) -> str:
    if channels:
        await destination.execute("migrate-set-parameters", multifd_channels=channels)
    await _enable(destination, postcopy=postcopy, besides=["multifd"] if channels else [])
    await destination.execute("migrate-incoming", uri=uri)
    address = (await destination.execute("query-migrate"))["socket-address"][0]
    return f"tcp:{address['host']}:{address['port']}"


async def _prepare(
    source: RawMonitor,
    max_downtime_seconds: float,
    bandwidth: int,
    *,
    postcopy: bool,
    channels: int,
    besides: Sequence[str],
) -> None:
    if channels:
        await source.execute("migrate-set-parameters", multifd_channels=channels)
    await _enable(source, postcopy=postcopy, besides=besides)
    await source.execute(
        "migrate-set-parameters",
        max_bandwidth=bandwidth,
        downtime_limit=round(max_downtime_seconds * 1e3),
    )


async def _enable(monitor: RawMonitor, *, postcopy: bool, besides: Sequence[str] = ()) -> None:
    names = ["events", "return-path", "pause-before-switchover", *(["postcopy-ram"] if postcopy else [])]
    names += besides
    await monitor.execute(
        "migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in names]
    )


async def _status(monitor: RawMonitor, *wanted: str) -> None:
    """Wait for the event that says one of these."""
    while True:
        status = (await monitor.event("MIGRATION", within=_PATIENCE_SECONDS))["data"]["status"]
        if status in wanted:
            return
        if status in ("failed", "cancelled", "postcopy-paused"):
            raise Broken(f"waited for {' or '.join(wanted)}, and it was {status}")


async def _check_before_switch(destination: RawMonitor, alive: Callable[[], bool]) -> None:
    if not (alive() and await _stands(destination, {"inmigrate"}, {"active"})):
        raise Broken("the destination is not ready for the switch")


async def _stands(monitor: RawMonitor, run_states: set[str], statuses: set[str]) -> bool:
    run_state = (await monitor.execute("query-status"))["status"]
    status = (await monitor.execute("query-migrate")).get("status")
    if status == "failed":
        raise Broken("it failed at the switch")
    return run_state in run_states and status in statuses


async def _runs(monitor: RawMonitor) -> bool:
    return bool((await monitor.execute("query-status"))["running"])


async def _until(probe: Callable[[], Any]) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not await probe():
            await asyncio.sleep(0.001)


def _stamp(monitor: RawMonitor, name: str) -> float:
    stamp = next(event["timestamp"] for event in monitor.events if event["event"] == name)
    return float(stamp["seconds"] + stamp["microseconds"] / 1e6)


def identity_of(pid: int) -> dict[str, Any]:
    """Return what names a process, whatever number others get."""
    process = LocalProcess(pid)
    try:
        return process.identity
    finally:
        process.close()
