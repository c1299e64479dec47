"""What every journal promises of the controllers that share it, and of the documents that all of them show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from migrator.errors import JournalError, LeaseLost
from migrator.ports import Leases
from migrator.ports.controllers import (
    LIVE_CHANNEL,
    ControllerInfo,
    Controllers,
    LiveDocument,
    LiveDocuments,
    PresentController,
    WaitingCommands,
)
from migrator.store import schema
from migrator.store.backend import Server
from migrator.store.journal import SqlJournal
from migrator.testing.journal import MemoryJournal
from tests.journals import run_sql

AnyJournal = SqlJournal | MemoryJournal


@dataclass
class Shared:
    """One journal as two controllers see it."""

    one: AnyJournal
    other: AnyJournal
    place: Path | Server | None = None

    async def pass_by(self, seconds: float) -> None:
        """Let time go by for leases and heartbeats."""
        if isinstance(self.one, MemoryJournal):
            self.one.leases.jump(seconds)
            self.one.controllers._rows.update(
                {
                    name: replace(row, seen_at=row.seen_at - seconds)
                    for name, row in self.one.controllers._rows.items()
                }
            )
            return
        assert self.place is not None
        late = round(seconds * 1e6)
        await run_sql(self.place, f"UPDATE leases SET ends_at = ends_at - {late}")
        await run_sql(self.place, f"UPDATE controllers SET seen_at = seen_at - {late}")


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shared]:
    if request.param == "memory":
        memory = MemoryJournal()
        yield Shared(memory, memory)
        return
    place = tmp_path / "journal.db"
    if request.param == "postgresql":
        place = request.getfixturevalue("postgresql_place")
    async with (
        await SqlJournal.open(place, alone=False) as one,
        await SqlJournal.open(place, alone=False) as other,
    ):
        yield Shared(one, other, place)


def test_journals_are_what_controllers_ask_for() -> None:
    # The type checker's.
    def takes(
        live: LiveDocuments, controllers: Controllers, leases: Leases, waiting: WaitingCommands
    ) -> None: ...

    def both(one: SqlJournal, other: MemoryJournal) -> None:
        takes(one.live, one.controllers, one.leases, one.waiting)
        takes(other.live, other.controllers, other.leases, other.waiting)


def info(name: str, **fields: Any) -> ControllerInfo:
    return ControllerInfo(name=name, instance=f"host-{name}", version="1.0", **fields)


def summary(found: list[PresentController]) -> dict[str, tuple[str, bool]]:
    return {each.info.name: (each.info.role, each.present) for each in found}


class TestControllers:
    async def test_are_seen_by_the_others_with_what_they_say_of_themselves(self, shared: Shared) -> None:
        a, b = info("a", url="https://a:8443", role="acting", hosts=("x", "y")), info("b")
        lease = await shared.one.controllers.join(a, seconds=60)
        assert lease is not None
        assert (lease.name, lease.owner, lease.may_act) == ("controller/a", "a", True)
        assert await shared.other.controllers.join(b, seconds=6.5) is not None
        for journal in (shared.one, shared.other):
            found = await journal.controllers.all()
            assert [each.info for each in found] == [a, b]
            assert [each.schema for each in found] == [schema.HEAD] * 2
            assert [each.lease_seconds for each in found] == [60, 6.5]
            assert all(each.present and each.age_seconds < 30 and each.token for each in found)

    async def test_say_what_is_new_with_each_heartbeat(self, shared: Shared) -> None:
        a = info("a")
        lease = await shared.one.controllers.join(a, seconds=60)
        assert lease is not None
        await shared.pass_by(20)
        [before] = await shared.other.controllers.all()
        renewed = await shared.one.controllers.beat(replace(a, role="acting", detail="x"), lease, seconds=60)
        assert renewed is not None
        assert renewed.token == lease.token
        [after] = await shared.other.controllers.all()
        assert (after.info.role, after.info.detail) == ("acting", "x")
        assert after.started_at == before.started_at
        assert after.age_seconds < 10 < before.age_seconds

    async def test_that_fall_silent_are_shown_as_gone_and_come_back_with_a_larger_token(
        self, shared: Shared
    ) -> None:
        lease = await shared.one.controllers.join(info("a"), seconds=5)
        assert lease is not None
        await shared.pass_by(30)
        assert summary(await shared.other.controllers.all()) == {"a": ("standby", False)}
        assert await shared.one.controllers.beat(info("a"), lease, seconds=5) is None
        again = await shared.one.controllers.join(info("a"), seconds=60)
        assert again is not None
        assert again.token > lease.token
        assert summary(await shared.other.controllers.all()) == {"a": ("standby", True)}

    async def test_that_leave_are_not_shown_any_more_and_after_a_day_nobody_is(self, shared: Shared) -> None:
        lease = await shared.one.controllers.join(info("a"), seconds=60)
        await shared.other.controllers.join(info("b"), seconds=60)
        assert lease is not None
        await shared.one.controllers.leave(lease)
        assert summary(await shared.other.controllers.all()) == {"b": ("standby", True)}


def document(
    identifier: str, text: str | None, *, kind: str = "migration", sequence: int = 1
) -> LiveDocument:
    return LiveDocument(kind=kind, id=identifier, text=text, sequence=sequence)


def texts(found: list[LiveDocument]) -> dict[tuple[str, str], str | None]:
    return {(each.kind, each.id): each.text for each in found}


class TestLiveDocuments:
    async def test_are_read_by_others_from_where_they_had_got(self, shared: Shared) -> None:
        first = await shared.one.live.write(
            [document("m1", '{"a":"\\u0000\u2603"}'), document("h1", "{}", kind="host")], writer="a"
        )
        assert texts(await shared.other.live.since(0)) == {
            ("migration", "m1"): '{"a":"\\u0000\u2603"}',
            ("host", "h1"): "{}",
        }
        second = await shared.other.live.write([document("m1", "2", sequence=7)], writer="b")
        assert second > first
        [found] = await shared.one.live.since(first)
        assert (found.id, found.text, found.sequence) == ("m1", "2", 7)
        assert (found.writer, found.version) == ("b", second)
        assert await shared.one.live.since(second) == []
        assert texts(await shared.one.live.since(0, kinds=["host"])) == {("host", "h1"): "{}"}
        assert await shared.other.live.version() == second

    async def test_that_are_gone_are_told(self, shared: Shared) -> None:
        before = await shared.one.live.write([document("m1", "1")], writer="a")
        await shared.one.live.write([document("m1", None)], writer="a")
        assert texts(await shared.other.live.since(before)) == {("migration", "m1"): None}

    async def test_are_not_written_by_who_has_lost_the_right_to_it(self, shared: Shared) -> None:
        lease = await shared.one.controllers.join(info("a"), seconds=5)
        assert lease is not None
        await shared.one.live.write([document("m1", "1")], writer="a", lease=lease)
        await shared.pass_by(30)
        with pytest.raises(LeaseLost):
            await shared.one.live.write([document("m1", "2")], writer="a", lease=lease)
        assert texts(await shared.other.live.since(0)) == {("migration", "m1"): "1"}

    async def test_are_told_to_those_who_listen(self, shared: Shared) -> None:
        # A file has one process that writes it, which tells itself.
        hears = shared.one if isinstance(shared.place, Path) else shared.other
        async with hears.signals.listen(LIVE_CHANNEL, poll_seconds=600) as signals:
            await shared.one.live.write([document("m1", "1")], writer="a")
            async with asyncio.timeout(10):
                async for _ in signals:
                    if texts(await hears.live.since(0)):
                        break

    async def test_of_two_who_write_at_once_are_seen_in_the_order_of_their_versions(
        self, postgresql_place: Server
    ) -> None:
        async with (
            await SqlJournal.open(postgresql_place, alone=False) as one,
            await SqlJournal.open(postgresql_place, alone=False) as other,
        ):
            seen: dict[str, str | None] = {}
            written = asyncio.Event()

            async def write(journal: SqlJournal, name: str) -> None:
                for number in range(50):
                    await journal.live.write([document(f"{name}{number}", str(number))], writer=name)

            async def follow() -> None:
                last = 0
                while not written.is_set() or last < 100:
                    for each in await one.live.since(last):
                        seen[each.id] = each.text
                        last = each.version

            async with asyncio.TaskGroup() as group:
                group.create_task(follow(), name="follow")
                await asyncio.gather(write(one, "a"), write(other, "b"))
                written.set()
            assert len(seen) == 100

    async def test_cannot_be_written_where_the_journal_cannot(self) -> None:
        journal = MemoryJournal()
        journal.broken = "the disk is full"
        with pytest.raises(JournalError):
            await journal.live.write([document("m1", "1")], writer="a")


async def leave(journal: AnyJournal, key: str, *, body_hash: str = "hash") -> Any:
    return await journal.waiting.leave(
        key=key,
        verb="migrate",
        body_hash=body_hash,
        body={"guest": "web"},
        caller={"user": "ann"},
        envelope=f'{{"key": "{key[-1]}"}}',
    )


ACCEPTED = {"kind": "accepted", "subject": "migration"}


class TestWaitingCommands:
    async def test_are_found_taken_and_answered_by_another(self, shared: Shared) -> None:
        assert (await leave(shared.one, "ann\n1")).new
        assert (await leave(shared.one, "ann\n2")).new
        found = await shared.other.waiting.waiting()
        assert [(each.key, each.envelope, each.taken) for each in found] == [
            ("ann\n1", '{"key": "1"}', False),
            ("ann\n2", '{"key": "2"}', False),
        ]
        assert await shared.other.waiting.take("ann\n1", by="b")
        assert [each.taken for each in await shared.other.waiting.waiting()] == [True, False]
        assert await shared.one.waiting.replies(["ann\n1", "ann\n2"]) == {}
        await shared.other.answer_command(key="ann\n1", reply=ACCEPTED)
        assert await shared.one.waiting.replies(["ann\n1", "ann\n2"]) == {"ann\n1": ACCEPTED}
        assert [each.key for each in await shared.other.waiting.waiting()] == ["ann\n2"]
        assert not await shared.other.waiting.take("ann\n1", by="b")

    async def test_are_one_with_those_that_the_acting_controller_received(self, shared: Shared) -> None:
        assert (await leave(shared.one, "ann\n1")).new
        assert not (await leave(shared.other, "ann\n1")).new
        assert (await leave(shared.other, "ann\n1", body_hash="another")).other_body
        claim = await shared.other.claim_command(
            key="ann\n1", verb="migrate", body_hash="hash", body={}, caller={}
        )
        assert not claim.new
        await shared.other.answer_command(key="ann\n1", reply=ACCEPTED)
        assert (await leave(shared.one, "ann\n1")).reply == ACCEPTED

    async def test_are_taken_back_only_while_nobody_has_begun_them(self, shared: Shared) -> None:
        for key in ("ann\n1", "ann\n2", "ann\n3"):
            await leave(shared.one, key)
        assert await shared.other.waiting.take("ann\n1", by="b")
        await shared.other.answer_command(key="ann\n3", reply=ACCEPTED)
        assert [await shared.one.waiting.take_back(f"ann\n{n}") for n in (1, 2, 3)] == [False, True, False]
        assert not await shared.other.waiting.take("ann\n2", by="b")
        assert (await leave(shared.one, "ann\n2")).new

    async def test_that_nobody_can_ask_for_again_are_forgotten_once_answered(self, shared: Shared) -> None:
        await leave(shared.one, "ann\n1")
        await shared.one.waiting.forget("ann\n1")
        assert len(await shared.other.waiting.waiting()) == 1
        await shared.other.answer_command(key="ann\n1", reply=ACCEPTED)
        await shared.one.waiting.forget("ann\n1")
        assert (await leave(shared.one, "ann\n1")).new
