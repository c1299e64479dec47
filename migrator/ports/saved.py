"""The interface to guests whose state is in files on hosts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from migrator.core.model import Finding
from migrator.ports.qemu import Qemu, SourceQemu
from migrator.ports.site import IncomingDestination

if TYPE_CHECKING:
    from migrator.core.inventory import Guest
    from migrator.core.saved_guest import (  # of what `migrator direct` does not need, nor loads
        SavedGuest,
        SurveyedFile,
    )


class LoadedFile(SourceQemu, Protocol):
    """A file that a guest is loaded from: the source of its migration."""

    #: Has the QEMU that takes the guest read the file, where :attr:`mapped`.
    begin_reading: Callable[[], Awaitable[None]] | None

    @property
    def mapped(self) -> bool:
        """Return whether each page has a place of its own in it: the QEMU that takes the guest reads it by itself."""


class SavedFile(Qemu, Protocol):
    """A file that a guest is saved into: the destination of its migration."""

    #: Tells whether the QEMU that writes the file by itself has done so.
    is_written: Callable[[], bool]


class SavedFileDestination(IncomingDestination, Protocol):
    """A file that a guest is to be saved into."""

    @property
    def qemu(self) -> SavedFile:
        """Return the file as an end of the migration."""

    @property
    def mapped(self) -> bool:
        """Return whether each page is to have a place of its own in it: the guest's QEMU writes it by itself."""


class SavedGuests(Protocol):
    """Files with guests' states. Every call raises :class:`~migrator.errors.HostError` when the host cannot be asked.

    An end of a migration that is a file is opened by :meth:`migrator.ports.Site.open`, with
    :data:`migrator.core.saved_guest.PREFIX` and its path in place of a socket's.
    """

    async def read(self, host: str, path: str) -> SavedGuest:
        """Return whose state a file has.

        :raise UsageError: it is no saved guest.
        """

    async def survey(self, host: str, paths: Sequence[str]) -> Mapping[str, SurveyedFile]:
        """Return what there is of each of these files on a host, in one question for all."""

    async def check(self, guest: Guest, source: SourceQemu, path: str) -> tuple[Finding, ...]:
        """Return what speaks against saving a guest into a file of its host; changes nothing.

        :raise QemuError: the source cannot be asked.
        """

    async def check_load(self, host: str, path: str) -> tuple[Finding, ...]:
        """Return what speaks against loading a guest from a file of that host; changes nothing."""

    async def flush(self, guest: Guest, source: SourceQemu) -> str:
        """Have a guest that runs write to its disks what it holds back, where it has an agent that nobody else uses.

        Bounded in time; never raises. What came of it in one line; empty where the guest has no agent.
        """

    async def thaw(self, guest: Guest, source: SourceQemu) -> bool:
        """Thaw a guest's filesystems, which a controller may have left frozen when it died in :meth:`flush`.

        Bounded in time; never raises. False: nobody says that they are thawed.
        """

    async def start(
        self, guest: Guest, source: SourceQemu, path: str, *, migration: str, as_stream: bool
    ) -> SavedFileDestination:
        """Return the file as what the guest moves into; nothing is made before it is listened at.

        :param as_stream: it is to be a stream, whatever else its QEMU can write.
        :raise QemuError: the source cannot be asked.
        """

    async def discard(self, host: str, path: str, seen: SavedGuest) -> bool:
        """Delete a file and its description, which still is as it was seen; False: it is not, and nothing was deleted.

        Nobody writes or reads it meanwhile. What fails half-way leaves what :meth:`survey` finds, to be deleted again.
        """

    async def confirm(self, host: str, path: str, *, migration: str) -> None:
        """Say that the guest is nowhere else: from now on the file can be loaded. May be called again."""
