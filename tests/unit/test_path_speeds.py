"""Links and paths are told apart by who uses them together; whoever gives way goes on again, whatever happens."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import pytest

from migrator.core.inventory import Host
from migrator.core.link_speeds import StreamCounters
from migrator.engine import clock
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.path_speeds import KIND, PathSpeeds, PathStream
from migrator.testing.journal import MemoryJournal
from migrator.testing.simulated_site import SimulatedSite

pytestmark = pytest.mark.looptime

#: Some 60 Mbit/s.
PATH = 7.2e6
NAMES = ("a", "b", "c")


def _opcodes(work: Callable[[], Any]) -> int:
    """Count the steps of Python that it takes."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


class Learning:
    """Streams whose sockets count, and what is learned of them."""

    def __init__(self, journal: MemoryJournal | None = None) -> None:
        self.journal = journal or MemoryJournal()
        self.writer = JournalWriter(self.journal)
        self.inventory = Inventory([Host(name=name) for name in NAMES], site=SimulatedSite())
        self.speeds = PathSpeeds(tell=self.inventory.learn, keep=partial(self.writer.schedule_latest, KIND))

    def stream(self, source: str = "a", target: str = "b", *, rate: float, pace: float = 0.0) -> Flow:
        stream = self.speeds.stream(source, target)
        stream.begin()
        return Flow(stream=stream, rate=rate, pace=pace, began=clock.now())

    async def goes(self, *flows: Flow, seconds: float) -> None:
        """Let them send, and look at each twice a second, not all at once."""
        for _ in range(round(seconds / 0.5)):
            for flow in flows:
                await asyncio.sleep(0.5 / len(flows))
                flow.look()

    def learned(self, name: str, target: str) -> float | None:
        host = self.inventory.host(name)
        assert host is not None
        found = host.learned.to.get(target)
        return found.bytes_per_second if found is not None else None


@dataclass
class Flow:
    """A stream that sends at one rate, and always has something on its way."""

    stream: PathStream
    rate: float
    pace: float
    began: float
    #: Until its rate was changed, and when that was.
    sent: float = 0.0
    since: float | None = None

    def change(self, rate: float, *, pace: float | None = None) -> None:
        """Send at another rate from now on."""
        self.sent, self.since = self._sent(), clock.now()
        self.rate, self.pace = rate, self.pace if pace is None else pace

    def _sent(self) -> float:
        return self.sent + (clock.now() - (self.began if self.since is None else self.since)) * self.rate

    def look(self) -> None:
        self.stream.note(self.counters(), most=self.pace)

    def counters(self) -> StreamCounters:
        seconds = clock.now() - self.began
        return StreamCounters(
            at=seconds,
            acknowledged_bytes=int(self._sent()),
            busy_seconds=seconds,
            reader_seconds=0.0,
        )


async def test_streams_of_one_path_are_summed() -> None:
    site = Learning()
    await site.goes(*(site.stream(rate=PATH / 3) for _ in range(3)), seconds=4)
    assert site.speeds.carries("a", "b") == pytest.approx(PATH, rel=0.02)
    assert site.learned("a", "b") == pytest.approx(PATH, rel=0.02)
    host = site.inventory.host("a")
    assert host is not None
    assert host.learned.out.bytes_per_second is None  # of what others might share nothing was seen


async def test_paths_that_are_held_back_together_show_the_link_that_they_share() -> None:
    site = Learning()
    flows = [site.stream(target="b", rate=PATH / 2), site.stream(target="c", rate=PATH / 2)]
    await site.goes(*flows, seconds=4)
    host = site.inventory.host("a")
    assert host is not None
    assert host.learned.out.bytes_per_second == pytest.approx(PATH, rel=0.02)
    assert site.learned("a", "b") is None


async def test_stream_that_follows_another_does_not_double_the_path() -> None:
    site = Learning()
    first = site.stream(rate=PATH)
    await site.goes(first, seconds=3)
    second = site.stream(rate=PATH)
    first.stream.close()
    await site.goes(second, seconds=3)
    assert site.speeds.carries("a", "b") == pytest.approx(PATH, rel=0.02)


async def test_answers_that_come_late_make_no_path_faster() -> None:
    site = Learning()
    flow = site.stream(rate=PATH)
    for number in range(8):
        await asyncio.sleep(0.5)
        counters = flow.counters()
        if number % 2:
            await asyncio.sleep(0.2)  # on a busy machine
        flow.stream.note(counters, most=0.0)
    assert site.speeds.carries("a", "b") == pytest.approx(PATH, rel=0.02)


async def test_what_is_learned_is_known_after_a_restart() -> None:
    site = Learning()
    flow = site.stream(rate=PATH)
    await site.goes(flow, seconds=3)
    flow.stream.close()
    writing = asyncio.create_task(site.writer.run())
    assert await site.writer.flush(5.0)
    writing.cancel()
    after = Learning(site.journal)
    for saved in await site.journal.unfinished(KIND):
        after.speeds.take_over(saved)
    assert after.learned("a", "b") == pytest.approx(PATH, rel=0.02)


async def test_now_and_then_one_of_them_goes_without_a_pace() -> None:
    site = Learning()
    flows = [site.stream(rate=PATH / 2, pace=0.0) for _ in range(2)]
    await site.goes(*flows, seconds=2)
    probing = 0.0
    for _ in range(220):
        await asyncio.sleep(0.1)
        found = [flow.stream.probes for flow in flows]
        assert sum(found) <= 1
        probing += 0.1 * sum(found)
    assert 1.5 <= probing <= 4.0


async def test_first_moment_of_a_stream_that_nothing_held_back_proves_nothing() -> None:
    site = Learning()
    flow = site.stream(rate=PATH, pace=PATH)
    await site.goes(flow, seconds=1)
    host = site.inventory.host("a")
    assert host is not None
    assert host.learned.to == {}
    await site.goes(flow, seconds=2)
    assert host is not site.inventory.host("a")
    host = site.inventory.host("a")
    assert host is not None
    assert host.learned.to["b"].measured


async def test_change_of_a_pace_among_several_makes_no_path_faster() -> None:
    """Each is looked at at times of its own: what one carried before is not what it carries beside the other."""
    site = Learning()
    fast, other = site.stream(rate=PATH * 0.9), site.stream(rate=PATH * 0.1, pace=PATH * 0.1)
    await site.goes(fast, other, seconds=5)
    for _ in range(5):
        fast.change(PATH / 2)
        other.change(PATH / 2, pace=0.0)
        await site.goes(other, fast, seconds=1.5)
        fast.change(PATH * 0.9)
        other.change(PATH * 0.1, pace=PATH * 0.1)
        await site.goes(other, fast, seconds=1.5)
    assert site.speeds.carries("a", "b") == pytest.approx(PATH, rel=0.02)


async def test_small_changes_are_planned_with_once_they_add_up() -> None:
    site = Learning()
    flow = site.stream(rate=PATH)
    await site.goes(flow, seconds=3)
    for step in range(1, 8):
        flow.stream.close()
        flow = site.stream(rate=PATH * (1 + 0.03 * step))
        await site.goes(flow, seconds=3)
    assert site.learned("a", "b") == pytest.approx(PATH * 1.21, rel=0.06)


class TestTurn:
    async def test_others_give_way_while_one_is_switched_and_for_no_longer(self) -> None:
        site = Learning()
        one, other = site.stream(rate=PATH / 2), site.stream(rate=PATH / 2)
        await site.goes(one, other, seconds=2)
        woken = []
        other.stream.on_change(lambda: woken.append(other.stream.yields))
        assert one.stream.take_turn()
        assert other.stream.yields
        assert not one.stream.yields
        assert not other.stream.take_turn()
        one.stream.end_turn()
        assert not other.stream.yields
        assert woken == [True, False]
        assert other.stream.take_turn()

    @pytest.mark.parametrize("ends", ["in time", "with its stream"])
    async def test_ends_by_itself(self, ends: str) -> None:
        site = Learning()
        one, other = site.stream(rate=PATH / 2), site.stream(rate=PATH / 2)
        await site.goes(one, other, seconds=2)
        assert one.stream.take_turn()
        if ends == "in time":
            await asyncio.sleep(2.0)
            assert one.stream.take_turn()  # it may go on, but nobody gives way again
        else:
            one.stream.close()
        assert not other.stream.yields

    async def test_nobody_gives_way_over_a_fast_or_an_unknown_path(self) -> None:
        site = Learning()
        one, other = site.stream(rate=1e9, pace=1e9), site.stream(rate=1e9, pace=1e9)
        await site.goes(one, other, seconds=2)
        assert one.stream.take_turn()
        assert not other.stream.yields
        assert other.stream.take_turn()


async def test_what_a_stream_shows_costs_no_more_beside_many_on_other_links() -> None:
    async def cost(others: int) -> int:
        site = Learning()
        one = site.stream(rate=PATH)
        for number in range(others):
            site.stream(f"s{number}", f"t{number}", rate=PATH)
        await site.goes(one, seconds=2)
        await asyncio.sleep(0.5)
        return _opcodes(one.look) + _opcodes(lambda: one.stream.attainable_bytes_per_second)

    assert await cost(300) == await cost(3)
