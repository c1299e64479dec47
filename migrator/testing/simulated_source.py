"""Answers of a simulated QEMU, which is no process and has no devices, to whoever would start another like it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from migrator.core.model import Finding
from migrator.core.process.image_paths import TargetImage
from migrator.errors import QemuError
from migrator.ports import GuestConfiguration, GuestProcess, OpenImages


class WithoutDevices:
    """The part of :class:`migrator.ports.SourceQemu` that it has beside :class:`migrator.ports.Qemu`."""

    name: str

    @property
    def process(self) -> GuestProcess | None:
        return None

    async def images(self) -> OpenImages:
        return OpenImages()

    async def configuration(self, arguments: Sequence[str]) -> GuestConfiguration:
        raise QemuError(self.name, "it is simulated and has no command line")

    async def naming_options(self) -> tuple[str, ...]:
        return ()

    async def threads(self) -> Mapping[str, int]:
        return {}

    async def replicate_devices(
        self,
        destination: WithoutDevices,
        *,
        run_directory: str,
        same_files: bool = True,
        images: Mapping[str, TargetImage] = MappingProxyType({}),
        made: Collection[str] = (),
    ) -> tuple[Finding, ...]:
        return ()

    async def pass_on_name(self, destination: WithoutDevices) -> None:
        return

    async def carry_traces(self, destination: WithoutDevices) -> tuple[str, ...]:
        return ()
