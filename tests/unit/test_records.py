"""The record of a migration: on disk before anything is changed, read back after whatever became of its migrator."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from migrator.core.migration.situation import Intent, Milestone
from migrator.core.model import State
from migrator.errors import RecordError
from migrator.store import records
from migrator.store.records import FileRecord, Unfinished, state_directory, unfinished

FACTS = {"source": {"address": "unix:/a", "identity": {}}, "uuid": "u", "settings": {"parameters": {"a": 1}}}
MIGRATING = Intent(milestone=Milestone.MIGRATING)
SWITCHING = Intent(milestone=Milestone.SWITCHING, postcopy=True, stopped_by_us=True)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def left(directory: Path, *intents: Intent, name: str = "one") -> FileRecord:
    """A record whose migrator died after it had noted these."""
    record = FileRecord(name, directory=directory)
    await record.begin(FACTS, intents[0])
    for intent in intents[1:]:
        record.note_behind(intent)
    record.close()
    return record


def taken_over(intent: Intent) -> Intent:
    return replace(intent, live=False, dismissed=False, fence_failed=False)


class TestRecord:
    async def test_is_read_back_as_it_was_noted_last(self, directory: Path) -> None:
        await left(directory, MIGRATING, SWITCHING, replace(SWITCHING, undo=State.CANCELLED))
        (found,) = unfinished(directory=directory)
        assert found.facts == FACTS
        assert found.intent == replace(SWITCHING, undo=State.CANCELLED, live=False)

    @pytest.mark.parametrize(
        "intent",
        [
            Intent(),
            Intent(milestone=Milestone.RETIRING, guest_runs=False),
            Intent(undo=State.FAILED, restored=True, dismissed=True, fence_failed=True),
        ],
    )
    async def test_forgets_only_what_the_next_one_shall_try_again(
        self, directory: Path, intent: Intent
    ) -> None:
        await left(directory, intent)
        assert unfinished(directory=directory)[0].intent == taken_over(intent)

    async def test_is_for_its_owner_alone(self, directory: Path) -> None:
        record = await left(directory, MIGRATING)
        assert record.path.stat().st_mode & 0o777 == 0o600
        assert directory.stat().st_mode & 0o777 == 0o700

    async def test_never_takes_the_place_of_another(self, directory: Path) -> None:
        await left(directory, SWITCHING)
        with pytest.raises(RecordError, match="cannot write the record"):
            await left(directory, MIGRATING)
        assert unfinished(directory=directory)[0].intent.milestone is Milestone.SWITCHING

    async def test_that_ended_is_put_away_and_found_no_more(self, directory: Path) -> None:
        record = FileRecord("one", directory=directory)
        await record.begin(FACTS, MIGRATING)
        await record.end({"state": "completed"})
        assert unfinished(directory=directory) == []
        lines = (directory / "ended" / "one.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["end"] == {"state": "completed"}

    async def test_of_ended_ones_only_the_newest_are_kept(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(records, "_KEPT", 2)
        for name in "abcd":
            record = FileRecord(name, directory=directory)
            await record.begin(FACTS, MIGRATING)
            await record.end({})
        assert sorted(path.stem for path in (directory / "ended").iterdir()) == ["c", "d"]

    async def test_of_several_the_oldest_comes_first(self, directory: Path) -> None:
        for name in ("z", "a", "m"):
            await left(directory, MIGRATING, name=name)
        assert [found.record.path.stem for found in unfinished(directory=directory)] == ["z", "a", "m"]

    @pytest.mark.parametrize("ends", [False, True], ids=["begun", "ended"])
    async def test_whoever_is_cancelled_while_it_is_written_goes_on_when_that_is_done(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
    ) -> None:
        record = FileRecord("one", directory=directory)
        if ends:
            await record.begin(FACTS, MIGRATING)
        writing, room = threading.Event(), threading.Event()
        write = os.write

        def slow(fd: int, data: bytes) -> int:
            writing.set()
            assert room.wait(20)
            return write(fd, data)

        monkeypatch.setattr(os, "write", slow)
        task = asyncio.create_task(record.end({}) if ends else record.begin(FACTS, MIGRATING))
        assert await asyncio.to_thread(writing.wait, 20)
        for _ in range(2):
            task.cancel()
            await asyncio.wait({task}, timeout=0)
            assert not task.done()
        room.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        record.close()
        assert len(unfinished(directory=directory)) == (0 if ends else 1)

    def test_none_is_there_where_nothing_was_ever_moved(self, directory: Path) -> None:
        assert unfinished(directory=directory) == []

    def test_is_kept_where_the_desktop_says(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
        assert state_directory() == Path("/somewhere/migrator/direct")
        monkeypatch.setenv("XDG_STATE_HOME", "")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert state_directory() == tmp_path / ".local/state/migrator/direct"


class TestDamage:
    @pytest.mark.parametrize("torn", ['{"time": 1, "intent": {"mile', "{", '{"time": 1}'])
    async def test_of_a_torn_last_line_costs_that_line_only(self, directory: Path, torn: str) -> None:
        record = await left(directory, MIGRATING, SWITCHING)
        with record.path.open("a") as file:
            file.write(torn)
        (found,) = unfinished(directory=directory)
        assert found.intent.milestone is Milestone.SWITCHING
        # What the next one notes begins on a line of its own.
        found.claim().note_behind(replace(SWITCHING, milestone=Milestone.HANDED_OVER))
        found.record.close()
        assert Unfinished(record.path).intent.milestone is Milestone.HANDED_OVER

    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b"\n\n", b"not json\n", b"[]\n", b"5\n", b"\xff\xfe\x00\x80\n", b'{"facts": {}}\n'),
            *(
                b'{"facts": {}, "boot_id": "x", "intent": {}}\n',
                b'{"facts": {}, "boot_id": "x", "intent": null}\n',
            ),
            b'{"facts": {}, "boot_id": "x", "intent": {"milestone": 99, "undo": null}}\n',
            b'{"facts": {}, "boot_id": "x", "intent": {"milestone": 1, "undo": null, "unheard_of": 1}}\n',
        ],
    )
    async def test_beyond_reading_is_said_and_nothing_is_guessed(
        self, directory: Path, content: bytes
    ) -> None:
        directory.mkdir()
        (directory / "one.jsonl").write_bytes(content)
        with pytest.raises(RecordError, match=r"one.jsonl is damaged: look at both QEMUs by hand"):
            unfinished(directory=directory)

    async def test_of_the_first_line_is_not_made_up_for_by_later_ones(self, directory: Path) -> None:
        record = await left(directory, MIGRATING, SWITCHING)
        lines = record.path.read_text().splitlines()
        record.path.write_text("\n".join(["{", *lines[1:]]))
        with pytest.raises(RecordError, match="is damaged"):
            unfinished(directory=directory)

    async def test_that_cannot_be_read_is_said(self, directory: Path) -> None:
        (directory / "one.jsonl").mkdir(parents=True)
        with pytest.raises(RecordError, match="cannot read the record"):
            unfinished(directory=directory)


class TestReboot:
    async def test_counts_as_past_the_point_of_no_return(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The last lines may not have reached the disk.
        await left(directory, MIGRATING)
        await left(directory, Intent(milestone=Milestone.RETIRING), name="two")
        monkeypatch.setattr(records, "boot_id", lambda: "another")
        found = [each.intent.milestone for each in unfinished(directory=directory)]
        assert found == [Milestone.HANDED_OVER, Milestone.RETIRING]

    async def test_that_a_postcopy_is_begun_is_on_the_disk_before_it_is(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []
        fsync = os.fsync

        def noting(fd: int) -> None:
            fsync(fd)
            synced.append(Path(f"/proc/self/fd/{fd}").resolve().name)

        record = FileRecord("one", directory=directory)
        await record.begin(FACTS, Intent())
        monkeypatch.setattr(os, "fsync", noting)
        await record.note(MIGRATING)
        assert synced == []
        await record.note(replace(MIGRATING, postcopy=True))
        assert synced == ["one.jsonl"]
        record.close()


class TestLock:
    async def test_keeps_others_away_as_long_as_its_migrator_lives(self, directory: Path) -> None:
        record = FileRecord("one", directory=directory)
        await record.begin(FACTS, MIGRATING)
        (found,) = unfinished(directory=directory)
        with pytest.raises(RecordError, match="another migrator is moving this guest right now"):
            found.claim()
        record.close()
        found.claim()
        with pytest.raises(RecordError, match="another migrator"):
            Unfinished(record.path).claim()
        found.record.close()

    async def test_is_held_by_a_process_and_let_go_by_its_end(self, directory: Path) -> None:
        record = await left(directory, MIGRATING)
        script = (
            "import sys; from pathlib import Path; from migrator.store.records import Unfinished\n"
            "claimed = Unfinished(Path(sys.argv[1])).claim(); print('claimed', flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", script, str(record.path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "claimed\n"
            with pytest.raises(RecordError, match="another migrator"):
                Unfinished(record.path).claim()
            other.kill()
        Unfinished(record.path).claim().close()

    async def test_once_held_shows_what_was_noted_until_then(self, directory: Path) -> None:
        # Its migrator lived on between our first look and its death.
        record = FileRecord("one", directory=directory)
        await record.begin(FACTS, MIGRATING)
        (found,) = unfinished(directory=directory)
        record.note_behind(replace(SWITCHING, milestone=Milestone.HANDED_OVER))
        record.close()
        before = found.intent
        found.claim().close()
        assert before == taken_over(MIGRATING)
        assert found.intent == taken_over(replace(SWITCHING, milestone=Milestone.HANDED_OVER))

    async def test_of_one_that_ended_meanwhile_is_refused(self, directory: Path) -> None:
        record = FileRecord("one", directory=directory)
        await record.begin(FACTS, MIGRATING)
        (found,) = unfinished(directory=directory)
        await record.end({})
        with pytest.raises(RecordError, match="cannot take the record"):
            found.claim()


class TestNoRoom:
    """The disk is full: a limit on the size of files stands for that."""

    def run(self, directory: Path, script: str) -> str:
        head = (
            "import asyncio, resource, sys\n"
            "from pathlib import Path\n"
            "from migrator.core.migration.situation import Intent, Milestone\n"
            "from migrator.errors import RecordError\n"
            "from migrator.store.records import FileRecord, Unfinished, unfinished\n"
            "def room(more):\n"
            "    size = record.path.stat().st_size if record.path.exists() else 0\n"
            "    limit = resource.RLIM_INFINITY if more is None else size + more\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
            "record = FileRecord('one', directory=Path(sys.argv[1]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", head + script, str(directory)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_to_begin_is_an_error_and_leaves_nothing(self, directory: Path) -> None:
        said = self.run(
            directory,
            "room(10)\n"
            "try: asyncio.run(record.begin({'a': 1}, Intent()))\n"
            "except RecordError as error: print(error)\n",
        )
        assert "nothing was changed" in said
        assert "Make room there" in said
        assert list(directory.iterdir()) == []

    def test_for_a_note_is_an_error_and_the_next_one_is_whole(self, directory: Path) -> None:
        said = self.run(
            directory,
            "asyncio.run(record.begin({'a': 1}, Intent()))\n"
            "room(20)\n"
            "try: record.note_behind(Intent(milestone=Milestone.SWITCHING))\n"
            "except RecordError as error: print(error)\n"
            "print(Unfinished(record.path).intent.milestone.name)\n"
            "room(None)\n"
            "record.note_behind(Intent(milestone=Milestone.HANDED_OVER))\n"
            "print(Unfinished(record.path).intent.milestone.name)\n",
        )
        first, *milestones = said.splitlines()
        assert "cannot write the record" in first
        assert milestones == ["PREPARING", "HANDED_OVER"]


def test_every_field_of_an_intent_survives() -> None:
    # A field that is added has to be one that JSON knows.
    assert json.loads(json.dumps(asdict(SWITCHING)))["milestone"] == Milestone.SWITCHING
