"""The interface to a migration that the guest's manager carries out: it copies, switches and hands over by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from migrator.ports.qemu import Qemu


@dataclass(frozen=True, kw_only=True)
class ManagedOptions:
    """Options that a manager is given when a migration begins."""

    #: Where the target takes the stream: ``tcp:ADDR:0``; the port is the manager's to choose.
    listen: str
    #: The guest has a definition that outlasts it: it goes to the target, and is not kept at the source.
    persistent: bool
    #: The guest runs while it is copied; else its manager stops it first, and lets it go on where it ends.
    live: bool = True
    #: The migration may go to postcopy later.
    postcopy: bool = False
    #: The stream is encrypted by QEMU, with the certificates that its manager is configured for: the name that the
    #: target's is for. ``None``: it is plain.
    tls_name: str | None = None
    #: Channels of the stream.
    channels: int = 1
    #: Memory that the source keeps of pages it has sent, so that only what changed is sent again; 0: none.
    delta_cache_bytes: int = 0
    #: Disks whose contents are copied to the target, by what the manager calls them (``vda``).
    disks: Sequence[str] = ()
    #: ``None``: no limit.
    bandwidth_bytes_per_second: int | None = None
    #: The manager's own check of disks that two hosts may cache differently is left out.
    unsafe: bool = False


@dataclass(frozen=True, kw_only=True)
class ManagedGuestState:
    """State that a manager keeps of a guest, and does not carry, or changes on the way; plain enough for a record."""

    persistent: bool
    autostart: bool
    #: The limit of downtime that its QEMU had, in seconds; ``None`` where it cannot be read.
    downtime_limit_seconds: float | None
    #: The bandwidth of migrations that was set for it; ``None``: no limit, or it cannot be read.
    bandwidth_bytes_per_second: int | None


@runtime_checkable
class ManagedMigration(Protocol):
    """The source of a migration that the guest's manager carries out.

    What may be done while it runs is done with :class:`~migrator.ports.qemu.Qemu`: ``tune``, ``stop``, ``cont``,
    ``start_postcopy`` and ``cancel``.
    """

    def is_peer_to_peer(self, destination: Qemu) -> bool:
        """Return whether both managers carry it out alone, so that it outlives this controller."""

    async def managed_state(self) -> ManagedGuestState:
        """Read what is put back, or set at the target, in the end.

        :raise HostError, QemuError: it cannot be asked.
        """

    async def begin_managed(
        self, destination: Qemu, options: ManagedOptions, *, resume: bool = False
    ) -> None:
        """Have it begin, and return at once: it goes on by itself.

        :param resume: go on with a postcopy whose stream broke.
        :raise HostError, QemuError: it was not begun.
        """

    def managed_ended(self) -> str | None:
        """Return ``None`` while the call of :meth:`begin_managed` runs, empty once it went well, else what was said.

        Only of a call of this process.
        """

    @property
    def copied_disks(self) -> tuple[int, int] | None:
        """Return what of its disks was copied by the last look, of how many bytes; ``None``: nothing is, yet."""

    def watched(self, destination: Qemu) -> bool:
        """Return whether whatever happened at the destination since :meth:`begin_managed` was heard of."""

    @property
    def source_watched(self) -> bool:
        """Return whether whatever happened at the source since then was heard of."""

    @property
    def begun_here(self) -> bool:
        """Return whether :meth:`begin_managed` was called in this process."""

    async def put_back_managed(self, was: ManagedGuestState) -> None:
        """Give a guest that stays the limits that it had.

        :raise HostError, QemuError: it cannot be done.
        """

    async def forget_managed(self) -> None:
        """End a guest that runs at the destination, complete, where it came from.

        :raise HostError, QemuError: it cannot be done.
        """

    async def settle_managed(self, destination: Qemu, was: ManagedGuestState) -> None:
        """Have a guest that has arrived start with its host there if it did so here, and no definition of it left here.

        :raise HostError, QemuError: it cannot be done.
        """

    async def measured(self, destination: Qemu) -> Mapping[str, Any]:
        """Return the manager's own figures of a migration that brought a guest there; empty: it has none."""
