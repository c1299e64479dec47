"""A guest whose state is in a file: what is kept beside it, and what speaks against using it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from migrator.core.preflight.facts import Facts

#: How an end of a migration that is a file is found again, in place of the path of a socket.
PREFIX = "file:"
#: Version of the description; a later one is not understood. Of a stream it is 1, which older versions understand.
FORMAT = 2


#: The first QEMU that writes and reads a state of the form ``mapped-ram``.
_WITH_MAPPED_RAM = (9, 0)


class FileForm(StrEnum):
    """Form of the state in a file."""

    #: QEMU's migration stream, which every version reads.
    STREAM = "stream"
    #: Each page of memory at a place of its own; written and read by several threads, from QEMU 9.0 on.
    MAPPED = "mapped-ram"


def reads_mapped(version: str) -> bool:
    """Tell whether a QEMU of that version knows the form ``mapped-ram``."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= _WITH_MAPPED_RAM


class SavedState(StrEnum):
    """Use that may be made of a file."""

    #: It is whole, and its migration has not ended: its guest may go on where it was.
    UNCONFIRMED = "unconfirmed"
    #: Its guest is nowhere else.
    SAVED = "saved"
    #: A migration takes the guest out of it, and may have let it run already.
    LOADING = "loading"
    #: Its guest runs, or ran, somewhere: what is in it is of the past.
    LOADED = "loaded"


@dataclass(frozen=True, kw_only=True)
class SavedGuest:
    """Description of a saved guest."""

    format: int
    #: The migration that saved it.
    migration: str
    state: SavedState
    #: Seconds since the epoch.
    saved_at: float
    #: As the inventory knew it: key, uuid, name.
    guest: Mapping[str, str]
    host: str
    #: Identity of the process that it was saved from.
    source: Mapping[str, Any]
    #: It ran when it was saved, and runs again when it is loaded.
    runs: bool
    #: The command line that starts a QEMU for it.
    arguments: Sequence[str]
    machine: str
    #: Options that name it, where it has no uuid.
    naming: Sequence[str] = ()
    facts: Facts
    #: What somebody had set in its QEMU while it ran, as :mod:`migrator.qemu.runtime_state` writes it.
    runtime: Mapping[str, Any]
    bytes: int = 0
    sha256: str = ""
    form: FileForm = FileForm.STREAM
    #: Images of its disks, each with its size and the time of its last change (nanoseconds since the epoch) once it was
    #: saved; nothing for what is no file.
    images: Mapping[str, Sequence[int]] = field(default_factory=dict)
    #: With ``loading`` and ``loaded``: by which migration, and where.
    loaded_by: str = ""
    loaded_at: str = ""


def why_not(saved: SavedGuest | SavedSummary, path: str, *, completed: bool) -> str:
    """Return why a file cannot be loaded; empty where it can.

    :param completed: the journal says that the migration which saved it has completed.
    """
    if saved.format > FORMAT:
        return f"{path} was saved by a later version of migrator (format {saved.format})"
    match saved.state:
        case SavedState.LOADED:
            by = f"migration {saved.loaded_by}, at {saved.loaded_at}"
            return f"{path} was loaded already ({by}): what is in it is old"
        case SavedState.LOADING:
            return f"{path} is being loaded by migration {saved.loaded_by}: see migrator status {saved.loaded_by}"
        case SavedState.UNCONFIRMED if not completed:
            return (
                f"migration {saved.migration}, which saved {path}, has not completed as far as the journal knows: its "
                "guest may have gone on where it was"
            )
    return ""


@dataclass(frozen=True, kw_only=True)
class SavedSummary:
    """Short description of a saved guest, as a survey of files tells it."""

    migration: str
    state: SavedState
    format: int
    saved_at: float
    machine: str
    #: Path of the QEMU that saved it, and its version.
    binary: str
    version: str
    bytes: int
    form: FileForm = FileForm.STREAM
    loaded_by: str = ""
    loaded_at: str = ""


@dataclass(frozen=True, kw_only=True)
class SurveyedFile:
    """A file as a survey of its host has found it."""

    #: ``None``: there is no description of a saved guest.
    saved: SavedSummary | None = None
    #: Size of the file; ``None``: it is not there.
    size: int | None = None
    #: Images of its disks that are not there, or not as they were when it was saved.
    changed: Sequence[str] = ()
    #: Why what is there cannot be read.
    problem: str = ""


def why_not_there(seen: SurveyedFile, migration: str, *, completed: bool, qemus: Mapping[str, str]) -> str:
    """Return why a file cannot be loaded on a host that was asked about it; empty where nothing is known against it.

    :param migration: the one that saved it.
    :param completed: see :func:`why_not`.
    :param qemus: the QEMUs of that host: path and version.
    """
    saved = seen.saved
    if seen.problem:
        return seen.problem
    if saved is None or seen.size is None:
        return "the file is not there"
    if saved.migration != migration:
        return f"another saved guest is there, of migration {saved.migration}"
    if why := why_not(saved, "it", completed=completed):
        return why
    if seen.size != saved.bytes:
        return f"it has {seen.size} bytes, and had {saved.bytes} when it was saved"
    if seen.changed:
        return f"not there, or changed since it was saved: {', '.join(seen.changed[:5])}"
    program = saved.binary.rpartition("/")[2]
    there = qemus.get(saved.binary, "")
    if saved.form is FileForm.MAPPED and there and not reads_mapped(there):
        return f"it has the form mapped-ram, which QEMU {there} there does not read (9.0 or later does)"
    if qemus and not any(path.rpartition("/")[2] == program for path in qemus):
        return f"there is no {program}"
    return ""
