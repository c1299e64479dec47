"""What every journal promises, in SQLite, on PostgreSQL and in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from migrator.errors import JournalError, LeaseLost
from migrator.ports import CommandLog, Journal
from migrator.store.backend import Server
from migrator.store.journal import SqlJournal
from migrator.testing.journal import MemoryJournal

AnyJournal = SqlJournal | MemoryJournal
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
async def journal(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnyJournal]:
    if request.param == "memory":
        yield MemoryJournal()
        return
    place = tmp_path / "journal.db"
    if request.param == "postgresql":
        place = request.getfixturevalue("postgresql_place")
    async with await SqlJournal.open(place) as opened:
        yield opened


def at(minutes: float) -> str:
    return (NOON + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


def migration(identifier: str, *, ended: str | None = None, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "migration", {
        "id": identifier,
        "guest": "web",
        "source": "h1",
        "destination": "h2",
        "state": "completed" if ended else "precopy",
        "evacuation": None,
        "created_at": at(0),
        "ended_at": ended,
        **fields,
    }


def evacuation(identifier: str, host: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "evacuation", {
        "id": identifier,
        "host": host,
        "state": "running",
        "created_at": at(0),
        "ended_at": None,
        **fields,
    }


def host(name: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "host", {"id": name, "host": name, "state": "active", **fields}


def event(number: int, sequence: int, subject: str = "migration", identifier: str = "m1") -> dict[str, Any]:
    return {
        "event_id": number,
        "sequence": sequence,
        "time": at(number),
        "kind": "state",
        "subject": subject,
        "subject_id": identifier,
        "body": {"state": "precopy", "text": 'a "name"\n\u2013'},
    }


async def claim(journal: AnyJournal, key: str, *, body_hash: str = "hash") -> Any:
    return await journal.claim_command(
        key=key, verb="migrate", body_hash=body_hash, body={"guest": "web"}, caller={"user": "ann"}
    )


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [each["id"] for each in found]


def test_it_is_what_the_engine_and_the_door_ask_for(tmp_path: Path) -> None:
    # The type checker's.
    def takes(journal: Journal, log: CommandLog) -> None: ...

    def both(one: SqlJournal, other: MemoryJournal) -> None:
        takes(one, one)
        takes(other, other)


class TestDocuments:
    async def test_come_back_as_they_were_saved(self, journal: AnyJournal) -> None:
        kind, document = migration(
            "m1",
            guest="h1/\udc80 'x'; DROP TABLE documents; --\n\u2603\x00",
            numbers=[1.5, None, True, 2**60],
            _private={"command": "ann\n7", "deep": {"er": []}},
        )
        await journal.save((kind, document))
        # But for what no JSON may have: nobody could be shown it.
        saved = document | {"guest": document["guest"].replace("\udc80", "\ufffd")}
        assert await journal.find(kind, "m1") == saved
        assert await journal.unfinished(kind) == [saved]
        assert await journal.page(kind, limit=5, where={"guest": document["guest"]}) == [saved]

    async def test_that_are_changed_afterwards_are_not_changed_there(self, journal: AnyJournal) -> None:
        kind, document = migration("m1", decisions=[])
        await journal.save((kind, document))
        document["decisions"].append("x")
        (await journal.unfinished(kind))[0]["state"] = "held"
        found = await journal.find(kind, "m1")
        assert found is not None
        assert (found["decisions"], found["state"]) == ([], "precopy")

    async def test_of_the_same_id_replace_and_keep_their_place(self, journal: AnyJournal) -> None:
        await journal.save(migration("a"), migration("b"))
        await journal.save(migration("a", state="switchover"))
        assert [(each["id"], each["state"]) for each in await journal.unfinished("migration")] == [
            ("a", "switchover"),
            ("b", "precopy"),
        ]

    async def test_of_different_kinds_may_have_the_same_id(self, journal: AnyJournal) -> None:
        await journal.save(migration("x"), evacuation("x", "h9"), host("x"))
        found = [await journal.find(kind, "x") for kind in ("migration", "evacuation", "host", "nothing")]
        assert [each and each.get("host") for each in found] == [None, "h9", "x", None]

    async def test_that_ended_are_found_but_not_unfinished(self, journal: AnyJournal) -> None:
        await journal.save(
            migration("a", ended=at(1)), migration("b"), migration("c", ended_at=""), host("h")
        )
        assert ids(await journal.unfinished("migration")) == ["b", "c"]
        assert ids(await journal.unfinished("host")) == ["h"]
        assert await journal.find("migration", "a") is not None
        await journal.save(migration("b", ended=at(2)))
        assert ids(await journal.unfinished("migration")) == ["c"]

    async def test_that_are_not_there_are_none(self, journal: AnyJournal) -> None:
        assert await journal.find("migration", "m1") is None
        assert await journal.unfinished("migration") == []
        assert await journal.page("migration", limit=3) == []
        await journal.save()
        await journal.save(events=[])

    async def test_are_saved_all_or_none(self, journal: AnyJournal) -> None:
        with pytest.raises(KeyError):
            await journal.save(migration("a"), ("migration", {"state": "queued"}))
        with pytest.raises(TypeError):
            await journal.save(migration("a"), migration("b", what=object()))
        assert await journal.unfinished("migration") == []

    async def test_saved_by_many_at_once_are_all_there(self, journal: AnyJournal) -> None:
        async with asyncio.TaskGroup() as tasks:
            for n in range(300):
                tasks.create_task(
                    journal.save(migration(f"m{n}"), evacuation(f"e{n}", "h1")), name=f"save {n}"
                )
        assert len(await journal.unfinished("migration")) == 300
        assert len(await journal.unfinished("evacuation")) == 300


class TestPage:
    async def test_shows_the_newest_first_and_goes_on_before_the_last_seen(self, journal: AnyJournal) -> None:
        # The clock was set back between them.
        for n in range(7):
            await journal.save(migration(f"m{n}", created_at=at(-n)))
        first = await journal.page("migration", limit=3)
        assert ids(first) == ["m6", "m5", "m4"]
        second = await journal.page("migration", limit=3, before="m4")
        # What comes meanwhile disturbs nothing.
        await journal.save(migration("m7"), migration("m2", state="held"))
        third = await journal.page("migration", limit=3, before=second[-1]["id"])
        assert ids(second + third) == ["m3", "m2", "m1", "m0"]
        assert await journal.page("migration", limit=3, before="m0") == []

    async def test_before_an_unknown_id_is_empty(self, journal: AnyJournal) -> None:
        await journal.save(migration("m1"))
        assert await journal.page("migration", limit=3, before="nobody") == []

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            ({"state": "precopy"}, ["c", "b", "a"]),
            ({"state": "held"}, []),
            ({"guest": "db"}, ["b"]),
            ({"host": "h1"}, ["b", "a"]),
            ({"host": "h3"}, ["c", "b"]),
            ({"evacuation": "e1"}, ["c"]),
            ({"command": "ann\n1"}, ["a"]),
            ({"host": "h1", "guest": "web"}, ["a"]),
            ({"host": ""}, []),
            ({}, ["c", "b", "a"]),
        ],
        ids=str,
    )
    async def test_of_some_only(
        self, journal: AnyJournal, where: dict[str, str], expected: list[str]
    ) -> None:
        await journal.save(
            migration("a", _private={"command": "ann\n1"}),
            migration("b", guest="db", destination="h3"),
            migration("c", source="h3", evacuation="e1"),
            evacuation("e1", "h1"),
        )
        assert ids(await journal.page("migration", limit=9, where=where)) == expected

    async def test_of_evacuations_and_hosts_goes_by_their_host(self, journal: AnyJournal) -> None:
        await journal.save(evacuation("e1", "h1"), evacuation("e2", "h2"), host("h1"), ("host", {"id": "h2"}))
        assert ids(await journal.page("evacuation", limit=9, where={"host": "h1"})) == ["e1"]
        assert ids(await journal.page("host", limit=9, where={"host": "h2"})) == ["h2"]

    async def test_of_what_cannot_be_asked_for_is_refused(self, journal: AnyJournal) -> None:
        await journal.save(migration("a"))
        with pytest.raises(ValueError, match="colour"):
            await journal.page("migration", limit=1, where={"colour": "red"})


class TestEvents:
    async def test_are_read_in_order_from_any_place(self, journal: AnyJournal) -> None:
        given = [event(1, 1), event(2, 1, "host", "h1"), event(3, 2), event(5, 1, "migration", "m2")]
        await journal.save(events=given[:3])
        await journal.save(events=given[3:])
        assert await journal.events() == given
        assert await journal.events(after=2) == given[2:]
        assert await journal.events(after=1, limit=2) == given[1:3]
        assert await journal.events(subject="migration", subject_id="m1") == [given[0], given[2]]
        assert await journal.events(subject="host") == [given[1]]
        assert await journal.events(after=9) == []

    async def test_whose_number_was_given_before_are_refused_with_all_beside_them(
        self, journal: AnyJournal
    ) -> None:
        await journal.save(events=[event(1, 1)])
        with pytest.raises(JournalError):
            await journal.save(events=[event(2, 2), event(1, 9)])
        assert [each["sequence"] for each in await journal.events()] == [1]
        assert journal.complaint == ""

    async def test_written_twice_are_there_once(self, journal: AnyJournal) -> None:
        await journal.save(events=[event(1, 1), event(2, 2)])
        await journal.save(events=[event(2, 2), event(3, 3), event(3, 3)])
        assert [each["event_id"] for each in await journal.events()] == [1, 2, 3]
        with pytest.raises(JournalError):
            await journal.save(events=[event(4, 4), event(4, 5)])
        assert len(await journal.events()) == 3

    async def test_are_written_with_their_documents_or_neither_is(self, journal: AnyJournal) -> None:
        await journal.save(migration("m1"), events=[event(1, 1)])
        with pytest.raises(JournalError):
            await journal.save(migration("m1", state="completed"), migration("m2"), events=[event(1, 2)])
        assert [each["state"] for each in await journal.unfinished("migration")] == ["precopy"]
        assert [each["sequence"] for each in await journal.events()] == [1]

    async def test_that_are_wrong_do_not_harm_what_is_written_beside_them(self, journal: AnyJournal) -> None:
        await journal.save(events=[event(1, 1)])
        results = await asyncio.gather(
            journal.save(events=[event(2, 2)]),
            journal.save(events=[event(1, 7)]),
            journal.save(migration("m1")),
            return_exceptions=True,
        )
        assert [type(each) for each in results] == [list, JournalError, list]
        assert [each["event_id"] for each in await journal.events()] == [1, 2]
        assert await journal.find("migration", "m1") is not None


class TestNumbersOfTheJournal:
    """Where several controllers write: an event comes without a number, and gets it when it is written."""

    async def test_go_on_after_all_that_were_given(self, journal: AnyJournal) -> None:
        first = await journal.save(migration("m1"), events=[event(0, 1), event(0, 2)])
        second = await journal.save(events=[event(0, 1, "host", "h1")])
        assert [*first, *second] == [1, 2, 3]
        assert (await journal.positions())[0] == 3
        found = await journal.events()
        assert [(each["event_id"], each["sequence"]) for each in found] == [(1, 1), (2, 2), (3, 1)]
        texts = (await journal.event_texts()).items
        assert [(number, json.loads(text)["event_id"]) for number, text in texts] == [
            (n, n) for n in (1, 2, 3)
        ]

    async def test_are_never_those_of_events_that_had_one(self, journal: AnyJournal) -> None:
        await journal.save(events=[event(7, 1)])
        reserved, _ = await journal.positions()
        assert await journal.save(events=[event(0, 2)]) == [reserved + 1]

    async def test_are_not_given_again_when_their_events_are_gone(self, journal: AnyJournal) -> None:
        await journal.save(migration("old", ended=at(1)))
        assert await journal.save(events=[event(0, n, "migration", "old") for n in (1, 2)]) == [1, 2]
        await journal.prune(NOON + timedelta(days=1))
        assert await journal.events() == []
        assert await journal.save(events=[event(0, 1)]) == [3]

    async def test_are_not_used_by_what_was_refused(self, journal: AnyJournal) -> None:
        lost = await journal.leases.acquire("site", owner="a", seconds=60)
        assert lost is not None
        await journal.leases.release(lost)
        with pytest.raises(LeaseLost):
            await journal.save(events=[event(0, 1)], lease=lost)
        assert await journal.save(events=[event(0, 2)]) == [1]

    async def test_of_many_writers_are_in_the_order_in_which_they_are_seen(
        self, postgresql_place: Server
    ) -> None:
        """Whoever has read up to one number never finds a smaller one later: else a stream would lose it."""
        async with (
            await SqlJournal.open(postgresql_place) as one,
            await SqlJournal.open(replace(postgresql_place, beside=None)) as other,
        ):
            given: list[int] = []
            seen: list[int] = []
            written = asyncio.Event()

            async def write(journal: SqlJournal, name: str) -> None:
                for number in range(1, 101):
                    document = migration(f"{name}{number % 7}")
                    given.extend(await journal.save(document, events=[event(0, number, "migration", name)]))

            async def read() -> None:
                while not written.is_set() or len(seen) < 200:
                    found = await one.events(after=seen[-1] if seen else 0)
                    seen.extend(each["event_id"] for each in found)

            async with asyncio.TaskGroup() as group:
                group.create_task(read(), name="read")
                await asyncio.gather(write(one, "a"), write(other, "b"))
                written.set()
            assert seen == sorted(given) == list(range(1, 201))
            for name in "ab":
                its = await one.events(subject="migration", subject_id=name)
                assert [each["sequence"] for each in its] == list(range(1, 101))

    async def test_stay_where_nobody_heard_that_they_were_given(self, postgresql_place: Server) -> None:
        async with await SqlJournal.open(postgresql_place) as journal:
            saving = asyncio.create_task(journal.save(events=[event(0, 1), event(0, 2)]), name="save")
            await asyncio.sleep(0)
            saving.cancel()
            await asyncio.wait({saving})
            assert await journal.save(events=[event(0, 1), event(0, 2), event(0, 3)]) == [1, 2, 3]
            assert [each["sequence"] for each in await journal.events()] == [1, 2, 3]


class TestPositions:
    async def test_are_nothing_at_first(self, journal: AnyJournal) -> None:
        assert await journal.positions() == (0, {})

    async def test_are_ahead_of_what_may_have_been_told(self, journal: AnyJournal) -> None:
        """Numbers that were given while nothing could be written must not be given again after a crash."""
        reserved = 0
        for number in (1, 2, 251, 252, 253, 1200):
            await journal.save(migration("m1"), events=[event(number, number)])
            reserved, _ = await journal.positions()
            assert number + 250 <= reserved <= number + 500
        with pytest.raises(JournalError):
            await journal.save(events=[event(1200, 9), event(9000, 9)])
        assert (await journal.positions())[0] == reserved

    async def test_are_those_of_what_goes_on(self, journal: AnyJournal) -> None:
        await journal.save(
            migration("m1"), migration("m2", ended=at(1)), evacuation("e1", "h1"), migration("m3")
        )
        for key in ("open", "refused", "accepted", "looked"):
            await claim(journal, key)
        await journal.answer_command(key="refused", reply={"kind": "refused"})
        await journal.answer_command(key="accepted", reply={"kind": "accepted", "subject": "migration"})
        await journal.answer_command(key="looked", reply={"kind": "accepted", "subject": "plan"})
        subjects = [
            *(("migration", "m1"), ("migration", "m2"), ("migration", "m1"), ("evacuation", "e1")),
            *(("host", "h1"), ("host", "h1"), ("command", "open"), ("command", "refused")),
            *(("command", "accepted"), ("command", "looked"), ("command", "without-an-id")),
        ]
        sequences: dict[tuple[str, str], int] = {}
        for number, subject in enumerate(subjects, start=1):
            sequences[subject] = sequences.get(subject, 0) + 1
            await journal.save(events=[event(number, sequences[subject], *subject)])
        assert await journal.positions() == (
            501,
            {
                ("migration", "m1"): 2,
                ("evacuation", "e1"): 1,
                ("host", "h1"): 2,
                ("command", "open"): 1,
                ("command", "accepted"): 1,
            },
        )


class TestCommands:
    async def test_are_new_once(self, journal: AnyJournal) -> None:
        first, second = await claim(journal, "ann\n1"), await claim(journal, "ann\n1")
        assert (first.new, first.other_body, first.reply) == (True, False, None)
        assert (second.new, second.other_body, second.reply) == (False, False, None)
        assert (await claim(journal, "bob\n1")).new

    async def test_are_claimed_with_what_they_change_or_neither_is_written(self, journal: AnyJournal) -> None:
        async def claimed(state: str, **how: Any) -> Any:
            document = migration("m1", state=state)
            who = {"key": "ann\n1", "verb": "cancel", "body": {}, "caller": {"user": "ann"}, **how}
            return await journal.claim_command(document, **{"body_hash": "hash", **who})

        lost = await journal.leases.acquire("site", owner="a", seconds=60)
        assert lost is not None
        await journal.leases.release(lost)
        with pytest.raises(LeaseLost):
            await claimed("held", lease=lost)
        assert await journal.find("migration", "m1") is None
        assert (await claimed("queued")).new
        # What comes a second time changes nothing, whatever it says.
        assert not (await claimed("held")).new
        assert (await claimed("held", body_hash="other")).other_body
        found = await journal.find("migration", "m1")
        assert found is not None
        assert found["state"] == "queued"

    async def test_claimed_by_many_at_once_go_to_one(self, journal: AnyJournal) -> None:
        claims = await asyncio.gather(*(claim(journal, "ann\n1") for _ in range(50)))
        assert [each.new for each in claims].count(True) == 1

    async def test_get_the_last_answer_again(self, journal: AnyJournal) -> None:
        await claim(journal, "ann\n1")
        await journal.answer_command(key="ann\n1", reply={"kind": "accepted", "subject": "migration"})
        assert (await claim(journal, "ann\n1")).reply == {"kind": "accepted", "subject": "migration"}
        await journal.answer_command(key="ann\n1", reply={"kind": "outcome", "body": {"state": "held"}})
        again = await claim(journal, "ann\n1")
        assert (again.new, again.reply) == (False, {"kind": "outcome", "body": {"state": "held"}})

    async def test_with_another_body_are_told_apart(self, journal: AnyJournal) -> None:
        await claim(journal, "ann\n1")
        assert (await claim(journal, "ann\n1", body_hash="other")).other_body
        assert not (await claim(journal, "ann\n1")).other_body

    async def test_that_nobody_claimed_cannot_be_answered_into_being(self, journal: AnyJournal) -> None:
        await journal.answer_command(key="ann\n1", reply={"kind": "refused"})
        assert (await claim(journal, "ann\n1")).new


class TestRetention:
    async def test_removes_what_ended_before_and_its_events(self, journal: AnyJournal) -> None:
        await journal.save(
            migration("old", ended=at(1)),
            migration("late", ended=at(9)),
            migration("running"),
            evacuation("gone", "h1", ended_at=at(2)),
            host("h1"),
        )
        subjects = [
            *(("migration", "old"), ("migration", "late"), ("migration", "running"), ("evacuation", "gone")),
            *(("host", "h1"), ("host", "h1"), ("migration", "old")),
        ]
        await journal.save(events=[event(n, n, *subject) for n, subject in enumerate(subjects, start=-7)])
        assert await journal.prune(NOON + timedelta(minutes=5)) == 2
        assert ids(await journal.page("migration", limit=9)) == ["running", "late"]
        assert ids(await journal.page("evacuation", limit=9)) == []
        assert ids(await journal.unfinished("host")) == ["h1"]
        left = [(each["subject_id"], each["event_id"]) for each in await journal.events(after=-9)]
        assert left == [("late", -6), ("running", -5), ("h1", -2)]
        assert await journal.prune(NOON + timedelta(minutes=5)) == 0

    async def test_never_gives_a_number_twice(self, journal: AnyJournal) -> None:
        await journal.save(migration("old", ended=at(1)), host("h1"))
        await journal.save(events=[event(40, 3, "host", "h1"), event(41, 1, "migration", "old")])
        await journal.prune(NOON + timedelta(days=1))
        assert await journal.events() == [event(40, 3, "host", "h1")]
        assert await journal.positions() == (541, {("host", "h1"): 3})

    async def test_forgets_a_command_only_with_what_it_began(self, journal: AnyJournal) -> None:
        for key in ("gone", "kept", "nothing"):
            await claim(journal, key)
        await journal.save(
            events=[event(n, 1, "command", key) for n, key in enumerate(("gone", "kept", "nothing"), start=1)]
        )
        await journal.save(
            migration("old", ended=at(1), _private={"command": "gone"}),
            migration("running", _private={"command": "kept"}),
        )
        await journal.prune(datetime.now(UTC) + timedelta(days=1))
        assert [each["subject_id"] for each in await journal.events(after=-1)] == ["kept"]
        assert not (await claim(journal, "kept")).new
        assert (await claim(journal, "gone")).new
        assert (await claim(journal, "nothing")).new

    async def test_keeps_commands_that_are_young(self, journal: AnyJournal) -> None:
        await claim(journal, "ann\n1")
        await journal.prune(datetime.now(UTC) - timedelta(days=1))
        assert not (await claim(journal, "ann\n1")).new

    async def test_of_many_is_done_in_parts(self, journal: AnyJournal) -> None:
        await journal.save(*(migration(f"m{n}", ended=at(1)) for n in range(450)))
        await journal.save(events=[event(n, 1, "migration", f"m{n}") for n in range(1, 450)])
        assert await journal.prune(NOON + timedelta(days=1)) == 450
        assert await journal.events() == []
        assert (await journal.positions())[0] == 949


async def test_a_probe_finds_nothing_to_complain_about(journal: AnyJournal) -> None:
    assert await journal.probe() == ""
    assert journal.complaint == ""


async def test_in_memory_it_breaks_as_told() -> None:
    journal = MemoryJournal()
    await journal.save(migration("m1"))
    journal.broken = "the disk is full"
    for write in (journal.save(migration("m2")), journal.save(events=[event(1, 1)]), claim(journal, "k")):
        with pytest.raises(JournalError, match="the disk is full"):
            await write
    assert journal.complaint == "the disk is full"
    assert ids(await journal.unfinished("migration")) == ["m1"]
    journal.broken = ""
    assert journal.complaint == "the disk is full"
    assert await journal.probe() == ""
    journal.unreadable = "torn"
    with pytest.raises(JournalError, match="torn"):
        await journal.find("migration", "m1")
