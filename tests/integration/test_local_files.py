"""What a guest has in files that hosts do not share moves along: variables of its firmware, and its memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.core.findings import PreflightRefused, accept
from migrator.core.model import Severity
from migrator.errors import HostError
from migrator.hosts.local import LocalAccess
from migrator.site.host_checks import SiteChecks
from migrator.testing.lab import GuestMachine, Habit, Lab
from tests.command import ACCEPTED_CODES
from tests.destinations import MIB, POLICY, Moved, Site, guest_of, site_of
from tests.integration.test_checks_files import OtherMounts

FIRMWARE = Path("/usr/share/seabios/bios-256k.bin")
SIZE = 64 << 10
#: Of the drive, or of a node that the machine names.
FORMS = {
    "drive": ("-drive", "if=pflash,unit=1,format=raw,file={}"),
    "nameless": ("-drive", "if=pflash,unit=0,format=raw,readonly=on,file=FIRMWARE", "-pflash", "{}"),
    "node": (
        "-blockdev",
        "driver=raw,node-name=nv,file.driver=file,file.filename={}",
        "-machine",
        "pflash1=nv",
    ),
}


@pytest.fixture
async def site(lab: Lab) -> AsyncIterator[Site]:
    async with site_of(lab) as site:
        yield site


@pytest.fixture
def local(site: Site, tmp_path: Path) -> Iterator[Path]:
    """A directory that both hosts have, each for itself; returned is what beta has there."""
    if os.geteuid() != 0:
        pytest.skip("mount namespaces need root")
    here, there = site.directory / "nv", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    other = OtherMounts(here, there)
    site.reached_by(LocalAccess("beta", other.prefix))
    yield there
    site.kill()
    other.close()


def machine(site: Site, form: str) -> GuestMachine:
    variables = site.directory / "nv" / "vars, 1.fd"
    variables.write_bytes(bytes(range(256)) * (SIZE // 256))
    variables.chmod(0o640)
    code = (
        ("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}") if form != "nameless" else ()
    )
    words = [
        word.replace("{}", str(variables).replace(",", ",,") if "=" in word else str(variables)).replace(
            "FIRMWARE", str(FIRMWARE)
        )
        for word in FORMS[form]
    ]
    return GuestMachine(habit=Habit(region_bytes=8 * MIB, bytes_per_second=4 * MIB), extra=(*code, *words))


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=pytest.mark.matrix) if n else form for n, form in enumerate(FORMS)]
)
async def test_variables_arrive_in_a_file_of_their_own(
    lab: Lab, site: Site, local: Path, one_crossing: tuple[Path, Path], form: str
) -> None:
    qemu = await lab.boot(machine(site, form), binary=one_crossing[0])
    guest = guest_of(qemu)
    known = replace(guest, pid=qemu.pid)
    found = await SiteChecks(site.connections).check(known, await site.source(guest), "beta", policy=POLICY)
    found = accept(found, ACCEPTED_CODES)
    assert [finding.message for finding in found if finding.severity is Severity.ERROR] == []
    await site.close()
    site.have(*one_crossing)
    guest = await site.move(guest, "beta")
    (made,) = local.iterdir()
    assert (made.name, made.stat().st_mode & 0o777) == ("vars, 1.fd", 0o640)
    assert made.read_bytes() == bytes(range(256)) * (SIZE // 256)
    moved = Moved(qemu.machine, lab, guest.socket)
    await moved.check_memory()
    guest = await site.move(guest, "alpha")
    assert made.exists()


async def test_what_was_made_goes_if_the_guest_does_not_come(lab: Lab, site: Site, local: Path) -> None:
    qemu = await lab.start(machine(site, "drive"))
    started = await site.start(guest_of(qemu))
    assert [path.name for path in local.iterdir()] == ["vars, 1.fd"]
    await started.discard()
    assert list(local.iterdir()) == []


async def test_what_was_there_is_neither_written_over_nor_removed(lab: Lab, site: Site, local: Path) -> None:
    qemu = await lab.start(machine(site, "drive"))
    old = local / "vars, 1.fd"
    old.write_bytes(b"x" * SIZE)
    await (await site.start(guest_of(qemu))).discard()
    assert old.read_bytes() == b"x" * SIZE


async def test_no_room_is_said_and_nothing_is_left(lab: Lab, site: Site, local: Path) -> None:
    qemu = await lab.start(machine(site, "drive"))
    local.rmdir()
    with pytest.raises(HostError, match="vars, 1"):
        await site.start(guest_of(qemu))
    assert (site.left, site.processes) == ([], [])


async def test_shared_memory_is_not_left_behind_and_does_not_block_the_way_home(
    lab: Lab, site: Site, local: Path, one_version: Path
) -> None:
    memory = site.directory / "nv" / "ram"
    backend = f"memory-backend-file,id=ram,size=128M,mem-path={memory},share=on"
    habit = Habit(region_bytes=8 * MIB, bytes_per_second=4 * MIB)
    qemu = await lab.boot(
        GuestMachine(habit=habit, extra=("-object", backend, "-machine", "memory-backend=ram")),
        binary=one_version,
    )
    site.have(one_version, one_version)
    await (await site.start(guest_of(qemu))).discard()
    assert list(local.iterdir()) == []
    await site.close()
    guest = await site.move(guest_of(qemu), "beta")
    assert [path.name for path in local.iterdir()] == ["ram"]
    guest = await site.move(guest, "alpha")
    assert list(local.iterdir()) == []
    await Moved(qemu.machine, lab, guest.socket).check_memory()


async def test_memory_that_a_process_has_is_not_taken(lab: Lab, site: Site) -> None:
    memory = site.directory / "ram"
    backend = f"memory-backend-file,id=ram,size=128M,mem-path={memory},share=on"
    qemu = await lab.start(GuestMachine(extra=("-object", backend, "-machine", "memory-backend=ram")))
    with pytest.raises(PreflightRefused, match="memory"):
        await site.start(guest_of(qemu))
    assert memory.exists()
