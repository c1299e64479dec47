"""Base of the sites of ``migrator direct``: nothing is done around a migration, as none knows of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from migrator.engine.migration.services import MovedGuest


class UnattendedSite:
    """Base of sites that have no more than the two ends of one migration: nobody is told, and nothing is cleared."""

    async def suppress_restart(self, guest: MovedGuest) -> None:
        """Do nothing: nobody starts it again."""

    async def allow_restart(self, guest: MovedGuest) -> None:
        """Do nothing: nobody was told."""

    async def abandon(self, host: str, *, migration: str, images: bool = False) -> None:
        """Do nothing: see :meth:`migrator.cli.direct_pair.GivenDestination.discard`."""

    async def keep_images(self, host: str, *, migration: str) -> None:
        """Do nothing: none is made."""

    async def put_aside(
        self, guest: MovedGuest, paths: Sequence[str], *, migration: str
    ) -> Mapping[str, str]:
        """Do nothing: the images are of whoever made them."""
        return {}

    async def settle(self, guest: MovedGuest) -> Sequence[str]:
        """Return nothing: the guest is found where its destination was started."""
        return ()

    async def clear(self, guest: MovedGuest) -> None:
        """Do nothing: what is left of the source is its starter's."""
