"""Several that look at one end at the same time, and its end meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from migrator.core.model import RunState
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.testing.fake_qemu import FakeQemu


@contextlib.asynccontextmanager
async def endpoint(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[FakeQemu, Endpoint]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    async with FakeQemu() as qemu:
        end = Endpoint(Address(kind="unix", path=str(qemu.qmp)), role="source")
        try:
            yield qemu, end
        finally:
            await end.close()


async def test_all_who_look_at_the_same_time_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with endpoint(tmp_path, monkeypatch) as (qemu, end):
        views = await asyncio.gather(end.observe(), end.observe())  # neither has a session yet
        assert [each.run for each in views] == [RunState.RUNNING] * 2
        qemu.stall()
        late = [asyncio.create_task(end.observe(timeout=5.0)) for _ in range(3)]
        assert not (await end.observe(timeout=0.01)).answers
        qemu.thaw()
        assert all([(await each).answers for each in late])
        assert (await end.observe()).answers


async def test_a_look_that_is_closed_meanwhile_has_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with endpoint(tmp_path, monkeypatch) as (qemu, end):
        await end.connect()
        qemu.stall()
        looking = asyncio.create_task(end.observe(timeout=5.0))
        assert not (await end.observe(timeout=0.01)).answers
        await end.close()
        assert not (await looking).answers
