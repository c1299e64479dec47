"""Mirrors of disks between two QEMUs: what proves that a disk has arrived."""

from __future__ import annotations

from pathlib import Path

from migrator.core.migration.disk_copies import DiskCopy, Mirrors
from migrator.engine.migration.disk_mirrors import DiskMirrors
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.testing.lab import Lab, until
from tests.disks import MIB, writing_guest


async def _as_it_is(uri: str) -> str:
    return uri


async def test_one_that_somebody_else_has_ended_proves_nothing(
    lab: Lab, one_crossing: tuple[Path, Path]
) -> None:
    guest = await writing_guest(lab, source=one_crossing[0], destination=one_crossing[1])
    ends = [
        Endpoint(Address(kind="unix", path=str(end.qmp)), role=role)
        for end, role in ((guest.pair.source, "source"), (guest.pair.destination, "destination"))
    ]
    for end in ends:
        await end.connect()
        await end.claim("m")
    try:
        (disk,) = [each for each in (await ends[0].facts()).disks if each.file == str(guest.here)]
        copy = DiskCopy(device=disk.device, size_bytes=MIB, path=str(guest.here))
        mirrors = DiskMirrors(*ends, migration="m", tls=None, lead=_as_it_is, tell=lambda what, why: None)
        mirrors.copies = (copy,)

        async def tend(how: Mirrors) -> None:
            pass

        await mirrors.copy("tcp:127.0.0.1:0", speed=lambda: None, unwanted=lambda: False, tend=tend)
        (job,) = await guest.pair.source.query("query-jobs")
        await guest.pair.source.query("block-job-cancel", device=job["id"])

        async def concluded() -> bool:
            (now,) = await guest.pair.source.query("query-jobs")
            return bool(now["status"] == "concluded" and "error" not in now)

        await until(concluded, what="the end of the mirror")
        await guest.goes_on(guest.pair.source)  # it has written what is at the source alone
        await guest.pair.source.query("stop")
        assert "somebody else" in await mirrors.end(ceiling_seconds=0.3)
        assert await mirrors.end(ceiling_seconds=0.3, ended_before=True) == ""
    finally:
        for end in ends:
            await end.close()
