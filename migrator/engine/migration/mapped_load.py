"""A QEMU that reads a guest's state out of a file by itself, once the file is marked as used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from migrator.core.model import Finding, MigrationStatus, View
from migrator.errors import CommandFailed
from migrator.ports import IncomingDestination, Qemu


class WaitingReader:
    """The QEMU; it is told to read with :meth:`read`, and shows as one that takes the guest in until then."""

    def __init__(self, qemu: Qemu) -> None:
        self._qemu, self._uri, self._reads = qemu, "", False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._qemu, name)

    async def listen(self, uri: str) -> str:
        """Note where it is to read; nothing is read yet."""
        self._uri = uri
        return uri

    async def read(self) -> None:
        """Have it read.

        :raise QemuError: it refuses, or cannot be asked.
        """
        if not self._uri:
            raise CommandFailed(self._qemu.name, "read", "GenericError", "nobody said what to read")
        self._reads = True
        await self._qemu.listen(self._uri)

    async def observe(self, *, timeout: float = 1.0) -> View:
        view = await self._qemu.observe(timeout=timeout)
        if self._uri and not self._reads and view.status is MigrationStatus.NONE:
            return replace(view, status=MigrationStatus.ACTIVE)
        return view


class MappedIncoming:
    """Implements :class:`migrator.ports.IncomingDestination` for such a QEMU.

    :param incoming: as it was started.
    :param path: of the file.
    """

    def __init__(self, incoming: IncomingDestination, path: str) -> None:
        self._incoming = incoming
        self.reader = WaitingReader(incoming.qemu)
        self.listen = f"file:{path}"

    @property
    def qemu(self) -> Any:
        return self.reader

    @property
    def notes(self) -> tuple[Finding, ...]:
        return self._incoming.notes

    @property
    def socket(self) -> str:
        return self._incoming.socket

    @property
    def new_images(self) -> Sequence[str]:
        return self._incoming.new_images

    async def discard(self, *, images: bool = False) -> None:
        await self._incoming.discard(images=images)
