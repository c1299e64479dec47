"""Ends and removes what migrations left at hosts that could not be asked, once those answer again.

A destination that was started waits for a guest and never runs by itself, so it does no harm meanwhile; it takes
memory, and says that it is somebody's guest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from migrator import logs
from migrator.core.inventory import Guest
from migrator.errors import MigratorError

#: Of its documents in the journal.
KIND = "left-over"
#: One that could not be removed though its host answers is tried again after so long.
_RETRY_SECONDS = 30.0


class Abandon(Protocol):
    """See :meth:`migrator.ports.Site.abandon`."""

    def __call__(self, host: str, *, migration: str, images: bool) -> Awaitable[None]: ...


@dataclass(kw_only=True)
class _Left:
    host: str
    migration: str
    since: datetime
    #: At its source: the guest as it was there.
    guest: Guest | None = None
    #: At its target: images that were made for it go too, as the guest never ran there.
    images: bool = False
    #: On the loop's clock.
    not_before: float = 0.0

    @property
    def key(self) -> str:
        """Return its id in the journal."""
        return f"{self.migration}.source" if self.guest is not None else self.migration

    def document(self, ended_at: datetime | None = None) -> dict[str, Any]:
        return {
            "id": self.key,
            "migration": self.migration,
            "host": self.host,
            "guest": self.guest.fields() if self.guest is not None else None,
            "since": self.since.isoformat(),
            "ended_at": ended_at.isoformat() if ended_at is not None else None,
            **({"images": True} if self.images else {}),
        }


class Leftovers:
    """Knows them across restarts, and removes them.

    :param abandon: removes what waits at a host for a migration.
    :param clear: removes what is left of a source that has ended.
    :param up: whether a host answered when it was last looked at.
    :param under_way: whether a migration has not ended: then nothing of it is touched.
    :param keep: journals a document soon.
    """

    def __init__(
        self,
        *,
        abandon: Abandon,
        clear: Callable[[Guest], Awaitable[None]],
        up: Callable[[str], bool],
        under_way: Callable[[str], bool],
        keep: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._abandon, self._clear_source, self._up = abandon, clear, up
        self._under_way, self._keep = under_way, keep
        self._left: dict[str, _Left] = {}
        self._wake = asyncio.Event()
        self._log = logs.logger()

    def add(self, host: str, migration: str, *, images: bool = False) -> None:
        """Note what a migration left at its target.

        :param images: those that were made for it too, and the guest never ran there.
        """
        self._add(_Left(host=host, migration=migration, since=datetime.now(UTC), images=images))

    def add_source(self, guest: Guest, migration: str) -> None:
        """Note what a migration left at its source, which has ended.

        :param guest: as it was there.
        """
        self._add(_Left(host=guest.host, migration=migration, since=datetime.now(UTC), guest=guest))

    def _add(self, left: _Left) -> None:
        self._left[left.key] = left
        self._keep(KIND, left.document())
        self._wake.set()

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Take over what another controller had journalled."""
        since = datetime.fromisoformat(saved["since"])
        guest = Guest.from_fields(saved["guest"]) if saved.get("guest") else None
        # Of an older version: only of targets, under the migration's own id.
        migration = saved.get("migration", saved["id"])
        images = bool(saved.get("images"))
        left = _Left(host=saved["host"], migration=migration, since=since, guest=guest, images=images)
        self._left[left.key] = left
        self._wake.set()

    def of(self, host: str) -> list[str]:
        """Return the migrations of which something is left at a host."""
        return [left.migration for left in self._left.values() if left.host == host]

    def wake(self) -> None:
        """Try again, as a host may answer that did not."""
        if self._left:
            self._wake.set()

    async def run(self) -> None:
        """Remove them, each once its host answers, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_RETRY_SECONDS if self._left else None):
                    await self._wake.wait()
            except TimeoutError:
                pass  # their time has come
            self._wake.clear()
            for left in list(self._left.values()):
                if self._due(left):
                    await self._clear(left)

    def _due(self, left: _Left) -> bool:
        now = asyncio.get_running_loop().time()
        return now >= left.not_before and self._up(left.host) and not self._under_way(left.migration)

    async def _clear(self, left: _Left) -> None:
        try:
            if left.guest is not None:
                await self._clear_source(left.guest)
            else:
                await self._abandon(left.host, migration=left.migration, images=left.images)
        except MigratorError as error:
            left.not_before = asyncio.get_running_loop().time() + _RETRY_SECONDS
            self._log.warning("left-over stays", migration=left.migration, host=left.host, error=str(error))
            return
        self._left.pop(left.key, None)
        self._keep(KIND, left.document(datetime.now(UTC)))
        self._log.info("left-over removed", migration=left.migration, host=left.host)
