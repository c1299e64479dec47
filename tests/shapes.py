"""The command lines of ``tests/corpus``, and what is said and made of one before anything is started.

One file is one shape. Its head says who makes such a line and what must come of it; below stand the line itself, what
the destination is started with, and the files that are looked for at the target. In what is started ``{run}`` is the
destination's directory and ``{ours}`` what every destination has: its pid file, two monitors, and that it waits.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from migrator.core.inventory import HostFacts
from migrator.core.model import Finding, MigrationStatus, RunState
from migrator.core.preflight import host_checks, host_files, host_network, host_process
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.host_pair import HostPair
from migrator.core.preflight.host_process import ProcessPair
from migrator.core.process.command_line import CommandLine
from migrator.core.process.files import FileFacts, FileKind, HostFiles
from migrator.core.process.options import read, write
from migrator.core.process.process_identity import OpenFiles, ProcessIdentity
from migrator.core.process.replica import Replica, TargetEnvironment
from migrator.qemu.cmdline import memory_files, paths, replicate
from migrator.qemu.current_command_line import current_command_line, plugged_networks
from migrator.qemu.current_devices import CurrentDevices
from migrator.qemu.operator_files import operator_files, own_directory
from migrator.site.operator_paths import OperatorPaths

FOLDER = Path(__file__).parent / "corpus"
RUN, LOG = "/run/migrator/guests/m1-abc123", "/var/log/migrator/m1.log"
QEMU = "/usr/bin/qemu"
#: Where the source was started.
DIRECTORY = "/home/ann/vm"
#: What every destination has.
OURS = (
    *("-pidfile", f"{RUN}/qemu.pid"),
    *("-chardev", f"socket,id=migrator-control,server=on,wait=off,path={RUN}/control.qmp"),
    *("-mon", "chardev=migrator-control,mode=control"),
    *("-chardev", f"socket,id=migrator-rescue,server=on,wait=off,path={RUN}/rescue.qmp"),
    *("-mon", "chardev=migrator-rescue,mode=control", "-S", "-incoming", "defer"),
)
_HEAD = (
    *("made by", "comes of it", "machine", "exists", "missing", "says", "shows", "refused for", "warned of"),
)
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One file of the corpus."""

    name: str
    head: Mapping[str, str]
    command: tuple[str, ...]
    becomes: tuple[str, ...]
    #: Each with what it is: ``image``, ``file``, ``written_paths``, ``socket``, ``memory``.
    files: tuple[str, ...]

    @property
    def machine(self) -> str:
        """Its machine type with the alias resolved, as QEMU would tell it."""
        return self.head["machine"]

    def listed(self, key: str) -> list[str]:
        """A line of the head that is a list."""
        return self.head.get(key, "").split()


def load(path: Path) -> Shape:
    """Read one file.

    :raise ValueError: its head has a word that nobody knows.
    """
    top, *sections = path.read_text(encoding="utf-8").split("\n--- ")
    head = dict(line.partition(": ")[::2] for line in top.strip().splitlines())
    if unknown := head.keys() - {*_HEAD}:
        raise ValueError(f"{path.name}: {', '.join(sorted(unknown))}")
    parts = dict(section.partition("\n")[::2] for section in sections)
    becomes: list[str] = []
    for word in shlex.split(parts.get("becomes", "")):
        becomes += OURS if word == "{ours}" else [word.replace("{run}", RUN).replace("{qemu}", QEMU)]
    return Shape(
        name=path.name,
        head=head,
        command=tuple(shlex.split(parts["command"])),
        becomes=tuple(becomes),
        files=tuple(parts.get("files", "").splitlines()),
    )


SHAPES = [load(path) for path in sorted(FOLDER.iterdir())]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What becomes of a command line."""

    replica: Replica
    findings: tuple[Finding, ...]
    files: tuple[str, ...]

    def codes(self, severity: str) -> list[str]:
        """Of the findings of that rank, each once."""
        return sorted({each.code for each in self.findings if each.severity == severity})


def judge(
    shape: Shape, *, command: tuple[str, ...] = (), current_devices: CurrentDevices | None = None
) -> Outcome:
    """What is said and made of it, for a target that has every file of the source's, but for what its head says.

    :param command: instead of the shape's own.
    :param live: what QEMU shows; by default it was not asked.
    """
    argv = command or shape.command
    now = current_devices or CurrentDevices(
        vnc=["default"] if shape.head.get("shows", "vnc") == "vnc" else []
    )
    missing, exists = {*shape.listed("missing")}, {*shape.listed("exists")}
    up_to_date = current_command_line(read(argv[1:]), machine=shape.machine, current_devices=now)
    line = [argv[0], *write([*up_to_date.options, *plugged_networks(up_to_date.options, now)])]
    read_there = CommandLine(line)
    place = TargetEnvironment(binary=QEMU, run_directory=RUN, occupied=exists)
    replica = replicate(argv, machine=shape.machine, current_devices=now, place=place)
    log = LOG if own_directory(argv) else ""
    home = OperatorPaths(having=operator_files(argv, {}, log=log, directory=DIRECTORY), names={})
    replica = home.moved(replica, place, log=LOG)
    found = host_checks.check(_case(shape, read_there, missing, exists))
    return Outcome(
        replica=replica, findings=(*replica.findings, *found), files=tuple(_files(line, read_there))
    )


def _files(line: list[str], command: CommandLine) -> list[str]:
    found = {
        "image": [image.path for image in command.images()],
        "file": [*host_files.paths_to_read(command), *host_network.paths_to_read(command)],
        "written": host_process.written_paths(command),
        "socket": [path for path in paths(line, DIRECTORY) if path not in memory_files(line)],
        "memory": [*memory_files(line)],
    }
    return list(dict.fromkeys(f"{kind} {path}" for kind, each in found.items() for path in sorted(set(each))))


def _case(shape: Shape, command: CommandLine, missing: set[str], exists: set[str]) -> HostPair:
    every = FileFacts(
        kind=FileKind.REGULAR,
        size_bytes=4096,
        inode=1,
        device="0:1",
        real="/drivers/vfio-pci",
        readable=True,
        writable=True,
        executable=True,
    )
    looked_at = [*(image.path for image in command.images()), *host_files.paths_to_read(command)]
    looked_at += [*host_network.paths_to_read(command), *exists]
    files = {path: every for path in looked_at if path not in missing}
    for path in ("/dev/hugepages", "/dev"):
        files[path] = replace(
            every,
            kind=FileKind.DIRECTORY,
            filesystem="hugetlbfs" if path != "/dev" else "",
            block_bytes=2 << 20,
        )
    uses_kvm = command.has("enable-kvm") or any(
        "kvm" in (option["accel"] or option.text) for option in command.all("accel", "machine", "M")
    )
    host = HostFacts(
        memory_total_bytes=64 * _GIB,
        memory_free_bytes=64 * _GIB,
        cpus=8,
        cpu_model="EPYC",
        cpu_flags=frozenset({"fpu"}),
        kvm=True,
        userfaultfd=True,
        vhost_net=True,
        hugepages={2 << 20: 32768},
        boot_id="one",
    )
    seen = HostFiles(files=files, user=0, qemu=QEMU)
    says = shape.head.get("says", "")
    return HostPair(
        target="beta",
        source=Facts(
            version="10.0.2",
            run=RunState.RUNNING,
            status=MigrationStatus.NONE,
            machine=shape.machine,
            accelerator="kvm" if uses_kvm else "tcg",
            memory_bytes=_GIB,
            blockers=(says,) if says else (),
        ),
        command=command,
        here=host,
        there=replace(host, boot_id="two"),
        files_here=seen,
        files_there=seen,
        process=ProcessPair(
            source=ProcessIdentity(directory=DIRECTORY),
            open_files=OpenFiles(files=(), directory=DIRECTORY),
            target=ProcessIdentity(directory=DIRECTORY),
            number=0,
        ),
    )
