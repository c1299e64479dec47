"""An end of a migration that is a file of a host: no QEMU, and no monitor."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

import migrator.hosts.state_program
from migrator.core.model import MigrationStatus, ProcessState, RunState, View
from migrator.core.preflight.facts import Facts
from migrator.core.saved_guest import PREFIX, SavedGuest, SurveyedFile
from migrator.errors import CommandFailed, HostError
from migrator.hosts.access import Coprocess, HostAccess
from migrator.ports import QemuEvent
from migrator.ports.unmonitored_end import UnmonitoredEnd

_PROGRAM = inspect.getsource(migrator.hosts.state_program)
#: Seconds that a small question about a file may take.
_SHORT = 15.0
SAVED = TypeAdapter(SavedGuest)
_SURVEYED = TypeAdapter(SurveyedFile)
#: Of a command line's length.
_PATHS_AT_ONCE = 100
#: Why a file cannot do what is asked for, by the name of the method.
_NOT_OF_A_FILE = {
    "mirror": "a file takes no disks",
    "encrypt": "a file takes no encrypted stream",
    "listen": "it is not written into",
    **dict.fromkeys(("migrate", "switch"), "it is not read"),
    **dict.fromkeys(
        ("start_postcopy", "pause_stream", "listen_again", "resume_stream"), "a file serves no pages"
    ),
}


@dataclass(frozen=True, kw_only=True)
class FileLook:
    """A file as it was seen a moment ago."""

    #: What is said beside it; ``None``: it is no saved guest.
    saved: SavedGuest | None
    #: Somebody writes or reads it.
    locked: bool
    #: There is a file of that name.
    there: bool
    #: Size of that file; ``None``: there is none, or something else.
    size: int | None
    #: Room in its directory; ``None``: there is no such directory.
    free_bytes: int | None
    #: Where the file system of that directory is mounted.
    filesystem: str
    #: Why others than root and migrator's user there may have made it, or may change it; empty: they cannot.
    distrust: str
    #: Images of the guest that are not as they were when it was saved.
    changed: tuple[str, ...]


class StateFile:
    """A file on a host, and the programs that work on it there."""

    def __init__(self, access: HostAccess, path: str) -> None:
        self.access, self.path = access, path

    async def ask(self, mode: str, *arguments: str) -> Mapping[str, Any]:
        """Have one thing done; what came of it.

        :raise HostError: it could not be done, in the program's words.
        """
        argv = ["python3", "-I", "-c", _PROGRAM, mode, self.path, *arguments]
        done = await self.access.run(argv, timeout=_SHORT)
        try:
            said = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            raise HostError(self.access.name, f"{self.path}: {done.complaint or 'no answer'}") from None
        if done.status or not isinstance(said, dict):
            raise HostError(self.access.name, f"{self.path}: {said.get('why', 'no answer')}")
        return said

    @staticmethod
    async def survey(access: HostAccess, paths: Sequence[str]) -> Mapping[str, SurveyedFile]:
        """Return what there is of each of these files on a host.

        :raise HostError: it cannot be asked.
        """
        found: dict[str, SurveyedFile] = {}
        for start in range(0, len(paths), _PATHS_AT_ONCE):
            argv = ["python3", "-I", "-c", _PROGRAM, "survey", *paths[start : start + _PATHS_AT_ONCE]]
            done = await access.run(argv, timeout=_SHORT)
            try:
                lines = [json.loads(line) for line in done.stdout.splitlines()]
                found |= {str(said["path"]): _SURVEYED.validate_python(_in_short(said)) for said in lines}
            except (ValueError, KeyError, TypeError):
                raise HostError(access.name, done.complaint or "what its files are is no answer") from None
        return found

    async def begin(self, mode: str, *arguments: str) -> Coprocess:
        """Begin what goes on beside us, and ends with us."""
        return await self.access.coprocess(["python3", "-I", "-c", _PROGRAM, mode, self.path, *arguments])

    async def look(self, migration: str = "") -> FileLook:
        """Return what there is now.

        :param migration: whose unfinished state counts as locked.
        :raise HostError: it cannot be read, or what is beside it is no description.
        """
        said = await self.ask("look", migration)
        document = said.get("document")
        return FileLook(
            saved=None if document is None else parse(document, self.access.name, self.path),
            locked=bool(said.get("locked")),
            there=bool(said.get("there")),
            size=said.get("size"),
            free_bytes=said.get("free"),
            filesystem=str(said.get("filesystem", "")),
            distrust=str(said.get("distrust", "")),
            changed=tuple(map(str, said.get("changed", ()))),
        )

    async def description(self) -> SavedGuest | None:
        """Return what is beside it; ``None`` where there is nothing.

        :raise HostError: it cannot be read, or is no description.
        """
        return (await self.look()).saved

    async def mark(self, *where: Mapping[str, Any], **change: Any) -> bool:
        """Change what its description says of its use, where it says one of these now; False: it does not."""
        wanted = json.dumps({"where": where, "set": change})
        return bool((await self.ask("mark", wanted))["done"])

    async def discard(self, where: Mapping[str, Any]) -> bool:
        """Delete it and its description, where that says this now; False: it does not.

        :raise HostError: it could not be done; somebody works on it.
        """
        return bool((await self.ask("discard", json.dumps(where)))["done"])


def _in_short(said: Mapping[str, Any]) -> dict[str, Any]:
    document = said.get("document")
    return {
        "saved": {key: each for key, each in document.items() if key != "guest"} if document else None,
        "size": said.get("size"),
        "changed": said.get("changed", ()),
        "problem": said.get("problem", ""),
    }


def parse(document: Any, host: str, path: str) -> SavedGuest:
    """Return a description from its JSON.

    :raise HostError: it is none.
    """
    try:
        return SAVED.validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(each) for each in first["loc"])
        raise HostError(
            host, f"{path}.json is no description of a saved guest ({where}: {first['msg']})"
        ) from error


def file_view(run: RunState, status: MigrationStatus) -> View:
    """Return what is seen of an end that is a file."""
    return View(process=ProcessState.ALIVE, answers=True, run=run, status=status, can_fence=True)


class FileEnd(UnmonitoredEnd):
    """An end of a migration that is a file: no QEMU, and no monitor. Implements :class:`migrator.ports.SourceQemu`."""

    shares_clock = True
    round_trip_seconds = least_round_trip_seconds = 0.0
    connected = True

    def __init__(self, file: StateFile, *, role: str, migration: str) -> None:
        super().__init__()
        self.file, self.migration = file, migration
        self.name = f"{role} {PREFIX}{file.path}"
        self.address_text = f"{PREFIX}{file.path}"
        self._notify: Callable[[], None] = lambda: None
        self.program: Coprocess | None = None
        self._reading: asyncio.Task[None] | None = None
        self.status = MigrationStatus.NONE
        #: What went wrong, in its program's words.
        self.problem = ""

    def _cannot(self, what: str) -> CommandFailed:
        reason = _NOT_OF_A_FILE.get(what, "it is a file, and no QEMU")
        return CommandFailed(self.name, what, "GenericError", reason)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"file": self.file.path, "migration": self.migration}

    # --- its program -------------------------------------------------------------------------------------------------

    def follow(self, program: Coprocess) -> None:
        self.program = program
        self._reading = asyncio.create_task(self._read(program), name=f"program of {self.name}")

    async def _read(self, program: Coprocess) -> None:
        async for line in program.lines:
            try:
                said = json.loads(line)
            except ValueError:
                said = {"event": "failed", "why": "its program says what is no JSON"}
            self.hear(said if isinstance(said, dict) else {})
            self._notify()
        if not self._done:
            self.hear({"event": "failed", "why": "its program has ended, or its host went away"})
            self._notify()

    @property
    def _done(self) -> bool:
        """Nothing more is to be heard of the program."""
        return self.status in (MigrationStatus.COMPLETED, MigrationStatus.FAILED, MigrationStatus.CANCELLED)

    def hear(self, said: Mapping[str, Any]) -> None:
        if said.get("event") == "failed" and not self._done:
            self.status, self.problem = MigrationStatus.FAILED, str(said.get("why", ""))[:500]

    async def end_program(self) -> None:
        program, self.program = self.program, None
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})
        if program is not None:
            program.close()

    # --- what an end of a migration is asked for ---------------------------------------------------------------------

    async def observe(self, *, timeout: float = 1.0) -> View:
        raise NotImplementedError

    def on_change(self, callback: Callable[[], None]) -> None:
        self._notify = callback

    def take_events(self) -> Sequence[QemuEvent]:
        return ()

    async def facts(self) -> Facts:
        raise NotImplementedError

    async def claim(self, migration: str, *, was: Mapping[str, Any] | None = None) -> None:
        """Note whose it is; whoever writes or reads the file holds a lock on it."""
        self.migration = self.migration or migration

    async def cont(self) -> None:
        raise NotImplementedError

    async def quit(self, *, timeout: float = 5.0) -> bool:
        raise NotImplementedError

    async def fence(self) -> bool:
        return await self.quit()

    def stderr_tail(self) -> str:
        return self.problem

    async def close(self) -> None:
        await self.end_program()
