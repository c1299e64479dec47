"""A host that does not answer costs the guest nothing: neither the copy nor the switch waits for what is a help."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, cast

from migrator.core.model import Sample, State
from migrator.engine.migration.intent_log import IntentLog
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.stream_shaper import StreamShaper
from migrator.ports import Qemu, Record, StreamOptions, StreamSockets

MIB = 1 << 20
SAMPLE = Sample(remaining_bytes=64 * MIB, bandwidth_bytes_per_second=7e6)


class Silent:
    """An end whose host never answers about sockets."""

    def __init__(self) -> None:
        self.asked: list[StreamOptions | None] = []

    async def stream_addresses(self) -> Sequence[str]:
        return ["tcp:192.0.2.1:4444"]

    async def stream_sockets(
        self, peers: Sequence[str], options: StreamOptions | None = None, *, again: bool = False
    ) -> StreamSockets:
        self.asked.append(options)
        await asyncio.Event().wait()
        raise AssertionError


class Answering(Silent):
    """An end of which one socket is found, with so much queued."""

    async def stream_sockets(
        self, peers: Sequence[str], options: StreamOptions | None = None, *, again: bool = False
    ) -> StreamSockets:
        self.asked.append(options)
        return StreamSockets(count=1, queued_bytes=300_000)


def shaper(end: Silent) -> StreamShaper:
    result = MigrationOutcome(id="m", state=State.PRECOPY)
    log = IntentLog(cast(Record, None), result=result, on_decision=lambda decision: None)
    qemu = cast(Qemu, cast(Any, end))
    return StreamShaper(qemu, qemu, intent_log=log, result=result)


async def test_silent_host_holds_up_neither_the_copy_nor_the_switch() -> None:
    end = Silent()
    made = shaper(end)
    loop = asyncio.get_running_loop()
    began = loop.time()
    made.begin("tcp:192.0.2.1:4444", share=5_000_000, path=None)
    for _ in range(3):
        sample = await made.shape(SAMPLE, share=5_000_000, path=None)
        assert sample.queued_bytes is None
    await made.before_switch()
    assert loop.time() - began < 1.0
    # What it was told last is to lift the pace.
    given = [options for options in end.asked if options is not None]
    assert given[-1].pacing_bytes_per_second == 0
    # QEMU's own limit is the share as long as nobody knows that the sockets are paced.
    assert made.limit(5_000_000) == 5_000_000
    with contextlib.suppress(asyncio.CancelledError):
        await made.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def paced_at(speed: float, *, far: bool = False) -> float:
    """Return the share of a stream's speed that its socket is given near its end, which QEMU's own limit is not."""
    end = Answering()
    made = shaper(end)
    made.begin("tcp:192.0.2.1:4444", share=None, path=None)
    for left in (9.5, 4.0, 3.0, 2.0, 0.6, 0.5)[: 4 if far else None]:
        sample = Sample(
            at_seconds=10 - left, remaining_bytes=int(left * speed), bandwidth_bytes_per_second=speed
        )
        await made.shape(sample, share=None, path=None)
    assert made.limit(None) is None
    given = [options for options in end.asked if options is not None]
    await made.close()
    return (given[-1].pacing_bytes_per_second or 0) / speed


async def test_the_end_of_a_stream_over_a_narrow_path_is_paced_and_nothing_else() -> None:
    assert await paced_at(7e6, far=True) == 0
    assert 0.5 < await paced_at(7e6) < 0.9
    assert await paced_at(36e6) == 0


async def test_a_path_that_was_slow_for_a_moment_is_not_taken_for_a_narrow_one_for_ever() -> None:
    end = Answering()
    made = shaper(end)
    made.begin("tcp:192.0.2.1:4444", share=None, path=None)
    paces = []
    for number, speed in enumerate((3e6, 3e6, 50e6, 50e6)):
        sample = Sample(at_seconds=1 + number, remaining_bytes=MIB, bandwidth_bytes_per_second=speed)
        await made.shape(sample, share=None, path=None)
        paces.append([options for options in end.asked if options is not None][-1].pacing_bytes_per_second)
    await made.close()
    assert 0 < (paces[1] or 0) < 3e6
    assert paces[-1] == 0


async def test_a_stream_has_less_than_its_share_until_what_went_before_its_pace_has_drained() -> None:
    end = Answering()
    made = shaper(end)
    made.begin("tcp:192.0.2.1:4444", share=10_000_000, path=None)
    for at in (0.02, 0.2):
        sample = Sample(at_seconds=at, remaining_bytes=900 * MIB, bandwidth_bytes_per_second=10e6)
        await made.shape(sample, share=10_000_000, path=None)
    paces = [options.pacing_bytes_per_second for options in end.asked if options is not None]
    await made.close()
    assert paces[0] == 8_000_000
    assert paces[-1] == 10_000_000


async def test_a_stream_that_follows_disks_is_paced_in_its_first_moment_by_what_carried_them() -> None:
    end = Answering()
    made = shaper(end)
    made.begin("tcp:192.0.2.1:4444", share=None, path=None, carried_bytes_per_second=100e6)
    for at in (0.02, 0.2):
        sample = Sample(at_seconds=at, remaining_bytes=900 * MIB, bandwidth_bytes_per_second=100e6)
        await made.shape(sample, share=None, path=None)
    paces = [options.pacing_bytes_per_second for options in end.asked if options is not None]
    await made.close()
    assert paces[0] == 80_000_000
    assert paces[-1] == 0, "more may be carried than the disks were"
