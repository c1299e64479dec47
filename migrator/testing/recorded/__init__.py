"""Answers of real QEMUs to questions about themselves, recorded by ``python -m migrator.testing.recorded.record``."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def path(version: str) -> Path:
    """Return where the recording of that QEMU is, as ``7.2``."""
    return _FOLDER / f"qemu-{version}.json.gz"


def versions() -> list[str]:
    """Return the versions that were recorded."""
    return sorted(found.name.removeprefix("qemu-").removesuffix(".json.gz") for found in _FOLDER.glob("*.gz"))


@cache
def read(version: str) -> dict[str, Any]:
    """Read ``greeting``, ``answers`` by command, ``properties`` and ``lists`` by path, ``schema``. Not to be changed.

    :raise ValueError: when that version was not recorded.
    """
    if version not in versions():
        raise ValueError(f"QEMU {version} was not recorded; there are {', '.join(versions())}")
    found: dict[str, Any] = json.loads(gzip.decompress(path(version).read_bytes()))
    return found
