"""A directory for sockets that only we may reach; those of controllers that were killed are removed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX = "migrator-ssh-"
#: A directory without a lock is not touched before it is so old, in seconds: it may just be being made.
_YOUNG_SECONDS = 60.0


class PrivateDirectory:
    """A directory of mode 0700, locked for as long as it is used."""

    def __init__(self) -> None:
        parent = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        _remove_stale(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self._lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove the directory and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_stale(parent: Path) -> None:
    for path in parent.glob(f"{_PREFIX}*"):
        try:
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            _remove_if_old(path)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # its owner lives
        finally:
            os.close(lock)


def _remove_if_old(path: Path) -> None:
    try:
        old = time.time() - path.stat().st_mtime > _YOUNG_SECONDS
    except OSError:
        return  # gone meanwhile
    if old and not (path / "lock").exists():
        shutil.rmtree(path, ignore_errors=True)
