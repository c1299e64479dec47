"""Disks that hosts do not share: a mirror beside ``qemu-img convert``, a whole move beside ``virsh migrate``."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench import bare, libvirt
from bench.figures import Figures, paragraphs, table, verdict
from bench.libvirt import Libvirtd, Unavailable
from bench.machine import Quiet, describe
from bench.options import SETTLE_SECONDS, Options
from bench.ours import Failed, Migrator
from bench.virsh import Took, move
from migrator.testing import network
from migrator.testing.guest import IDLE, write_image
from migrator.testing.lab import GuestMachine, Lab, LabQemu, Pair
from migrator.testing.network import LabHosts
from migrator.testing.raw_qmp import RawMonitor

_MIB = 1 << 20
_DISK_BYTES, _MEMORY_BYTES = 256 * _MIB, 256 * _MIB
_LINK_MBIT = 1000
_MAX_DOWNTIME_SECONDS = 0.3
_RUNS = 5
#: A copy that takes longer is none.
_MIRROR_SECONDS = 60.0
#: A mirror is at least so fast as a convert; a move takes at most this share of virsh's time and downtime.
_SPEED_SHARE, _TIME_SHARE, _DOWNTIME_SHARE = 0.9, 0.8, 0.7


async def run(options: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text.

    :raise Unavailable: where there can be no hosts with links of a set speed, or no two libvirtd.
    """
    if reason := network.possible() or libvirt.why_not():
        raise Unavailable(reason)
    runs = options.runs or _RUNS
    ours: list[Took] = []
    scripts: list[Took] = []
    theirs: list[Took] = []
    converts: list[float] = []
    async with AsyncExitStack() as stack:
        stack.callback(libvirt.remove_cgroups)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        speed = _LINK_MBIT * 1e6 / 8
        hosts = stack.enter_context(LabHosts("alpha", "beta", bytes_per_second=speed, isolated=True))
        full = directory / "full.img"
        with full.open("wb") as image:
            for _ in range(_DISK_BYTES // _MIB):
                image.write(os.urandom(_MIB))
        alpha, beta = [
            await stack.enter_async_context(
                Libvirtd(host, directory / host.name, cgroups=not options.realtime)
            )
            for host in hosts
        ]
        await _set_apart(beta, options, full)
        migrator = Migrator(directory / "migrator")
        for number in range(runs + 1):
            await quiet.wait()
            converted = await _convert(hosts, full, directory / "converted.img")
            await quiet.wait()
            own = await _ours(migrator, hosts, options, full)
            await quiet.wait()
            script = await _script(hosts, options, full)
            await quiet.wait()
            virsh = await _virsh(alpha, beta, options, full)
            print(
                f"disks: convert {converted:.2f} s, mirror {own.parts_seconds['mirror']:.2f} s, migrator "
                f"{own.total_seconds:.2f} s, script {script.total_seconds:.2f} s, virsh {virsh.total_seconds:.2f} s",
                file=sys.stderr,
                flush=True,
            )
            if number:  # the first fills caches
                converts.append(converted)
                ours.append(own)
                scripts.append(script)
                theirs.append(virsh)
    return _text(options, quiet, converts, ours, scripts, theirs)


def _text(
    options: Options,
    quiet: Quiet,
    converts: list[float],
    ours: list[Took],
    scripts: list[Took],
    theirs: list[Took],
) -> str:
    mirror, convert = Figures.of(one.parts_seconds["mirror"] for one in ours), Figures.of(converts)
    copied = verdict(mirror, convert.median / _SPEED_SHARE, f"{_SPEED_SHARE} × its speed")
    rows = [
        [
            f"copy of {_DISK_BYTES // _MIB} MiB, beside `qemu-img convert`",
            str(convert),
            "–",
            str(mirror),
            *copied,
        ]
    ]
    for what, share, field in (
        ("whole time, beside `virsh`", _TIME_SHARE, "total_seconds"),
        ("downtime, beside `virsh`", _DOWNTIME_SHARE, "downtime_seconds"),
    ):
        peer, script, own = (
            Figures.of(getattr(one, field) for one in each) for each in (theirs, scripts, ours)
        )
        aim = verdict(own, share * peer.median, f"{share} × virsh")
        rows.append([what, str(peer), str(script), str(own), *aim])
    return paragraphs(
        f"{describe(str(options.binary), 'virsh')} · {len(ours)} runs of each, in turns · {quiet}",
        f"Two namespaces with links of {_LINK_MBIT} Mbit/s by `tc tbf`. An idle guest (TCG, {_MEMORY_BYTES // _MIB} "
        f"MiB) with two raw disks: it boots from one of 1 MiB, the other is {_DISK_BYTES // _MIB} MiB of random bytes. "
        f"`qemu-img convert -n` writes that disk to a `qemu-nbd` over the same link; `virsh migrate --live "
        f"--copy-storage-all` moves the guest with both, as `migrator direct --wait` does, beside which the "
        f"destination's QEMU is started: that is in the time of all. The script (`bench/bare_disks.py`) gives both "
        f"QEMUs the commands for disks and memory, and does nothing else: what it takes is QEMU's own. A downtime "
        f"limit of {_MAX_DOWNTIME_SECONDS * 1e3:.0f} ms on each. Milliseconds: median (minimum – maximum).",
        table(["what", "its", "bare script", "migrator", "aim", "verdict"], rows),
    )


def _empty(path: Path, size_bytes: int) -> Path:
    path.unlink(missing_ok=True)
    with path.open("wb") as image:
        image.truncate(size_bytes)
    return path


async def _convert(hosts: LabHosts, full: Path, target: Path) -> float:
    """Return how long ``qemu-img convert`` takes to write an image over the link."""
    _empty(target, _DISK_BYTES)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    server = await asyncio.create_subprocess_exec(
        *hosts["beta"].prefix,
        *("qemu-nbd", "-f", "raw", "-b", hosts["beta"].address, "-p", port, "-x", "disk", str(target)),
    )
    try:
        await asyncio.sleep(SETTLE_SECONDS)
        where = f"nbd://{hosts['beta'].address}:{port}/disk"
        began = time.monotonic()
        client = await asyncio.create_subprocess_exec(
            *hosts["alpha"].prefix,
            *("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(full), where),
        )
        if await client.wait():
            raise Failed(f"qemu-img convert ended with {client.returncode}")
        return time.monotonic() - began
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


@dataclass(frozen=True, kw_only=True)
class _Guest:
    """A guest that runs at alpha, and the QEMU that is to wait for it at beta."""

    lab: Lab
    source: LabQemu
    there: Path

    def waiting(self) -> GuestMachine:
        """Return the machine that waits, with an empty image for its second disk."""
        machine = _machine(self.lab, "there", _empty(self.there, _DISK_BYTES))
        return replace(machine, uuid=self.source.machine.uuid)


def _machine(lab: Lab, name: str, disk: Path) -> GuestMachine:
    return GuestMachine(
        memory_bytes=_MEMORY_BYTES,
        image=write_image(lab.directory / f"{name}.img", IDLE),
        extra=(
            *("-blockdev", f"driver=file,node-name=disk1-file,filename={disk}"),
            *("-blockdev", "driver=raw,node-name=disk1,file=disk1-file"),
            *("-device", "virtio-blk-pci,id=disk1-device,drive=disk1,addr=0x6"),
        ),
    )


@asynccontextmanager
async def _guest(hosts: LabHosts, options: Options, full: Path) -> AsyncIterator[_Guest]:
    async with Lab() as lab:
        here = lab.directory / "here1.img"
        here.hardlink_to(full)
        source = await lab.boot(
            _machine(lab, "here", here), binary=options.binary, prefix=hosts["alpha"].prefix
        )
        await asyncio.sleep(SETTLE_SECONDS)
        yield _Guest(lab=lab, source=source, there=lab.directory / "there1.img")


async def _script(hosts: LabHosts, options: Options, full: Path) -> Took:
    """Move it by a script that does what has to be done and nothing else: what QEMU itself takes."""
    async with _guest(hosts, options, full) as guest:
        began = time.monotonic()
        destination = await guest.lab.start(
            guest.waiting(), binary=options.binary, incoming=True, prefix=hosts["beta"].prefix
        )
        moved = await bare.move(
            Pair(guest.source, destination),
            max_downtime_seconds=_MAX_DOWNTIME_SECONDS,
            listen=f"tcp:{hosts['beta'].address}:0",
            disks=["disk1-device", "disk0"],
        )
        total = time.monotonic() - began
        await destination.wait_beating()
    return Took(total_seconds=total, downtime_seconds=moved.downtime_seconds)


async def _ours(migrator: Migrator, hosts: LabHosts, options: Options, full: Path) -> Took:
    async with _guest(hosts, options, full) as guest:
        lab, source = guest.lab, guest.source
        began = time.monotonic()
        starting = asyncio.create_task(
            lab.start(guest.waiting(), binary=options.binary, incoming=True, prefix=hosts["beta"].prefix),
            name="start of the destination",
        )
        await asyncio.sleep(0)  # it has its paths then, and comes up beside the command
        there_qmp = lab.qemus[-1].qmp
        mirrored: list[float] = []

        async def watch() -> None:
            """Note how long its mirrors took, as QEMU tells: to ask it again and again would be work for it."""
            begun: list[float] = []
            left = 2
            async with RawMonitor(source.rescue) as monitor:
                while left:
                    event = await monitor.event("JOB_STATUS_CHANGE", within=_MIRROR_SECONDS)
                    at = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
                    begun.append(at)
                    left -= event["data"]["status"] == "ready"
            mirrored.append(begun[-1] - begun[0])

        watching = asyncio.create_task(watch(), name="how far its disks are")
        try:
            outcome = await migrator.direct(
                source.qmp,
                there_qmp,
                *("--max-downtime", f"{_MAX_DOWNTIME_SECONDS * 1e3:.0f}ms"),
                *("--listen", f"tcp:{hosts['beta'].address}:0"),
                *("--wait", "20s"),
                mode="precopy",
            )
            total = time.monotonic() - began
            destination = await starting
        finally:
            starting.cancel()
            watching.cancel()
            await asyncio.wait({watching, starting})
        await destination.wait_beating()
        if not mirrored:
            raise Failed("its mirrors were not seen")
    return Took(
        total_seconds=total,
        downtime_seconds=outcome.downtime_seconds,
        parts_seconds={"mirror": mirrored[0]},
    )


async def _virsh(source: Libvirtd, destination: Libvirtd, options: Options, full: Path) -> Took:
    for end, filled in ((source, True), (destination, False)):
        disks = end.serial.parent
        write_image(disks / "disk0.img", IDLE)
        _empty(disks / "disk1.img", _DISK_BYTES)
        if filled:
            (disks / "disk1.img").unlink()
            (disks / "disk1.img").hardlink_to(full)
        else:
            _empty(disks / "disk0.img", _MIB)
    return await move(
        source,
        destination,
        lambda: source.create_domain(_definition(options)),
        "--copy-storage-all",
        max_downtime_seconds=_MAX_DOWNTIME_SECONDS,
    )


async def _set_apart(destination: Libvirtd, options: Options, full: Path) -> None:
    """Set the numbers of both daemons' guests apart: see :meth:`bench.virsh.Virsh.prepare`."""
    disks = destination.serial.parent
    write_image(disks / "disk0.img", IDLE)
    (disks / "disk1.img").hardlink_to(full)
    await destination.create_domain(_definition(options))
    await destination.destroy()


def _definition(options: Options) -> str:
    run = Path("/run")
    return libvirt.domain(
        options.binary,
        libvirt.disk(run / "disk0.img", "vda", libvirt.BOOT),
        libvirt.disk(run / "disk1.img", "vdb"),
        memory_bytes=_MEMORY_BYTES,
    )
