"""A machine whose pid 1 is systemd: this one below an overlay, in namespaces of its own; its network is this one's.

What is changed on it stays over its boots, in a directory of the test; nothing reaches this machine. No unit is started
but those of ``basic.target`` and those that the test names.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

SYSTEMD = Path("/lib/systemd/systemd")
#: Of units and their drop-ins on the machine.
UNITS = "etc/systemd/system"

#: Makes ``machine`` of this one, and becomes its pid 1; ``$1`` is its console.
_BOOT = """
mount --make-rprivate /
mount -t overlay overlay -o lowerdir=/,upperdir=changed,workdir=work machine
mount -t proc proc machine/proc
mount --bind machine/proc/sys machine/proc/sys
mount -o remount,bind,ro machine/proc/sys
mount -t sysfs -o ro sysfs machine/sys
mount -t cgroup2 cgroup2 machine/sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs machine/dev
mkdir machine/dev/pts machine/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts machine/dev/pts
mount -t tmpfs tmpfs machine/dev/shm
for device in null zero full random urandom tty kvm; do
    test ! -e /dev/$device || { touch machine/dev/$device; mount --bind /dev/$device machine/dev/$device; }
done
touch machine/dev/console
mount --bind "$1" machine/dev/console
ln -s pts/ptmx machine/dev/ptmx
ln -s /proc/self/fd machine/dev/fd
mount -t tmpfs -o mode=755 tmpfs machine/run
mount -t tmpfs -o mode=1777 tmpfs machine/tmp
mkdir machine/run/below
cd machine
pivot_root . run/below
umount -l /run/below
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb /lib/systemd/systemd --unit=machine.target \\
    --log-target=journal --show-status=yes
"""

#: Would reach what is this machine's, or needs what a machine in namespaces has not.
_MASKED = (
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-udevd.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount",
    "timers.target",
)


def why_not() -> str:
    """Return why no such machine can be booted here; empty where one can."""
    if os.geteuid() != 0:
        return "root mounts the machine that systemd runs on"
    if not SYSTEMD.exists():
        return "systemd is not installed"
    return "" if _cgroups() is not None else "cgroup2 is mounted nowhere"


def _cgroups() -> Path | None:
    """Return where cgroup2 is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


class SystemdMachine:
    """See :mod:`tests.systemd_machine`.

    :param place: an empty directory.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        for name in ("changed", "work", "machine"):
            (place / name).mkdir(parents=True)
        self.write(
            f"{UNITS}/machine.target", "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n"
        )
        self.file("var/log/journal").mkdir(parents=True)
        self.file("srv").mkdir()
        # Images of containers have one that lets no package start or stop its service.
        self.write("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 0\n", 0o755)
        for unit in _MASKED:
            self.file(f"{UNITS}/{unit}").symlink_to("/dev/null")

    def file(self, path: str) -> Path:
        """Return where something of the machine is that was changed or written there."""
        return self._place / "changed" / path

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the machine, while it does not run."""
        file = self.file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)

    def copy(self, source: Path, path: str) -> None:
        """Put a file of ours there."""
        self.write(path, source.read_text(encoding="utf-8"), source.stat().st_mode & 0o777)

    def want(self, unit: str) -> None:
        """Have a unit started with the next boot."""
        wants = self.file(f"{UNITS}/machine.target.wants/{unit}")
        wants.parent.mkdir(exist_ok=True)
        instance, _, kind = unit.partition("@")
        template = f"{instance}@.{kind.rpartition('.')[2]}" if kind else unit
        wants.symlink_to(f"/{UNITS}/{template}")

    @contextlib.contextmanager
    def booted(self) -> Iterator[Running]:
        """Boot it; it is killed at the end of the block where it has not ended."""
        master, slave = pty.openpty()
        # Wide enough for names of units.
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 400, 0, 0))
        shutil.rmtree(self._place / "work", ignore_errors=True)  # the last boot's
        (self._place / "work").mkdir(exist_ok=True)
        cgroups = _cgroups()
        assert cgroups is not None
        cgroup = cgroups / f"migrator-test-{os.getpid()}-{time.monotonic_ns()}"
        cgroup.mkdir()
        enter = f"echo $$ >{cgroup}/cgroup.procs && exec unshare --pid --mount --uts --ipc --cgroup --fork"
        process = subprocess.Popen(
            [
                *("bash", "-ec", f'{enter} --kill-child=KILL bash -ec "$0" - "$1"', _BOOT, os.ttyname(slave)),
            ],
            cwd=self._place,
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        running = Running(process, master)
        try:
            running.until("systemctl is-active machine.target", "active")
            yield running
        finally:
            running.kill()
            os.close(master)
            _remove(cgroup)

    def journal(self) -> list[tuple[str, str]]:
        """Return the unit and the text of every message of all boots, in order, once it has ended."""
        said = subprocess.run(
            ["journalctl", "-q", "-D", str(self.file("var/log/journal")), "-o", "json", "--no-pager"],
            capture_output=True,
            text=True,
            check=True,
        )
        rows = [json.loads(line) for line in said.stdout.splitlines()]
        return [
            (str(row.get("UNIT") or row.get("_SYSTEMD_UNIT") or ""), str(row.get("MESSAGE"))) for row in rows
        ]


class Running:
    """One boot of a machine."""

    def __init__(self, process: subprocess.Popen[bytes], console: int) -> None:
        self._process = process
        self.console = b""
        self._reader = threading.Thread(target=self._read, args=(console,), daemon=True)
        self._reader.start()

    def _read(self, console: int) -> None:
        with contextlib.suppress(OSError):
            while said := os.read(console, 65536):
                self.console += said

    def do(self, *command: str, check: bool = True, seconds: float = 120) -> str:
        """Run a command on it, for so long at most; return what it printed."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children:
            return ""
        done = subprocess.run(
            ["nsenter", "-t", children[0], "--pid", "--mount", "--uts", "--ipc", "--cgroup", *command],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.said}"
        return done.stdout.strip()

    def until(self, command: str | Sequence[str], answer: str, seconds: float = 120) -> None:
        """Wait until a command prints that."""
        words = command.split() if isinstance(command, str) else list(command)
        give_up_at = time.monotonic() + seconds
        found = ""
        while time.monotonic() < give_up_at and self._process.poll() is None:
            if (found := self.do(*words, check=False)) == answer:
                return
            time.sleep(0.2)
        pytest.fail(f"{' '.join(words)} says {found!r}, not {answer!r}: {self.said}")

    def until_other(self, command: str, answer: str, seconds: float = 120) -> None:
        """Wait until a command prints something else than that."""
        give_up_at = time.monotonic() + seconds
        while self.do(*command.split()) == answer:
            if time.monotonic() > give_up_at:
                pytest.fail(f"{command} says {answer!r} all the time: {self.said}")
            time.sleep(0.2)

    def ended(self, seconds: float) -> None:
        """Wait until it has gone down by itself."""
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it runs after {seconds:g} s: {self.said}")

    @property
    def said(self) -> str:
        """What its console has shown last."""
        return self.console.decode(errors="replace")[-4000:]

    def kill(self) -> None:
        """Switch it off."""
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=10)


def _remove(cgroup: Path) -> None:
    """Remove a cgroup once nobody is left in it."""
    give_up_at = time.monotonic() + 10
    while time.monotonic() < give_up_at:
        for each in sorted(cgroup.rglob("*"), reverse=True):
            if each.is_dir():
                with contextlib.suppress(OSError):
                    each.rmdir()
        try:
            cgroup.rmdir()
            return
        except OSError:
            time.sleep(0.1)


needs_systemd = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can")
