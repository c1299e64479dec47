"""Files with saved guests are deleted where they are of no use any more, and the last of a guest only said twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.api.commands import Discard, Role
from migrator.api.replies import Refusal
from migrator.api.requests import Caller
from migrator.core.preflight.facts import Facts
from migrator.core.saved_guest import FORMAT, SavedGuest, SavedState, SavedSummary, SurveyedFile
from migrator.engine.commands.discarding import DiscardCommand
from migrator.engine.migration.saved_entry import SAVED_ENTRY
from migrator.errors import HostError, UsageError
from migrator.testing.simulated_service import RunningEngine, SimulatedService

pytestmark = pytest.mark.looptime

FILE = "/srv/db.state"


class Files:
    """Implements the part of :class:`migrator.ports.SavedGuests` that is asked for: one file on the first host."""

    def __init__(self, key: str) -> None:
        self.there: SavedGuest | None = SavedGuest(
            format=FORMAT,
            migration="m1",
            state=SavedState.SAVED,
            saved_at=1.0,
            guest={"key": key, "uuid": key, "name": "db"},
            host="a",
            source={},
            runs=True,
            arguments=("/usr/bin/qemu-system-x86_64",),
            machine="pc",
            facts=Facts.__new__(Facts),  # nobody looks at it
            runtime={},
            sha256="abc",
        )
        #: Others change it at the last moment; or its host goes away.
        self.changes = self.away = False

    async def survey(self, host: str, paths: Sequence[str]) -> dict[str, SurveyedFile]:
        if host != "a" or self.there is None:
            return {path: SurveyedFile() for path in paths}
        summary = SavedSummary(
            migration="m1",
            state=self.there.state,
            format=1,
            saved_at=1.0,
            machine="pc",
            binary="",
            version="",
            bytes=1,
        )
        return {path: SurveyedFile(saved=summary, size=1) for path in paths}

    async def read(self, host: str, path: str) -> SavedGuest:
        if self.there is None or host != "a":
            raise UsageError(f"{path} on {host} is no saved guest")
        return self.there

    async def discard(self, host: str, path: str, seen: SavedGuest) -> bool:
        if self.away:
            raise HostError(host, "no route to host")
        if self.changes or seen is not self.there:
            return False
        self.there = None
        return True

    def become(self, state: SavedState) -> None:
        assert self.there is not None
        self.there = replace(self.there, state=state, loaded_by="m2", loaded_at="b")


def made(tmp_path: Path) -> SimulatedService:
    service = SimulatedService(tmp_path)
    for host in ("a", "b"):
        service.site.add_host(host)
    return service


def command(running: RunningEngine, files: Any) -> DiscardCommand:
    engine = running.engine
    return DiscardCommand(
        lookups=engine.handlers._migrations._lookups,
        registry=engine.registry,
        reservations=engine.reservations,
        inventory=engine.inventory,
        journal_writer=engine.journal_writer,
        saved=files,
    )


def caller(hosts: tuple[str, ...] | None = None) -> Caller:
    return Caller(user="olga", role=Role.OPERATOR, interface="http", hosts=hosts)


DISCARD = Discard(host="a", file=FILE)
SAID_TWICE = Discard(host="a", file=FILE, only_copy=True)


async def test_a_file_whose_guest_was_loaded_is_deleted(tmp_path: Path) -> None:
    files = Files("gone")
    files.become(SavedState.LOADED)
    async with made(tmp_path).running() as running:
        document = await command(running, files).discard(DISCARD, caller())
    assert files.there is None
    assert (document.state, document.reason) == ("discarded", "its guest was loaded by migration m2, on b")


async def test_a_file_whose_guest_runs_somewhere_is_deleted(tmp_path: Path) -> None:
    service = made(tmp_path)
    service.site.add_guest("db", host="b")
    async with service.running() as running:
        files = Files(running.engine.inventory.guests()[0].key)
        document = await command(running, files).discard(DISCARD, caller())
    assert files.there is None
    assert document.reason == "its guest runs on b"


async def test_a_guest_that_was_seen_on_a_host_which_is_away_may_be_nowhere_else(tmp_path: Path) -> None:
    service = made(tmp_path)
    service.site.add_guest("db", host="b")
    async with service.running() as running:
        files = Files(running.engine.inventory.guests()[0].key)
        service.site.hosts["b"].down = True
        await running.queries.refresh("b")
        with pytest.raises(Refusal, match="nobody knows db anywhere but in"):
            await command(running, files).discard(DISCARD, caller())
    assert files.there is not None


async def test_the_last_copy_of_a_guest_is_deleted_only_where_that_is_said(tmp_path: Path) -> None:
    files = Files("gone")
    async with made(tmp_path).running() as running:
        await running.engine.journal_writer.commit(
            (SAVED_ENTRY, {"id": "m1", "guest": "gone", "host": "a", "file": FILE, "ended_at": None}),
            then=lambda: None,
        )
        discard = command(running, files)
        with pytest.raises(Refusal, match=r"it is lost when that is deleted.*--only-copy") as refused:
            await discard.discard(DISCARD, caller())
        assert refused.value.code == "conflict"
        assert files.there is not None
        document = await discard.discard(SAID_TWICE, caller())
        assert "it is lost" in document.reason
        await running.settled()
        assert list(await running.engine.journal_writer.journal.unfinished(SAVED_ENTRY)) == []
    assert files.there is None


@pytest.mark.parametrize("state", [SavedState.LOADING])
async def test_a_file_that_is_being_loaded_is_kept_whatever_is_said(
    tmp_path: Path, state: SavedState
) -> None:
    files = Files("gone")
    files.become(state)
    async with made(tmp_path).running() as running:
        with pytest.raises(Refusal, match="is being loaded by migration m2"):
            await command(running, files).discard(SAID_TWICE, caller())
    assert files.there is not None


async def test_what_others_have_changed_meanwhile_is_kept(tmp_path: Path) -> None:
    files = Files("gone")
    files.changes = True
    async with made(tmp_path).running() as running:
        with pytest.raises(Refusal, match="somebody else has used") as refused:
            await command(running, files).discard(SAID_TWICE, caller())
        assert refused.value.code == "conflict"
        files.changes, files.away = False, True
        with pytest.raises(Refusal, match="no route to host") as refused:
            await command(running, files).discard(SAID_TWICE, caller())
        assert refused.value.code == "unavailable"
    assert files.there is not None


async def test_a_file_that_is_gone_is_taken_off_the_list_only_where_that_is_said(tmp_path: Path) -> None:
    files = Files("gone")
    files.there = None
    async with made(tmp_path).running() as running:
        discard = command(running, files)
        with pytest.raises(Refusal, match="is no saved guest") as refused:
            await discard.discard(SAID_TWICE, caller())
        assert refused.value.code == "not-found"
        await running.engine.journal_writer.commit(
            (SAVED_ENTRY, {"id": "m1", "guest": "gone", "host": "a", "file": FILE, "ended_at": None}),
            then=lambda: None,
        )
        with pytest.raises(Refusal, match="look for it first"):
            await discard.discard(DISCARD, caller())
        assert (await discard.discard(SAID_TWICE, caller())).state == "discarded"
        await running.settled()
        assert list(await running.engine.journal_writer.journal.unfinished(SAVED_ENTRY)) == []


async def test_who_is_limited_deletes_what_was_saved_on_his_hosts(tmp_path: Path) -> None:
    files = Files("gone")
    assert files.there is not None
    files.there = replace(files.there, host="b")
    async with made(tmp_path).running() as running:
        with pytest.raises(Refusal, match="was not saved there") as refused:
            await command(running, files).discard(SAID_TWICE, caller(("a",)))
        assert refused.value.code == "forbidden"
    assert files.there is not None
