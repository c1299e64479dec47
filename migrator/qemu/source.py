"""A QEMU whose guest may move: what a second QEMU for it is made from, and how that one is made the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from migrator.core.model import Finding, RunState
from migrator.core.process.command_line import LOCAL_DRIVERS, ImageUse, path_of
from migrator.core.process.image_paths import TargetImage
from migrator.core.process.options import read, write
from migrator.core.process.replica import Replica, TargetEnvironment
from migrator.errors import CommandFailed
from migrator.ports import OpenImages
from migrator.qemu import marks, naming
from migrator.qemu.cmdline import replicate
from migrator.qemu.current_command_line import current_command_line, plugged_networks
from migrator.qemu.current_devices import CurrentDevices
from migrator.qemu.device_inventory import read_current_devices
from migrator.qemu.devices import replicate_devices
from migrator.qemu.endpoint import Endpoint
from migrator.qemu.guest_agent import shut_down
from migrator.qemu.hot_plugged import hot_plugged
from migrator.qemu.runtime_state import carry_traces
from migrator.qemu.threads import threads

#: Name of the mark at a source whose guest was asked to shut down.
_ASKED = "asked-to-shut-down"
#: Seconds in which QEMU carries out a reset.
_RESET_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Implements :class:`migrator.ports.GuestConfiguration`."""

    #: Arguments of the process as it was started, without our marks.
    arguments: Sequence[str]
    #: Type of the machine with its alias resolved.
    machine: str
    current_devices: CurrentDevices

    def current(self) -> list[str]:
        """See :meth:`migrator.ports.GuestConfiguration.current`."""
        return [*self.arguments[:1], *write(self._current_options())]

    def current_with_networks(self) -> list[str]:
        """See :meth:`migrator.ports.GuestConfiguration.current_with_networks`."""
        now = self._current_options()
        return [*self.arguments[:1], *write([*now, *plugged_networks(now, self.current_devices)])]

    def replicate(self, target: TargetEnvironment) -> Replica:
        """See :meth:`migrator.ports.GuestConfiguration.replicate`."""
        return replicate(
            self.arguments, machine=self.machine, current_devices=self.current_devices, place=target
        )

    def _current_options(self) -> list[tuple[str, str | None]]:
        return current_command_line(
            read(self.arguments[1:]), machine=self.machine, current_devices=self.current_devices
        ).options


class SourceEndpoint(Endpoint):
    """Implements :class:`migrator.ports.SourceQemu`."""

    async def images(self) -> OpenImages:
        try:
            nodes = await self.monitor.execute("query-named-block-nodes", {"flat": True})
            blocks = await self.monitor.execute("query-block")
        except CommandFailed:  # it is too old
            return OpenImages()
        opened: dict[str, ImageUse] = {}
        for node in nodes:
            path = path_of(node["file"])
            if path and node["drv"] in LOCAL_DRIVERS and not node["ro"]:
                cache = node["cache"]
                opened[path] = ImageUse(path=path, direct=cache["direct"], no_flush=cache["no-flush"])
        chains: dict[str, tuple[str, ...]] = {}
        for block in blocks:
            image = block.get("inserted", {}).get("image")
            chain = []
            while image:
                chain.append(path_of(image["filename"]))
                image = image.get("backing-image")
            if chain and chain[0]:
                chains[chain[0]] = (chain[0], *(path for path in chain[1:] if path))
        return OpenImages(opened=opened, chains=chains)

    async def configuration(self, arguments: Sequence[str]) -> Configuration:
        started = marks.without(arguments)
        machine, current_devices = await read_current_devices(self.monitor, started)
        return Configuration(arguments=started, machine=machine, current_devices=current_devices)

    async def naming_options(self) -> tuple[str, ...]:
        return await naming.options(self.monitor, self.identity)

    async def hot_plugged(self) -> list[str]:
        """See :func:`migrator.qemu.hot_plugged.hot_plugged`."""
        return await hot_plugged(self.monitor)

    async def threads(self) -> Mapping[str, int]:
        return await threads(self.monitor)

    async def replicate_devices(
        self,
        destination: Endpoint,
        *,
        run_directory: str,
        same_files: bool = True,
        images: Mapping[str, TargetImage] = MappingProxyType({}),
        made: Collection[str] = (),
    ) -> tuple[Finding, ...]:
        return await replicate_devices(
            self.monitor,
            destination.monitor,
            run_directory=run_directory,
            same_files=same_files,
            images=images,
            made=made,
            same_machine=self.identity.get("boot_id") == destination.identity.get("boot_id"),
        )

    async def power_down(self, local: Callable[[str], Awaitable[str]] | None) -> str:
        """Ask the guest to shut down, by its agent where it has one, else by its power button; say by which.

        :param local: leads to a socket of its host, as :func:`migrator.qemu.guest_agent.shut_down` wants it; ``None``:
            by the button in any case.
        :raise QemuError: QEMU refused, or cannot be asked.
        """
        await self._claim.ensure()
        why = "asked again" if local is None else await shut_down(self.monitor, local)
        if not why:
            return "its agent was asked"
        await self._claim.execute("system_powerdown")
        return f"its power button was pressed ({why})"

    async def stay_after_shutdown(self, *, stays: bool) -> None:
        """Have QEMU go on, or end, when the guest has shut down.

        :raise QemuError: QEMU refused (it is older than 6.0), or cannot be asked.
        """
        await self._claim.execute("set-action", {"shutdown": "pause" if stays else "poweroff"})

    async def boot_again(self) -> None:
        """Have a guest boot that has shut down, and whose QEMU went on.

        :raise QemuError: QEMU refused, or cannot be asked.
        """
        await self._claim.execute("system_reset")
        deadline = time.monotonic() + _RESET_SECONDS
        while (await self.observe()).run is RunState.SHUTDOWN and time.monotonic() < deadline:
            await asyncio.sleep(0.01)  # a reset is carried out after it was answered
        await self.cont()

    async def mark_asked(self, migration: str) -> None:
        """Note at this QEMU that its guest was asked to shut down; false marks are no harm, missing ones are.

        :raise QemuError: it cannot be asked.
        """
        await self._claim.ensure()
        await marks.add(self.monitor, _ASKED, migration)

    async def was_asked(self) -> bool:
        """Tell whether its guest was, or was about to be, asked to shut down.

        :raise QemuError: it cannot be asked.
        """
        return _ASKED in await marks.read(self.monitor, _ASKED)

    async def forget_asked(self) -> None:
        """Remove the mark of :meth:`mark_asked`.

        :raise QemuError: it cannot be asked.
        """
        await marks.remove(self.monitor, _ASKED)

    async def carry_traces(self, destination: Endpoint) -> list[str]:
        return await carry_traces(self.monitor, destination.monitor)
