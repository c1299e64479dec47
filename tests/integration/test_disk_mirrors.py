"""Mirrors of disks between two QEMUs: what proves that a disk has arrived."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.core.migration.disk_copies import DiskCopy, Mirrors
from migrator.core.preflight.disk_images import why_not_copied
from migrator.core.process.image_paths import TargetImage
from migrator.engine.migration.disk_mirrors import DiskMirrors
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.qemu.source import SourceEndpoint
from migrator.testing.lab import Lab, until
from tests.disks import MIB, WritingGuest, make_image, second_disk, writing_guest
from tests.luks import HEADER_BYTES, write_luks


async def _as_it_is(uri: str) -> str:
    return uri


def _unlimited() -> int | None:
    return None


async def _copy(mirrors: DiskMirrors) -> None:
    async def tend(how: Mirrors) -> None:
        pass

    await mirrors.begin("tcp:127.0.0.1:0", speed=_unlimited)
    await mirrors.copy(speed=_unlimited, unwanted=lambda: False, tend=tend, pause=asyncio.sleep)


@asynccontextmanager
async def mirrored(
    lab: Lab, crossing: tuple[Path, Path], *, size_bytes: int = MIB
) -> AsyncIterator[tuple[WritingGuest, DiskMirrors, Endpoint]]:
    """A guest whose disk is the same on both sides, and follows; and its source."""
    async with unmirrored(lab, crossing, size_bytes=size_bytes) as (guest, mirrors, ends):
        await _copy(mirrors)
        yield guest, mirrors, ends[0]


@asynccontextmanager
async def unmirrored(
    lab: Lab, crossing: tuple[Path, Path], *, size_bytes: int = MIB
) -> AsyncIterator[tuple[WritingGuest, DiskMirrors, list[Endpoint]]]:
    """A guest whose disk has yet to be copied; and both its ends."""
    guest = await writing_guest(
        lab, size_bytes=size_bytes, filled=True, source=crossing[0], destination=crossing[1]
    )
    ends = [
        Endpoint(Address(kind="unix", path=str(end.qmp)), role=role)
        for end, role in ((guest.pair.source, "source"), (guest.pair.destination, "destination"))
    ]
    for end in ends:
        await end.connect()
        await end.claim("m")
    try:
        (disk,) = [each for each in (await ends[0].facts()).disks if each.file == str(guest.here)]
        copy = DiskCopy(device=disk.device, size_bytes=size_bytes, path=str(guest.here))
        mirrors = DiskMirrors(*ends, migration="m", tls=None, lead=_as_it_is, tell=lambda what, why: None)
        mirrors.copies = (copy,)
        yield guest, mirrors, ends
    finally:
        for end in ends:
            await end.close()


async def test_one_that_somebody_else_has_ended_proves_nothing(
    lab: Lab, one_crossing: tuple[Path, Path]
) -> None:
    async with mirrored(lab, one_crossing) as (guest, mirrors, source):
        (job,) = await guest.pair.source.query("query-jobs")
        await guest.pair.source.query("block-job-cancel", device=job["id"])

        async def concluded() -> bool:
            (now,) = await guest.pair.source.query("query-jobs")
            return bool(now["status"] == "concluded" and "error" not in now)

        await until(concluded, what="the end of the mirror")
        await guest.goes_on(guest.pair.source)  # it has written what is at the source alone
        await guest.pair.source.query("stop")
        users = await source.disk_users()
        assert "somebody else" in (await mirrors.end(users, ceiling_seconds=0.3))[0]
        assert (await mirrors.end(users, ceiling_seconds=0.3, ended_before=True))[0] == ""


async def test_a_mirror_keeps_to_its_share_from_its_first_byte_on(lab: Lab, each_qemu: Path) -> None:
    async with unmirrored(lab, (each_qemu, each_qemu), size_bytes=8 * MIB) as (guest, mirrors, _):
        await mirrors.begin("tcp:127.0.0.1:0", speed=lambda: MIB)
        (job,) = await guest.pair.source.query("query-block-jobs")
        assert job["speed"] == MIB


async def test_whatever_was_begun_when_the_rest_of_the_set_up_failed_is_given_up(
    lab: Lab, one_crossing: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with unmirrored(lab, one_crossing) as (guest, mirrors, ends):
        claim, sent = ends[0].mirroring._claim, list[str]()
        execute = claim.execute
        tries: list[asyncio.Task[None]] = []
        broken_off: list[str] = []

        async def execute_and_break_off(command: str, *more: Any, **how: Any) -> Any:
            sent.append(command)
            if len(sent) > len(broken_off):
                tries[-1].cancel()
            return await execute(command, *more, **how)

        while True:
            sent.clear()
            with monkeypatch.context() as patched:
                patched.setattr(claim, "execute", execute_and_break_off)
                tries.append(asyncio.create_task(mirrors.begin("tcp:127.0.0.1:0", speed=_unlimited)))
                await asyncio.wait(tries)
            await mirrors.give_up()
            assert await guest.pair.source.query("query-jobs") == []
            nodes = await guest.pair.source.query("query-named-block-nodes")
            assert not [node for node in nodes if "migrator" in node["node-name"]]
            await ends[1].mirroring.stop_serving()
            if not tries[-1].cancelled():
                break
            broken_off.append(sent[-1])
        assert broken_off == ["blockdev-add", "blockdev-mirror"]
        await _copy(mirrors)


async def test_a_burst_that_came_too_late_is_seen_before_the_guest_has_waited_for_it(
    lab: Lab, one_crossing: tuple[Path, Path]
) -> None:
    async with mirrored(lab, one_crossing, size_bytes=8 * MIB) as (guest, mirrors, end):
        source, destination = guest.pair.source, guest.pair.destination
        await source.query("stop")

        async def idle() -> bool:
            (now,) = await source.query("query-jobs")
            return bool(now["total-progress"] == now["current-progress"])

        # While it waits for what it has sent already, a mirror counts nothing that is written meanwhile.
        await until(idle, what="a mirror that has nothing under way")
        destination.sigstop()  # a mirror may copy 16 MiB at once, whatever its speed
        try:
            burst = 'qemu-io -d /machine/peripheral/disk0/virtio-backend "write -P 9 2M 6M"'
            await source.query("human-monitor-command", **{"command-line": burst})

            async def counted() -> bool:
                (now,) = await source.query("query-jobs")
                return int(now["total-progress"]) - int(now["current-progress"]) > 4 * MIB

            await until(counted, what="the burst in the figures of the mirror")
            mirrors.carried_bytes_per_second = MIB
            began = asyncio.get_running_loop().time()
            why, _ = await mirrors.end(await end.disk_users(), ceiling_seconds=0.3)
            assert "a burst of writes came too late" in why
            assert asyncio.get_running_loop().time() - began < 10
            (job,) = await source.query("query-jobs")
            assert job["status"] == "ready"  # it can go on as before
        finally:
            destination.sigcont()


async def test_what_was_copied_is_still_in_the_cache_of_its_host_when_the_guest_arrives(
    lab: Lab, each_qemu: Path
) -> None:
    async with mirrored(lab, (each_qemu, each_qemu), size_bytes=8 * MIB) as (guest, mirrors, source):
        destination = guest.pair.destination
        arriving = await destination.query("migrate-incoming", uri="tcp:127.0.0.1:0")
        (address,) = (await destination.query("query-migrate"))["socket-address"]
        assert arriving == {}
        await guest.pair.source.query("stop")
        assert (await mirrors.end(await source.disk_users(), ceiling_seconds=None))[0] == ""
        assert _cached(guest.there)
        await guest.pair.source.query("migrate", uri=f"tcp:127.0.0.1:{address['port']}")

        async def loaded() -> bool:
            return bool((await destination.query("query-status"))["status"] == "paused")

        await until(loaded, what="a guest that has arrived")
        await destination.query("cont")
        # Else QEMU would have dropped it by now, while the guest stood still.
        assert _cached(guest.there)


def _cached(path: Path) -> bool:
    """Tell whether all of a file is in the page cache."""
    with path.open("rb") as file:
        try:
            pages = [bytearray(4096)]
            return all(
                os.preadv(file.fileno(), pages, at, os.RWF_NOWAIT)
                for at in range(0, path.stat().st_size, 4096)
            )
        except BlockingIOError:
            return False


async def test_an_image_that_was_made_flat_is_no_difference_and_another_one_is(
    lab: Lab, one_crossing: tuple[Path, Path]
) -> None:
    base = make_image(lab.directory / "base.qcow2", size="4M")
    disk = lab.directory / "disk1.qcow2"
    based = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(disk)]
    subprocess.run(based, check=True)
    (lab.directory / "flat").mkdir()
    flat = make_image(lab.directory / "flat" / disk.name, size="4M")
    images = {str(disk): TargetImage(path=str(flat))}
    guest = await writing_guest(
        lab,
        here_disk=second_disk(disk),
        there_disk=second_disk(flat),
        source=one_crossing[0],
        destination=one_crossing[1],
    )
    ends = [
        SourceEndpoint(Address(kind="unix", path=str(end.qmp)), role=role)
        for end, role in ((guest.pair.source, "source"), (guest.pair.destination, "destination"))
    ]
    for end in ends:
        await end.connect()
    try:
        (name,) = [each.device for each in (await ends[0].facts()).disks if each.file == str(disk)]
        run, own = str(lab.directory), {str(guest.here): TargetImage(path=str(guest.there))}
        for made, found in (((name,), []), ((), ["disk-not-shared"])):
            said = await ends[0].replicate_devices(
                ends[1], run_directory=run, images={**images, **own}, made=made
            )
            assert [each.code for each in said] == found
    finally:
        for end in ends:
            await end.close()


async def test_an_encrypted_disk_is_written_as_it_is_after_the_same_header(
    lab: Lab, one_crossing: tuple[Path, Path]
) -> None:
    secret = "secret,id=s0,data=a word"
    images = here, there = lab.directory / "a.luks", lab.directory / "b.luks"
    write_luks(here, "a word", MIB)
    write = ["qemu-io", "--object", secret, "-c", "write -q -P 7 64k 64k", "--image-opts"]
    subprocess.run([*write, f"driver=luks,key-secret=s0,file.filename={here}"], check=True)
    header = HEADER_BYTES
    with there.open("wb") as file:
        file.write(here.read_bytes()[:header])
        file.truncate(here.stat().st_size)
    disks = [
        (
            *("-object", secret),
            *(
                "-blockdev",
                f"driver=luks,node-name=disk1,key-secret=s0,file.driver=file,file.filename={image}",
            ),
            *("-device", "virtio-blk-pci,id=disk1-device,drive=disk1,addr=0x6"),
        )
        for image in images
    ]
    guest = await writing_guest(
        lab, source=one_crossing[0], destination=one_crossing[1], here_disk=disks[0], there_disk=disks[1]
    )
    ends = [
        Endpoint(Address(kind="unix", path=str(end.qmp)), role=role)
        for end, role in ((guest.pair.source, "source"), (guest.pair.destination, "destination"))
    ]
    for end in ends:
        await end.connect()
        await end.claim("m")
    try:
        disk = next(each for each in (await ends[0].facts()).disks if each.format == "luks")
        assert disk.image.header_bytes == header
        assert why_not_copied(disk) == ""
        mirrors = DiskMirrors(*ends, migration="m", tls=None, lead=_as_it_is, tell=lambda what, why: None)
        mirrors.copies = (DiskCopy(device=disk.device, size_bytes=MIB, path=str(here), new=True),)
        await _copy(mirrors)
        await guest.pair.source.query("stop")
        assert (await mirrors.end(await ends[0].disk_users(), ceiling_seconds=None))[0] == ""
        nodes = await guest.pair.source.query("query-named-block-nodes")
        assert not [node for node in nodes if "migrator" in node["node-name"]]
    finally:
        for end in ends:
            await end.close()
    assert there.read_bytes() == here.read_bytes()
