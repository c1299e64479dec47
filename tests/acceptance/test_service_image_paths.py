"""The service moves a guest whose disks have other paths at the target: other directories, files for volumes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from migrator.testing import network
from migrator.testing.lab import GuestMachine
from migrator.testing.own_images import own_images
from tests.acceptance.service_site import MIB, LiveSite, one_served
from tests.acceptance.test_service_disks import DiskSite
from tests.conftest import missing
from tests.disks import WRITER

#: Volumes of their own below /dev, where both hosts have the same files: each is named after its host.
_NODE = '[ -b "$1" ] || { mkdir -p "${1%/*}"; l=$(losetup -f --show -- "$2") && ln -s "$l" "$1"; }'


@asynccontextmanager
async def moved_site() -> AsyncIterator[DiskSite]:
    """A guest with a raw disk in a file and two of qcow2, in a file and in a volume, in directories of many names."""
    mark = Path(f"/dev/migrator-test-{os.getpid()}")
    backing = mark.with_name(f"{mark.name}-files")
    make = (
        f'truncate -s "$2" -- {backing}/made && l=$(losetup -f --show -- {backing}/made) && ln -s "$l" "$1"'
    )
    remove = f'losetup -d "$(readlink -- "$1")" && rm -- "$1" {backing}/made'
    template = (
        f"image_template = {{ make = ['sh', '-c', '{make}', 'sh', '{{path}}', '{{size}}'], "
        f"remove = ['sh', '-c', '{remove}', 'sh', '{{path}}'] }}\n"
    )
    (mark / "a").mkdir(parents=True)
    (mark / "b").mkdir()
    backing.mkdir()
    if (why := network.possible()) is not None:
        missing(why)
    if subprocess.run(["losetup", "-f"], capture_output=True, check=False).returncode:
        missing("there are no loop devices")
    with LiveSite("a", "b") as site, own_images(site) as images:
        (images / "one").mkdir()
        made = DiskSite(site, images)
        for host, (slow, fast, odd) in {
            "a": ("one", f"{mark}/a", "odd"),
            "b": ("two/deeper", f"{images}/out", f"{mark}/b"),
        }.items():
            directories = ", ".join(
                f'{name} = "{where if where.startswith("/") else images / where}"'
                for name, where in (("slow", slow), ("fast", fast), ("odd", odd))
            )
            more = f"image_directories = {{ {directories} }}\n{template}"
            site.change_host(host, ('memory_reserve = "0"\n', f'memory_reserve = "0"\n{more}'))
            site.hosts[host].run(
                "mkdir", "-p", *(str(images / each) for each in ("one", "two/deeper", "odd", "out"))
            )
        made.image = images / "one/disk.img"
        disks = {"fast": mark / "a/volume", "odd": images / "odd/disk1.qcow2"}
        made.machine = GuestMachine(
            name="web",
            image=made.image,
            extra=tuple(
                word
                for number, (name, path) in enumerate(disks.items())
                for word in (
                    "-blockdev",
                    f"driver=qcow2,node-name={name},file.driver={('host_device', 'file')[number]},file.filename={path}",
                    *("-device", f"virtio-blk-pci,drive={name},addr={6 + number}"),
                )
            ),
        )
        try:
            outside = WRITER.write_image(site.directory / "outside.img", size_bytes=MIB)
            alpha = site.hosts["a"]
            alpha.run("cp", "--", str(outside), str(made.image))
            alpha.run(
                "sh", "-c", f'truncate -s 8M "$2" && {_NODE}', "sh", str(disks["fast"]), str(backing / "a")
            )
            for path, size in ((disks["fast"], "4M"), (disks["odd"], "4M")):
                alpha.run(
                    "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", str(path), size
                )
                alpha.run("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", str(path))
            async with one_served(site, made.machine):
                yield made
        finally:
            for link in mark.glob("*/*"):
                subprocess.run(["losetup", "-d", str(link.readlink())], check=False)
            shutil.rmtree(mark)
            shutil.rmtree(backing)


async def test_disks_go_where_the_target_has_them_from_files_to_volumes_and_back() -> None:
    async with moved_site() as here:
        there = await here.migrate("b")
        assert there.returncode == 0, there.stdout + there.stderr + here.site.log()[-3000:]
        beta, images = here.site.hosts["b"], here.images
        here.image = images / "two/deeper/disk.img"
        await here.check("b")
        ((_, words),) = list(here.site.processes())
        assert not any(str(images / "one") in word for word in words)
        volume = next(word for word in words if "/b/disk1.qcow2" in word)
        assert "host_device" in volume
        await here.end()
        for path in (images / "out/volume", Path(volume.rpartition("filename=")[2])):
            shown = json.loads(beta.run("qemu-img", "info", "--output=json", "-f", "qcow2", str(path)))
            assert (shown["virtual-size"], shown["cluster-size"]) == (4 * MIB, 4096)
            beta.run(
                "qemu-io", "-r", "-f", "qcow2", "-c", "read -P 7 1M 1M", "-c", "read -P 0 2M 2M", str(path)
            )
