"""When the process that answers is taken for one that hangs, and when for one that does not get to run."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any, cast

import pytest

from migrator import faults
from migrator.replica.channel import Channel, MessageKind
from migrator.service import entrances as entrances_module
from migrator.service.entrances import Entrances

pytestmark = pytest.mark.looptime


class Watched:
    """A process that answers no more.

    :ivar waits: the part of each second for which it waits for a processor.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, waits: float) -> None:
        self.waits = waits
        self.ended: list[str] = []
        channel = SimpleNamespace(send=lambda *_: None, cut_off=self._cut_off)
        self.entrances = Entrances(
            listeners=cast(Any, None), settings=cast(Any, None), report=bytes, requests=cast(Any, None)
        )
        self.entrances._channel = cast(Channel, channel)
        self.entrances._ready.set()
        loop = asyncio.get_running_loop()
        began = loop.time()
        monkeypatch.setattr(
            entrances_module,
            "waited_for_processor_seconds",
            lambda pid: (loop.time() - began) * self.waits,
        )

    def _cut_off(self, why: str) -> None:
        self.ended.append(why)
        self.entrances._channel = None

    async def watched(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.entrances._watch()


@pytest.fixture(autouse=True)
def _no_complaint_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "complaints", {})


async def test_one_that_could_answer_and_does_not_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = Watched(monkeypatch, waits=0.0)
    await hangs.watched(12.5)
    assert hangs.ended == []
    await hangs.watched(1.5)
    assert hangs.ended == ["it has not answered for 13 s"]


async def test_one_that_does_not_get_to_run_is_said_not_to_answer_and_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starves = Watched(monkeypatch, waits=0.95)
    await starves.watched(60.5)
    assert starves.ended == []
    assert faults.complaints == {"entrances": "the process that answers requests does not answer"}
    starves.entrances._receive(MessageKind.READY, 0, b"")
    assert faults.complaints == {}
    starves.waits = 0.0
    await starves.watched(10.5)
    assert starves.ended == [], "what it waited for before is over"


async def test_one_that_hangs_on_a_busy_machine_is_begun_anew_later(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = Watched(monkeypatch, waits=0.5)
    await hangs.watched(40.0)
    assert hangs.ended == ["it has not answered for 26 s"]
