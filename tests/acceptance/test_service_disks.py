"""The service moves a guest whose disk its target does not share: an image is made there, and filled."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.guest.writer import COUNTER_ADDRESS, COUNTER_BYTES
from migrator.testing.lab import GuestMachine, LabQemu, until
from migrator.testing.own_images import own_images
from tests.acceptance.service_site import MIB, LiveSite
from tests.conftest import missing
from tests.disks import WRITER, contents, files, make_image, same_contents, second_disk
from tests.luks import write_luks

pytestmark = pytest.mark.usefixtures("_namespaces")


@pytest.fixture
def _namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


class DiskSite:
    """Two hosts, each with images of its own, and a guest on the first."""

    def __init__(self, site: LiveSite, images: Path) -> None:
        self.site = site
        self.images = images
        self.image = images / "disk.img"
        self.machine = GuestMachine(name="web", image=self.image)

    def names(self, host: str) -> list[str]:
        return files(self.site.hosts[host], self.images)

    async def migrate(self, target: str, *options: str) -> Any:
        return await self.site.cli("migrate", "web", "--to", target, "--wait", *options)

    async def begin(self, target: str) -> str:
        """Begin a migration, and wait until disks are copied; its id."""
        return str((await self.site.post("migrations", guest="web", to=target))["id"])

    async def check(self, host: str) -> int:
        """Assert that the guest runs there alone and has lost no write, and return how many there were.

        It stands still then.
        """
        (qemu,) = await self.site.running(self.machine)
        assert self.site.where(qemu) == host
        await self.goes_on(qemu)
        await qemu.query("stop")
        memory = self.site.directory / "counter"
        await qemu.query("pmemsave", val=COUNTER_ADDRESS, size=COUNTER_BYTES, filename=str(memory))
        count = WRITER.check(contents(self.site, self.site.hosts[host], self.image), memory.read_bytes())
        assert count > 0
        return count

    async def end(self) -> None:
        """End the only QEMU that is left."""
        (qemu,) = self.site.instances(self.machine)
        await qemu.query("quit")
        await until(lambda: not self.site.instances(self.machine), what="the end of QEMU")

    async def goes_on(self, qemu: LabQemu) -> None:
        async def done() -> int:
            memory = self.site.directory / "seen"
            await qemu.query("pmemsave", val=COUNTER_ADDRESS, size=COUNTER_BYTES, filename=str(memory))
            return int.from_bytes(memory.read_bytes()[4:], "little")

        before = await done()

        async def more() -> bool:
            return await done() > before

        await until(more, what="a guest that writes")


@asynccontextmanager
async def disk_site(
    *,
    size_bytes: int = MIB,
    room: str = "64m",
    limits: str = "",
    prepare: Callable[[DiskSite], GuestMachine] | None = None,
    paused: bool = False,
    names: tuple[str, ...] = ("a", "b"),
    reached: Callable[[LiveSite], AbstractContextManager[Any]] = contextlib.nullcontext,
    crossing: tuple[Path, Path] | None = None,
    limit_seconds: float = LiveSite.limit_seconds,
    **how: Any,
) -> AsyncIterator[DiskSite]:
    """Serve one.

    :param prepare: returns the guest that is started, once its image is there.
    :param reached: how the service gets to its hosts, where that is not by their prefixes.
    :param crossing: the QEMUs of its first and of its second host.
    :param limit_seconds: see :class:`LiveSite`.
    """
    with LiveSite(*names, **how) as site, own_images(site, size=room) as images:
        site.limit_seconds = limit_seconds
        made = DiskSite(site, images)
        if limits:
            config = site.config.read_text()
            site.config.write_text(config.replace("[limits]", f"[limits]\n{limits}"))
        outside = site.directory / "outside.img"
        WRITER.write_image(outside, size_bytes=size_bytes)
        if size_bytes > MIB:
            with outside.open("r+b") as image:
                image.seek(MIB)
                image.write(b"full" * ((size_bytes - MIB) // 4))
        site.hosts["a"].run("cp", "--sparse=always", "--", str(outside), str(made.image))
        if prepare is not None:
            made.machine = prepare(made)
        binary: dict[str, Any] = {}
        if crossing is not None:
            binary = {"binary": crossing[0]}
            site.change_host("b", ("address = ", f'qemu = "{crossing[1]}"\naddress = '))
        try:
            start = site.start(made.machine, "a", paused=True, **binary) if paused else None
            await (start or site.boot(made.machine, "a", **binary))
            with reached(site):
                site.serve()
                await site.until_served()
                await site.known(1)
                yield made
        finally:
            await site.disconnect()


async def test_a_disk_travels_there_and_back_again() -> None:
    async with disk_site() as here:
        there = await here.migrate("b")
        assert there.returncode == 0, there.stdout + there.stderr + here.site.log()[-3000:]
        assert here.names("b") == ["disk.img"]
        (left,) = here.names("a")
        assert left.startswith("disk.img.left-")
        (moved,) = await here.site.migrations("completed")
        assert "source-image-kept" in [each["code"] for each in moved["findings"]]
        back = await here.migrate("a")
        assert back.returncode == 0, back.stdout + back.stderr + here.site.log()[-3000:]
        assert sorted(here.names("a")) == ["disk.img", left]
        await here.check("a")


@pytest.mark.matrix
async def test_a_target_that_cannot_have_the_disk_is_refused() -> None:
    async with disk_site(size_bytes=16 * MIB) as here:
        here.site.hosts["b"].run("truncate", "-s", "1M", str(here.image))
        there = await here.migrate("b")
        assert there.returncode == 3
        assert "disk-not-shared" in there.stdout + there.stderr
        assert here.names("b") == ["disk.img"]
        here.site.hosts["b"].run("rm", str(here.image))
        here.site.hosts["b"].run("truncate", "-s", "0", str(here.images / "other"))
        here.site.hosts["b"].run("fallocate", "-l", "60M", str(here.images / "other"))
        there = await here.migrate("b")
        assert there.returncode == 3
        assert "disk-room" in there.stdout + there.stderr
        assert here.names("b") == ["other"]
        await here.check("a")


async def test_what_was_made_is_removed_where_the_destination_dies() -> None:
    async with disk_site(size_bytes=32 * MIB, bytes_per_second=20 * MIB) as here:
        with here.site.crawling():
            identifier = await here.begin("b")
            await here.site.until_state("mirroring")
            (waiting,) = [pid for pid, argv in here.site.processes() if "-incoming" in argv]
            os.kill(waiting, signal.SIGKILL)
        ended = await here.site.migration_ended(identifier, "failed")
        assert ended["downtime_seconds"] is None
        assert here.names("b") == []
        assert here.names("a") == ["disk.img"]
        await here.check("a")


@pytest.mark.matrix
async def test_a_controller_that_is_killed_begins_anew() -> None:
    async with disk_site(size_bytes=32 * MIB, bytes_per_second=20 * MIB) as here:
        identifier = await here.begin("b")
        await here.site.until_state("mirroring")
        here.site.kill()
        here.site.serve()
        await here.site.until_served()
        await here.site.migration_ended(identifier, "completed")
        assert here.names("b") == ["disk.img"]
        await here.check("b")


@pytest.mark.matrix
async def test_what_it_left_is_removed_once_it_was_compared_though_the_controller_is_killed() -> None:
    policy = '[policies.clean]\nextends = "default"\nsource_images = "remove"'
    # Longer than a busy machine takes to ask what it is at.
    async with disk_site(size_bytes=8 * MIB, limits='source_image_grace = "15s"', extra=policy) as here:
        there = await here.migrate("b", "--policy", "clean")
        assert there.returncode == 0, there.stdout + there.stderr + here.site.log()[-3000:]
        (left,) = here.names("a")

        async def becomes(state: str) -> None:
            async def so() -> bool:
                (moved,) = await here.site.migrations("completed")
                assert moved["source_images"]["state"] != "kept", moved["source_images"]
                return bool(moved["source_images"]["state"] == state)

            await until(so, what=f"images that are {state}", within=60.0)

        await becomes("compared")
        here.site.kill()
        assert here.names("a") == [left]
        here.site.serve()
        await here.site.until_served()
        await becomes("removed")
        assert here.names("a") == []
        (moved,) = await here.site.migrations("completed")
        actions = [each["action"] for each in moved["decisions"]]
        assert actions[-2:] == ["source-image-compared", "source-image-removed"]
        told = await here.site.cli("events", moved["id"], "--json")
        numbers = [each["sequence"] for each in json.loads(told.stdout)["items"]]
        assert numbers == list(range(1, len(numbers) + 1))
        await here.check("b")


def overlay(features: str) -> Callable[[DiskSite], GuestMachine]:
    """A second disk whose image is based on one that both hosts see."""

    def prepare(here: DiskSite) -> GuestMachine:
        base = make_image(here.site.directory / "base, of all.qcow2", size="32M", written="write -P 5 0 16M")
        disk = here.images / "disk1.qcow2"
        based = f"backing_file={str(base).replace(',', ',,')},backing_fmt=qcow2"
        alpha = here.site.hosts["a"]
        alpha.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"{features},{based}", str(disk), "48M")
        alpha.run("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 1M", "-c", "write -z 3M 1M", str(disk))
        return replace(here.machine, extra=second_disk(disk))

    return prepare


async def test_a_base_that_both_hosts_share_is_kept_and_so_are_the_features_of_the_image() -> None:
    policy = '[policies.thin]\nextends = "default"\nbacking = "keep"'
    features = "cluster_size=131072,extended_l2=on,lazy_refcounts=on,refcount_bits=8,compression_type=zstd"
    async with disk_site(extra=policy, prepare=overlay(features)) as here:
        disk = here.images / "disk1.qcow2"

        def shown(host: str, path: Path) -> Any:
            said = here.site.hosts[host].run("qemu-img", "info", "-U", "--output=json", str(path))
            return json.loads(said)

        before = shown("a", disk)
        there = await here.migrate("b", "--policy", "thin")
        assert there.returncode == 0, there.stdout + there.stderr + here.site.log()[-3000:]
        await here.check("b")
        await here.end()
        after = shown("b", disk)
        for same in ("virtual-size", "cluster-size", "full-backing-filename", "backing-filename-format"):
            assert after[same] == before[same]
        assert after["format-specific"] == before["format-specific"]
        assert after["actual-size"] < 8 * MIB  # what the base has was not copied
        (left,) = [name for name in here.names("a") if name.startswith("disk1.qcow2.left-")]
        copies = []
        for host, path in (("a", here.images / left), ("b", disk)):
            copies.append(here.site.directory / f"{host}.qcow2")
            copies[-1].write_bytes(contents(here.site, here.site.hosts[host], path))
        assert same_contents(*copies, form="qcow2")


async def test_a_base_that_is_not_the_same_file_there_is_not_kept() -> None:
    policy = '[policies.thin]\nextends = "default"\nbacking = "keep"'

    def prepare(here: DiskSite) -> GuestMachine:
        """A base that each host has of its own, with the same contents."""
        base, disk = here.images / "base.img", here.images / "disk1.qcow2"
        for host in ("a", "b"):
            here.site.hosts[host].run("truncate", "-s", "1M", str(base))
        based = f"backing_file={base},backing_fmt=raw"
        here.site.hosts["a"].run("qemu-img", "create", "-q", "-f", "qcow2", "-o", based, str(disk), "1M")
        return replace(here.machine, extra=second_disk(disk))

    async with disk_site(extra=policy, prepare=prepare) as here:
        there = await here.migrate("b", "--policy", "thin")
        assert there.returncode == 3
        assert "is not seen to be the same file" in there.stdout + there.stderr
        assert here.names("b") == ["base.img"]


@pytest.mark.matrix
async def test_a_guest_that_never_ran_takes_its_disk_along_and_does_not_run_there_either() -> None:
    async with disk_site(size_bytes=4 * MIB, paused=True) as here:
        there = await here.migrate("b")
        assert there.returncode == 0, there.stdout + there.stderr + here.site.log()[-3000:]
        (qemu,) = here.site.instances(here.machine)
        assert here.site.where(qemu) == "b"
        assert (await qemu.query("query-status"))["status"] == "prelaunch"
        await here.end()
        (left,) = here.names("a")
        assert here.names("b") == ["disk.img"]
        old = contents(here.site, here.site.hosts["a"], here.images / left)
        assert contents(here.site, here.site.hosts["b"], here.image) == old


@pytest.mark.matrix
async def test_an_encrypted_disk_travels_as_it_is_with_its_header() -> None:
    secret = ("-object", "secret,id=s0,data=a word")

    def prepare(here: DiskSite) -> GuestMachine:
        made, disk = here.site.directory / "made.luks", here.images / "disk1.luks"
        write_luks(made, "a word", 4 * MIB)
        options = f"driver=luks,key-secret=s0,file.filename={made}"
        write = ["qemu-io", "--object", secret[1], "-c", "write -q -P 7 1M 1M", "--image-opts", options]
        subprocess.run(write, check=True)
        here.site.hosts["a"].run("cp", "--", str(made), str(disk))
        options = f"driver=luks,node-name=disk1,key-secret=s0,file.driver=file,file.filename={disk}"
        device = ("-device", "virtio-blk-pci,id=disk1-device,drive=disk1,addr=0x6")
        return replace(here.machine, extra=(*secret, "-blockdev", options, *device))

    async with disk_site(prepare=prepare) as here:
        there = await here.migrate("b")
        assert there.returncode == 0, there.stdout + there.stderr + here.site.log()[-3000:]
        await here.check("b")
        await here.end()
        (left,) = [name for name in here.names("a") if name.startswith("disk1.luks.left-")]
        old = contents(here.site, here.site.hosts["a"], here.images / left)
        assert contents(here.site, here.site.hosts["b"], here.images / "disk1.luks") == old
