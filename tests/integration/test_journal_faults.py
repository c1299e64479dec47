"""The journal on real file systems that are full, read-only, damaged or locked, and under a writer that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.core.migration.downsampling import Point
from migrator.core.model import Sample, State
from migrator.errors import JournalError
from migrator.store.database import Database
from migrator.store.journal import SqlJournal
from migrator.store.sqlite import FileTimeouts
from migrator.store.tokens import Tokens
from tests.conftest import missing


def migration(identifier: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "migration", {"id": identifier, "state": "precopy", "ended_at": None, **fields}


@contextlib.contextmanager
def mounted(where: Path, *arguments: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        missing("only root may mount")
    where.mkdir()
    subprocess.run(["mount", *arguments, str(where)], check=True, timeout=30)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True, timeout=30)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1M", "tmpfs") as where:
        yield where


def fill(where: Path) -> Path:
    """Take all the room that is left there."""
    rest = where / "rest"
    with rest.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (65536, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return rest


async def refuses(journal: SqlJournal, why: str) -> None:
    """It says so in one line to whoever writes, and to whoever asks later; what was there can be read."""
    with pytest.raises(JournalError, match=why) as caught:
        await journal.save(migration("lost"), migration("m1", state="lost"))
    assert "\n" not in str(caught.value)
    assert str(caught.value) == journal.complaint
    assert re.search(why, await journal.probe())
    assert await journal.probe() == journal.complaint
    assert await journal.find("migration", "lost") is None
    assert (await journal.unfinished("migration"))[0]["state"] == "precopy"


async def works(journal: SqlJournal) -> None:
    assert await journal.probe() == ""
    await journal.save(migration("after"))
    assert await journal.find("migration", "after") is not None
    assert journal.complaint == ""


def integrity(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


class TestFullDisk:
    async def test_is_said_until_there_is_room_again(self, small: Path) -> None:
        async with await SqlJournal.open(small / "journal.db") as journal:
            await journal.save(migration("m1"))
            rest = fill(small)
            with contextlib.suppress(JournalError):  # what room the log has left is used up first
                while True:
                    await journal.save(migration("big", text="x" * 65536))
            await refuses_big(journal)
            rest.unlink()
            await works(journal)
        assert integrity(small / "journal.db") == "ok"

    async def test_costs_figures_of_migrations_and_nothing_else(self, small: Path) -> None:
        async with await SqlJournal.open(small / "journal.db") as journal:
            await journal.save(migration("m1"))
            rest = fill(small)
            added = 0
            while not journal.complaint:  # what room the log has left is used up first
                for number in range(300):
                    point = Point(sample=Sample(at_seconds=number, round=number), state=State.PRECOPY)
                    journal.samples.add(f"m{added}", point)
                await journal.samples.flush()
                added += 1
                assert added < 200
            assert "the disk is full: make room" in journal.complaint
            rest.unlink()
            await works(journal)
            # Those of a moment ago are still in memory: with room they are written after all.
            await journal.samples.flush()
        assert integrity(small / "journal.db") == "ok"
        async with await SqlJournal.open(small / "journal.db") as journal:
            assert len(await journal.samples.of(f"m{added - 1}")) == 300

    async def test_writes_nothing_by_halves(self, small: Path) -> None:
        """Of batches of ten, every one is there whole or not at all."""
        saved: list[int] = []
        async with await SqlJournal.open(small / "journal.db") as journal:
            for batch in range(200):
                documents = [migration(f"{batch}.{n}", text="x" * 2000) for n in range(10)]
                with contextlib.suppress(JournalError):
                    await journal.save(*documents)
                    saved.append(batch)
            assert 0 < len(saved) < 200
            assert "the disk is full: make room" in journal.complaint
        async with await SqlJournal.open(small / "journal.db") as journal:
            found = {each["id"] for each in await journal.unfinished("migration")}
        assert found == {f"{batch}.{n}" for batch in saved for n in range(10)}
        assert integrity(small / "journal.db") == "ok"

    async def test_is_said_where_there_is_no_room_to_open_it(self, small: Path) -> None:
        async with await SqlJournal.open(small / "journal.db") as journal:
            await journal.save(migration("m1"))
        rest = fill(small)
        with pytest.raises(JournalError, match=r"cannot be opened: the disk is full: make room") as caught:
            await SqlJournal.open(small / "journal.db")
        assert "\n" not in str(caught.value)
        rest.unlink()
        async with await SqlJournal.open(small / "journal.db") as journal:
            await works(journal)

    async def test_keeps_nobody_from_reading_what_a_killed_service_left(self, small: Path) -> None:
        writer(small / "journal.db", "save('m1'); stop()").kill_and_wait()
        rest = fill(small)
        async with await SqlJournal.open(small / "journal.db") as journal:
            assert [each["id"] for each in await journal.unfinished("migration")] == ["m1"]
            rest.unlink()
            await works(journal)


async def refuses_big(journal: SqlJournal) -> None:
    with pytest.raises(JournalError, match=r"cannot be written: the disk is full: make room there") as caught:
        await journal.save(migration("m2"), migration("lost", text="x" * 500_000))
    assert "\n" not in str(caught.value)
    assert journal.complaint == str(caught.value)
    assert await journal.find("migration", "lost") is None
    assert await journal.find("migration", "m2") is None
    assert await journal.find("migration", "m1") is not None


class TestReadOnly:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        if shutil.which("mkfs.ext4") is None:
            missing("there is no mkfs.ext4 in PATH")
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=30)
        return image

    async def test_once_the_kernel_gives_the_disk_up_is_said(self, tmp_path: Path, image: Path) -> None:
        with mounted(tmp_path / "disk", "-o", "loop,errors=remount-ro", str(image)) as disk:
            device = subprocess.run(
                ["findmnt", "-no", "SOURCE", str(disk)], check=True, capture_output=True, text=True
            ).stdout.strip()
            async with await SqlJournal.open(disk / "journal.db") as journal:
                await journal.save(migration("m1"))
                Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("a test")
                await refuses(journal, "cannot be written: ")

    async def test_from_the_beginning_it_is_read_all_the_same(self, tmp_path: Path, image: Path) -> None:
        with mounted(tmp_path / "disk", "-o", "loop", str(image)) as disk:
            writer(disk / "journal.db", "save('m1'); stop()").kill_and_wait()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=30)
            async with await SqlJournal.open(disk / "journal.db") as journal:
                assert "it is read-only" in journal.complaint
                await refuses(journal, "it is read-only: look at its owner")
                subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True, timeout=30)
                await works(journal)

    async def test_without_a_journal_it_cannot_be_opened(self, tmp_path: Path, image: Path) -> None:
        with (
            mounted(tmp_path / "disk", "-o", "loop,ro", str(image)) as disk,
            pytest.raises(JournalError, match=r"cannot be opened: Read-only file system"),
        ):
            await SqlJournal.open(disk / "journal.db")


class TestLock:
    async def test_of_another_program_is_said_until_it_lets_go(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        async with await SqlJournal.open(path, timeouts=FileTimeouts(lock_seconds=0.2)) as journal:
            await journal.save(migration("m1"))
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                await refuses(journal, r"another program has locked it: see who has it open \(fuser\)")
                other.execute("ROLLBACK")
            await works(journal)

    async def test_that_is_short_is_waited_for(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        async with await SqlJournal.open(path) as journal:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                saving = asyncio.create_task(journal.save(migration("m1")), name="save")
                done, _ = await asyncio.wait([saving], timeout=0.3)
                assert not done
                # Nobody who only looks is kept waiting.
                assert await journal.unfinished("migration") == []
                other.execute("COMMIT")
                await saving
            assert journal.complaint == ""

    async def test_keeps_a_second_service_away(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        async with await SqlJournal.open(path):
            with pytest.raises(JournalError, match="in use by another service: there can be one"):
                await SqlJournal.open(path)
            beside = await Database.open(path, alone=False)
            await beside.close()
            with pytest.raises(JournalError, match="in use by another service"):
                await SqlJournal.open(path)
        async with await SqlJournal.open(path):
            pass


class TestPlace:
    @pytest.mark.parametrize("below", ["", "deeper"])
    async def test_that_is_a_file_is_said_with_what_to_do(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "state").write_text("here")
        parent = tmp_path / "state" / below
        with pytest.raises(
            JournalError,
            match=rf"(File exists|Not a directory): {parent} has to be a directory, .*; move away",
        ):
            await SqlJournal.open(parent / "journal.db")
        assert (tmp_path / "state").read_text() == "here"

    @pytest.mark.parametrize("mode", [0o000, 0o555])
    def test_that_is_another_users_is_said_with_what_to_do(self, tmp_path: Path, mode: int) -> None:
        state = tmp_path / "state"
        state.mkdir(mode=mode)
        # Root may write everywhere, unless it gives that up.
        weak = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
        tried = subprocess.run(
            [*(weak if os.geteuid() == 0 else ()), sys.executable, "-c", _OPENS, str(state / "journal.db")],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert f"Permission denied: the service's user must be able to write {state}, and" in tried.stdout
        state.chmod(0o700)
        assert list(state.iterdir()) == []


_OPENS = """
import asyncio, sys
from pathlib import Path
from migrator.errors import JournalError
from migrator.store.tokens import Tokens

try:
    asyncio.run(Tokens.open(Path(sys.argv[1])))
except JournalError as error:
    print(error)
"""


#: Of a new journal's file; the tables with nothing in them are before it.
_SCHEMA_BYTES = 512 << 10


class TestDamage:
    @pytest.mark.parametrize(
        "content", [b"not a database at all " * 500, b"SQLite format 3\0" + b"\xff" * 9000]
    )
    async def test_at_the_beginning_is_refused_in_one_line(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "journal.db"
        path.write_bytes(content)
        with pytest.raises(
            JournalError, match=r"journal.db cannot be opened: it is (no database|damaged)"
        ) as caught:
            await SqlJournal.open(path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == content

    async def test_later_on_is_said_when_it_is_met(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        async with await SqlJournal.open(path) as journal:
            for n in range(50):
                await journal.save(migration(f"m{n}", text="x" * 20000))
        with path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(_SCHEMA_BYTES)
            file.write(b"\xff" * (size - _SCHEMA_BYTES))
        async with await SqlJournal.open(path) as journal:
            with pytest.raises(JournalError, match=r"cannot be read: it is damaged: stop the service"):
                await journal.unfinished("migration")

    async def test_is_not_seen_in_another_programs_database(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE theirs (a)")
        with pytest.raises(JournalError, match="is a database, but not a journal of migrator"):
            await SqlJournal.open(path)


class TestDeath:
    async def test_at_any_instant_loses_nothing_that_was_said_to_be_saved(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        rng = random.Random(7)
        expected: set[str] = set()
        for life in range(5):
            process = writer(path, f"for n in range(10**6): save(f'{life}.{{n}}', f'{life}.{{n}}b')")
            process.until(rng.randrange(1, 60))
            said = process.kill_and_wait()
            assert said
            expected |= set(said) | {f"{each}b" for each in said}
            async with await SqlJournal.open(path) as journal:
                found = {each["id"] for each in await journal.unfinished("migration")}
                assert expected <= found
                # What was not heard of any more may be there besides, and then whole.
                expected = found
                assert [each for each in found if not each.endswith("b") and f"{each}b" not in found] == []
        assert integrity(path) == "ok"

    async def test_between_claim_and_answer_leaves_the_claim(self, tmp_path: Path) -> None:
        path = tmp_path / "journal.db"
        script = (
            "run(journal.claim_command(key='ann\\n1', verb='migrate', body_hash='h', body={}, caller={}))\n"
            "stop('claimed')"
        )
        process = writer(path, script)
        process.until(1)
        assert process.kill_and_wait() == ["claimed"]
        async with await SqlJournal.open(path) as journal:
            again = await journal.claim_command(
                key="ann\n1", verb="migrate", body_hash="h", body={}, caller={}
            )
            assert (again.new, again.reply) == (False, None)


def test_a_process_ends_once_its_journal_is_closed(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom migrator.store.journal import SqlJournal\n"
        "async def main():\n"
        "    async with await SqlJournal.open(Path(sys.argv[1])) as journal:\n"
        "        await journal.save(('migration', {'id': 'm1'}))\n"
        "        await asyncio.gather(*(journal.unfinished('migration') for _ in range(20)))\n"
        "    raise SystemExit(3)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script, str(tmp_path / "journal.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    # All of it is in the one file, which can be copied.
    assert sorted(each.name for each in tmp_path.iterdir()) == ["journal.db", "journal.db.lock"]


async def test_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "journal.db"
    async with await SqlJournal.open(path) as journal:
        await journal.save(migration("m1"))
        modes = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
    assert set(modes) == {f"journal.db{suffix}" for suffix in ("", "-wal", "-shm", ".lock")}
    assert set(modes.values()) == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_made_by_root_it_is_the_services(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("only root can give files away")
    directory = tmp_path / "state"
    directory.mkdir()
    os.chown(directory, 65534, 65533)
    async with await Tokens.open(directory / "journal.db") as tokens:
        await tokens.create(name="ann", role="viewer")
        found = {each.name: (each.stat().st_uid, each.stat().st_gid) for each in directory.iterdir()}
    assert set(found.values()) == {(65534, 65533)}, found
    assert "journal.db-wal" in found


async def test_it_syncs_before_it_says_saved(tmp_path: Path) -> None:
    opened = await Database.open(tmp_path / "journal.db")
    try:

        async def pragmas(connection: Any) -> list[Any]:
            return [
                (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous")
            ]

        assert await opened.write(pragmas) == ["wal", 2]
    finally:
        await opened.close()


class TestCancellation:
    async def test_of_a_writer_does_not_undo_what_was_begun(self, tmp_path: Path) -> None:
        async with await SqlJournal.open(tmp_path / "journal.db") as journal:
            for n in range(40):
                saving = asyncio.create_task(journal.save(migration(f"m{n}")), name="save")
                for _ in range(n % 13):
                    await asyncio.sleep(0)
                saving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await saving
            await journal.save(migration("last"))
            assert journal.complaint == ""
            assert (await journal.unfinished("migration"))[-1]["id"] == "last"

    async def test_of_readers_leaves_room_for_others(self, tmp_path: Path) -> None:
        async with await SqlJournal.open(tmp_path / "journal.db") as journal:
            await journal.save(*(migration(f"m{n}", text="x" * 500) for n in range(200)))
            for n in range(60):
                reading = asyncio.create_task(journal.unfinished("migration"), name="read")
                for _ in range(n % 29):
                    await asyncio.sleep(0)
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reading
            assert len(await asyncio.wait_for(journal.unfinished("migration"), 5)) == 200


async def test_after_close_nothing_is_taken(tmp_path: Path) -> None:
    journal = await SqlJournal.open(tmp_path / "journal.db")
    await journal.save(migration("m1"))
    under_way = asyncio.create_task(journal.save(migration("m2")), name="save")
    await asyncio.sleep(0)
    await journal.close()
    await journal.close()
    await under_way
    with pytest.raises(JournalError, match="is closed"):
        await journal.save(migration("m3"))
    with pytest.raises(JournalError, match="is closed"):
        await journal.find("migration", "m1")
    async with await SqlJournal.open(tmp_path / "journal.db") as journal:
        assert len(await journal.unfinished("migration")) == 2


async def test_a_disk_that_does_not_answer_is_said(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with await SqlJournal.open(path, timeouts=FileTimeouts(answer_seconds=1.5)) as journal:
        # A lock that is held for longer than that stands for the disk.
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(
                JournalError, match=r"the disk does not answer \(waited 1.5 s; .* may still be written"
            ):
                await journal.save(migration("m1"))
            assert "does not answer" in journal.complaint
            other.execute("COMMIT")
        await works(journal)


class Writer:
    """A process that saves and says, a line each, what it has saved."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []

    def until(self, lines: int) -> None:
        """Wait until it has said so many."""
        assert self.process.stdout is not None
        while len(self.said) < lines:
            line = self.process.stdout.readline()
            assert line, "the writer ended by itself"
            self.said.append(line.strip())

    def kill_and_wait(self) -> list[str]:
        """SIGKILL; everything that it had said."""
        assert self.process.stdout is not None
        if not self.said:
            self.until(1)
        time.sleep(random.Random(len(self.said)).uniform(0, 0.01))
        self.process.kill()
        rest, _ = self.process.communicate(timeout=20)
        # A line that was cut short is still said by its beginning only: it does not count.
        lines = rest.splitlines(keepends=True)
        self.said += [line.strip() for line in lines if line.endswith("\n")]
        return self.said


def writer(path: Path, script: str) -> Writer:
    head = (
        "import asyncio, os, sys\nfrom pathlib import Path\nfrom migrator.store.journal import SqlJournal\n"
        "runner = asyncio.Runner()\nrun = runner.run\n"
        "def stop(*said):\n"
        "    for each in said: print(each, flush=True)\n"
        "    sys.stdin.read()\n"
        "def save(*ids):\n"
        "    run(journal.save(*(('migration', {'id': each, 'state': 'precopy'}) for each in ids)))\n"
        "    os.write(1, f'{ids[0]}\\n'.encode())\n"
        "journal = run(SqlJournal.open(Path(sys.argv[1])))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", head + script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    return Writer(process)
