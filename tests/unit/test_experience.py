"""What earlier migrations taught outlives the controller in every journal, and stays small."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from migrator.core.guest_experience import LastMove
from migrator.engine import clock, guest_experiences, pair_overheads
from migrator.engine.guest_experiences import GuestExperiences
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.pair_overheads import PairOverheads
from migrator.store.backend import Place
from migrator.store.experience import FileExperience
from migrator.store.journal import SqlJournal
from migrator.testing.journal import MemoryJournal

AnyJournal = SqlJournal | MemoryJournal
PAIR = "tcg 7.2.0 to 10.0.0"
DAY = 24 * 3600.0


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnyJournal]:
    if request.param == "memory":
        yield MemoryJournal()
        return
    place: Place = tmp_path / "journal.db"
    if request.param == "postgresql":
        place = request.getfixturevalue("postgresql_place")
    async with await SqlJournal.open(place) as opened:
        yield opened


async def guests_of(journal: AnyJournal) -> GuestExperiences:
    """What the next controller finds."""
    found = GuestExperiences(journal_writer=JournalWriter(journal))
    for saved in await journal.unfinished(guest_experiences.KIND):
        found.take_over(saved)
    return found


async def pairs_of(journal: AnyJournal) -> PairOverheads:
    found = PairOverheads(journal_writer=JournalWriter(journal))
    for saved in await journal.unfinished(pair_overheads.KIND):
        found.take_over(saved)
    return found


async def test_the_next_controller_knows_of_guests_and_pairs_what_this_one_learned(
    journal: AnyJournal,
) -> None:
    writer = JournalWriter(journal)
    guests, pairs = GuestExperiences(journal_writer=writer), PairOverheads(journal_writer=writer)
    move = LastMove(at=clock.wall(), source="a", destination="b", seconds=4.2, downtime_seconds=0.03)
    guests.note_rate("vm", 30e6)
    guests.note_move("vm", move, working_set_bytes=9e6, first_pass_ratio=0.5, watched_seconds=4.0, changes=1)
    for seconds in (0.01, 0.02, 0.03):
        pairs.learn(PAIR, seconds)
    await writer.commit()
    known = (await guests_of(journal)).of("vm")
    assert known is not None
    assert known.last_move == move
    assert known.prior(clock.wall()) == guests.of("vm").prior(clock.wall())  # type: ignore[union-attr]
    assert (await pairs_of(journal)).known() == {PAIR: 0.03}


async def test_only_those_guests_are_kept_of_whom_something_was_learned_last(
    journal: AnyJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_experiences, "_MOST_GUESTS", 3)
    writer = JournalWriter(journal)
    guests = GuestExperiences(journal_writer=writer)
    for name in ("vm-0", "vm-1", "vm-2", "vm-0", "vm-3", "vm-4"):
        guests.note_rate(name, 1e6)
        await writer.commit()
    kept = await journal.unfinished(guest_experiences.KIND)
    assert {each["id"] for each in kept} == {"vm-0", "vm-3", "vm-4"}


async def test_a_guest_of_whom_nothing_was_learned_for_half_a_year_is_forgotten(
    journal: AnyJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock.wall()
    writer = JournalWriter(journal)
    guests = GuestExperiences(journal_writer=writer)
    guests.note_rate("old", 1e6)
    monkeypatch.setattr(clock, "wall", lambda: now + 100 * DAY)
    guests.note_rate("young", 1e6)
    monkeypatch.setattr(clock, "wall", lambda: now + 181 * DAY)
    guests.note_rate("new", 1e6)
    await writer.commit()
    kept = await journal.unfinished(guest_experiences.KIND)
    assert {each["id"] for each in kept} == {"young", "new"}


async def test_only_so_many_pairs_are_kept(journal: AnyJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_overheads, "_MOST_PAIRS", 2)
    writer = JournalWriter(journal)
    pairs = PairOverheads(journal_writer=writer)
    for pair in ("a", "b", "a", "c"):
        pairs.learn(pair, 0.01)
        await writer.commit()
    assert {each["id"] for each in await journal.unfinished(pair_overheads.KIND)} == {"a", "c"}


async def test_what_an_older_version_kept_beside_the_journal_is_taken_in_once(tmp_path: Path) -> None:
    journal = MemoryJournal()
    (tmp_path / "experience.json").write_text(json.dumps({PAIR: [0.1, 0.2, 0.3]}))
    earlier = FileExperience(directory=tmp_path).read
    writer = JournalWriter(journal)
    first = PairOverheads(journal_writer=writer)
    first.take_in(earlier())
    assert first.overhead_seconds(PAIR) == 0.3
    first.learn(PAIR, 0.9)
    await writer.commit()
    second = await pairs_of(journal)
    second.take_in(earlier())
    assert second.overhead_seconds(PAIR) == 0.9
