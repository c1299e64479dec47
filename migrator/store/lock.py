"""One service at a time: a lock beside the journal, held by the kernel for as long as the process lives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from migrator.errors import JournalError
from migrator.store import schema


def locked(path: Path, revision: str | None = None) -> int:
    """Keep every service away from it.

    :param revision: what it is to be upgraded from, where that is why.
    """
    # A file of its own: closing any descriptor of the database would drop SQLite's locks on it.
    lock = owned(path.with_name(f"{path.name}.lock"), os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        if revision is None:
            raise JournalError(
                f"the journal {path} is in use by another service: there can be one; stop it first"
            ) from None
        what_to_do = (
            "restart that service with this version"
            if schema.knows(revision)
            else "use the migrator of that version, which is newer"
        )
        raise JournalError(
            f"the service that runs is of another version (the schema of its journal {path} is {revision}, this "
            f"version's is {schema.HEAD}): {what_to_do}"
        ) from None
    return lock


def owned(path: Path, flags: int) -> int:
    """Open a file, made where there is none; root makes it for whom the directory belongs to: the service."""
    new = not path.exists()
    file = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if new and os.geteuid() == 0:
        directory = path.parent.stat()
        os.fchown(file, directory.st_uid, directory.st_gid)
    return file
