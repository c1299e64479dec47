"""The journal on a PostgreSQL server that is killed, frozen, restarted, replaced, or whose answers are lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any, Self

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from migrator.errors import JournalError
from migrator.ports.assignments import Assignment
from migrator.ports.controllers import ControllerInfo
from migrator.store.backend import Server
from migrator.store.database import Database
from migrator.store.journal import SqlJournal
from migrator.store.presence import Heartbeat
from migrator.testing.lab import until
from migrator.testing.postgresql import Postgres
from tests import journals
from tests.conftest import missing


@pytest.fixture(scope="module")
def victim() -> Iterator[Postgres]:
    """A server that may be broken; it runs again after each test."""
    if reason := journals.postgresql_missing():
        missing(reason)
    with Postgres("victim") as server:
        yield server


@pytest.fixture
def place(victim: Postgres) -> Server:
    if not victim.ready():
        victim.start()
    return victim.place(victim.create())


def migration(identifier: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "migration", {"id": identifier, "state": "precopy", "ended_at": None, **fields}


def info(name: str) -> ControllerInfo:
    return ControllerInfo(name=name, instance=f"host-{name}", version="1.0")


def event(number: int, sequence: int = 0) -> dict[str, Any]:
    return {
        "event_id": number,
        "sequence": sequence or number,
        "time": "2026-03-01T12:00:00Z",
        "kind": "state",
        "subject": "migration",
        "subject_id": "m1",
        "body": {},
    }


async def works(journal: SqlJournal) -> None:
    """Before long, without being opened again."""

    async def written() -> bool:
        with contextlib.suppress(JournalError):
            await journal.save(migration("after"))
            return True
        return False

    await until(written, what="a write that is taken", within=20)
    assert journal.complaint == ""
    assert await journal.find("migration", "after") is not None


class TestKilled:
    async def test_loses_nothing_that_was_said_to_be_saved_and_writes_nothing_twice(
        self, victim: Postgres, place: Server
    ) -> None:
        async with await SqlJournal.open(place) as journal:
            saved: set[int] = set()
            refused: set[int] = set()
            stop = False

            async def write(first: int) -> None:
                number = first
                while not stop:
                    try:
                        await journal.save(migration(f"m{number}"), events=[event(number)])
                        saved.add(number)
                    except JournalError:
                        refused.add(number)
                        await asyncio.sleep(0.05)
                    number += 10

            writers = [asyncio.create_task(write(n), name=f"writer {n}") for n in range(1, 11)]
            for _ in range(2):
                before = len(saved)
                await until(lambda: len(saved) > before + 100, what="writes")  # noqa: B023 - it is awaited here
                await asyncio.to_thread(victim.kill)
                await until(lambda: journal.complaint, what="a complaint", within=20)
                assert "the server cannot be reached" in journal.complaint
                assert "\n" not in journal.complaint
                with pytest.raises(JournalError, match="cannot be read: "):
                    await journal.find("migration", "m1")
                await asyncio.to_thread(victim.start)
            before = len(saved)
            await until(lambda: len(saved) > before + 100, what="writes after it")
            stop = True
            await asyncio.gather(*writers)
            assert refused
            found = [each["event_id"] for each in await journal.events(limit=10**6)]
            assert len(found) == len(set(found))
            assert saved <= set(found)
            # What was refused was not written, whole or in part.
            assert not refused & set(found)
            there = {each["id"] for each in await journal.unfinished("migration")}
            assert there == {f"m{number}" for number in found}
            await works(journal)

    async def test_connections_that_a_restart_closed_are_not_noticed(
        self, victim: Postgres, place: Server
    ) -> None:
        async with await SqlJournal.open(place) as journal:
            await journal.save(migration("m1"))
            assert await journal.find("migration", "m1") is not None
            await asyncio.to_thread(victim.stop)
            await asyncio.to_thread(victim.start)
            await journal.save(migration("m2"))
            assert len(await journal.unfinished("migration")) == 2
            assert journal.complaint == ""

    async def test_a_reader_that_went_on_over_it_leaves_no_connection_behind(
        self, victim: Postgres, place: Server
    ) -> None:
        name = place.url.partition("?")[0].rpartition("/")[2]
        query = f"FROM pg_stat_activity WHERE datname = '{name}'"
        database = await Database.open(place)
        try:
            reads, ends = asyncio.Event(), asyncio.Event()

            async def work(connection: Any) -> None:
                await connection.execute(text("SELECT 1"))
                reads.set()
                await ends.wait()

            async def write(connection: Any) -> None:
                await connection.execute(text("SELECT 1"))

            reading = asyncio.create_task(database.read(work), name="read")
            await reads.wait()
            await database.write(write)
            found = victim.sql(
                f"SELECT pg_terminate_backend(pid) {query} AND application_name LIKE '%writer%'"
            )
            assert found == ["t"]
            await database.write(write)  # on a new connection: all others are given up
            ends.set()
            await reading
            await until(
                lambda: not victim.sql(f"SELECT pid {query} AND application_name LIKE '%reader%'"),
                what="the reader's connection is closed",
                within=10,
            )
        finally:
            await database.close()

    async def test_from_the_beginning_it_is_said_where_it_is_and_what_to_do(
        self, victim: Postgres, place: Server
    ) -> None:
        await asyncio.to_thread(victim.stop)
        with pytest.raises(
            JournalError, match=r"cannot be opened: the server cannot be reached: .*see whether"
        ):
            await SqlJournal.open(place)


@contextlib.asynccontextmanager
async def kept_locked(place: Server, table: str) -> AsyncIterator[None]:
    """Somebody else's transaction keeps a table from being written, as one that makes an index does."""
    engine = create_async_engine(place.url)
    try:
        async with engine.connect() as other:
            await other.execute(text(f"LOCK TABLE {table} IN SHARE MODE"))
            yield
            await other.rollback()
    finally:
        await engine.dispose()


class TestLocked:
    """Another session keeps something in the database locked."""

    async def test_by_somebody_else_a_table_costs_no_lease_and_what_is_wrong_is_said(
        self, place: Server
    ) -> None:
        place = replace(place, answer_seconds=2.0)
        async with await SqlJournal.open(place) as journal:
            lease = await journal.leases.acquire("site", owner="a", seconds=60)
            assert lease is not None
            async with kept_locked(place, "events"):
                writing = asyncio.create_task(
                    journal.save(migration("m1"), events=[event(1)], lease=lease), name="save"
                )
                renewed = 0
                while not writing.done():
                    async with asyncio.timeout(1):  # though the write that waits has the lease checked
                        [found] = await journal.leases.renew([lease], seconds=60)
                    assert found is not None
                    renewed += 1
                    await asyncio.sleep(0.05)
                assert renewed > 2
                with pytest.raises(JournalError, match=r"another session .* keeps something locked .*: look"):
                    await writing
                assert "locked" in journal.complaint
            await journal.save(migration("m1"), events=[event(1)], lease=lease)
            assert [each["event_id"] for each in await journal.events()] == [1]

    async def test_a_table_keeps_nobody_from_writing_to_others(self, place: Server) -> None:
        place = replace(place, answer_seconds=2.0)
        async with await SqlJournal.open(place) as journal, kept_locked(place, "events"):
            outcomes = await asyncio.gather(
                *(journal.save(migration(f"m{n}"), events=[event(n)] if n == 2 else []) for n in range(5)),
                return_exceptions=True,
            )
            assert [isinstance(each, JournalError) for each in outcomes] == [n == 2 for n in range(5)]
            assert len(await journal.unfinished("migration")) == 4

    @pytest.mark.parametrize("which", ["leases", "controllers"])
    async def test_what_a_controller_has_of_its_own_costs_the_lease_of_the_site_nothing(
        self, place: Server, which: str
    ) -> None:
        place = replace(place, answer_seconds=2.0)
        async with await SqlJournal.open(place) as journal:
            site = await journal.leases.acquire("site", owner="a", seconds=60)
            assert site is not None
            heartbeat = Heartbeat(journal, info=info("a"), seconds=2.0)
            engine = create_async_engine(place.url)
            async with heartbeat, engine.connect() as other:
                own = {"leases": "name = 'controller/a'", "controllers": "name = 'a'"}[which]
                await other.execute(text(f"SELECT * FROM {which} WHERE {own} FOR UPDATE"))
                deadline = time.monotonic() + 2.5
                while time.monotonic() < deadline:
                    async with asyncio.timeout(1):
                        assert await journal.leases.renew([site], seconds=60) != [None]
                    assert which == "leases" or heartbeat.holds(), "only its row among others is locked"
                    await asyncio.sleep(0.05)
                assert "another session of the database keeps something locked" in heartbeat.now.complaint
                await other.rollback()
                await until(lambda: heartbeat.holds() and not heartbeat.now.complaint, what="all is well")
            await engine.dispose()

    async def test_by_a_renewal_that_takes_long_a_driver_is_not_taken_for_dead(
        self, victim: Postgres, place: Server
    ) -> None:
        async with await SqlJournal.open(place) as journal:
            driver = await journal.controllers.join(info("d"), seconds=60)
            assert driver is not None
            given = Assignment(
                migration="m1", driver="d", driver_token=driver.token, number=1, session={"id": "m1"}
            )
            assert await journal.assignments.give(given)
            engine = create_async_engine(place.url)
            async with engine.connect() as other:
                its = "WHERE name = 'controller/d'"
                await other.execute(text(f"UPDATE leases SET ends_at = 1 {its}"))
                await other.commit()
                # As it is done when it is renewed at the last moment, by a server that is slow to write.
                await other.execute(text(f"UPDATE leases SET ends_at = {2**61} {its}"))
                fencing = asyncio.create_task(journal.assignments.fence("m1", 1), name="fence")
                waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

                async def decided() -> bool:
                    return fencing.done() or bool(await asyncio.to_thread(victim.sql, waits))

                await until(decided, what="it waits, or has decided")
                await other.commit()
            await engine.dispose()
            assert await fencing is None, "its driver may still drive it"


class TestFrozen:
    async def test_is_said_in_time_and_over_when_it_goes_on(self, victim: Postgres, place: Server) -> None:
        place = replace(place, connect_seconds=1.0, answer_seconds=2.0)
        async with await SqlJournal.open(place) as journal:
            await journal.save(migration("m1"))
            victim.freeze()
            try:
                began = time.monotonic()
                with pytest.raises(JournalError, match="the server does not answer in time"):
                    await journal.save(migration("m2"), events=[event(1)])
                with pytest.raises(JournalError, match="the server does not answer in time"):
                    await journal.find("migration", "m1")
                assert time.monotonic() - began < 20
            finally:
                victim.thaw()
            await works(journal)
            await journal.save(migration("m2"), events=[event(1)])
            assert [each["event_id"] for each in await journal.events()] == [1]


class Wire:
    """Between a journal and its server: loses the connection over a COMMIT when it is told to."""

    def __init__(self, server: Path, directory: Path) -> None:
        self._server = str(server / ".s.PGSQL.5432")
        #: ``before``: the server never gets it; ``after``: it does, and its answer is lost.
        self.lose = ""
        self.lost = 0
        self._unheard: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / ".s.PGSQL.5432"))
        self._listener.listen()
        self._sockets = [self._listener]

    def __enter__(self) -> Self:
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self._sockets += [client, server]
                with contextlib.suppress(OSError):
                    server.connect(self._server)
                for source, target in ((client, server), (server, client)):
                    Thread(target=self._pump, args=(source, target, source is client), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if asks and b"COMMIT" in data and self.lose:
                    how, self.lose = self.lose, ""
                    self.lost += 1
                    if how == "after":
                        self._unheard = target
                        target.sendall(data)
                        time.sleep(0.1)  # it is carried out; nobody hears the answer
                    break
                if source is not self._unheard:
                    target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


async def test_what_is_answered_is_on_disk_though_the_server_would_answer_before(
    victim: Postgres, place: Server
) -> None:
    victim.sql("ALTER SYSTEM SET synchronous_commit = off", "SELECT pg_reload_conf()")
    try:
        database = await Database.open(place)
        try:
            found = await database.write(lambda each: each.execute(text("SHOW synchronous_commit")))
            assert found.scalar_one() == "on"
        finally:
            await database.close()
    finally:
        victim.sql("ALTER SYSTEM RESET synchronous_commit", "SELECT pg_reload_conf()")


class TestAnswerLost:
    @pytest.mark.parametrize("how", ["before", "after"])
    async def test_over_a_commit_it_is_found_out_and_nothing_is_written_twice_or_not_at_all(
        self, victim: Postgres, place: Server, tmp_path: Path, how: str
    ) -> None:
        wire = Wire(victim.directory, tmp_path)
        through = replace(place, url=place.url.replace(str(victim.directory), str(tmp_path)))
        with wire:
            async with await SqlJournal.open(through) as journal:
                await journal.save(migration("m1"), events=[event(1)])
                wire.lose = how
                results = await asyncio.gather(
                    journal.save(migration("m2"), events=[event(2)]),
                    journal.claim_command(key="k", verb="migrate", body_hash="h", body={}, caller={}),
                    return_exceptions=True,
                )
                assert wire.lost == 1
                # Each as if nothing had happened: the claim is new, though it was there when it was looked again.
                assert results[0] == [2]
                assert getattr(results[1], "new", results[1]) is True
                assert [each["event_id"] for each in await journal.events()] == [1, 2]
                again = await journal.claim_command(
                    key="k", verb="migrate", body_hash="h", body={}, caller={}
                )
                assert not again.new
                assert journal.complaint == ""

    async def test_and_the_server_too_it_may_have_been_written_and_that_is_said(
        self, victim: Postgres, place: Server, tmp_path: Path
    ) -> None:
        wire = Wire(victim.directory, tmp_path)
        through = replace(place, url=place.url.replace(str(victim.directory), str(tmp_path)))
        with wire:
            async with await SqlJournal.open(through) as journal:
                await journal.save(migration("m1"), events=[event(1)])
                wire.lose = "after"
                saving = asyncio.create_task(journal.save(migration("m2"), events=[event(2)]), name="save")
                await until(lambda: wire.lost, what="a COMMIT that is lost")
                await asyncio.to_thread(victim.kill)
                outcome = (await asyncio.gather(saving, return_exceptions=True))[0]
                await asyncio.to_thread(victim.start)
                if outcome is not None:  # else it was found out before the server was gone
                    assert "may still be written" in str(outcome)
                await works(journal)
                # Whoever writes it again writes the same.
                await journal.save(migration("m2"), events=[event(2)])
                assert [each["event_id"] for each in await journal.events()] == [1, 2]


async def test_a_second_server_that_is_promoted_goes_on_with_the_journal() -> None:
    if reason := journals.postgresql_missing():
        missing(reason)
    with Postgres("first") as first:
        database = first.create()
        with first.standby("second") as second:
            hosts = "&".join(f"host={each.directory}:5432" for each in (first, second))
            both = Server(url=f"postgresql+asyncpg://migrator@/{database}?{hosts}")
            async with await SqlJournal.open(both) as journal:
                await journal.save(migration("m1"), events=[event(1)])
                lease = await journal.leases.acquire("site", owner="a", seconds=60)
                assert lease is not None

                def there() -> bool:
                    try:
                        return second.sql("SELECT count(*) FROM leases", database=database) == ["1"]
                    except RuntimeError:
                        return False  # not even the table yet

                await until(there, what="all of it at the standby", within=30)
                await asyncio.to_thread(first.kill)
                with pytest.raises(JournalError):
                    await journal.save(migration("m2"))
                await asyncio.to_thread(second.promote)
                await works(journal)
                await journal.save(migration("m2"), events=[event(2)], lease=lease)
                assert [each["event_id"] for each in await journal.events()] == [1, 2]
