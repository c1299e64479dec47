"""The token of a controller's own lease, in its state directory.

A controller that begins anew takes its lease at once: it is the one that had it under the token which is written there.
In a copy of the directory the same is written, but only one of the two can have the lease from then on.
"""

from __future__ import annotations

from pathlib import Path

from migrator import logs

_FILE = "controller.lease"


class KeptToken:
    """Reads and keeps it.

    :param directory: the state directory.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FILE

    def read(self) -> int | None:
        """Return the token that was kept last; ``None`` where none was, or it cannot be read."""
        try:
            return int(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def keep(self, token: int) -> None:
        """Keep it. Where that cannot be done the next start waits for the end of the lease."""
        new = self._path.with_suffix(".new")
        try:
            new.write_text(f"{token}\n", encoding="ascii")
            new.replace(self._path)
        except OSError as error:
            logs.logger().warning(
                "the token of the lease is not kept", path=str(self._path), error=str(error)
            )
