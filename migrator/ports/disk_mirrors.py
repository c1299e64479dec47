"""The interface to one QEMU of a migration whose disks are copied from the source to the destination."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from migrator.core.preflight.stream_tls import StreamTls


class DiskMirroring(Protocol):
    """Part of :class:`migrator.ports.Qemu`: how disks are copied, at either end.

    A mirror has one name for its job and its target's node at the source and for its export at the destination. How far
    the jobs are, :meth:`migrator.ports.Qemu.disk_users` tells. Calls raise as those of that class do.
    """

    async def serve(self, devices: dict[str, str], where: str, *, encrypted_for: str = "") -> str:
        """Destination: let these disks be written over the network, until :meth:`stop_serving`.

        :param devices: of the disks, and the names of their exports.
        :param where: ``tcp:ADDR`` or ``unix:PATH``.
        :param encrypted_for: the migration whose certificates are used; empty: disks go plainly.
        :return: where they are written to: ``tcp:ADDR:PORT`` or ``unix:PATH``.
        """

    async def stop_serving(self) -> None:
        """Destination: nothing of the guest can be written over the network any more; may be called again."""

    async def on_volumes(self, devices: Collection[str]) -> frozenset[str]:
        """Destination: return those of these disks that are raw block devices, not known to read as zeroes."""

    async def prepare_bitmaps(self, devices: Mapping[str, str]) -> None:
        """Destination: have a bitmap for each of these disks that notes nothing yet.

        :param devices: of the disks, and the names of the bitmaps.
        """

    async def note_writes(self, devices: Mapping[str, str]) -> None:
        """Destination: note what is written to these disks from now on; may be called again.

        :param devices: as for :meth:`prepare_bitmaps`.
        """

    async def begin(
        self,
        device: str,
        name: str,
        where: str,
        *,
        whole: bool,
        based: bool = False,
        bytes_per_second: int = 0,
        encrypted_for: str = "",
        tls: StreamTls | None = None,
    ) -> None:
        """Source: begin to copy a disk; what the guest writes meanwhile is copied too.

        :param where: as :meth:`serve` returned it.
        :param whole: write where the source has no contents too, because the target is not known to read as zeroes.
        :param based: the target is based on the same images: only what the disk's own image has is copied.
        :param bytes_per_second: as with :meth:`set_speed`.
        :param encrypted_for: as with :meth:`serve`.
        :param tls: the certificates; ``None``: disks go plainly.
        """

    async def set_speed(self, name: str, bytes_per_second: int) -> None:
        """Source: limit what a mirror copies besides the guest's own writes; 0: no limit."""

    async def end(self, name: str) -> None:
        """Source: end a mirror that is ready, with the same contents on both sides; its job tells when, and whether."""

    async def remove_targets(self, prefix: str) -> None:
        """Source: close the targets of the mirrors that have ended and whose names begin so.

        Done at a destination by :meth:`stop_serving`, for what it has opened to be written to.
        """

    async def give_up(self, prefix: str) -> None:
        """Source: end all mirrors whose names begin so, whatever their targets do, and forget them.

        Nothing of the guest's disks is held by one afterwards; may be called again.
        """
