"""A guest that writes to a disk which its destination does not share, and what its disk has to look like in the end."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from migrator.testing.guest.writer import COUNTER_ADDRESS, COUNTER_BYTES, DiskWriter
from migrator.testing.lab import GuestMachine, Lab, LabQemu, Pair, until
from migrator.testing.network import LabHost
from migrator.testing.site import LabSite

MIB = 1 << 20
WRITER = DiskWriter()


@dataclass(frozen=True)
class WritingGuest:
    """One that runs, a QEMU that waits for it with an image of its own, and both images."""

    pair: Pair
    here: Path
    there: Path

    async def check(self, owner: LabQemu) -> int:
        """End the guest, and assert that no write of it was lost; return how many there were."""
        image = self.here if owner is self.pair.source else self.there
        await owner.query("stop")
        memory = owner.directory / f"{owner.label}.counter"
        await owner.query("pmemsave", val=COUNTER_ADDRESS, size=COUNTER_BYTES, filename=str(memory))
        await owner.query("quit")
        await owner.wait_dead()
        return WRITER.check(image.read_bytes(), memory.read_bytes())

    async def goes_on(self, owner: LabQemu) -> None:
        """Wait until it has written again."""
        before = owner.beats
        await until(lambda: owner.beats > before + 1, what="a guest that writes")


async def writing_guest(
    lab: Lab,
    *,
    size_bytes: int = MIB,
    filled: bool = False,
    there: Path | None = None,
    here_disk: tuple[str, ...] = (),
    there_disk: tuple[str, ...] = (),
    **how: Any,
) -> WritingGuest:
    """Start one.

    :param filled: nothing of its disk is a hole.
    :param there: image of the destination, where that is not in the lab's directory.
    :param here_disk: options of further disks at the source; and at the destination.
    """
    here, target = lab.directory / "here.img", there or lab.directory / "there.img"
    WRITER.write_image(here, size_bytes=size_bytes)
    if filled:
        with here.open("r+b") as image:
            image.seek(MIB)
            image.write(b"full" * ((size_bytes - MIB) // 4))
    with target.open("wb") as image:
        image.truncate(here.stat().st_size)
    machine = GuestMachine(image=here, extra=here_disk)
    other = replace(machine, image=target, extra=there_disk)
    return WritingGuest(await lab.pair(machine, destination_machine=other, **how), here, target)


def make_image(path: Path, *, form: str = "qcow2", size: str = "64M", written: str = "") -> Path:
    """Make an image, with what qemu-io writes into it: ``write -P 7 1M 2M``."""
    subprocess.run(["qemu-img", "create", "-q", "-f", form, path, size], check=True)
    if written:
        subprocess.run(["qemu-io", "-f", form, "-c", written, path], check=True, stdout=subprocess.DEVNULL)
    return path


def same_contents(here: Path, there: Path, *, form: str = "raw") -> bool:
    """Tell whether two images that no guest uses have the same contents."""
    compare = ["qemu-img", "compare", "-q", "-f", form, "-F", form, str(here), str(there)]
    return subprocess.run(compare, check=False).returncode == 0


def second_disk(path: Path, *, form: str = "qcow2") -> tuple[str, ...]:
    """Return the options of a second disk."""
    return (
        *("-blockdev", f"driver={form},node-name=disk1,file.driver=file,file.filename={path}"),
        *("-device", "virtio-blk-pci,id=disk1-device,drive=disk1,addr=0x6"),
    )


def files(host: LabHost, directory: Path) -> list[str]:
    """Return the names of the files that a host has in a directory of its own."""
    return host.run("ls", str(directory)).split()


def contents(site: LabSite, host: LabHost, image: Path) -> bytes:
    """Return what is in a file of a host."""
    copy = site.directory / "copy"
    host.run("cp", "--", str(image), str(copy))
    return copy.read_bytes()
