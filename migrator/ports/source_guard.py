"""The guard of a migration's source: it acts where the guest would stand still because its controller is away."""

from __future__ import annotations

from typing import Protocol


class SourceGuard(Protocol):
    """The guard of one source, at its host. No call raises but where it says so.

    It does nothing while this controller is there and steers. When that is dead, cut off, or has left the source to it,
    it holds the stream back while memory is copied, and cancels the migration where the guest stands still at
    pre-switchover and :meth:`migrator.ports.Qemu.switch` was not called. After that it touches nothing.
    """

    @property
    def sessions(self) -> int:
        """Return how many sessions with the source's monitor there were: between two of them a guard may have acted."""

    async def begin(self, migration: str, *, stopped: bool = False) -> None:
        """Have it guarded from now on; what was said before is replaced.

        :param stopped: we have stopped the guest for the migration: after a cancel it has to be told to go on.
        :raise QemuError: the source could not be marked: the guard would leave it at its switch.
        """

    def near(self, near: bool) -> None:
        """Say whether the guest may come to its switch at any moment: then the guard waits less for a sign of life."""

    def end(self) -> None:
        """Have it guarded no more, soon."""

    async def release(self) -> bool:
        """Have it guarded no more: after True the guard does nothing, whatever it had begun."""

    async def leave(self) -> bool:
        """Leave it to the guard as if this controller were gone; return whether there is one that takes it."""

    async def has_ended(self, migration: str) -> bool:
        """Return whether a guard, of whichever controller, has ended that migration.

        :raise QemuError: the source cannot be asked.
        """


class Unguarded:
    """Implements :class:`SourceGuard` where there is none."""

    sessions = 0

    async def begin(self, migration: str, *, stopped: bool = False) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""

    def near(self, near: bool) -> None:
        """Do nothing."""

    async def release(self) -> bool:
        """Return True: nobody does anything."""
        return True

    async def leave(self) -> bool:
        """Return that nobody takes it."""
        return False

    async def has_ended(self, migration: str) -> bool:  # noqa: ARG002 - nobody has ended any
        """Return that nobody has."""
        return False
