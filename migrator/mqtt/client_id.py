"""The id of the broker's session, kept beside the journal: whoever knows it can take the session over."""

from __future__ import annotations

import os
from pathlib import Path

from migrator.errors import JournalError

#: Beside the journal.
NAME = "mqtt-client-id"


def read(directory: Path) -> str:
    """The id that was kept there; empty where there is none that can be read."""
    try:
        return (directory / NAME).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def keep(directory: Path, client_id: str) -> None:
    """Write it down, whole or not at all, for the service's user alone.

    :raise JournalError: it cannot be written.
    """
    path = directory / NAME
    beginning = path.with_name(f"{NAME}.new")
    try:
        beginning.unlink(missing_ok=True)
        beginning.touch(mode=0o600, exist_ok=False)
        with beginning.open("w", encoding="ascii") as file:
            file.write(client_id + "\n")
            file.flush()
            os.fsync(file.fileno())
        beginning.replace(path)
    except OSError as error:
        raise JournalError(
            f"{path} cannot be written: {error.strerror}; make room, or see its owner"
        ) from error
