"""Two libvirtd on one machine that know nothing of each other, nor of one that the machine may have.

Each has its own network, mounts and processes: its files are in the bench's directory, its end is the end of every
QEMU that it started, and nothing of it is left. The settings are Debian's but for what needs more of an operating
system than a namespace has: there is no virtlogd and no systemd, and guests run as root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import select
import shlex
import shutil
import subprocess
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from bench.options import MEMORY_BYTES
from migrator.testing import network
from migrator.testing.network import LabHost
from migrator.testing.raw_qmp import RawMonitor

GUEST = "migrator-bench"
_PATIENCE_SECONDS = 60.0
#: Debian's name for the user of guests, which libvirtd looks up even when told to use another.
_USER = "libvirt-qemu"

_LIBVIRTD_CONF = """\
host_uuid = "{uuid}"
unix_sock_dir = "{sockets}"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:stderr"
"""
_QEMU_CONF = """\
stdio_handler = "file"
user = "root"
group = "root"
"""
_DOMAIN = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='b'>{memory}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <features><acpi/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <devices>
    <emulator>{binary}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='writeback'/>
      <source file='{image}'/>
      <target dev='vda' bus='virtio'/>
      <shareable/>
      <boot order='1'/>
      <address type='pci' domain='0' bus='0' slot='4' function='0'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'><source path='/run/guest.serial'/></serial>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:/run/guest.qmp,server=on,wait=off'/>
  </qemu:commandline>
</domain>
"""


class Unavailable(RuntimeError):
    """Libvirt cannot be measured here; the message says why."""


def why_not() -> str | None:
    """``None`` where two libvirtd can be had, else the reason."""
    if reason := network.possible():
        return reason
    for tool in ("virsh", "libvirtd", "unshare", "setpriv"):
        if shutil.which(tool) is None:
            packages = "libvirt-clients, libvirt-daemon, libvirt-daemon-driver-qemu, util-linux"
            return f"there is no {tool}: install {packages}"
    return None


class Libvirtd:
    """One libvirtd on a host of its own. A context manager, ``async``.

    :param directory: its files; removed by whoever made it.
    :param cgroups: ``False`` where it is not to put guests into control groups.
    """

    def __init__(self, host: LabHost, directory: Path, *, cgroups: bool) -> None:
        self.host = host
        self._directory = directory
        self._cgroups = cgroups
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"qemu+unix:///system?socket={directory}/sockets/libvirt-sock"
        #: Of the guest: its serial port and a monitor that libvirt leaves alone, as seen from outside.
        self.serial = directory / "run" / "guest.serial"
        self.qmp = directory / "run" / "guest.qmp"

    async def __aenter__(self) -> Self:
        directory = self._directory
        for name in ("run", "etc", "sockets", "var/lib", "var/log", "var/cache", "var/tmp"):
            (directory / name).mkdir(parents=True)
        conf = _LIBVIRTD_CONF.format(uuid=uuid.uuid4(), sockets=directory / "sockets")
        (directory / "etc/libvirtd.conf").write_text(conf)
        (directory / "etc/qemu.conf").write_text(
            _QEMU_CONF + ("" if self._cgroups else "cgroup_controllers = []\n")
        )
        places = {"run": "/run", "var": "/var", "etc": "/etc/libvirt", **self._accounts()}
        mounts = [
            f"mount --bind {shlex.quote(str(directory / name))} {place}" for name, place in places.items()
        ]
        # The shell stays as the first process of its namespace: it reaps the QEMUs, which libvirtd does not.
        script = " && ".join([*mounts, "libvirtd"]) + "; exit $?"
        space = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*self.host.prefix, "setpriv", "--pdeathsig", "KILL", *space, "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            await self._wait_answers()
        except BaseException:
            self.close()
            raise
        return self

    def _accounts(self) -> dict[str, str]:
        """Files to put in the place of the system's where its user is missing."""
        with contextlib.suppress(KeyError):
            pwd.getpwnam(_USER)
            return {}
        for name, line in (
            ("passwd", f"{_USER}:x:64055:64055::/:/bin/false"),
            ("group", f"{_USER}:x:64055:"),
        ):
            (self._directory / name).write_text(Path("/etc", name).read_text().rstrip() + f"\n{line}\n")
        return {"passwd": "/etc/passwd", "group": "/etc/group"}

    async def _wait_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                await self.virsh("capabilities")
                return
            except Unavailable as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (self._directory / "log").read_text(errors="replace")[-2000:]
                    raise Unavailable(f"libvirtd does not come up: {error}; it said: {said}") from error
            await asyncio.sleep(0.05)

    async def virsh(self, *words: str) -> str:
        """Run virsh; returns what it prints.

        :raise Unavailable: with its message when it fails.
        """
        process = await asyncio.create_subprocess_exec(
            *("virsh", "--quiet", "--connect", self.uri, *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, complaints = await process.communicate()
        if process.returncode:
            raise Unavailable(f"virsh {words[0]}: {complaints.decode(errors='replace').strip()}")
        return out.decode()

    async def create(self, image: Path, binary: Path, *, memory_bytes: int = MEMORY_BYTES) -> None:
        """Start the guest."""
        await self.create_domain(
            _DOMAIN.format(name=GUEST, uuid=uuid.uuid4(), memory=memory_bytes, binary=binary, image=image)
        )

    async def create_domain(self, definition: str) -> None:
        """Start a guest by libvirt's definition of it; its name is to be :data:`GUEST`."""
        for path in (self.serial, self.qmp):
            path.unlink(missing_ok=True)
        domain = self._directory / "domain.xml"
        domain.write_text(definition)
        await self.virsh("create", str(domain))

    async def destroy(self) -> None:
        """Kill the guest, if it is here."""
        with contextlib.suppress(Unavailable):
            await self.virsh("destroy", GUEST)

    @property
    def beats(self) -> int:
        """How often the guest has said here that it runs."""
        return self.serial.read_bytes().count(b"B") if self.serial.exists() else 0

    async def wait_beating(self) -> None:
        """Wait for a beat that was not there yet."""
        before, deadline = self.beats, time.monotonic() + _PATIENCE_SECONDS
        while self.beats <= before:
            if time.monotonic() > deadline:
                raise Unavailable(f"the guest does not run on {self.host.name}")
            await asyncio.sleep(0.005)

    async def monitor(self, stack: AsyncExitStack) -> RawMonitor:
        """The guest's own monitor as soon as there is one, open until the end of ``stack``."""
        while True:
            try:
                return await stack.enter_async_context(RawMonitor(self.qmp))
            except (FileNotFoundError, ConnectionError):
                await asyncio.sleep(0.005)

    def close(self) -> None:
        """Kill it and everything it started."""
        if self._process is None:
            return
        pid = self._process.pid
        # The first process of its namespace: once it is dead, so are all others.
        children = Path(f"/proc/{pid}/task/{pid}/children")
        first = [os.pidfd_open(int(child)) for child in children.read_text().split()]
        self._process.kill()
        self._process.wait()
        for pidfd in first:
            select.select([pidfd], [], [], _PATIENCE_SECONDS)
            os.close(pidfd)
        self._process = None

    async def __aexit__(self, *_: object) -> None:
        self.close()


def remove_cgroups() -> None:
    """Remove the control groups that libvirtd leaves empty."""
    for machines in [*Path("/sys/fs/cgroup").glob("machine"), *Path("/sys/fs/cgroup").glob("*/machine")]:
        inside = sorted(machines.glob(f"qemu-*-{GUEST}.libvirt-qemu/**/"), reverse=True)
        for group in [*inside, machines]:
            with contextlib.suppress(OSError):  # not empty: somebody else's
                group.rmdir()
