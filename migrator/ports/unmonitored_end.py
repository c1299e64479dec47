"""An end of a migration without a monitor of ours, as a file or libvirt's guest: refuses or skips what takes one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from migrator.core.model import Finding
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.core.preflight.stream_tls import StreamTls
from migrator.core.process.image_paths import TargetImage
from migrator.errors import CommandFailed
from migrator.ports.disk_mirrors import DiskMirroring
from migrator.ports.qemu import (
    GuestConfiguration,
    GuestProcess,
    MigrationSettings,
    OpenImages,
    StreamOptions,
    StreamSockets,
    Tuning,
)
from migrator.ports.source_guard import SourceGuard, Unguarded


class UnmonitoredEnd:
    """Base of ends without a monitor of ours; with what derives from it, a :class:`~migrator.ports.qemu.SourceQemu`."""

    name = ""

    def __init__(self) -> None:
        self.guard: SourceGuard = Unguarded()

    @property
    def process(self) -> GuestProcess | None:
        """Return nothing: no process is held."""
        return None

    @property
    def mirroring(self) -> DiskMirroring:
        """Disks of such a guest are not copied by us."""
        raise self._cannot("mirror")

    def _cannot(self, what: str) -> CommandFailed:
        """Return the refusal of a method that takes a monitor, with the reason in words."""
        return CommandFailed(self.name, what, "GenericError", "no monitor of its QEMU is ours")

    async def disk_users(self) -> DiskUsers:
        return DiskUsers()

    async def read_runtime_state(self) -> Any:
        return None

    async def restore_runtime_state(self, given: Any, present: Any) -> Sequence[str]:
        return ()

    async def release_monitor(self) -> None:
        """Do nothing."""

    async def claim(self, migration: str, *, was: Mapping[str, Any] | None = None) -> None:
        """Do nothing."""

    async def release(self) -> None:
        """Do nothing."""

    async def settings(self) -> MigrationSettings:
        return MigrationSettings(capabilities={}, parameters={})

    async def enable(self, capabilities: Mapping[str, bool]) -> None:
        """Do nothing."""

    async def tune(self, tuning: Tuning) -> None:
        """Do nothing."""

    async def restore(self, settings: MigrationSettings) -> None:
        """Do nothing."""

    async def encrypt(self, migration: str, tls: StreamTls) -> None:
        raise self._cannot("encrypt")

    async def do_not_encrypt(self) -> None:
        """Do nothing."""

    async def forget_encryption(self) -> None:
        """Do nothing."""

    async def listen(self, uri: str) -> str:
        raise self._cannot("listen")

    async def migrate(self, uri: str) -> None:
        raise self._cannot("migrate")

    async def stream_addresses(self) -> Sequence[str]:
        return ()

    async def stream_sockets(
        self, peers: Sequence[str], options: StreamOptions | None = None, *, again: bool = False
    ) -> StreamSockets:
        return StreamSockets()

    async def start_dirty_rate(self, period_seconds: float, *, exact: bool = False) -> None:
        """Do nothing."""

    async def dirty_rate(self) -> float | None:
        return None

    async def start_postcopy(self) -> None:
        raise self._cannot("start_postcopy")

    async def switch(self) -> None:
        raise self._cannot("switch")

    async def pause_stream(self) -> None:
        raise self._cannot("pause_stream")

    async def listen_again(self, address: str) -> str:
        raise self._cannot("listen_again")

    async def resume_stream(self, uri: str) -> None:
        raise self._cannot("resume_stream")

    async def cancel(self) -> None:
        """Do nothing."""

    async def cont(self) -> None:
        raise self._cannot("cont")

    async def was_run(self) -> bool:
        return False

    async def stop(self) -> None:
        """Do nothing."""

    async def announce(self) -> None:
        """Do nothing."""

    async def quit(self, *, timeout: float = 5.0) -> bool:
        return False

    async def fence(self) -> bool:
        return False

    def stderr_tail(self) -> str:
        return ""

    async def images(self) -> OpenImages:
        return OpenImages()

    async def configuration(self, arguments: Sequence[str]) -> GuestConfiguration:
        raise self._cannot("configuration")

    async def naming_options(self) -> Sequence[str]:
        return ()

    async def threads(self) -> Mapping[str, int]:
        return {}

    async def replicate_devices(
        self,
        destination: Any,
        *,
        run_directory: str,
        same_files: bool = True,
        images: Mapping[str, TargetImage] = MappingProxyType({}),
        made: Collection[str] = (),
    ) -> Sequence[Finding]:
        return ()

    async def pass_on_name(self, destination: Any) -> None:
        """Do nothing."""

    async def carry_traces(self, destination: Any) -> Sequence[str]:
        return ()
