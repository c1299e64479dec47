"""Properties of a process beside its program and arguments: its user, its directory, and what it may use. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from migrator.core.process.command_line import CommandLine
from migrator.core.process.files import FileFacts, FileKind

#: Slices that say nothing about a guest: everything is in one of them that was not given another; a service made from
#: a template is in ``system-NAME.slice``.
_COMMON_SLICES = re.compile(r"(system(-.+)?|user(-\d+)?|app|session|background|machine|-)\.slice")
#: Settings of a cgroup that systemd can give a transient unit, and its name for them.
UNIT_PROPERTIES = {
    "memory.max": "MemoryMax",
    "memory.high": "MemoryHigh",
    "memory.swap.max": "MemorySwapMax",
    "cpu.max": "CPUQuota",
    "cpu.weight": "CPUWeight",
    "io.weight": "IOWeight",
    "cpuset.cpus": "AllowedCPUs",
    "cpuset.mems": "AllowedMemoryNodes",
}


@dataclass(frozen=True, kw_only=True)
class ThreadScheduling:
    """CPUs, policy and priority with which one thread runs."""

    cpus: str
    nice: int
    policy: str
    priority: int

    def __str__(self) -> str:
        kind = self.policy + (f" {self.priority}" if self.priority else "")
        return f"CPUs {self.cpus}, nice {self.nice}, {kind}"


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """One process on one host. What could not be read is at its default."""

    #: Effective ids, as numbers: what storage that hosts share knows.
    user: int = 0
    group: int = 0
    groups: frozenset[int] = frozenset()
    #: The user's name on that host; empty: it has no account of that number.
    account: str = ""
    #: Working directory; empty where we may not look.
    directory: str = ""
    #: Root directory, as its host names it; empty where we may not look.
    root: str = ""
    umask: int | None = None
    #: By the option of prlimit: soft and hard, in that resource's own unit, or ``unlimited``.
    limits: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    #: ``0-3,8``; empty: every CPU that is online.
    cpus: str = ""
    nice: int = 0
    #: ``other``, ``fifo``, ``rr``, ``batch`` or ``idle``, and the priority of the second and third.
    policy: str = "other"
    priority: int = 0
    #: ``best-effort 4``, ``idle``; empty: none was set.
    io: str = ""
    #: Added to its badness when memory is short, -1000 to 1000.
    oom_adjustment: int = 0
    #: Capabilities as bits: those in effect, and those that it can ever have.
    capabilities: int = 0
    bounding: int = 0
    no_new_privileges: bool = False
    #: A filter of system calls is on.
    filtered: bool = False
    #: Label of AppArmor or SELinux; empty: unconfined.
    label: str = ""
    cgroup: str = ""
    #: Limits set for that cgroup, by the names of its files: :data:`UNIT_PROPERTIES`.
    cgroup_limits: Mapping[str, str] = field(default_factory=dict)
    #: Kinds of namespaces that are not its host's: ``mnt``, ``user``.
    namespaces: frozenset[str] = frozenset()
    #: How its threads run, by their ids; what another process cannot have alike.
    threads: Mapping[int, ThreadScheduling] = field(default_factory=dict, compare=False, repr=False)

    @property
    def slice(self) -> str:
        """The slice of systemd that it was put into on purpose; empty where it was put into none."""
        named = [part for part in self.cgroup.split("/") if part.endswith(".slice")]
        return "" if not named or _COMMON_SLICES.fullmatch(named[-1]) else named[-1]


@dataclass(frozen=True, kw_only=True)
class DroppedPrivileges:
    """Privileges that a QEMU is told to give up by itself once it is up."""

    #: As it stands in its command line: a name, or ``uid:gid``; empty: it stays who it is.
    user: str = ""
    #: Where it changes its root to; empty: nowhere.
    root: str = ""

    @classmethod
    def of(cls, command: CommandLine) -> DroppedPrivileges:
        """Read them from a command line, where the last option of each kind counts."""
        user = root = ""
        for option in command.all("runas", "chroot", "run-with"):
            if option.name == "runas":
                user = option.text
            elif option.name == "chroot":
                root = option.text
            else:
                user, root = option["user"] or user, option["chroot"] or root
        return cls(user=user, root=root)


@dataclass(frozen=True, kw_only=True)
class OpenFile:
    """A file that a process has open."""

    #: Path under which the kernel knows it now, and whether it is gone from there.
    path: str
    deleted: bool
    kind: FileKind
    #: ``major:minor`` of the file system, or of the device itself where it is one.
    device: str
    inode: int
    #: ``/proc/PID/fd/N``
    descriptor: str = ""


@dataclass(frozen=True, kw_only=True)
class OpenFiles:
    """The files that a process has open, and from where relative paths go."""

    #: ``None`` where we may not look.
    files: tuple[OpenFile, ...] | None = None
    #: Where it was started, which need not be where it is; empty: not known.
    directory: str = ""
    #: Where it is now, if it has left that directory.
    left_for: str = ""
    #: Images that it has open for writing, by names that do not lead to them from there.
    unreachable: frozenset[str] = frozenset()
    #: Paths that mean another file to it than to its host (mounts or a root of its own).
    elsewhere: frozenset[str] = frozenset()

    def has(self, seen: FileFacts) -> bool:
        """Tell whether the process has this very file open; true where that cannot be seen."""
        if self.files is None:
            return True
        return any(_is(file, seen) for file in self.files)

    def resolve(self, path: str) -> str:
        """Return where a relative path leads from the present directory of the process."""
        return posixpath.normpath(posixpath.join(self.left_for, path))

    def opened_under(self, path: str) -> OpenFile | None:
        """Return the file that it opened under a path, wherever that leads now; ``None`` where that cannot be told."""
        at = posixpath.normpath(posixpath.join(self.directory or "/", path))
        found = [file for file in self.files or () if file.path == at]
        # One that is deleted was there before the one that is there now.
        return next(iter(sorted(found, key=lambda file: not file.deleted)), None)


def _is(file: OpenFile, seen: FileFacts) -> bool:
    if file.kind is FileKind.BLOCK or seen.kind is FileKind.BLOCK:
        return file.kind is seen.kind and file.device == seen.device
    return (file.device, file.inode) == (seen.device, seen.inode)


def start_directory(
    files: Iterable[OpenFile], relative: Collection[str], *, directory: str, daemonized: bool
) -> str:
    """Return the directory that relative paths of a command line go from; empty where it cannot be told.

    QEMU leaves the directory where it was started when it puts itself into the background; the files that it has open
    then tell where that was.

    :param relative: paths without a slash at their beginning.
    :param directory: where the process is now; empty: not known.
    """
    if not daemonized or not relative:
        return directory
    candidates: set[str] | None = None
    opened = {file.path for file in files}
    for path in relative:
        plain = posixpath.normpath(path)
        if plain.startswith(".."):
            continue
        found = {each.removesuffix(plain).rstrip("/") or "/" for each in opened if each.endswith(f"/{plain}")}
        if found:
            candidates = found if candidates is None else candidates & found
    return next(iter(candidates)) if candidates and len(candidates) == 1 else ""
