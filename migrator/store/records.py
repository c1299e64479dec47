"""Records of migrations that no service keeps a journal for: one file each, in the state directory.

A record is a file of JSON lines. The first says what is about to be done and how things were; every further one
adds an intent. While a migrator drives the migration it holds a lock on the file, so that two never drive one guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from migrator.core.migration.situation import Intent, Milestone, OperatorAnswer
from migrator.core.model import State
from migrator.errors import RecordError, RecordInUse
from migrator.machine import boot_id

#: Records of ended migrations that are kept for whoever wants to look.
_KEPT = 200
#: For the notes of one migration: a dozen, of less than a kilobyte each.
_ROOM_BYTES = 32 * 1024
#: linux/falloc.h: the file does not look longer for it.
_FALLOC_FL_KEEP_SIZE = 1
#: Nobody takes so long to begin a record: its migrator died in it.
_CUT_SHORT_SECONDS = 3600.0


def state_directory() -> Path:
    """Return ``$XDG_STATE_HOME/migrator/direct``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "migrator" / "direct"


class FileRecord:
    """See :class:`migrator.ports.Record`.

    Its directory is made on the first :meth:`begin`.

    :param name: the migration's id; names the file.
    """

    def __init__(self, name: str, *, directory: Path | None = None) -> None:
        self.directory = directory or state_directory()
        self.path = self.directory / f"{name}.jsonl"
        self._fd = -1
        self.noted_at: float | None = None
        self._torn = False  # the last line was cut short, for lack of room

    async def begin(self, facts: Mapping[str, Any], intent: Intent) -> None:
        line = {
            "version": 1,
            "time": time.time(),
            "boot_id": boot_id(),
            "facts": dict(facts),
            "intent": asdict(intent),
        }
        await _in_thread(functools.partial(self._create, json.dumps(line)))

    def _create(self, line: str) -> None:
        # Under another name until it is whole: one that was cut short would look like a migration left unfinished.
        beginning = self.path.with_suffix(".new")
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.path.exists():
                raise FileExistsError(errno.EEXIST, "there is one of that name")
            self._fd = os.open(
                beginning, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._append(line)
            _keep_room(self._fd, _ROOM_BYTES)
            os.fsync(self._fd)
            beginning.rename(self.path)
            directory = os.open(self.directory, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            if self._fd >= 0:
                beginning.unlink(missing_ok=True)
                self.path.unlink(missing_ok=True)
            raise RecordError(
                f"cannot write the record {self.path}: {error.strerror}; nothing was changed. "
                "Make room there or set XDG_STATE_HOME to another directory"
            ) from error

    def _append(self, line: str) -> None:
        data = (b"\n" if self._torn else b"") + line.encode() + b"\n"
        written = os.write(self._fd, data)
        self._torn = written != len(data)
        if self._torn:
            raise OSError(errno.ENOSPC, "no space left for the whole line")

    async def note(self, intent: Intent) -> None:
        self.note_behind(intent)  # the file outlives the process
        if not intent.postcopy:
            return
        # ... and this outlives its machine: what both ends show of a migration that failed cannot be told from precopy.
        fd = self._fd
        try:
            await _in_thread(lambda: os.fsync(fd))
        except OSError as error:
            raise RecordError(f"cannot write the record {self.path}: {error.strerror}") from error

    def note_behind(self, intent: Intent) -> None:
        try:
            self._append(json.dumps({"time": time.time(), "intent": asdict(intent)}))
        except OSError as error:
            raise RecordError(f"cannot write the record {self.path}: {error.strerror}") from error

    async def end(self, outcome: Mapping[str, Any]) -> None:
        await _in_thread(functools.partial(self.put_away, outcome))

    def put_away(self, outcome: Mapping[str, Any]) -> None:
        """End the record like :meth:`end`, for whoever has no event loop."""
        line = json.dumps({"time": time.time(), "end": dict(outcome)})
        ended = self.directory / "ended"
        try:
            self._append(line)
            ended.mkdir(exist_ok=True, mode=0o700)
            self.path.replace(ended / self.path.name)
            for old in _by_age(ended.iterdir())[:-_KEPT]:
                old.unlink(missing_ok=True)
            for cut_short in self.directory.glob("*.new"):
                if cut_short.stat().st_mtime < time.time() - _CUT_SHORT_SECONDS:
                    cut_short.unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(
                f"the migration has ended, but its record {self.path} cannot be put away: {error.strerror}; "
                "delete it by hand"
            ) from error
        finally:
            self.close()

    def reopen(self) -> FileRecord:
        """Lock a record that is there already.

        :raise RecordError: when a living migrator holds it, or it is gone.
        """
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._fd).st_ino != self.path.stat().st_ino:
                raise FileNotFoundError(errno.ENOENT, "its migration has just ended")
            self._append("")  # an interrupted write ends here
        except OSError as error:
            self.close()
            if isinstance(error, BlockingIOError):
                raise RecordInUse(
                    f"cannot take the record {self.path} up: another migrator is moving this guest right now; wait for "
                    "it"
                ) from error
            raise RecordError(f"cannot take the record {self.path} up: {error.strerror}") from error
        return self

    def close(self) -> None:
        """Let go of the lock; the record stays for whoever takes it up."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _keep_room(fd: int, size: int) -> None:
    """Have a file's next `size` bytes on its disk already: what is noted at the switch is not refused for lack of room.

    :raise OSError: there is no room for them now. A file system that cannot keep any is no error.
    """
    import ctypes  # noqa: PLC0415 - slow, and wanted only where something is about to be changed

    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.fallocate(
        fd, _FALLOC_FL_KEEP_SIZE, ctypes.c_longlong(os.fstat(fd).st_size), ctypes.c_longlong(size)
    )
    error = ctypes.get_errno()
    if done != 0 and error in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(error, os.strerror(error))


async def _in_thread(work: Callable[[], None]) -> None:
    """Do it in a thread, to its end. Whoever is cancelled meanwhile waits for that end too: the file descriptor is the
    thread's until then, and a number that was closed twice may be another file's by the second time.
    """
    working = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with contextlib.suppress(
                asyncio.CancelledError
            ):  # it is told to whoever cancelled by the first one
                await asyncio.wait({working})
        raise


class Unfinished:
    """A record that another controller left, read and ready to be taken up.

    After a reboot of this machine the record's last lines may be lost, so the point of no return then counts as
    passed.

    :ivar facts: what :meth:`FileRecord.begin` was given.
    :ivar intent: the last one noted, with ``live`` false.
    :raise RecordError: when it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.record = FileRecord(path.stem, directory=path.parent)
        self._read()

    def _read(self) -> None:
        path = self.record.path
        try:
            lines = list(_readable(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise RecordError(f"cannot read the record {path}: {error.strerror}") from error
        except UnicodeError:
            lines = []
        try:
            self.facts: dict[str, Any] = lines[0]["facts"]
            self.intent = intent_of([line["intent"] for line in lines if "intent" in line][-1])
            self.record.noted_at = [line["time"] for line in lines if "intent" in line][-1]
            if lines[0]["boot_id"] != boot_id():
                self.intent = replace(
                    self.intent, milestone=max(self.intent.milestone, Milestone.HANDED_OVER)
                )
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise RecordError(
                f"the record {path} is damaged: look at both QEMUs by hand, then delete it"
            ) from error

    def claim(self) -> FileRecord:
        """Lock it, read it again, and write to it from here on.

        :raise RecordError: when a living migrator drives this migration, or did until a moment ago and ended it.
        """
        self.record.reopen()
        self._read()  # its migrator may have lived on until a moment ago
        return self.record


def _readable(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # the last write of a controller that died in it


def intent_of(fields: dict[str, Any]) -> Intent:
    """Return the intent that was noted, for whoever takes it up."""
    undo = fields["undo"]
    return Intent(
        **fields
        | {
            "milestone": Milestone(fields["milestone"]),
            "undo": None if undo is None else State(undo),
            "said": None if fields.get("said") is None else OperatorAnswer(fields["said"]),
            "live": False,
            # Whoever takes it up tries again what the other could not, or did not live to do.
            "dismissed": False,
            "fence_failed": False,
        }
    )


def unfinished(*, directory: Path | None = None) -> list[Unfinished]:
    """Return every record that has not been put away, oldest first; none is locked yet.

    :raise RecordError: when one cannot be read.
    """
    left = []
    for path in _by_age((directory or state_directory()).glob("*.jsonl")):
        try:
            left.append(Unfinished(path))
        except RecordError:
            if path.exists():
                raise  # else its migration has just ended
    return left


@dataclass(frozen=True, kw_only=True)
class Completed:
    """The record of a migration that brought its guest to the destination."""

    path: Path
    #: What :meth:`FileRecord.begin` was given.
    facts: Mapping[str, Any]
    #: When it was put away, in seconds since the epoch.
    ended_at: float


def completed(source: str, destination: str, *, directory: Path | None = None) -> Completed | None:
    """Return the last record of this pair of addresses that was put away, if that migration completed.

    One that cannot be read is passed over: it is only there to be looked at.
    """
    try:
        paths = _by_age(((directory or state_directory()) / "ended").glob("*.jsonl"))
    except OSError:
        return None
    for path in reversed(paths):
        try:
            lines = list(_readable(path.read_text(encoding="utf-8")))
            facts, end = lines[0]["facts"], lines[-1]
            if (facts["source"]["address"], facts["destination"]["address"]) != (source, destination):
                continue
            if end["end"]["state"] != State.COMPLETED:
                return None
            return Completed(path=path, facts=facts, ended_at=float(end["time"]))
        except (OSError, UnicodeError, IndexError, KeyError, TypeError, ValueError):
            continue
    return None


def _by_age(paths: Iterable[Path]) -> list[Path]:
    """Return the paths, the oldest first; those that somebody takes away meanwhile are not missed."""
    aged = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            aged.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(aged)]
