"""Two controllers of one id, where a state directory was copied: one of them drives, and both say what is wrong."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from migrator.ports.controllers import ControllerInfo
from migrator.store.journal import SqlJournal
from migrator.store.kept_token import KeptToken
from migrator.store.presence import Heartbeat
from tests.journals import run_sql

_SECONDS = 6.0


class Lives:
    """Processes that use one journal, each with a state directory."""

    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        self.path, self._stack = path, stack

    def directory(self, name: str, *, copy_of: str = "") -> Path:
        directory = self.path / name
        if copy_of:
            shutil.copytree(self.path / copy_of, directory)
        directory.mkdir(exist_ok=True)
        return directory

    async def begin(self, directory: Path, url: str) -> Heartbeat:
        """Begin a process: it is never told to leave in order."""
        journal = await SqlJournal.open(self.path / "journal.db", alone=False)
        await self._stack.enter_async_context(journal)
        info = ControllerInfo(name="c0ffee", instance="machine", version="1", url=url)
        heartbeat = Heartbeat(journal, info=info, seconds=_SECONDS, kept=KeptToken(directory))
        await heartbeat.beat()
        return heartbeat

    async def pass_by(self, seconds: float) -> None:
        """Let time go by for leases."""
        late = round(seconds * 1e6)
        await run_sql(self.path / "journal.db", f"UPDATE leases SET ends_at = ends_at - {late}")


@pytest.fixture
async def lives(tmp_path: Path) -> AsyncIterator[Lives]:
    async with AsyncExitStack() as stack:
        yield Lives(tmp_path, stack)


async def test_one_that_begins_anew_has_its_lease_at_once(lives: Lives) -> None:
    directory = lives.directory("one")
    before = await lives.begin(directory, "https://one")
    again = await lives.begin(directory, "https://one")
    assert again.holds()
    assert before.lease is not None
    assert again.lease is not None
    assert again.lease.token > before.lease.token
    assert again.now.complaint == ""


async def test_a_copy_from_before_the_last_start_is_refused_and_says_what_to_do(
    lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = lives.directory("one")
    await lives.begin(directory, "https://one")
    copied = lives.directory("copy", copy_of="one")
    one = await lives.begin(directory, "https://one")
    copy = await lives.begin(copied, "https://copy")
    assert not copy.holds()
    now = time.monotonic()
    monkeypatch.setattr("migrator.store.presence.time.monotonic", lambda: now + 2 * _SECONDS)
    await copy.beat()
    assert "another controller (machine at https://one) has the same id c0ffee" in copy.now.complaint
    assert "delete the file controller in its state directory" in copy.now.complaint
    await one.beat()
    assert one.holds()
    assert one.now.complaint == ""


async def test_a_copy_of_one_that_runs_takes_its_place_once_and_never_again(lives: Lives) -> None:
    directory = lives.directory("one")
    one = await lives.begin(directory, "https://one")
    copy = await lives.begin(lives.directory("copy", copy_of="one"), "https://copy")
    tokens = set()
    for _ in range(3):
        for each in (one, copy):
            await each.beat()
        assert copy.lease is not None
        tokens.add(copy.lease.token)
    assert len(tokens) == 1, "they do not take it from each other in turn"
    assert one.now.complaint
    # Begun anew it is refused too, until the other one has gone.
    again = await lives.begin(directory, "https://one")
    assert not again.holds()
    await lives.pass_by(_SECONDS + 1)
    await again.beat()
    assert again.holds()
    assert again.now.complaint == ""
