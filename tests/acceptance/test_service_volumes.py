"""The service moves a guest whose disk is a block device: its target makes one by the site's own commands."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine
from migrator.testing.own_images import own_images
from tests.acceptance.service_site import MIB, LiveSite, one_served
from tests.acceptance.test_service_disks import DiskSite
from tests.conftest import missing
from tests.disks import WRITER, contents

#: Loop devices stand in for LVM: each host has its own of the same name.
_MAKE = (
    'truncate -s "$2" -- "$1.file" && l=$(losetup -f --show -- "$1.file") && '
    'mknod "$1" b $(stat -c "0x%t 0x%T" "$l")'
)
_REMOVE = 'l=$(losetup -j "$1.file" | cut -d: -f1) && losetup -d "$l" && rm -- "$1" "$1.file"'
_PATTERN = bytes(range(1, 256)) * (MIB // 255) + b"\0" * (MIB % 255)


def _template(make: str) -> str:
    return (
        f"image_template = {{ make = ['sh', '-c', '{make}', 'sh', '{{path}}', '{{size}}'], "
        f"remove = ['sh', '-c', '{_REMOVE}', 'sh', '{{path}}'] }}\n"
    )


@asynccontextmanager
async def volume_site(make: str = _MAKE) -> AsyncIterator[DiskSite]:
    if (why := network.possible()) is not None:
        missing(why)
    if subprocess.run(["losetup", "-f"], capture_output=True, check=False).returncode:
        missing("there are no loop devices")
    with LiveSite("a", "b", host_extra={"b": _template(make)}) as site, own_images(site) as images:
        made, volume = DiskSite(site, images), images / "volume"
        made.machine = GuestMachine(
            name="web",
            image=made.image,
            extra=(
                *("-blockdev", f"driver=raw,node-name=volume,file.driver=host_device,file.filename={volume}"),
                *("-device", "virtio-blk-pci,drive=volume,addr=0x6"),
            ),
        )
        outside = WRITER.write_image(site.directory / "outside.img", size_bytes=MIB)
        pattern = site.directory / "pattern"
        pattern.write_bytes(_PATTERN)
        try:
            site.hosts["a"].run("cp", "--", str(outside), str(made.image))
            site.hosts["a"].run("sh", "-c", _MAKE, "sh", str(volume), str(MIB))
            site.hosts["a"].run("dd", f"if={pattern}", f"of={volume}", "conv=fsync", "status=none")
            async with one_served(site, made.machine):
                yield made
        finally:
            for host in site.hosts:
                host.run(
                    "sh",
                    "-c",
                    # One that is in use no more may end by itself meanwhile.
                    'losetup -j "$1.file" | cut -d: -f1 | xargs -r losetup -d || test -z "$(losetup -j "$1.file")"',
                    "sh",
                    str(volume),
                )


async def test_a_volume_is_made_there_and_filled() -> None:
    async with volume_site() as here:
        there = await here.migrate("b")
        assert there.returncode == 0, there.stdout + there.stderr + here.site.log()[-3000:]
        assert here.names("b") == ["disk.img", "volume", "volume.file"]
        assert here.names("a")[1:] == ["volume", "volume.file"]
        await here.check("b")
        assert contents(here.site, here.site.hosts["b"], here.images / "volume.file") == _PATTERN


@pytest.mark.matrix
async def test_one_of_another_size_is_removed_and_the_guest_stays() -> None:
    async with volume_site(_MAKE.replace('"$2"', "4M")) as here:
        there = await here.migrate("b")
        assert there.returncode == 1, there.stdout + there.stderr
        assert "has 4194304 bytes, and the disk has 1048576" in there.stdout + there.stderr
        assert here.names("b") == []
        await here.check("a")
