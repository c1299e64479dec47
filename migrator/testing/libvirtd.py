"""Several libvirtd on one machine that know nothing of each other, nor of one that the machine may have.

::

    async with LibvirtHosts("alpha", "beta", directory=directory) as daemons:
        daemons["alpha"].uri                    # a connection to it, from here
        await daemons["alpha"].start_guest("vm-1", image)
        daemons["alpha"].beats("vm-1")          # how often the guest has said there that it runs

Each has its own network, mounts and processes: its files are in a directory of its own, its end is the end of every
QEMU that it started, and nothing of it is left. The settings are Debian's but for what needs more of an operating
system than a namespace has: there is no virtlogd and no systemd, and guests run as root.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pwd
import select
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from xml.sax.saxutils import escape

from migrator.testing import network
from migrator.testing.guest import Habit, write_image
from migrator.testing.network import LabHost, LabHosts

_WAIT_SECONDS = 60.0
#: Debian's name for the user of guests, which libvirtd looks up even when told to use another.
_USER = "libvirt-qemu"
MIB = 1 << 20

_LIBVIRTD_CONF = """\
host_uuid = "{uuid}"
unix_sock_dir = "{sockets}"
auth_unix_ro = "none"
auth_unix_rw = "none"
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
log_outputs = "3:stderr"
"""
_QEMU_CONF = """\
stdio_handler = "file"
user = "root"
group = "root"
migrate_tls_x509_cert_dir = "{certificates}"
"""
#: A guest under TCG that reads nothing but its boot sector; its serial port says that it runs.
_DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='b'>{memory}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
  <features><acpi/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <devices>
    <emulator>{binary}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='{image}'/>
      <target dev='vda' bus='virtio'/>
      {shareable}
      <boot order='1'/>
    </disk>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'><source path='/run/{name}.serial'/></serial>
  </devices>
</domain>
"""


class LibvirtUnavailable(RuntimeError):
    """A libvirtd cannot be had here, or does not do what it was told; the message says why."""


def why_not() -> str | None:
    """Return why there can be no libvirtd in namespaces of their own; ``None`` where there can."""
    if reason := network.possible():
        return reason
    for tool in ("virsh", "libvirtd", "unshare", "setpriv"):
        if shutil.which(tool) is None:
            packages = "libvirt-clients, libvirt-daemon, libvirt-daemon-driver-qemu, util-linux"
            return f"there is no {tool}: install {packages}"
    return None


def domain_xml(
    name: str,
    image: Path,
    *,
    identity: str = "",
    memory_bytes: int = 64 * MIB,
    binary: str = "/usr/bin/qemu-system-x86_64",
    machine: str = "pc-q35-7.2",
    shared: bool = True,
) -> str:
    """Return libvirt's definition of a guest that boots from `image`.

    :param identity: its uuid; empty makes one.
    :param shared: both hosts have its image, the same file.
    """
    return _DOMAIN.format(
        name=escape(name),
        uuid=identity or uuid.uuid4(),
        memory=memory_bytes,
        machine=machine,
        binary=binary,
        image=escape(str(image), {"'": "&apos;"}),
        shareable="<shareable/>" if shared else "",
    )


class LibvirtDaemon:
    """One libvirtd on a host of its own. A context manager, ``async``.

    :param directory: its files; removed by whoever made it.
    :param cgroups: ``False`` where it is not to put guests into control groups.
    """

    def __init__(self, host: LabHost, directory: Path, *, cgroups: bool = False) -> None:
        self.host = host
        self.directory = directory
        self._cgroups = cgroups
        self._process: subprocess.Popen[bytes] | None = None
        self._killed_pid: int | None = None
        self.socket = directory / "sockets" / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        #: For streams that are encrypted; empty at first.
        self.certificates = directory / "certificates"
        #: By which the others reach it, over the network between the hosts.
        self.peer_uri = f"qemu+tcp://{host.address}/system"

    async def __aenter__(self) -> Self:
        directory = self.directory
        for name in ("run", "etc", "sockets", "var/lib", "var/log", "var/cache", "var/tmp", "certificates"):
            (directory / name).mkdir(parents=True)
        conf = _LIBVIRTD_CONF.format(
            uuid=uuid.uuid4(), sockets=directory / "sockets", address=self.host.address
        )
        (directory / "etc/libvirtd.conf").write_text(conf)
        (directory / "etc/qemu.conf").write_text(
            _QEMU_CONF.format(certificates=self.certificates)
            + ("" if self._cgroups else "cgroup_controllers = []\n")
        )
        os.mkfifo(directory / "start")
        places = {"run": "/run", "var": "/var", "etc": "/etc/libvirt", **self._accounts()}
        mounts = [
            f"mount --bind {shlex.quote(str(directory / name))} {place}" for name, place in places.items()
        ]
        # The shell stays as the first process of its namespace: it reaps the QEMUs, which libvirtd does not.
        again = shlex.quote(str(directory / "start"))
        script = " && ".join([*mounts, f"while :; do libvirtd --listen; read word <{again}; done"])
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
            (self.directory / name).write_text(Path("/etc", name).read_text().rstrip() + f"\n{line}\n")
        return {"passwd": "/etc/passwd", "group": "/etc/group"}

    async def _wait_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                await self.virsh("capabilities")
                return
            except LibvirtUnavailable as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (self.directory / "log").read_text(errors="replace")[-2000:]
                    raise LibvirtUnavailable(
                        f"libvirtd does not come up: {error}; it said: {said}"
                    ) from error
            await asyncio.sleep(0.05)

    async def virsh(self, *words: str) -> str:
        """Run virsh; returns what it prints.

        :raise LibvirtUnavailable: with its message when it fails.
        """
        process = await asyncio.create_subprocess_exec(
            *("virsh", "--quiet", "--connect", self.uri, *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, complaints = await process.communicate()
        if process.returncode:
            raise LibvirtUnavailable(f"virsh {words[0]}: {complaints.decode(errors='replace').strip()}")
        return out.decode()

    # --- guests ------------------------------------------------------------------------------------------------------

    async def start_guest(
        self,
        name: str,
        image: Path,
        *,
        habit: Habit | None = None,
        persistent: bool = True,
        autostart: bool = False,
        **about: object,
    ) -> str:
        """Start a guest that boots from `image` and wait until it runs; returns its uuid.

        :param habit: what it does; the image is written then. ``None``: the image is there.
        :param about: see :func:`domain_xml`.
        """
        if habit is not None:
            write_image(image, habit)
        definition = domain_xml(name, image, **about)  # type: ignore[arg-type]  # as domain_xml has them
        return await self.start_domain(name, definition, persistent=persistent, autostart=autostart)

    async def start_domain(
        self, name: str, definition: str, *, persistent: bool = True, autostart: bool = False
    ) -> str:
        """Start a guest by libvirt's definition of it; returns its uuid."""
        self._serial(name).unlink(missing_ok=True)
        path = self.directory / f"{name}.xml"
        path.write_text(definition)
        if persistent:
            await self.virsh("define", str(path))
            if autostart:
                await self.virsh("autostart", name)
            await self.virsh("start", name)
        else:
            await self.virsh("create", str(path))
        await self.wait_beating(name)
        return (await self.virsh("domuuid", name)).strip()

    async def remove_guest(self, name: str) -> None:
        """End the guest and forget its definition, if it is here."""
        for command in ("destroy", "undefine"):
            with contextlib.suppress(LibvirtUnavailable):
                await self.virsh(command, name)

    def _serial(self, name: str) -> Path:
        return self.directory / "run" / f"{name}.serial"

    def beats(self, name: str) -> int:
        """Return how often a guest has said here that it runs."""
        serial = self._serial(name)
        return serial.read_bytes().count(b"B") if serial.exists() else 0

    async def wait_beating(self, name: str) -> None:
        """Wait for a beat of a guest that was not there yet."""
        before, deadline = self.beats(name), time.monotonic() + _WAIT_SECONDS
        while self.beats(name) <= before:
            if time.monotonic() > deadline:
                raise LibvirtUnavailable(f"the guest {name} does not run on {self.host.name}")
            await asyncio.sleep(0.01)

    async def state(self, name: str) -> str:
        """Return virsh's word for the state of a guest; empty where there is none."""
        try:
            return (await self.virsh("domstate", name)).strip()
        except LibvirtUnavailable as error:
            if "failed to get domain" in str(error):
                return ""
            raise

    # --- processes ---------------------------------------------------------------------------------------------------

    @property
    def first_pid(self) -> int:
        """Return the pid, seen from here, of the first process of its namespace."""
        assert self._process is not None
        return int(_children(self._process.pid)[0])

    @property
    def daemon_pid(self) -> int | None:
        """Return the pid of libvirtd, seen from here; ``None`` while it does not run."""
        return next((pid for pid in _children(self.first_pid) if _command(pid) == "libvirtd"), None)

    def guest_pid(self, name: str) -> int:
        """Return the pid of a guest's QEMU, seen from here.

        :raise LibvirtUnavailable: there is none.
        """
        inside = int((self.directory / "run/libvirt/qemu" / f"{name}.pid").read_text())
        pending = [self.first_pid]
        while pending:
            pid = pending.pop()
            numbers = [
                line.split()[1:]
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if line.startswith("NSpid:")
            ]
            if numbers and int(numbers[0][-1]) == inside:
                return pid
            pending += _children(pid)
        raise LibvirtUnavailable(f"there is no process of {name} on {self.host.name}")

    def kill_daemon(self) -> None:
        """Kill libvirtd; its guests go on."""
        if (pid := self.daemon_pid) is not None:
            self._killed_pid = pid  # seen for a moment longer
            _kill(pid)

    def kill_guest(self, name: str) -> None:
        """Kill a guest's QEMU.

        :raise LibvirtUnavailable: there is none.
        """
        _kill(self.guest_pid(name))

    async def start_daemon(self) -> None:
        """Start libvirtd again, where it does not run, and wait until it answers."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while self.daemon_pid in (None, self._killed_pid) and not self._tell_start():
            if time.monotonic() > deadline:
                raise LibvirtUnavailable(f"nobody on {self.host.name} starts libvirtd again")
            await asyncio.sleep(0.02)
        await self._wait_answers()

    def _tell_start(self) -> bool:
        """Have the first process start libvirtd; False: it does not wait for that, as one runs, or has just ended."""
        try:
            start = os.open(self.directory / "start", os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return False
        os.write(start, b"now\n")
        os.close(start)
        return True

    def close(self) -> None:
        """Kill it and everything it started."""
        if self._process is None:
            return
        # The first process of its namespace: once it is dead, so are all others.
        first = [os.pidfd_open(child) for child in _children(self._process.pid)]
        self._process.kill()
        self._process.wait()
        for pidfd in first:
            select.select([pidfd], [], [], _WAIT_SECONDS)
            os.close(pidfd)
        self._process = None

    async def __aexit__(self, *_: object) -> None:
        self.close()


class LibvirtHosts:
    """Hosts with a libvirtd each. A context manager, ``async``.

    :param directory: for their files; it must exist.
    :raise LibvirtUnavailable: they cannot be had here.
    """

    def __init__(self, *names: str, directory: Path, bytes_per_second: float | None = None) -> None:
        if reason := why_not():
            raise LibvirtUnavailable(reason)
        self._names, self._directory, self._speed = names, directory, bytes_per_second
        self._stack = AsyncExitStack()
        self.daemons: dict[str, LibvirtDaemon] = {}

    def __getitem__(self, name: str) -> LibvirtDaemon:
        return self.daemons[name]

    async def restore(self) -> None:
        """Have every daemon run and every link whole and as fast as at first, and no guest anywhere."""
        for daemon in self.daemons.values():
            daemon.host.heal()
            if daemon.host.speed != self._speed:
                daemon.host.set_speed(self._speed)
            await daemon.start_daemon()
            for name in (await daemon.virsh("list", "--all", "--name")).split():
                await daemon.remove_guest(name)

    async def __aenter__(self) -> Self:
        try:
            hosts = self._stack.enter_context(
                LabHosts(*self._names, bytes_per_second=self._speed, isolated=True)
            )
            daemons = [LibvirtDaemon(hosts[name], self._directory / name) for name in self._names]
            for daemon in daemons:
                self.daemons[daemon.host.name] = await self._stack.enter_async_context(daemon)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


def _kill(pid: int) -> None:
    """Kill a process and see it dead."""
    handle = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([handle], [], [], _WAIT_SECONDS)
    os.close(handle)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
