"""A guest's destination, made from its own command line and what was plugged since, and the guest moved into it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.core.inventory import Guest
from migrator.errors import Refused
from migrator.qemu import marks
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, RawMonitor, until
from tests.destinations import MIB, Moved, Site, arguments_of, guest_of, processes_with, site_of


@pytest.fixture
async def site(lab: Lab) -> AsyncIterator[Site]:
    async with site_of(lab) as site:
        yield site


def plain(arguments: list[str]) -> list[str]:
    """Without ``-L``, which the program that stands for QEMU 10.0 here puts before its arguments."""
    directories = [n for n, word in enumerate(arguments) if word == "-L"]
    assert len(directories) <= 10
    return [word for n, word in enumerate(arguments) if n not in directories and n - 1 not in directories]


HABIT = Habit(region_bytes=8 * MIB, bytes_per_second=4 * MIB)


class TestCommandLine:
    async def test_moves_there_and_back_and_there_again(
        self, lab: Lab, site: Site, one_crossing: tuple[Path, Path]
    ) -> None:
        machine = (
            GuestMachine(type="q35", habit=HABIT)
            if one_crossing[0] == one_crossing[1]
            else GuestMachine(habit=HABIT)
        )
        qemu = await lab.boot(machine, binary=one_crossing[0])
        guest = guest_of(qemu)
        site.have(*one_crossing)
        seen = []
        for target in ("beta", "alpha", "beta"):
            guest = await site.move(guest, target)
            moved = Moved(machine, lab, guest.socket)
            await moved.check_memory()
            assert await moved.run_state() == "running"
            pid = int((Path(guest.socket).parent / "qemu.pid").read_text())
            words = [word.replace(Path(guest.socket).parent.name, "NEST") for word in arguments_of(pid)]
            seen.append(plain(words[1:]))
        assert seen[0] == seen[1] == seen[2]
        assert len(site.left) == 1
        await qemu.wait_dead()


DISK_QDEV = "/machine/peripheral/p1d/virtio-backend"
PLUGGABLE = (
    *("-smp", "1,maxcpus=4", "-m", "128M,slots=4,maxmem=1G", "-object", "iothread,id=io0"),
    *(
        "-device",
        "pcie-root-port,id=rp1,chassis=1,addr=6",
        "-device",
        "pcie-root-port,id=rp2,chassis=2,addr=7",
    ),
    *(
        "-device",
        "pcie-root-port,id=rp3,chassis=3,addr=8",
        "-device",
        "pcie-root-port,id=rp4,chassis=4,addr=9",
    ),
    *("-device", "virtio-serial-pci,id=ports,addr=0xa", "-device", "virtio-scsi-pci,id=scsi0,addr=0xb"),
    *("-device", "scsi-cd,id=cd0,bus=scsi0.0"),
)


async def plug_everything(qemu: LabQemu, directory: Path) -> None:
    """A disk of two layers, one by drive_add, a card, memory, a vCPU, an iothread, a secret, a port with a socket."""
    image, layer, medium = directory / "plugged, 1.img", directory / "plugged 2.img", directory / "a, b.iso"
    for path in (image, layer, medium):
        path.write_bytes(b"\0" * MIB)
    async with qemu.monitor() as monitor:

        async def do(command: str, **arguments: Any) -> Any:
            return await monitor.execute(command, {key.replace("_", "-"): v for key, v in arguments.items()})

        await do("object-add", qom_type="iothread", id="io1", poll_max_ns=0)
        await do("object-add", qom_type="secret", id="sec1", data="aGVsbG8=", format="base64")
        await do("object-add", qom_type="memory-backend-ram", id="mem1", size=64 * MIB, merge=False)
        await do("device_add", driver="pc-dimm", id="dimm1", memdev="mem1")
        free = [cpu for cpu in await do("query-hotpluggable-cpus") if "qom-path" not in cpu]
        await monitor.execute("device_add", {"driver": free[-1]["type"], "id": "cpu1", **free[-1]["props"]})
        await do("blockdev-add", driver="file", node_name="p1f", filename=str(image), cache={"direct": True})
        await do("blockdev-add", driver="raw", node_name="p1", file="p1f", detect_zeroes="on")
        await do(
            "device_add",
            driver="virtio-blk-pci",
            id="p1d",
            drive="p1",
            bus="rp1",
            serial="x,y z",
            iothread="io1",
        )
        file = str(layer).replace(",", ",,")
        await do("human-monitor-command", command_line=f'drive_add 0 "if=none,id=p2,format=raw,file={file}"')
        await do("device_add", driver="scsi-hd", id="p2d", drive="p2", bus="scsi0.0")
        await do("netdev_add", type="user", id="n1", restrict=True)
        await do(
            "device_add", driver="virtio-net-pci", id="n1d", netdev="n1", bus="rp2", mac="52:54:00:11:22:33"
        )
        address = {"type": "unix", "data": {"path": str(directory / "port.sock")}}
        backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        await do("chardev-add", id="c1", backend=backend)
        await do(
            "device_add", driver="virtserialport", id="c1d", chardev="c1", bus="ports.0", name="org.example.0"
        )
        await do("device_add", driver="virtio-rng-pci", bus="rp3")
        nothing = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
        await monitor.execute(
            "block_set_io_throttle", {"id": DISK_QDEV, "bps": 5 * MIB, "bps_max": 9 * MIB, **nothing}
        )
        await do("blockdev-change-medium", id="cd0", filename=str(medium), format="raw")


async def fingerprint(qemu: LabQemu) -> dict[str, Any]:
    """What a guest could see or its owner ask for, in QEMU's own answers."""
    async with qemu.monitor() as monitor:

        async def do(command: str, **arguments: Any) -> Any:
            return await monitor.execute(command, arguments)

        async def names(path: str) -> set[tuple[str, str]]:
            return {(entry["name"], entry["type"]) for entry in await do("qom-list", path=path)}

        async def value(path: str, name: str) -> Any:
            return await do("qom-get", path=path, property=name)

        blocks = {block["qdev"]: block for block in await do("query-block")}
        return {
            "devices": await names("/machine/peripheral") | await names("/machine/peripheral-anon"),
            "objects": {each for each in await names("/objects") if not each[0].startswith(marks.PREFIX)},
            "memory": await do("query-memory-devices"),
            "cpus": [(cpu["props"], "qom-path" in cpu) for cpu in await do("query-hotpluggable-cpus")],
            "disks": {
                name: (
                    block["inserted"]["file"],
                    block["inserted"]["drv"],
                    block["inserted"]["cache"],
                    block["inserted"]["detect_zeroes"],
                    (block["inserted"]["bps"], block["inserted"].get("bps_max")),
                )
                for name, block in blocks.items()
                if "inserted" in block
            },
            "serial": await value("/machine/peripheral/p1d", "serial"),
            "iothread": await value("/machine/peripheral/p1d", "iothread"),
            "buses": [
                await value(f"/machine/peripheral/{name}", "parent_bus")
                for name in ("p1d", "n1d", "c1d", "p2d")
            ],
            "mac": await value("/machine/peripheral/n1d", "mac"),
            "merge": await value("/objects/mem1", "merge"),
            "poll": await value("/objects/io1", "poll-max-ns"),
            "data": await value("/objects/sec1", "data"),
            "pci": [
                (bus["bus"], device["slot"], device["id"], device["qdev_id"])
                for bus in await do("query-pci")
                for device in bus["devices"]
            ],
        }


def ports(text: str) -> set[str]:
    """Of every USB device, its port and what it is; not the address, which the guest gives it."""
    return {line.partition(",")[2] for line in text.splitlines()}


SLOTTED = ("e1", "b1", "b2", "vs")


class TestHotPlug:
    async def test_everything_that_was_plugged_is_there_after_each_move(
        self, lab: Lab, site: Site, one_crossing: tuple[Path, Path]
    ) -> None:
        machine = GuestMachine(habit=HABIT, extra=PLUGGABLE)
        qemu = await lab.boot(machine, binary=one_crossing[0])
        await plug_everything(qemu, lab.directory)
        before = await fingerprint(qemu)
        assert {disk[4] for disk in before["disks"].values()} == {(0, None), (5 * MIB, 9 * MIB)}
        guest = guest_of(qemu)
        site.have(*one_crossing)
        for target in ("beta", "alpha"):
            guest = await site.move(guest, target)
            moved = Moved(machine, lab, guest.socket)
            assert await fingerprint(moved) == before
            await moved.check_memory()

    async def test_less_usual_devices(self, lab: Lab, site: Site, one_crossing: tuple[Path, Path]) -> None:
        extra = (
            *("-m", "128M,slots=4,maxmem=1G", "-device", "qemu-xhci,id=xhci,addr=0x1c"),
            *(
                word
                for n in range(1, 6)
                for word in ("-device", f"pcie-root-port,id=rp{n},chassis={n},addr={n + 5:x}")
            ),
        )
        machine = GuestMachine(habit=HABIT, extra=extra, type="pc-q35-7.2,nvdimm=on")
        qemu = await lab.boot(machine, binary=one_crossing[0])
        for name in ("a", "b", "c"):
            (lab.directory / name).write_bytes(b"\0" * MIB)
        top = lab.directory / "top.qcow2"
        make = [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            str(lab.directory / "c"),
            "-F",
            "raw",
            str(top),
        ]
        subprocess.run(make, check=True)
        async with qemu.monitor() as monitor:

            async def device(driver: str, name: str, **properties: Any) -> None:
                given = {key.replace("_", "-"): value for key, value in properties.items()}
                await monitor.execute("device_add", {"driver": driver, "id": name, **given})

            async def disk(name: str, file: Path, driver: str = "raw", read_only: bool = False) -> None:
                below = {"driver": "file", "filename": str(file)}
                await monitor.execute(
                    "blockdev-add",
                    {"driver": driver, "node-name": name, "file": below, "read-only": read_only},
                )

            for kind, name in (("iothread", "t9"), ("rng-builtin", "r1")):
                await monitor.execute("object-add", {"qom-type": kind, "id": name})
            for kind, name in (("ram", "vm0"), ("memfd", "nv0")):
                await monitor.execute(
                    "object-add", {"qom-type": f"memory-backend-{kind}", "id": name, "size": 128 * MIB}
                )
            await disk("sa", lab.directory / "a", read_only=True)
            await disk("sb", lab.directory / "b")
            await disk("sc", top, "qcow2")
            # Each of these sits on the one before it, or where QEMU puts it.
            await device("virtio-scsi-pci", "zscsi", bus="rp1", iothread="t9")
            await device("scsi-hd", "adisk", bus="zscsi.0", drive="sa", scsi_id=3, lun=2, serial="s 1")
            await device("usb-tablet", "tab", bus="xhci.0")
            await device("usb-storage", "stick", bus="xhci.0", drive="sb", removable=True)
            await device("usb-hub", "ahub", bus="xhci.0")
            await device("virtio-balloon-pci", "balloon", bus="rp2")
            await device("virtio-mem-pci", "vmem", memdev="vm0", bus="rp3", requested_size=64 * MIB)
            await device("nvdimm", "nvd", memdev="nv0")
            await device("virtio-rng-pci", "rng", bus="rp4", rng="r1", max_bytes=1024, period=1000)
            await device("virtio-blk-pci", "mq", bus="rp5", drive="sc", num_queues=4, write_cache="off")
            usb = await monitor.execute("human-monitor-command", {"command-line": "info usb"})
        guest = guest_of(qemu)
        site.have(*one_crossing)
        for target in ("beta", "alpha"):
            guest = await site.move(guest, target)
            moved = Moved(machine, lab, guest.socket)
            await moved.check_memory()
            now = await moved.query("human-monitor-command", {"command-line": "info usb"})
            assert ports(now) == ports(usb)

    async def test_devices_on_the_old_bus_come_to_their_slots(
        self, lab: Lab, site: Site, one_crossing: tuple[Path, Path]
    ) -> None:
        bridge = ("-device", "pci-bridge,id=bridge,chassis_nr=1,addr=6")
        machine = GuestMachine(habit=HABIT, type="pc-i440fx-7.2", extra=bridge)
        qemu = await lab.boot(machine, binary=one_crossing[0])
        site.have(*one_crossing)
        (lab.directory / "a").write_bytes(b"\0" * MIB)
        file = {"driver": "file", "filename": str(lab.directory / "a")}
        for command, arguments in (
            ("netdev_add", {"type": "user", "id": "n1"}),
            ("device_add", {"driver": "e1000", "id": "e1", "netdev": "n1"}),
            ("blockdev-add", {"driver": "raw", "node-name": "sd", "file": file}),
            ("device_add", {"driver": "virtio-blk-pci", "id": "b1", "drive": "sd", "addr": "0x9.0"}),
            ("device_add", {"driver": "virtio-rng-pci", "id": "b2", "bus": "bridge", "addr": "3"}),
            ("device_add", {"driver": "virtio-serial-pci", "id": "vs"}),
            ("device_add", {"driver": "virtserialport", "id": "p", "bus": "vs.0", "nr": 5, "name": "x"}),
            ("object-add", {"qom-type": "throttle-group", "id": "tg", "limits": {"iops-total": 100}}),
        ):
            await qemu.query(command, arguments)
        slots = [
            await qemu.query("qom-get", path=f"/machine/peripheral/{name}", property="addr")
            for name in SLOTTED
        ]
        guest = guest_of(qemu)
        for target in ("beta", "alpha"):
            guest = await site.move(guest, target)
            moved = Moved(machine, lab, guest.socket)
            await moved.check_memory()
            assert slots == [
                await moved.query("qom-get", path=f"/machine/peripheral/{name}", property="addr")
                for name in SLOTTED
            ]

    async def test_what_was_unplugged_is_not_there(self, lab: Lab, site: Site) -> None:
        image = lab.directory / "gone.img"
        image.write_bytes(b"\0" * MIB)
        extra = (
            *(
                "-object",
                "rng-random,id=rng0,filename=/dev/urandom",
                "-object",
                "rng-random,id=rng1,filename=/dev/urandom",
            ),
            *("-netdev", "user,id=n0", "-device", "virtio-serial-pci,id=ports,addr=0xa"),
            *(
                "-device",
                "virtserialport,id=gone0,bus=ports.0",
                "-device",
                "virtserialport,id=stays,bus=ports.0",
            ),
            *("-blockdev", f"driver=file,node-name=gonefile,filename={image}"),
            *("-set", "device.gone0.name=a"),
        )
        machine = GuestMachine(habit=HABIT, extra=extra)
        qemu = await lab.boot(machine)
        for command, arguments in (
            ("device_del", {"id": "gone0"}),
            ("object-del", {"id": "rng1"}),
            ("netdev_del", {"id": "n0"}),
            ("blockdev-del", {"node-name": "gonefile"}),
        ):
            await qemu.query(command, arguments)
        image.unlink()
        guest = await site.move(guest_of(qemu), "beta")
        moved = Moved(machine, lab, guest.socket)
        names = {entry["name"] for entry in await moved.query("qom-list", path="/machine/peripheral")}
        assert names == {"type", "ports", "stays", "disk0"}
        objects = {entry["name"] for entry in await moved.query("qom-list", path="/objects")}
        assert "rng0" in objects
        assert "rng1" not in objects

    async def test_memory_in_a_shared_file_is_not_mapped_twice(self, lab: Lab, site: Site) -> None:
        qemu = await lab.start(GuestMachine(extra=("-m", "128M,slots=2,maxmem=1G")))
        memory = {"qom-type": "memory-backend-file", "id": "m", "size": 64 * MIB, "share": True}
        await qemu.query("object-add", {**memory, "mem-path": str(lab.directory / "memory")})
        with pytest.raises(Refused, match="both would write into on one machine"):
            await site.start(guest_of(qemu))
        assert (site.left, site.processes) == ([], [])
        await site.close()
        await qemu.query("object-del", id="m")
        await qemu.query("object-add", {**memory, "mem-path": str(lab.directory / "memory"), "share": False})
        await (await site.start(guest_of(qemu))).discard()

    async def test_a_disk_moves_as_what_it_has_become(self, lab: Lab, site: Site, one_version: Path) -> None:
        qemu = await lab.boot(binary=one_version)
        overlay = str(lab.directory / "overlay.qcow2")
        arguments = {"node-name": "disk0", "snapshot-file": overlay, "snapshot-node-name": "over"}
        await qemu.query("blockdev-snapshot-sync", arguments)
        guest = await site.move(guest_of(qemu), "beta")
        moved = Moved(qemu.machine, lab, guest.socket)
        await moved.query("block-commit", {"job-id": "commit", "device": "over"})
        await until(lambda: job_is_ready(moved), what="the commit")
        await moved.query("block-job-complete", device="commit")
        await until(lambda: no_job(moved), what="its end")
        await moved.query("blockdev-del", {"node-name": "over"})
        Path(overlay).unlink()
        await site.move(guest, "alpha")


async def job_is_ready(qemu: LabQemu) -> bool:
    return all(job["status"] == "ready" for job in await qemu.query("query-jobs"))


async def no_job(qemu: LabQemu) -> bool:
    return not await qemu.query("query-jobs")


class TestNames:
    async def test_whatever_stands_in_names_and_paths_moves_along(self, lab: Lab, site: Site) -> None:
        strange = "a b,,c,'d\"e$(touch pwned);`touch pwned`\n%s$HOME\\é"
        directory = lab.directory / strange
        directory.mkdir()
        image = directory / "disk,1 .img"
        console = directory / "console, $x.sock"
        machine = GuestMachine(habit=HABIT, name=strange, image=image)
        extra = ("-chardev", f"socket,id=extra,path={str(console).replace(',', ',,')},server=on,wait=off")
        machine = replace(machine, extra=(*extra, "-device", "isa-debugcon,chardev=extra"))
        qemu = await lab.boot(machine)
        guest = guest_of(qemu)
        for target in ("beta", "alpha"):
            guest = await site.move(guest, target)
            moved = Moved(machine, lab, guest.socket)
            assert (await moved.query("query-name"))["name"] == strange
            await moved.check_memory()
        moved = Moved(machine, lab, guest.socket)
        chardevs = {entry["label"]: entry["filename"] for entry in await moved.query("query-chardev")}
        new = Path(guest.socket).with_name(console.name)
        assert str(new) in chardevs["extra"]
        assert new.is_socket()
        assert not list(lab.directory.rglob("pwned"))
        assert not Path("pwned").exists()


#: As people and tools write command lines; {image} is the guest's disk, {dir} a directory for sockets.
STYLES = {
    "by-hand": ("-M", "q35", "-m", "128", "-hda", "{image}", "-nographic", "-qmp", "unix:{dir}/q,server"),
    "old-words": (
        *("-machine", "pc,usb=on", "-m", "128", "-drive", "file={image},if=virtio,format=raw"),
        *("-net", "nic,model=virtio", "-net", "user", "-vga", "std", "-device", "usb-tablet", "-k", "de"),
        *("-vnc", "unix:{dir}/v,,1", "-monitor", "unix:{dir}/mon,server,nowait", "-rtc", "base=localtime"),
        *(
            "-serial",
            "unix:{dir}/s,server,nowait",
            "-parallel",
            "none",
            "-boot",
            "once=d,menu=on",
            "-daemonize",
        ),
        *(
            "-pidfile",
            "{dir}/pid",
            "-qmp",
            "unix:{dir}/q,server,nowait",
            "-smbios",
            "type=1,serial=a,,b",
        ),
    ),
    "one-image": ("-m", "128", "-display", "none", "-qmp", "unix:{dir}/q,server=on,wait=off", "{image}"),
    "by-a-tool": (
        *("-name", "guest=web,debug-threads=on", "-S", "-no-user-config", "-nodefaults", "-no-shutdown"),
        *(
            "-object",
            '{"qom-type": "memory-backend-memfd", "id": "pc.ram", "size": 134217728, "share": true}',
        ),
        *("-machine", "pc-q35-7.2,usb=off,dump-guest-core=off,memory-backend=pc.ram", "-m", "size=131072k"),
        *("-accel", "tcg", "-cpu", "qemu64", "-overcommit", "mem-lock=off", "-smp", "2,sockets=1,cores=2"),
        *("-uuid", "0c5e4d3e-3a1c-4b7b-9a51-3f2e6a2f2f00", "-display", "none", "-msg", "timestamp=on"),
        *("-chardev", "socket,id=charmonitor,path={dir}/q,server=on,wait=off"),
        *("-mon", "chardev=charmonitor,id=monitor,mode=control", "-rtc", "base=utc,driftfix=slew"),
        *("-global", "kvm-pit.lost_tick_policy=delay", "-boot", "strict=on", "-sandbox", "on,spawn=deny"),
        *(
            "-device",
            '{"driver": "pcie-root-port", "port": 16, "chassis": 1, "id": "pci.1", "bus": "pcie.0"}',
        ),
        *(
            "-blockdev",
            '{"driver": "file", "filename": "{image}", "node-name": "s1", "auto-read-only": true}',
        ),
        *("-blockdev", '{"node-name": "f1", "read-only": false, "driver": "raw", "file": "s1"}'),
        *(
            "-device",
            '{"driver": "virtio-blk-pci", "bus": "pci.1", "drive": "f1", "id": "d0", "bootindex": 1}',
        ),
        *("-chardev", "pty,id=charserial0", "-device", '{"driver": "isa-serial", "chardev": "charserial0"}'),
        *("-netdev", '{"type": "user", "id": "n0"}', "-audiodev", '{"id": "audio1", "driver": "none"}'),
    ),
}


def accepts(path: Path) -> bool:
    """Somebody listens there."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.mark.parametrize(
    "style",
    [
        pytest.param(style, marks=() if style in ("by-hand", "by-a-tool") else pytest.mark.matrix)
        for style in STYLES
    ],
)
async def test_command_lines_as_they_are_written(lab: Lab, site: Site, one_version: Path, style: str) -> None:
    machine = GuestMachine()
    directory = lab.directory / "dir"
    directory.mkdir()
    words = [
        word.replace("{image}", str(lab.image(machine))).replace("{dir}", str(directory))
        for word in STYLES[style]
    ]
    log = (lab.directory / "log.txt").open("wb")
    with (
        log,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", str(one_version), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as source,
    ):
        monitor_path = directory / "q"
        try:
            await until(lambda: accepts(monitor_path), what="its monitor")
            if style == "by-a-tool":
                async with RawMonitor(monitor_path) as monitor:
                    await monitor.execute("cont")
            guest = Guest(key="g", host="alpha", socket=str(monitor_path))
            for target in ("beta", "alpha"):
                guest = await site.move(guest, target)
            moved = Moved(machine, lab, guest.socket)
            assert await moved.run_state() == "running"
        finally:
            site.kill()
            source.kill()
            for pid in processes_with(str(directory)):
                os.kill(pid, signal.SIGKILL)
