"""The identity of a host's process: its user, its place and what it may use, read there.

The same script reads what a process would be that :mod:`migrator.hosts.run_as` makes like another, so that what would
come of it is known before anything is started.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from migrator.core.process.files import FileKind
from migrator.core.process.process_identity import (
    UNIT_PROPERTIES,
    DroppedPrivileges,
    OpenFile,
    OpenFiles,
    ProcessIdentity,
    start_directory,
)
from migrator.errors import HostError
from migrator.hosts.access import HostAccess, HostCommand, Output
from migrator.hosts.host_output import reading_output
from migrator.hosts.run_as import run_as
from migrator.hosts.thread_scheduling import THREAD_CPUS, THREAD_STATS, parse_threads

#: Resources by the names that /proc/PID/limits gives them, and the options of prlimit for them.
_RESOURCES = {
    "cpu time": "cpu",
    "file size": "fsize",
    "data size": "data",
    "stack size": "stack",
    "core file size": "core",
    "resident set": "rss",
    "processes": "nproc",
    "open files": "nofile",
    "locked memory": "memlock",
    "address space": "as",
    "file locks": "locks",
    "pending signals": "sigpending",
    "msgqueue size": "msgqueue",
    "nice priority": "nice",
    "realtime priority": "rtprio",
    "realtime timeout": "rttime",
}
_POLICIES = ("other", "fifo", "rr", "batch", "", "idle", "deadline")
_KINDS = {
    stat.S_IFREG: FileKind.REGULAR,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFBLK: FileKind.BLOCK,
    stat.S_IFCHR: FileKind.CHARACTER,
    stat.S_IFSOCK: FileKind.SOCKET,
}

#: What runs only when nothing else does has so much more time.
_IDLE_RATIO = 6

# Arguments: a pid, or `self`; a user name; a uid; then paths.
_READ = (
    rb"""
LC_ALL=C; export LC_ALL
pid=$1 name=$2 number=$3; shift 3
it=$pid; [ "$pid" = self ] && pid=$$
put() { printf '%s\0' "$@"; }
p=/proc/$pid
[ -d "$p" ] || exit 3
# Every program that is run costs a millisecond, so what the shell can do it does itself.
line() { line=; { IFS= read -r line <"$1"; } 2>/dev/null; put "$line"; }
status=$(cat "$p/status" 2>/dev/null) cgroup=$(cat "$p/cgroup" 2>/dev/null)
put "$status" "$(cat "$p/stat" 2>/dev/null)" "$(cat "$p/limits" 2>/dev/null)"
line "$p/oom_score_adj"; put "$cgroup"
line "$p/attr/current"
line /sys/devices/system/cpu/online
d=$(readlink "$p/cwd" 2>/dev/null); put "$d"
root=$(readlink "$p/root" 2>/dev/null)
put "$root" "$(ionice -p "$pid" 2>/dev/null)"
other=
ours=$(readlink /proc/self/ns/mnt /proc/self/ns/user /proc/self/ns/pid /proc/self/ns/net 2>/dev/null)
for theirs in $(readlink "$p/ns/mnt" "$p/ns/user" "$p/ns/pid" "$p/ns/net" 2>/dev/null); do
  case $ours in *"$theirs"*) ;; *) other="$other ${theirs%%:*}" ;; esac
done
put "$other"
nl='
'
uid=${status#*"${nl}Uid:"}
if [ "$uid" != "$status" ]; then uid=$(set -f; set -- $uid; printf %s "$2"); else uid=; fi
entry=$(getent passwd "${number:-$uid}")
put "${entry%%:*}" "$( [ -z "$name" ] || id -u -- "$name" 2>/dev/null )"
c=
case $nl$cgroup in
  *"${nl}0::"*) c=$nl$cgroup; c=${c#*"${nl}0::"}; c=${c%%"$nl"*} ;;
esac
put "$(
  [ "${c:-/}" != / ] && cd "/sys/fs/cgroup$c" 2>/dev/null &&
    grep -s '' memory.max memory.high memory.swap.max cpu.max cpu.weight io.weight cpuset.cpus cpuset.mems
)"
put "$("""
    + f'{THREAD_CPUS})" "$({THREAD_STATS}'.encode()
    + rb""")"
if [ "$it" = self ]; then
  for f; do
    a=-; [ -e "$f" ] && a=e; [ -r "$f" ] && a=r$a; [ -w "$f" ] && a=w$a; [ -x "$f" ] && a=x$a
    put "$a"
  done
  put end; exit
fi
if ls "$p/fd" >/dev/null 2>&1; then
  put readable
  stat -L --printf '%n %f %d %i %t %T\n' "$p"/fd/* 2>/dev/null; put ''
  find "$p/fd" -type l -printf '%f %l\0' 2>/dev/null
else put '' ''; fi
put ''
case "$other" in *mnt*) ;; *) [ "${root:-/}" != / ] || set -- ;; esac
for f; do
  case $f in /*) a=$p/root$f b=$f ;; *) a=$p/cwd/$f b=$d/$f ;; esac
  [ "$a" -ef "$b" ] || { [ ! -e "$a" ] && [ ! -e "$b" ]; } || put "$f"
done
put '' end
"""
)


@dataclass(frozen=True, kw_only=True)
class AccountNames:
    """A host's name for a user, and the user that it means by a name."""

    #: Name of the user by number; empty: there is none.
    name: str = ""
    #: Number of the user by name; ``None``: there is none, or no name was asked for.
    number: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Result of a trial: what a process would be that is started like another."""

    #: ``None``: it could not become that.
    identity: ProcessIdentity | None
    complaint: str = ""
    accounts: AccountNames
    #: By path: what it may do with it, of ``rwx``, and ``e`` where it sees that there is something.
    may: Mapping[str, str] = field(default_factory=dict)


async def read_process(
    access: HostAccess,
    pid: int,
    *,
    paths: Sequence[str] = (),
    daemonized: bool = False,
    timeout: float = 20.0,
) -> tuple[ProcessIdentity, OpenFiles] | None:
    """Read one process of a host and the files it has open; ``None`` when there is none of that pid.

    Its directory is the one that it was started in, where that can be told.

    :param paths: files of its command line.
    :param daemonized: it has left the directory where it was started.
    :raise HostError: when the host cannot be asked.
    """
    command = process_command(pid, paths)
    output = await access.run(command.argv, stdin=command.stdin, timeout=timeout)
    return parse_process(access.name, pid, output, paths=paths, daemonized=daemonized)


def process_command(pid: int, paths: Sequence[str]) -> HostCommand:
    """Return the command that reads a process, for :func:`parse_process`."""
    return HostCommand(argv=["sh", "-s", "--", str(pid), "", "", *paths], stdin=_READ)


def parse_process(
    host: str, pid: int, output: Output, *, paths: Sequence[str], daemonized: bool
) -> tuple[ProcessIdentity, OpenFiles] | None:
    """Parse the output of :func:`process_command` at a host; see :func:`read_process`.

    :raise HostError: it is none.
    """
    answers = output.text.split("\0")
    if answers[-2:] != ["end", ""]:
        if output.status == 3:
            return None
        raise HostError(host, f"pid {pid} cannot be looked at: {output.complaint or 'no answer'}")
    with reading_output(host, f"pid {pid}"):
        return _process(answers, paths, daemonized=daemonized)


def _process(
    answers: Sequence[str], paths: Sequence[str], *, daemonized: bool
) -> tuple[ProcessIdentity, OpenFiles]:
    identity, _, rest = _parse(answers)
    files: tuple[OpenFile, ...] | None = None
    readable, numbers = next(rest), next(rest)
    links = []
    while link := next(rest):
        links.append(link)
    if readable:
        files = tuple(_open_files(numbers, links))
    elsewhere = []
    while path := next(rest):
        elsewhere.append(path)
    relative = [path for path in paths if path and not path.startswith("/")]
    start = start_directory(files or (), relative, directory=identity.directory, daemonized=daemonized)
    open_files = OpenFiles(
        files=files,
        directory=start,
        left_for=identity.directory if start != identity.directory else "",
        elsewhere=frozenset(elsewhere),
    )
    return replace(identity, directory=start or identity.directory), open_files


async def try_process(
    access: HostAccess,
    like: ProcessIdentity,
    *,
    drops: DroppedPrivileges,
    paths: Sequence[str] = (),
    timeout: float = 20.0,
) -> TrialResult:
    """Try what a QEMU that is started there like another will be, once it has dropped what it is told to drop.

    :param paths: what it may do with these.
    :raise HostError: when the host cannot be asked.
    """
    if like.policy == "idle":  # it waits for everybody else on that host
        timeout *= _IDLE_RATIO
    name = "" if ":" in drops.user else drops.user
    reading = ["sh", "-s", "--", "self", name or like.account, str(like.user), *paths]
    output = await access.run([*run_as(like, as_user=drops.user), *reading], stdin=_READ, timeout=timeout)
    answers = output.text.split("\0")
    complaint = "" if answers[-2:] == ["end", ""] else output.complaint or "it does not say why"
    if complaint:  # it cannot become that user; who it is by itself still tells the names
        output = await access.run(reading, stdin=_READ, timeout=timeout)
        answers = output.text.split("\0")
        if answers[-2:] != ["end", ""]:
            raise HostError(
                access.name, f"its processes cannot be looked at: {output.complaint or 'no answer'}"
            )
    with reading_output(access.name, "its processes"):
        identity, accounts, rest = _parse(answers)
        may = {path: next(rest) for path in paths}
    return TrialResult(
        identity=None if complaint else identity, complaint=complaint, accounts=accounts, may=may
    )


def _parse(answers: Sequence[str]) -> tuple[ProcessIdentity, AccountNames, Iterator[str]]:
    rest = iter(answers)
    status_text, stat_text, limits, oom, cgroups, label, online = (next(rest) for _ in range(7))
    directory, root, io, other, name, number, set_limits = (next(rest) for _ in range(7))
    thread_cpus, thread_stats = next(rest), next(rest)
    lines = (line.partition(":") for line in status_text.splitlines())
    status = {key: value.strip() for key, _, value in lines}
    fields = stat_text.rpartition(")")[2].split()
    policy = _field(fields, 38)
    identity = ProcessIdentity(
        user=_field(status.get("Uid", "").split(), 1),
        group=_field(status.get("Gid", "").split(), 1),
        groups=frozenset(int(group) for group in status.get("Groups", "").split()),
        account=name,
        directory=directory.removesuffix(" (deleted)"),
        root=root,
        umask=int(status["Umask"], 8) if "Umask" in status else None,
        limits=dict(_limits(limits)),
        cpus=_cpus(status.get("Cpus_allowed_list", ""), online.strip()),
        nice=_field(fields, 16),
        policy=_POLICIES[policy] if policy < len(_POLICIES) else "",
        priority=_field(fields, 37),
        io=_io(io),
        oom_adjustment=int(oom) if oom.strip().lstrip("-").isdecimal() else 0,
        capabilities=int(status.get("CapEff", "0"), 16),
        bounding=int(status.get("CapBnd", "0"), 16),
        no_new_privileges=status.get("NoNewPrivs") == "1",
        filtered=status.get("Seccomp", "0") != "0",
        label="" if label.strip() in ("", "unconfined", "kernel") else label.strip(),
        cgroup=_cgroup(cgroups),
        cgroup_limits=dict(_cgroup_limits(set_limits)),
        namespaces=frozenset(other.split()),
        threads=parse_threads(thread_cpus, thread_stats),
    )
    return identity, AccountNames(name=name, number=int(number) if number.isdecimal() else None), rest


def _field(fields: Sequence[str], number: int) -> int:
    return int(fields[number]) if len(fields) > number else 0


def _limits(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    for line in text.splitlines():
        found = re.match(r"Max (.+?) +(unlimited|\d+) +(unlimited|\d+)", line)
        if found and found[1] in _RESOURCES:
            yield _RESOURCES[found[1]], (found[2], found[3])


def _cpus(allowed: str, online: str) -> str:
    return "" if _numbers(online) <= _numbers(allowed) else allowed


def _numbers(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first.strip().isdecimal():
            begin, end = int(first), int(last if dash else first)
            if end > _MOST_CPUS:
                raise ValueError(f"it has no CPU {end}")
            found.update(range(begin, end + 1))
    return frozenset(found)


#: More than any kernel was built for.
_MOST_CPUS = 65_536


def _io(text: str) -> str:
    found = re.match(r"(realtime|best-effort): prio (\d)", text.strip())
    return f"{found[1]} {found[2]}" if found else "idle" if text.strip() == "idle" else ""


def _cgroup(text: str) -> str:
    """Return the cgroup of the unified hierarchy; with version 1 that of systemd, by name."""
    lines = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    named = {controllers: path for _, controllers, path in lines}
    return named.get("") or named.get("name=systemd", "")


def _cgroup_limits(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, _, value = line.partition(":")
        unset = {"cpu.weight": ("100",), "io.weight": ("default 100", "100")}.get(name, ("max", ""))
        if name in UNIT_PROPERTIES and value.strip() not in unset and not value.startswith("max "):
            yield name, value.strip()


def _open_files(numbers: str, links: Sequence[str]) -> Iterator[OpenFile]:
    targets: Mapping[str, str] = dict(link.split(" ", 1) for link in links if " " in link)
    for line in numbers.splitlines():
        name, mode, device, inode, major, minor = line.split(" ")
        number = name.rpartition("/")[2]
        target = targets.get(number, "")
        kind = _KINDS.get(stat.S_IFMT(int(mode, 16)), FileKind.OTHER)
        if not target.startswith("/") or kind is FileKind.SOCKET:
            continue  # pipes, sockets, files without a name
        own = f"{int(major, 16)}:{int(minor, 16)}"
        yield OpenFile(
            path=target.removesuffix(" (deleted)"),
            deleted=target.endswith(" (deleted)"),
            kind=kind,
            device=own if kind is FileKind.BLOCK else device_of(int(device)),
            inode=int(inode),
            descriptor=name,
        )


def device_of(number: int) -> str:
    """Return ``major:minor`` of a device number as stat tells it."""
    major = (number >> 8 & 0xFFF) | (number >> 32 & ~0xFFF)
    minor = (number & 0xFF) | (number >> 12 & 0xFFFFFF00)
    return f"{major}:{minor & 0xFFFFFFFF}"
