"""Findings of ``migrator doctor``: one line each."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    #: Works, or will; a person should know all the same.
    WARN = "warn"
    #: Something will not work.
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True)
class DoctorCheck:
    """Result of one check."""

    level: Level
    #: ``configuration``, ``host a``, ...
    about: str
    text: str
    #: Remedy; empty where nothing is to be done.
    remedy: str = ""


def ok(about: str, text: str) -> DoctorCheck:
    """Return a check that found all well."""
    return DoctorCheck(level=Level.OK, about=about, text=text)


def warn(about: str, text: str, remedy: str = "") -> DoctorCheck:
    """Return a check that found something a person should know."""
    return DoctorCheck(level=Level.WARN, about=about, text=text, remedy=remedy)


def fail(about: str, text: str, remedy: str = "") -> DoctorCheck:
    """Return a check that found something that will not work."""
    return DoctorCheck(level=Level.FAIL, about=about, text=text, remedy=remedy)


def open_to_all(about: str, path: Path, what: str) -> list[DoctorCheck]:
    """Return a complaint where everybody may read or write a secret."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return [fail(about, f"{what} {path} cannot be read: {error.strerror}", "see its path and its owner")]
    if stat.S_IMODE(mode) & 0o007:
        return [warn(about, f"{what} {path} is open to every user of this machine", f"chmod o= {path}")]
    if not os.access(path, os.R_OK):
        return [fail(about, f"{what} {path} cannot be read by this user", f"see: ls -l {path}")]
    return []
