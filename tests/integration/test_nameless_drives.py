"""Drives that nobody gave a name, in guests that move between versions which number them differently."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from migrator.testing.lab import GuestMachine, Habit, Lab
from tests.destinations import MIB, Moved, Site, guest_of, site_of

HABIT = Habit(region_bytes=8 * MIB, bytes_per_second=4 * MIB)
PC, Q35 = "pc-i440fx-7.2", "pc-q35-7.2"
#: How people give drives; {0} to {3} are images, {floppy} and {cd} what their names say.
SHAPES = {
    "hda": (Q35, ("-hda", "{0}", "-hdb", "{1}")),
    "cdrom": (Q35, ("-cdrom", "{cd}")),
    "drive": (PC, ("-drive", "file={0},format=raw", "-drive", "file={1},format=raw,index=1")),
    "medium": (
        PC,
        ("-drive", "file={cd},media=cdrom,format=raw", "-drive", "file={0},format=raw,bus=1,unit=1"),
    ),
    "virtio": (
        Q35,
        ("-drive", "file={0},format=raw,if=virtio", "-drive", "file={1},format=raw,if=virtio,index=3"),
    ),
    "floppy": (PC, ("-fda", "{floppy}", "-hda", "{0}")),
    "isa-floppy": (PC, ("-drive", "if=floppy,file={floppy},format=raw,unit=1")),
    "card": (
        Q35,
        (
            *("-device", "sdhci-pci", "-drive", "if=none,id=s0,file={0},format=raw"),
            *("-device", "sd-card,drive=s0"),
        ),
    ),
    "node": (
        Q35,
        (
            *("-blockdev", "driver=raw,node-name=n0,file.driver=file,file.filename={0}"),
            *("-device", "virtio-rng-pci", "-device", "ide-hd,drive=n0,bus=ide.3"),
            *("-device", '{"driver": "virtio-balloon-pci"}'),
        ),
    ),
    "scsi": (
        PC,
        (
            *("-device", "virtio-scsi-pci", "-device", "lsi53c895a,id=old"),
            *("-drive", "file={0},format=raw,if=none,id=a", "-device", "scsi-hd,drive=a,bus=scsi.0"),
            *("-drive", "file={1},format=raw,if=none,id=b", "-device", "scsi-hd,drive=b,scsi-id=3"),
            *("-device", "scsi-cd"),
        ),
    ),
    "mixed": (
        PC,
        (
            *("-hda", "{0}", "-cdrom", "{cd}", "-fda", "{floppy}"),
            *("-drive", "file={1},if=virtio,format=raw", "-drive", "file={2},format=raw,index=3"),
            *("-device", "virtio-balloon-pci", "-drive", "file={3},if=none,format=raw,id=x"),
            *("-device", "virtio-blk-pci,drive=x", "-device", "virtio-scsi-pci", "-device", "scsi-cd"),
        ),
    ),
}


@pytest.fixture
async def site(lab: Lab) -> AsyncIterator[Site]:
    async with site_of(lab) as site:
        yield site


def images(directory: Path) -> dict[str, str]:
    """By the names that shapes have for them."""
    made = {}
    for name, size in {"0": MIB, "1": MIB, "2": MIB, "3": MIB, "cd": MIB, "floppy": 1440 << 10}.items():
        path = directory / f"{name}.img"
        path.write_bytes(b"\0" * size)
        made[name] = str(path)
    return made


def filled(words: tuple[str, ...], made: dict[str, str]) -> tuple[str, ...]:
    """`words` with the images in them."""
    for name, path in made.items():
        words = tuple(word.replace(f"{{{name}}}", path) for word in words)
    return words


@pytest.mark.parametrize(
    "shape", [name if name == "mixed" else pytest.param(name, marks=pytest.mark.matrix) for name in SHAPES]
)
async def test_a_guest_moves_whatever_its_drives_are_called(
    lab: Lab, site: Site, across: tuple[Path, Path], shape: str
) -> None:
    kind, words = SHAPES[shape]
    machine = GuestMachine(type=kind, habit=HABIT, extra=filled(words, images(lab.directory)))
    qemu = await lab.boot(machine, binary=across[0])
    before = {block.get("inserted", {}).get("file") for block in await qemu.query("query-block")}
    site.have(*across)
    guest = guest_of(qemu)
    for target in ("beta", "alpha"):
        guest = await site.move(guest, target)
        moved = Moved(machine, lab, guest.socket)
        await moved.check_memory()
        assert {block.get("inserted", {}).get("file") for block in await moved.query("query-block")} == before
