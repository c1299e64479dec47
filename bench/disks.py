"""Disks that hosts do not share: a mirror beside ``qemu-img convert``, a whole move beside ``virsh migrate``."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from bench import libvirt
from bench.figures import Figures, paragraphs, table, verdict
from bench.libvirt import Libvirtd, Unavailable
from bench.machine import Quiet, describe
from bench.options import SETTLE_SECONDS, Options
from bench.ours import Failed, Migrator
from bench.virsh import Took, move
from migrator.testing import network
from migrator.testing.guest import IDLE, write_image
from migrator.testing.lab import GuestMachine, Lab
from migrator.testing.network import LabHosts

_MIB = 1 << 20
_DISK_BYTES, _MEMORY_BYTES = 256 * _MIB, 256 * _MIB
_LINK_MBIT = 1000
_MAX_DOWNTIME_SECONDS = 0.3
_RUNS = 5
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
            virsh = await _virsh(alpha, beta, options, full)
            print(
                f"disks: convert {converted:.2f} s, mirror {own.parts_seconds['mirror']:.2f} s, migrator "
                f"{own.total_seconds:.2f} s, virsh {virsh.total_seconds:.2f} s",
                file=sys.stderr,
                flush=True,
            )
            if number:  # the first fills caches
                converts.append(converted)
                ours.append(own)
                theirs.append(virsh)
    return _text(options, quiet, runs, converts, ours, theirs)


def _text(
    options: Options,
    quiet: Quiet,
    runs: int,
    converts: list[float],
    ours: list[Took],
    theirs: list[Took],
) -> str:
    rows = []
    mirror, convert = Figures.of(one.parts_seconds["mirror"] for one in ours), Figures.of(converts)
    rows.append(
        [
            f"copy of {_DISK_BYTES // _MIB} MiB, beside `qemu-img convert`",
            str(convert),
            str(mirror),
            *verdict(mirror, convert.median / _SPEED_SHARE, f"{_SPEED_SHARE} × its speed"),
        ]
    )
    for what, share, own, peer in (
        (
            "whole time, beside `virsh`",
            _TIME_SHARE,
            Figures.of(one.total_seconds for one in ours),
            Figures.of(one.total_seconds for one in theirs),
        ),
        (
            "downtime, beside `virsh`",
            _DOWNTIME_SHARE,
            Figures.of(one.downtime_seconds for one in ours),
            Figures.of(one.downtime_seconds for one in theirs),
        ),
    ):
        rows.append([what, str(peer), str(own), *verdict(own, share * peer.median, f"{share} × virsh")])
    return paragraphs(
        f"{describe(str(options.binary), 'virsh')} · {runs} runs of each, in turns · {quiet}",
        f"Two namespaces with links of {_LINK_MBIT} Mbit/s by `tc tbf`. An idle guest (TCG, {_MEMORY_BYTES // _MIB} "
        f"MiB) with two raw disks: it boots from one of 1 MiB, the other is {_DISK_BYTES // _MIB} MiB of random bytes. "
        f"`qemu-img convert -n` writes that disk to a `qemu-nbd` over the same link; `virsh migrate --live "
        f"--copy-storage-all` moves the guest with both, as `migrator direct --wait` does, beside which the "
        f"destination's QEMU is started: that is in the time of both. A downtime limit of "
        f"{_MAX_DOWNTIME_SECONDS * 1e3:.0f} ms on either. Milliseconds: "
        "median (minimum – maximum).",
        table(["what", "its", "migrator", "aim", "verdict"], rows),
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


async def _ours(migrator: Migrator, hosts: LabHosts, options: Options, full: Path) -> Took:
    async with Lab() as lab:

        def machine(name: str, disk: Path) -> GuestMachine:
            return GuestMachine(
                memory_bytes=_MEMORY_BYTES,
                image=write_image(lab.directory / f"{name}.img", IDLE),
                extra=(
                    *("-blockdev", f"driver=file,node-name=disk1-file,filename={disk}"),
                    *("-blockdev", "driver=raw,node-name=disk1,file=disk1-file"),
                    *("-device", "virtio-blk-pci,id=disk1-device,drive=disk1,addr=0x6"),
                ),
            )

        here = lab.directory / "here1.img"
        here.hardlink_to(full)
        source = await lab.boot(machine("here", here), binary=options.binary, prefix=hosts["alpha"].prefix)
        await asyncio.sleep(SETTLE_SECONDS)
        began = time.monotonic()
        there = _empty(lab.directory / "there1.img", _DISK_BYTES)
        waiting = replace(machine("there", there), uuid=source.machine.uuid)
        starting = asyncio.create_task(
            lab.start(waiting, binary=options.binary, incoming=True, prefix=hosts["beta"].prefix),
            name="start of the destination",
        )
        await asyncio.sleep(0)  # it has its paths then, and comes up beside the command
        there_qmp = lab.qemus[-1].qmp
        mirrored: list[float] = []

        async def watch() -> None:
            begun = None
            while True:
                jobs = await source.query("query-jobs")
                if jobs and begun is None:
                    begun = time.monotonic()
                if begun is not None and len(jobs) == 2 and all(job["status"] == "ready" for job in jobs):
                    mirrored.append(time.monotonic() - begun)
                    return
                await asyncio.sleep(0.01)

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
