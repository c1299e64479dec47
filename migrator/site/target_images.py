"""Images of a guest's disks at its target: where they are there, and those that are made for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from migrator.core.inventory import Guest
from migrator.core.preflight.facts import Disk
from migrator.core.process.command_line import path_of
from migrator.core.process.image_paths import TargetImage
from migrator.errors import HostError
from migrator.hosts.host_output import reading_output
from migrator.hosts.new_files import NewFile, copy_header, make_files, make_images
from migrator.hosts.new_volumes import NewVolume, make_volumes, volume_bytes
from migrator.ports import SourceQemu
from migrator.site.host_directory import HostDirectory, image_paths

if TYPE_CHECKING:
    from migrator.hosts.launch import Launcher
    from migrator.hosts.run_directories import RunDirectory
    from migrator.settings.host_sections import ImageTemplate  # slow, and for who reads a configuration

#: Time-out of a small command, in seconds.
_SHORT = 10.0


@dataclass(frozen=True, kw_only=True)
class _Written:
    """One disk that the guest writes to."""

    disk: Disk
    #: Path of its image at the source, and at the target.
    path: str
    there: str


class TargetImages:
    """The images of one guest at one target.

    :param source: its QEMU.
    """

    def __init__(
        self,
        connections: HostDirectory,
        guest: Guest,
        source: SourceQemu,
        target: str,
    ) -> None:
        self._host, self._source = connections.access(guest.host), source
        self._known: tuple[Disk, ...] | None = None
        self._paths = image_paths(connections, guest.host, target)

    async def moved(self) -> Mapping[str, TargetImage]:
        """Return the images that have another path at the target, by their paths at the source.

        :raise QemuError: the source cannot be asked.
        """
        if not (self._paths.here and self._paths.there):
            return {}
        return {
            each.path: TargetImage(path=each.there, volume=self._paths.is_volume(each.path, here=False))
            for each in await self._written()
            if each.there != each.path
        }

    async def at_target(self) -> list[str]:
        """Return the paths at the target of all images that the guest writes to.

        :raise QemuError: the source cannot be asked.
        """
        return [each.there for each in await self._written()]

    async def make(
        self,
        launcher: Launcher,
        run_dir: RunDirectory,
        missing: Collection[str],
        *,
        migration: str,
        template: ImageTemplate | None,
        keep_backing: bool,
    ) -> tuple[str, ...]:
        """Make the flashes that are not there, and these images, in the order that they have in the guest.

        Contents follow. What was made is noted in the run directory.

        :param missing: paths at the target.
        :param template: commands that make volumes; ``None``: there are none.
        :return: devices of the images.
        :raise HostError: one could not be made; others may have been.
        """
        await make_files(launcher.host, run_dir.path, await self._flashes())
        files: dict[str, NewFile] = {}
        volumes: dict[str, NewVolume] = {}
        lacking = [each for each in await self._written() if each.there in missing]
        for each in lacking:
            device = not (await self._host.run(["test", "-b", each.path], timeout=_SHORT)).status
            like = await self._like(each, volume=device, keep_backing=keep_backing)
            if self._paths.is_volume(each.path, here=device):
                volumes[each.disk.device] = await _volume(launcher, each.disk, like, template)
            else:
                files[each.disk.device] = like
        await make_images(launcher.host, run_dir.path, list(files.values()), migration=migration)
        for each in lacking:
            if count := each.disk.image.header_bytes:
                await copy_header(self._host, launcher.host, each.path, each.there, count)
        await make_volumes(launcher.host, run_dir.path, list(volumes.values()))
        return (*files, *volumes)

    async def _disks(self) -> tuple[Disk, ...]:
        if self._known is None:
            self._known = (await self._source.facts()).disks
        return self._known

    async def _written(self) -> list[_Written]:
        disks = [disk for disk in await self._disks() if not (disk.is_flash or disk.read_only)]
        return [
            _Written(disk=disk, path=path, there=self._paths.at_target(path))
            for disk in disks
            if (path := path_of(disk.file)).startswith("/")
        ]

    async def _flashes(self) -> list[NewFile]:
        """Return files like those of the guest's flashes; QEMU carries what is in them."""
        disks = [disk for disk in await self._disks() if disk.is_flash and not disk.read_only]
        return [
            await self._like(_Written(disk=disk, path=path, there=path))
            for disk in disks
            if (path := path_of(disk.file)).startswith("/")
        ]

    async def _like(self, image: _Written, *, volume: bool = False, keep_backing: bool = False) -> NewFile:
        """Return a file like that of a disk, with the same owner, size and features.

        :param volume: that of the disk is a block device.
        """
        disk, host = image.disk, self._host.name
        done = await self._host.run(["stat", "-L", "-c", "%u:%g %a %s", "--", image.path], timeout=_SHORT)
        if done.status:
            raise HostError(host, f"{image.path} cannot be looked at: {done.complaint}")
        with reading_output(host, image.path):
            owner, mode, size = done.text.split()
            whole_bytes = int(size)
        encrypted = disk.format == "luks"
        whole = encrypted or (disk.format == "raw" and not volume)
        return NewFile(
            path=image.there,
            # What is encrypted is copied as it is, after its header.
            format="raw" if encrypted else disk.format,
            size_bytes=whole_bytes if whole else disk.virtual_bytes,
            owner=owner,
            mode=mode,
            options=() if disk.is_flash else (*disk.image.options, *(_backing(disk) if keep_backing else ())),
            expected_bytes=disk.copied_bytes(keep_backing=keep_backing),
        )


async def _volume(launcher: Launcher, disk: Disk, like: NewFile, template: ImageTemplate | None) -> NewVolume:
    host = launcher.host
    if template is None:
        raise HostError(host.name, f"{like.path} has to be a block device, and there is no image_template")
    size = await volume_bytes(host, disk.format, disk.virtual_bytes, like.options)
    return NewVolume(
        path=like.path,
        size_bytes=size,
        virtual_bytes=disk.virtual_bytes,
        owner=like.owner,
        mode=like.mode,
        make=template.filled(template.make, path=like.path, size_bytes=size),
        remove=template.filled(template.remove, path=like.path, size_bytes=size),
        format=disk.format,
        options=like.options,
    )


def _backing(disk: Disk) -> tuple[str, ...]:
    """Return the options of an image that is based on what a disk's is based on."""
    image = disk.image
    if not image.backing_file:
        return ()
    return (
        f"backing_file={image.backing_file.replace(',', ',,')}",
        f"backing_fmt={image.backing_format}",
    )
