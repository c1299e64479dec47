"""The service and the disks that guests happen to have: with an iothread, on bases, floppies and drives for CDs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine
from tests.acceptance.service_site import MIB
from tests.acceptance.test_service_disks import DiskSite, disk_site
from tests.conftest import missing
from tests.disks import contents, make_image


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


def many_kinds(here: DiskSite) -> GuestMachine:
    """A guest with a disk behind an iothread and on a local base, a floppy, a shared CD and an empty drive."""
    alpha, images = here.site.hosts["a"], here.images
    based = f"backing_file={images}/base.qcow2,backing_fmt=qcow2"
    alpha.run("qemu-img", "create", "-q", "-f", "qcow2", str(images / "base.qcow2"), "8M")
    alpha.run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 4M", str(images / "base.qcow2"))
    alpha.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", based, str(images / "disk1.qcow2"))
    alpha.run("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 1M", str(images / "disk1.qcow2"))
    alpha.run("truncate", "-s", "1440K", str(images / "floppy.img"))
    alpha.run("qemu-io", "-f", "raw", "-c", "write -P 3 64K 64K", str(images / "floppy.img"))
    iso = make_image(here.site.directory / "all.iso", form="raw", size="1M")
    return replace(
        here.machine,
        extra=(
            *("-object", "iothread,id=io0"),
            *("-blockdev", f"driver=qcow2,node-name=d1,file.driver=file,file.filename={images}/disk1.qcow2"),
            *("-device", "virtio-blk-pci,id=disk1,drive=d1,iothread=io0,addr=0x6"),
            *("-device", "isa-fdc,id=fdc0"),
            *("-blockdev", f"driver=raw,node-name=f0,file.driver=file,file.filename={images}/floppy.img"),
            *("-device", "floppy,id=floppy0,drive=f0,bus=fdc0.0"),
            *("-device", "virtio-scsi-pci,id=scsi0,addr=0x7", "-device", "scsi-cd,id=empty,bus=scsi0.0"),
            *("-blockdev", f"driver=raw,node-name=c0,read-only=on,file.driver=file,file.filename={iso}"),
            *("-device", "scsi-cd,id=shared,drive=c0,bus=scsi0.0"),
        ),
    )


async def test_disks_of_every_kind_travel_and_bases_are_flattened() -> None:
    async with disk_site(prepare=many_kinds) as here:
        there = await here.migrate("b")
        assert there.returncode == 0, there.stdout + there.stderr + here.site.log()[-3000:]
        await here.check("b")
        await here.end()
        assert here.names("b") == ["disk.img", "disk1.qcow2", "floppy.img"]
        floppies = [contents(here.site, here.site.hosts["b"], here.images / "floppy.img")]
        (left,) = [name for name in here.names("a") if name.startswith("floppy.img.left-")]
        floppies.append(contents(here.site, here.site.hosts["a"], here.images / left))
        assert floppies[0] == floppies[1]
        beta = here.site.hosts["b"]
        shown = json.loads(beta.run("qemu-img", "info", "--output=json", str(here.images / "disk1.qcow2")))
        assert "backing-filename" not in shown
        reads = ["read -P 5 0 1M", "read -P 9 1M 1M", "read -P 5 2M 2M", "read -P 0 4M 4M"]
        said = beta.run(
            "qemu-io",
            "-r",
            "-f",
            "qcow2",
            *(word for read in reads for word in ("-c", read)),
            str(here.images / "disk1.qcow2"),
        )
        assert "failed" not in said


def local_iso(here: DiskSite) -> GuestMachine:
    iso = here.images / "own.iso"
    here.site.hosts["a"].run("truncate", "-s", "1M", str(iso))
    return replace(here.machine, extra=(
        *("-blockdev", f"driver=raw,node-name=c0,read-only=on,file.driver=file,file.filename={iso}"),
        *("-device", "virtio-scsi-pci,id=scsi0,addr=0x7", "-device", "scsi-cd,id=cd,drive=c0,bus=scsi0.0"),
    ))  # fmt: skip


def one_image_twice(here: DiskSite) -> GuestMachine:
    image = here.images / "shared.img"
    here.site.hosts["a"].run("truncate", "-s", "1M", str(image))
    nodes = [
        f"driver=raw,node-name=n{n},file.driver=file,file.filename={image},file.locking=off" for n in (1, 2)
    ]
    return replace(here.machine, extra=(
        *("-blockdev", nodes[0], "-device", "virtio-blk-pci,id=one,drive=n1,share-rw=on,addr=0x6"),
        *("-blockdev", nodes[1], "-device", "virtio-blk-pci,id=two,drive=n2,share-rw=on,addr=0x7"),
    ))  # fmt: skip


def with_snapshot(here: DiskSite) -> GuestMachine:
    disk = here.images / "disk1.qcow2"
    here.site.hosts["a"].run("qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M")
    here.site.hosts["a"].run("qemu-img", "snapshot", "-c", "first", str(disk))
    return replace(here.machine, extra=(
        *("-blockdev", f"driver=qcow2,node-name=d1,file.driver=file,file.filename={disk}"),
        *("-device", "virtio-blk-pci,id=disk1,drive=d1,addr=0x6"),
    ))  # fmt: skip


def shrunk(here: DiskSite) -> GuestMachine:
    disk = here.images / "disk1.img"
    here.site.hosts["a"].run("truncate", "-s", "2M", str(disk))
    return replace(here.machine, extra=(
        *("-blockdev", f"driver=raw,node-name=d1,file.driver=file,file.filename={disk}"),
        *("-device", "virtio-blk-pci,id=disk1,drive=d1,addr=0x6"),
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("prepare", "spoil", "words"),
    [
        pytest.param(local_iso, (), "own.iso", marks=pytest.mark.matrix),
        pytest.param(
            one_image_twice, (), "another disk of the guest has the same image", marks=pytest.mark.matrix
        ),
        (with_snapshot, (), "1 internal snapshots would stay behind"),
        pytest.param(
            shrunk,
            ("truncate", "-s", "1M", "{}/disk1.img"),
            f"{2 * MIB} bytes of the {MIB}",
            marks=pytest.mark.matrix,
        ),
    ],
    ids=["iso of the host", "one image twice", "snapshot within", "file that has shrunk"],
)
async def test_what_cannot_be_copied_is_refused_before_anything_is_made(
    prepare: Callable[[DiskSite], GuestMachine], spoil: tuple[str, ...], words: str
) -> None:
    async with disk_site(prepare=prepare) as here:
        if spoil:
            here.site.hosts["a"].run(*(each.format(here.images) for each in spoil))
        there: Any = await here.migrate("b")
        assert there.returncode == 3, there.stdout + there.stderr
        assert words in there.stdout + there.stderr
        assert here.names("b") == []
