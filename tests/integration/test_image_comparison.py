"""What a guest has left is compared with its disk, which it goes on writing to, and removed."""

from __future__ import annotations

import shutil
import socket
import struct
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.core.image_removal import ImageRemoval, OldImage
from migrator.errors import ComparisonFailed
from migrator.hosts import image_program
from migrator.hosts.host_config import HostConfig
from migrator.hosts.local import LocalAccess
from migrator.site.connections import HostConnections
from migrator.site.image_comparison import ImageComparison
from migrator.testing.lab import GuestMachine, Lab, LabQemu
from tests.disks import MIB, WRITER, make_image, second_disk

HOST = LocalAccess("here")


def comparison(**image_directories: str) -> ImageComparison:
    config = HostConfig(name="here", image_directories=image_directories)
    return ImageComparison(HostConnections({"here": (HOST, config)}))


async def arrived(lab: Lab, qemu_path: Path) -> tuple[LabQemu, ImageRemoval]:
    """A guest with a disk of each format whose writes are noted, and what it has left: copies of an instant."""
    here, second = lab.directory / "here.img", lab.directory / "a, b.qcow2"
    WRITER.write_image(here, size_bytes=16 * MIB)
    make_image(second, size="64M", written="write -P 7 1M 2M")
    qemu = await lab.boot(
        GuestMachine(image=here, extra=second_disk(Path(str(second).replace(",", ",,")))), binary=qemu_path
    )
    await qemu.query("stop")
    images: list[OldImage] = []
    for block in await qemu.query("query-block"):
        if not (inserted := block.get("inserted")):
            continue
        old = Path(f"{inserted['file']}.left-m")
        shutil.copyfile(inserted["file"], old)
        device = block["qdev"].removeprefix("/machine/peripheral/") or block["device"]
        await qemu.query("block-dirty-bitmap-add", node=inserted["node-name"], name=f"w-{len(images)}")
        images.append(
            OldImage(
                device=device,
                named=inserted["file"],
                path=str(old),
                format=inserted["drv"],
                written=f"w-{len(images)}",
            )
        )
    await qemu.query("cont")
    removal = ImageRemoval(
        migration="m",
        guest="g",
        host="here",
        target="here",
        socket=str(qemu.qmp),
        process={},
        images=tuple(images),
        grace_seconds=0.0,
        arrived_at=0.0,
    )
    return qemu, removal


async def test_a_guest_that_writes_is_compared_with_what_it_left_and_that_is_removed(
    lab: Lab, one_version: Path
) -> None:
    qemu, removal = await arrived(lab, one_version)
    before = qemu.beats
    # A comparison that was broken off has left its server.
    await qemu.query("nbd-server-start", addr={"type": "unix", "data": {"path": f"{lab.directory}/left"}})
    compared = await comparison().compare(removal)
    assert qemu.beats > before
    assert await qemu.query("query-block-exports") == []
    assert await comparison().remove(compared) == {}
    assert not list(lab.directory.glob("*.left-m"))
    assert await comparison().remove(compared) == {}  # whoever takes it up does it again
    with pytest.raises(ComparisonFailed, match="not been noted"):
        await comparison().compare(removal)  # nobody notes it any more


async def test_a_block_that_the_guest_did_not_write_tells_that_a_disk_is_another(
    lab: Lab, one_version: Path
) -> None:
    _, removal = await arrived(lab, one_version)
    (raw,) = [each for each in removal.images if each.format == "raw"]
    with Path(raw.path).open("r+b") as file:
        file.seek(12 * MIB)
        file.write(b"lost")
    with pytest.raises(ComparisonFailed, match=f"at {12 * MIB} "):
        await comparison().compare(replace(removal, images=(raw,)))


def test_a_server_that_has_its_socket_and_does_not_listen_yet_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "nbd")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        with pytest.raises(ConnectionRefusedError):
            image_program._connected(path, within=0.0)
        listens = threading.Timer(0.1, server.listen)
        listens.start()
        image_program._connected(path, within=20.0).close()
        listens.join()


async def test_what_somebody_has_a_use_for_is_not_removed(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.qcow2.left-m", size="1M")
    at = image.stat()
    old = OldImage(
        device="d",
        named=str(tmp_path / "disk.qcow2"),
        path=str(image),
        format="qcow2",
        written="w",
        identity=(at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns),
    )
    removal = ImageRemoval(
        migration="m",
        guest="g",
        host="here",
        target="here",
        socket="",
        process={},
        images=(old,),
        grace_seconds=0.0,
        arrived_at=0.0,
    )

    async def why(removal: ImageRemoval = removal, **image_directories: str) -> str:
        (found,) = (await comparison(**image_directories).remove(removal)).values()
        assert image.exists()
        return found

    other = replace(old, identity=(*old.identity[:3], 1))
    assert "another file" in await why(replace(removal, images=(other,)))
    with image.open("rb"):
        assert "has it open" in await why()
    clone = tmp_path / "clone.qcow2"
    name = b"disk.qcow2"  # as its owner wrote it before the guest left
    clone.write_bytes(b"QFI\xfb" + struct.pack(">LQL", 3, 512, len(name)) + bytes(492) + name)
    assert str(clone) in await why()
    other_name = b'json:{"driver":"qcow2","file":{"driver":"file","filename":"./disk.qcow2"}}'
    clone.write_bytes(b"QFI\xfb" + struct.pack(">LQL", 3, 512, len(other_name)) + bytes(492) + other_name)
    assert str(clone) in await why()
    elsewhere = tmp_path / "others" / "deeper"
    elsewhere.mkdir(parents=True)
    clone.rename(elsewhere / clone.name)
    assert f"{elsewhere}/clone.qcow2" in await why(large=str(tmp_path / "others"))
    # Nobody has said that images are there; but one that is in use is.
    used = make_image(elsewhere / "used.qcow2", size="1M")
    with used.open("rb"):
        assert f"{elsewhere}/clone.qcow2" in await why()
    assert await comparison(volumes="/dev", gone=str(tmp_path / "gone")).remove(removal) == {}
    assert not image.exists()
