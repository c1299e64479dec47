"""Whatever is done to them, the journals in SQLite, on PostgreSQL and in memory say the same."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator.errors import JournalError
from migrator.store.journal import SqlJournal
from migrator.testing.journal import MemoryJournal
from migrator.testing.postgresql import Postgres
from tests.journals import empty

AnyJournal = SqlJournal | MemoryJournal
Step = Callable[[AnyJournal], Awaitable[Any]]
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)

few = st.sampled_from(["a", "b", "c", "d", "e"])
kinds = st.sampled_from(["migration", "evacuation", "host"])
texts = st.one_of(few, st.text(max_size=5), st.just("\udc80\x00"))
minutes = st.integers(0, 9).map(lambda n: (LONG_AGO + timedelta(minutes=n, microseconds=n)).isoformat())


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    kind = draw(kinds)
    document: dict[str, Any] = {"id": draw(few), "state": draw(texts)}
    if kind == "migration":
        document |= {"guest": draw(texts), "source": draw(few), "destination": draw(few)}
        document |= {"evacuation": draw(st.none() | few), "_private": {"command": draw(st.just("") | few)}}
    elif kind == "evacuation":
        document |= {"host": draw(few)}
    if kind != "host":
        document |= {"created_at": draw(minutes), "ended_at": draw(st.none() | st.just("") | minutes)}
    return kind, document


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "event_id": draw(st.integers(1, 30)),
        "sequence": draw(st.integers(1, 9)),
        "time": draw(minutes),
        "subject": draw(kinds | st.just("command")),
        "subject_id": draw(few),
        "body": {"text": draw(st.sampled_from(["x", "y"]))},
    }


def replies() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"kind": st.sampled_from(["accepted", "refused", "outcome"])},
        optional={"subject": st.sampled_from(["migration", "evacuation", "plan"])},
    )


async def _claimed(journal: AnyJournal, key: str, body_hash: str) -> Any:
    claim = await journal.claim_command(key=key, verb="v", body_hash=body_hash, body={}, caller={})
    return claim.new, claim.other_body, claim.reply


def _page(kind: str, limit: int, before: str | None, where: dict[str, str]) -> Step:
    return lambda journal: journal.page(kind, limit=limit, before=before, where=where)


names = st.sampled_from(["state", "guest", "host", "evacuation", "command"])
steps: st.SearchStrategy[Step] = st.one_of(
    st.lists(documents(), max_size=4).map(lambda given: lambda journal: journal.save(*given)),
    st.lists(events(), max_size=4).map(lambda given: lambda journal: journal.save(events=given)),
    st.builds(lambda key, digest: lambda journal: _claimed(journal, key, digest), few, st.sampled_from("pq")),
    st.builds(
        lambda key, reply: lambda journal: journal.answer_command(key=key, reply=reply), few, replies()
    ),
    st.integers(0, 10).map(
        lambda n: lambda journal: journal.prune(LONG_AGO + timedelta(minutes=n, microseconds=n))
    ),
    st.just(lambda journal: journal.prune(datetime.now(UTC) + timedelta(days=1))),
    st.builds(_page, kinds, st.integers(1, 4), st.none() | few, st.dictionaries(names, texts, max_size=2)),
    st.builds(lambda kind, name: lambda journal: journal.find(kind, name), kinds, few),
    st.builds(
        lambda after, limit, subject, name: (
            lambda journal: journal.events(after=after, limit=limit, subject=subject, subject_id=name)
        ),
        st.integers(0, 30),
        st.integers(1, 5),
        st.none() | kinds,
        st.none() | few,
    ),
)


async def answer(step: Step, journal: AnyJournal) -> Any:
    try:
        return await step(journal)
    except JournalError:
        return "refused"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with nothing in it, to be copied."""

    async def make(path: Path) -> None:
        await (await SqlJournal.open(path)).close()

    path = tmp_path_factory.mktemp("empty") / "journal.db"
    asyncio.run(make(path))
    return path


async def compare(sql: SqlJournal, given_steps: list[Step]) -> None:
    memory = MemoryJournal()
    for step in given_steps:
        assert await answer(step, sql) == await answer(step, memory)
        assert await sql.positions() == await memory.positions()
    assert await sql.unsettled() == await memory.unsettled()
    for kind in ("migration", "evacuation", "host"):
        assert await sql.unfinished(kind) == await memory.unfinished(kind)
    assert await sql.events() == await memory.events()


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(given_steps=st.lists(steps, min_size=5, max_size=30))
def test_in_sqlite_and_in_memory(fresh: Path, given_steps: list[Step]) -> None:
    async def run(path: Path) -> None:
        shutil.copy(fresh, path)
        async with await SqlJournal.open(path) as sql:
            await compare(sql, given_steps)

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory) / "journal.db"))


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(given_steps=st.lists(steps, min_size=5, max_size=30))
def test_on_postgresql_and_in_memory(
    postgresql: Postgres, shared_database: str, given_steps: list[Step]
) -> None:
    async def run() -> None:
        empty(postgresql, shared_database)
        async with await SqlJournal.open(postgresql.place(shared_database)) as sql:
            await compare(sql, given_steps)

    asyncio.run(run())
