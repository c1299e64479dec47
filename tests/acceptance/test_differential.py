"""A guest that has arrived is the one that left: whatever can be seen of its QEMU is as it was, but for what is written
here with its reason; and ``plan``, ``check`` and ``migrate`` say the same of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine, LabQemu, until
from tests.acceptance.service_site import LiveSite, guest, made
from tests.conftest import VERSIONS, missing
from tests.observed import differences, observe
from tests.shapes import SHAPES, Shape
from tests.shapes_run import can_run, make

#: What is written differently and means the same, in names and in values, and why.
SAME: dict[str, str] = {
    r"#block\d+": "QEMU makes up the names of nodes that nobody has named",
    r"#net\d+": "and those of networks",
    r"/dev/pts/\d+": "the kernel numbers terminals",
    r"(?<=\[HOST_FORWARD\]) +\d+(?= )": "the number of its descriptor",
    r"/tmp/\S*?/run-b/[\w-]+/": "sockets are in a directory of the process, to which links lead",
    r"/tmp/[^ :]*/(?=(hmp|ga|vnc)\.sock)": "there, and as they were at the source",
}
#: What may be otherwise, by the patterns of names, and why.
EXCEPTIONS: dict[str, str] = {
    "/machine/rtc-time/*": "its clock goes on",
    "query-chardev/compat_monitor[1-9]/*": "QMP monitors, which are made anew under names of our own",
    "query-chardev/monitor-[0-9]/*": "these are the same",
    "query-chardev/migrator-*": "our two monitors",
    "open//dev/null *": "standard input, which each is started with in its own way",
    "open/*.log write*": "standard error and log, which are one file of ours; what is added to is not begun anew",
    "open/*.serial write*": "what the guest says is added to what it has said",
    "open/*.pid write": "its pid file, to which a link leads",
    "open//dev/userfaultfd *": "it was ready for postcopy",
}

#: Between versions: what only one of them shows has nothing to be compared with, but for devices and objects as such.
SHOWN_BY_ONE = ("/machine/", "/objects/", "node/", "query-", "info ")
#: Besides, between versions.
CROSSING: dict[str, str] = {
    "*/rombar": "for what was not given one shows 1, the other -1",
    "*/logical_block_size": "for what was not given one shows 512, the other 0",
    "*/physical_block_size": "likewise",
    "/machine/acpi-device": "paths of devices without an id are numbered in another order",
    "query-block/*/qdev": "likewise",
    "info mtree -f/*: virtio-pci-*": "one has an address space more in which they are seen",
    "open//memfd:displaysurface*": "one has what it draws in a file",
    "*/feature-words/*": "CPU features are listed in another order; a check compares them",
    "*/filtered-features/*": "likewise",
    "/machine/peripheral/cpu*/ht": "it follows from the number of vCPUs",
    "/machine/peripheral/cpu*/cmp[-_]legacy": "likewise",
    "process/limit Max open files": "QEMU 10.0 raises the soft limit by itself",
}


@dataclass(frozen=True)
class Combined:
    """One guest that has much. In the words ``{dir}`` is a directory of its own."""

    machine: GuestMachine
    #: Files that it finds there, with their size in bytes; by the ending of their name a format of qemu-img.
    files: tuple[str, ...]
    #: What it is started by.
    prefix: tuple[str, ...] = ()
    #: QMP commands while it runs.
    commands: tuple[tuple[str, dict[str, Any]], ...] = ()


_TOP = {
    "driver": "qcow2",
    "node-name": "top",
    "backing": "base",
    "discard": "unmap",
    "file": {"driver": "file", "filename": "{dir}/top.qcow2", "cache": {"direct": False, "no-flush": True}},
}
_GRAPH = {
    "driver": "scsi-hd",
    "drive": "thr",
    "id": "graph",
    "bus": "vscsi.0",
    "scsi-id": 5,
    "serial": "S-1",
}
MODERN = Combined(
    machine=guest(
        "modern",
        smp=2,
        extra=(
            *("-object", "iothread,id=io0,poll-max-ns=20000,aio-max-batch=4"),
            *("-object", "throttle-group,id=tg,x-iops-total=500"),
            *("-object", "secret,id=sec0,data=hello"),
            *("-object", "memory-backend-memfd,id=mem0,size=128M,share=on"),
            *("-machine", "memory-backend=mem0,dump-guest-core=off"),
            *("-smp", "sockets=1,cores=2"),
            *(
                "-blockdev",
                "driver=qcow2,node-name=base,read-only=on,file.driver=file,file.filename={dir}/base.qcow2",
            ),
            *("-blockdev", json.dumps(_TOP)),
            *("-blockdev", "driver=throttle,node-name=thr,throttle-group=tg,file=top"),
            *("-device", "virtio-scsi-pci,id=vscsi,iothread=io0"),
            *("-device", json.dumps(_GRAPH)),
            *(
                "-drive",
                "if=none,id=lim,file={dir}/lim.raw,format=raw,bps_rd=1000000,throttling.group=g1,werror=stop",
            ),
            *("-device", "scsi-hd,drive=lim,id=limited,bus=vscsi.0,scsi-id=6,write-cache=on"),
            *("-drive", "if=none,id=cd,media=cdrom"),
            *("-device", "scsi-cd,drive=cd,id=cdrom,bus=vscsi.0"),
            *("-device", "virtio-serial-pci,id=vs"),
            *("-chardev", "socket,id=ga,path={dir}/ga.sock,server=on,wait=off"),
            *("-device", "virtserialport,chardev=ga,name=a,id=port0"),
            *("-chardev", "file,id=out,path={dir}/out.log"),
            *("-device", "virtconsole,chardev=out"),
            *("-chardev", "pty,id=p"),
            *("-device", "virtserialport,chardev=p,id=port1"),
            *("-chardev", "ringbuf,id=ring,size=64K"),
            *("-device", "virtserialport,chardev=ring"),
            *("-device", "virtio-balloon-pci,id=balloon"),
            *("-object", "rng-random,id=rng0,filename=/dev/urandom"),
            *("-device", "virtio-rng-pci,rng=rng0,max-bytes=1024,period=1000"),
            *("-netdev", "user,id=n0,net=10.9.0.0/24,hostfwd=tcp:127.0.0.1:50022-:22,restrict=on"),
            *("-device", "virtio-net-pci,netdev=n0,id=nic0,mac=52:54:00:00:00:01,romfile="),
            *("-netdev", "socket,id=n1,listen=127.0.0.1:50023"),
            *("-device", "e1000e,netdev=n1,id=nic1,mac=52:54:00:00:00:02,romfile="),
            *("-device", "qemu-xhci,id=xhci,p2=8,p3=8"),
            *("-device", "usb-hub,bus=xhci.0,port=2"),
            *("-device", "usb-tablet,bus=xhci.0,port=2.1"),
            *("-drive", "if=none,id=stick,file={dir}/stick.raw,format=raw"),
            *("-device", "usb-storage,drive=stick,bus=xhci.0,removable=on"),
            *("-vnc", "127.0.0.1:77,share=ignore"),
            *("-vnc", "unix:{dir}/vnc.sock,id=second"),
            *("-fw_cfg", "name=opt/x,string=hello"),
            *("-smbios", "type=1,serial=ABC"),
            *("-rtc", "base=2020-01-01,clock=vm"),
            *("-boot", "menu=off,strict=on"),
            *("-global", "ICH9-LPC.disable_s3=1"),
            *("-monitor", "unix:{dir}/hmp.sock,server=on,wait=off"),
            *("-qmp", "unix:{dir}/second.qmp,server=on,wait=off"),
            *("-pidfile", "{dir}/guest.pid", "-D", "{dir}/qemu.log", "-msg", "timestamp=on"),
            *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
            *("-device", "pcie-root-port,id=rp0,chassis=1", "-device", "pcie-root-port,id=rp1,chassis=2"),
            *("-device", "VGA", "-no-shutdown"),
        ),
    ),
    files=("base.qcow2", "top.qcow2", "lim.raw", "stick.raw", "cd.raw", "late.qcow2"),
    commands=(
        ("blockdev-change-medium", {"id": "cdrom", "filename": "{dir}/cd.raw", "format": "raw"}),
        (
            "qom-set",
            {"path": "/machine/peripheral/balloon", "property": "guest-stats-polling-interval", "value": 7},
        ),
        ("qom-set", {"path": "/objects/io0", "property": "poll-grow", "value": 3}),
        ("block-set-write-threshold", {"node-name": "top", "write-threshold": 4096}),
        ("set_link", {"name": "nic1", "up": False}),
        ("human-monitor-command", {"command-line": "hostfwd_add n0 tcp:127.0.0.1:50024-:80"}),
        (
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": "late",
                "file": {"driver": "file", "filename": "{dir}/late.qcow2"},
            },
        ),
        ("device_add", {"driver": "virtio-blk-pci", "id": "late-disk", "drive": "late", "bus": "rp0"}),
        ("netdev_add", {"type": "user", "id": "n2"}),
        (
            "device_add",
            {
                "driver": "virtio-net-pci",
                "id": "nic2",
                "netdev": "n2",
                "bus": "rp1",
                "romfile": "",
                "mac": "52:54:00:00:00:03",
            },
        ),
        ("object-add", {"qom-type": "secret", "id": "sec1", "data": "late"}),
    ),
)
OLD = Combined(
    machine=guest(
        "old",
        type="pc-i440fx-7.2",
        extra=(
            *("-hda", "a.raw", "-hdb", "{dir}/b.qcow2", "-cdrom", "cd.raw", "-fda", "{dir}/floppy.raw"),
            *("-drive", "file={dir}/c.raw,if=virtio,format=raw,cache=none"),
            *("-net", "nic,model=e1000,macaddr=52:54:00:00:00:04", "-net", "user,hostname=old"),
            *("-usb", "-usbdevice", "tablet", "-vga", "std", "-parallel", "null"),
            *("-chardev", "socket,id=com2,host=127.0.0.1,port=50031,server=on,wait=off"),
            *("-device", "isa-serial,chardev=com2,index=1"),
            *("-chardev", "file,id=com3,path=said.log", "-device", "isa-serial,chardev=com3,index=2"),
            *("-monitor", "unix:hmp.sock,server=on,wait=off"),
            *("-audiodev", "none,id=snd", "-device", "AC97,audiodev=snd", "-device", "i6300esb"),
            *("-debugcon", "file:{dir}/debug.log", "-bios", "bios.bin", "-name", "old,, one"),
            *("-D", "qemu.log", "-d", "guest_errors", "-k", "de", "-vnc", ":78,to=90"),
        ),
    ),
    files=("a.raw", "b.qcow2", "c.raw", "cd.raw", "floppy.raw", "bios.bin"),
    prefix=(
        *("setpriv", "--reuid=nobody", "--regid=daemon", "--groups=daemon,users"),
        *("sh", "-c", 'umask 027; cd -- "$0" && ulimit -S -n 777 && exec nice -n 3 "$@"', "{dir}"),
    ),
    commands=(
        (
            "block_set_io_throttle",
            {
                "device": "virtio0",
                "bps": 2000000,
                "bps_rd": 0,
                "bps_wr": 0,
                "iops": 0,
                "iops_rd": 0,
                "iops_wr": 0,
            },
        ),
    ),
)


def _filled(words: Any, directory: Path) -> Any:
    if isinstance(words, str):
        return words.replace("{dir}", str(directory))
    if isinstance(words, dict):
        return {key: _filled(value, directory) for key, value in words.items()}
    return tuple(_filled(word, directory) for word in words) if isinstance(words, tuple) else words


def _make(directory: Path, names: Sequence[str]) -> None:
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    for name in names:
        path = directory / name
        if name == "bios.bin":
            path.write_bytes(Path("/usr/share/seabios/bios-256k.bin").read_bytes())
        else:
            kind = path.suffix.removeprefix(".")
            size = "1440k" if name.startswith("floppy") else "4M"
            subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, size], check=True)
        path.chmod(0o666)


async def _started(site: LiveSite, shape: Combined, binary: Path) -> LabQemu:
    directory = site.directory / shape.machine.name
    _make(directory, shape.files)
    machine = replace(shape.machine, extra=_filled(shape.machine.extra, directory))
    site.lab.image(machine).chmod(0o666)
    prefix = [*site.host("a").prefix, *_filled(shape.prefix, directory)]
    qemu = await site.lab.boot(machine, binary=binary, prefix=prefix, label=f"a-{machine.uuid.hex[:8]}")
    async with qemu.monitor() as monitor:
        for command, arguments in shape.commands:
            await monitor.execute(command, _filled(arguments, directory))
    return qemu


def _in_one_way(seen: dict[str, str]) -> dict[str, str]:
    found = {}
    for key, value in seen.items():
        for pattern in SAME:
            key, value = re.sub(pattern, "", key), re.sub(pattern, "", value)
        found[key] = value
    return found


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _unexplained(
    before: dict[str, str], after: dict[str, str], *, crossing: bool
) -> dict[str, tuple[str, str]]:
    """Everything that differs and is not said to.

    :param crossing: the versions differ, and so what each has to show.
    """
    found = differences(_in_one_way(before), _in_one_way(after))
    exceptions = {**EXCEPTIONS, **(CROSSING if crossing else {})}
    return {
        key: values
        for key, values in found.items()
        if not _matches(key, exceptions)
        and not (crossing and "" in values and key.startswith(SHOWN_BY_ONE) and "child<" not in str(values))
    }


def _codes(document: Any) -> set[str]:
    return {each["code"] for each in document["findings"]}


def _errors(document: Any) -> set[str]:
    return {each["code"] for each in document["findings"] if each["severity"] == "error"}


#: What cannot be moved from a version to another, and for what.
REFUSED = {
    ("10.0", "7.2", MODERN.machine.name): {"user-networks"},
    ("10.0", "7.2", "user-net"): {"user-networks"},
}


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("here", "there"),
    [
        pytest.param(
            here,
            there,
            id=f"{here}-to-{there}",
        )
        for here in VERSIONS
        for there in VERSIONS
    ],
)
@pytest.mark.timeout(180)
async def test_who_arrives_is_who_left(here: str, there: str, qemu_binary: Callable[[str], Path]) -> None:
    if os.geteuid():
        missing("only root can become somebody else")
    if (why := network.possible()) is not None:
        missing(why)
    source, destination = qemu_binary(here), qemu_binary(there)
    shapes = [MODERN, OLD]
    configured = {"b": f'qemu = "{destination}"\n'}
    async with made([], "a", "b", speed=None, host_extra=configured) as site:
        site.directory.chmod(0o777)
        started = [await _started(site, shape, source) for shape in shapes]
        before = [await observe(qemu) for qemu in started]
        site.serve()
        await site.until_served()
        await site.known(len(shapes))
        plan = await site.post("plans", host="a")
        planned = {each["guest"]: each for each in plan["guests"]}
        for shape, qemu, was in zip(shapes, started, before, strict=True):
            uuid = str(qemu.machine.uuid)
            refused = REFUSED.get((here, there, shape.machine.name), set())
            checked = await site.post("checks", guest=uuid, to="b")
            assert checked["possible"] == planned[uuid]["possible"] == (not refused), checked
            assert _codes(checked) == _codes(planned[uuid])
            assert _errors(checked) == refused
            if refused:
                begun = await site.post("migrations", guest=uuid, to="b")
                ended = await site.migration_ended(begun["id"], "failed")
                assert (ended["refused"], _errors(ended)) == (True, refused)
                (arrived,) = await site.running(qemu.machine)
                assert arrived.pid == qemu.pid
                assert _unexplained(was, await observe(arrived), crossing=False) == {}
                continue
            begun = await site.post("migrations", guest=uuid, to="b")
            ended = await site.migration_ended(begun["id"], "completed")
            assert _codes(ended) - {"path-moved"} == _codes(checked)
            (arrived,) = await site.running(qemu.machine)
            assert _unexplained(was, await observe(arrived), crossing=here != there) == {}


# --- every shape of the corpus ---------------------------------------------------------------------------------------

#: Besides, of shapes of the corpus.
OF_SHAPES: dict[str, str] = {
    "query-chardev/compat_monitor*": "QMP monitors are made anew; a person's has a number by them",
    "query-chardev/*/filename": "sockets go into the directory of the process, as both are on one machine",
    "query-vnc-servers/*": "likewise; and of a range of ports each has its own",
}
#: Of those that stand still, as their firmware here is none.
STANDING: dict[str, str] = {
    "*/active": "QEMU 10.0 opens images only when the guest runs",
    "open/* both*": "likewise",
    "open/* read*": "likewise",
    "info snapshots/*": "likewise",
}
#: What is left behind, and said to be.
LEFT: dict[str, tuple[str, ...]] = {
    "filters": ("*dump0*", "info network/filters:*", "open/*.pcap *"),
    "gdb": ("query-chardev/#chr*", "query-chardev/g/*"),
}
#: What is in the way of some here, where both hosts are one machine and nobody has made taps.
IN_THE_WAY = {
    "hotplug-memory": {"memory-file"},
    "libvirt-session": {"libvirt"},
    "systemd-unit": {"tap-missing"},
    "vfio-failover": {"tap-missing", "vfio-missing"},
    "wiki-net": {"tap-missing"},
}


def _stands(shape: Shape) -> bool:
    return any("OVMF" in word or "edk2" in word for word in shape.command)


async def _start(site: LiveSite, shape: Shape, binary: Path, ending: contextlib.ExitStack) -> LabQemu:
    """Start one on the first host.

    :param ending: ends it.
    """
    directory = site.directory / shape.name
    directory.mkdir()
    made_here = make(shape, binary, directory, version="7.2" if "7.2" in shape.machine else "")
    machine = GuestMachine(name=shape.name, uuid=uuid4())
    label = site.directory / f"x-a-{shape.name}"
    words = [word for word in made_here.argv if word != "-daemonize"]
    words += ["-uuid", str(machine.uuid)] * ("-uuid" not in words)
    words += ["-S"] if _stands(shape) else []
    words += ["-qmp", f"unix:{label}.qmp,server=on,wait=off"]
    words += ["-qmp", f"unix:{label}.rescue,server=on,wait=off"]
    if "-uuid" in made_here.argv:
        machine = replace(machine, uuid=UUID(words[words.index("-uuid") + 1]))
    with (directory / "said.log").open("wb") as said:
        process = subprocess.Popen(
            [*site.host("a").prefix, "setpriv", "--pdeathsig", "KILL", *words],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    ending.callback(process.wait)
    ending.callback(process.kill)
    qemu = LabQemu.attach(machine, process.pid, Path(f"{label}.rescue"))

    async def answers() -> bool:
        assert process.poll() is None, (shape.name, (directory / "said.log").read_text())
        try:
            return bool(await qemu.run_state())
        except OSError:
            return False

    await until(answers, what=shape.name)
    return qemu


async def _over(site: LiveSite, guest: str) -> Any:
    """What came of its migration, or why there was none."""
    status, begun = await site.try_post("migrations", guest=guest, to="b")
    if status >= 300:
        return begun

    async def over() -> bool:
        return (await site.get(f"migrations/{begun['id']}"))["ended_at"] is not None

    await until(over, what=f"the end of {guest}", within=60)
    return await site.get(f"migrations/{begun['id']}")


@pytest.mark.matrix
@pytest.mark.parametrize("there", VERSIONS)
@pytest.mark.parametrize("here", VERSIONS)
@pytest.mark.timeout(600)
async def test_every_shape_that_can_run(here: str, there: str, qemu_binary: Callable[[str], Path]) -> None:
    if (why := network.possible()) is not None:
        missing(why)
    source, destination = qemu_binary(here), qemu_binary(there)
    shapes = {shape.name: shape for shape in SHAPES if can_run(shape, here) and can_run(shape, there)}
    wrong: dict[str, object] = {}
    configured = {"b": f'qemu = "{destination}"\n'}
    room = "[host_defaults]\ncpu_overcommit = 64"
    async with made([], "a", "b", speed=None, host_extra=configured, extra=room) as site:
        with contextlib.ExitStack() as ending:
            qemus = {name: await _start(site, shape, source, ending) for name, shape in shapes.items()}
            before = {name: await observe(qemu) for name, qemu in qemus.items()}
            site.serve()
            await site.until_served()
            await site.known(len(shapes))
            plan = await site.post("plans", host="a")
            planned = {each["guest"]: each for each in plan["guests"]}
            for name, qemu in qemus.items():
                uuid = str(qemu.machine.uuid)
                checked = await site.post("checks", guest=uuid, to="b")
                ended = await _over(site, uuid)
                arrived = [each for each in site.instances(qemu.machine) if site.where(each) == "b"]
                agreed = {
                    "plan": planned[uuid]["possible"],
                    "check": checked["possible"],
                    "migrate": ended.get("state") == "completed",
                    "there": len(arrived) == 1,
                }
                refused = IN_THE_WAY.get(name, {*shapes[name].listed("refused for")})
                refused = REFUSED.get((here, there, name), refused)
                if len(set(agreed.values())) != 1 or agreed["check"] is bool(refused):
                    wrong[name] = agreed, ended.get("error"), sorted(_errors(checked) | _errors(ended))
                elif arrived:
                    further = [*OF_SHAPES, *LEFT.get(name, ()), *(STANDING if _stands(shapes[name]) else ())]
                    found = _unexplained(before[name], await observe(arrived[0]), crossing=here != there)
                    found = {key: how for key, how in found.items() if not _matches(key, further)}
                    wrong |= {name: found} if found else {}
                elif (said := (_errors(planned[uuid]), _errors(checked), _errors(ended))) != (refused,) * 3:
                    wrong[name] = said
    assert wrong == {}
