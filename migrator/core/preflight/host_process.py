"""Findings against a host because of the source's process: its user, its directory, and what it may use. Pure."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.process.command_line import CommandLine
from migrator.core.process.files import FileFacts
from migrator.core.process.process_identity import DroppedPrivileges, OpenFiles, ProcessIdentity

_LIMITS = {
    "nofile": "open files",
    "memlock": "locked memory",
    "nproc": "processes",
    "core": "core files",
    "as": "address space",
    "data": "data",
    "stack": "stack",
    "fsize": "file size",
    "cpu": "CPU time",
    "rtprio": "realtime priority",
    "nice": "nice",
    "msgqueue": "message queues",
    "locks": "file locks",
    "rttime": "realtime CPU time",
}
_KVM, _TUN = "/dev/kvm", "/dev/net/tun"
#: Resources whose limit the kernel derives from the memory of its host: more than the source has is no difference.
_BY_HOST = frozenset({"nproc"})


@dataclass(frozen=True, kw_only=True)
class ProcessPair:
    """The source's process, and what one would be that is started like it at the target."""

    source: ProcessIdentity
    open_files: OpenFiles = field(default_factory=OpenFiles)
    #: ``None``: it could not be made so; `complaint` says why.
    target: ProcessIdentity | None
    complaint: str = ""
    #: At the target: name of the source's uid, and number of the source's user's name, or of the one it is to become.
    account: str = ""
    number: int | None = None
    #: By path: what that user may do with it there, of ``rwx``, and ``e`` where it sees that there is something; no
    #: entry where that was not tried.
    may: Mapping[str, str] = field(default_factory=dict)
    #: The destination is started like the source; else whoever starts it knows what is right.
    replicated: bool = True

    @property
    def user(self) -> int | None:
        """Uid of the QEMU there; ``None`` where nobody can tell."""
        return None if self.target is None else self.target.user


def check(
    pair: ProcessPair, command: CommandLine, *, target: str, systemd: bool, kvm: bool
) -> Iterator[Finding]:
    """Yield findings about the process itself.

    :param systemd: it gets a unit of its own there.
    :param kvm: it needs KVM, which is there.
    """
    if pair.open_files.files is None:
        yield finding("process-unknown", "the files that its process has open may not be seen")
    if not pair.replicated:
        return
    drops = DroppedPrivileges.of(command)
    yield from _where(pair, drops, target)
    yield from _who(pair, drops, target)
    here, there = pair.source, pair.target
    if command.all("sandbox"):  # what QEMU puts on itself it puts on itself there, too
        here = replace(here, filtered=False, no_new_privileges=False)
    if there is not None:
        yield from _directory(pair, there, target)
        for what in differences(here, there):
            yield finding("process-settings", f"{what} at {target}")
    if here.cgroup_limits and not systemd:
        values = ", ".join(f"{name}={value}" for name, value in sorted(here.cgroup_limits.items()))
        yield finding("cgroup", f"its cgroup {here.cgroup} has {values}, which {target} cannot give it")
    elif here.slice and not systemd:
        yield finding("cgroup", f"it is in {here.slice}, which {target} has not: no systemd runs there")
    if not drops.user:  # else it opens them before it becomes that user
        yield from _opened_itself(pair, command, target, kvm=kvm)


def disk_replaced(pair: ProcessPair | None, path: str, here: FileFacts, device: str) -> Iterator[Finding]:
    """Yield a finding where the path of a disk does not lead to the file that the source has open."""
    if pair is None or pair.open_files.has(here):
        return
    opened = pair.open_files.opened_under(path)
    if opened is None:
        what = "leads to no file that its QEMU has open"
    elif opened.deleted:
        what = f"was deleted or replaced; its QEMU still has the old one open ({opened.descriptor})"
    else:
        what = f"is another file to its QEMU ({opened.descriptor}) than to its host"
    yield finding("disk-replaced", f"{path} of disk {device} {what}")


def relative_paths(paths: Collection[str]) -> list[str]:
    """Return the paths that depend on the directory of the process."""
    return [path for path in paths if path and not path.startswith("/")]


def _where(pair: ProcessPair, drops: DroppedPrivileges, target: str) -> Iterator[Finding]:
    here = pair.source
    if drops.root or here.root not in ("", "/"):
        yield finding("chroot", f"the root directory of its process is {here.root or drops.root}")
    for path in sorted(pair.open_files.elsewhere):
        yield finding("mount-namespace", f"{path} is another file to its process than to its host")
    if "user" in here.namespaces:
        yield finding("user-namespace", "its process has a user namespace of its own")
    others = sorted(here.namespaces - {"user"})
    if others:
        yield finding(
            "process-namespace",
            f"its process has {' and '.join(others)} namespaces of its own; {target} starts it in its own",
        )


def _who(pair: ProcessPair, drops: DroppedPrivileges, target: str) -> Iterator[Finding]:
    here, there = pair.source, pair.target
    who = f"uid {here.user}" + (f" ({here.account})" if here.account else "")
    name = drops.user if drops.user and ":" not in drops.user else ""
    if name and pair.number is None:
        yield finding("runas-missing", f"{target} has no user {name}, which QEMU is to become")
    elif there is None:
        yield finding("process-user", f"it cannot become {who} at {target}: {pair.complaint}")
    elif name and there.user != here.user:
        yield finding(
            "user-differs",
            f"{name} is uid {here.user} at the source and {there.user} at {target}; QEMU becomes that",
        )
    elif there.user != here.user:
        yield finding("process-user", f"it runs as {who}, and would run as uid {there.user} at {target}")
    elif here.user and here.account and pair.number not in (None, here.user):
        yield finding(
            "user-differs",
            f"{here.account} is uid {here.user} at the source and {pair.number} at {target}; QEMU is started as "
            f"{here.user}" + (f", which is {pair.account} there" if pair.account else ""),
        )
    elif here.user and not pair.account and here.account:
        yield finding("user-missing", f"{target} has no account for {who}")


def _directory(pair: ProcessPair, there: ProcessIdentity, target: str) -> Iterator[Finding]:
    wanted = pair.open_files.directory or pair.source.directory
    if wanted and there.directory not in ("", wanted):
        yield finding("working-directory", f"its directory {wanted} cannot be entered at {target}")


def paths_unclear(pair: ProcessPair, paths: Collection[str], *, target: str) -> Iterator[Finding]:
    """Findings about relative paths.

    :param paths: of the command line and of disks.
    """
    loose = relative_paths(paths)
    if not loose or pair.open_files.files is None:
        return
    shown = ", ".join(loose[:3])
    if not pair.open_files.directory:
        yield finding(
            "relative-path", f"from where {shown} goes cannot be told: the process has left that directory"
        )
        return
    if pair.target is not None and pair.target.directory not in ("", pair.open_files.directory):
        yield finding(
            "relative-path",
            f"{shown} goes from {pair.open_files.directory}, which cannot be entered at {target}",
        )


def images_unreachable(open_files: OpenFiles) -> Iterator[Finding]:
    """Findings about images that QEMU is going to open again, from another directory than before."""
    for path in sorted(open_files.unreachable):
        at = open_files.resolve(path)
        image = posixpath.normpath(posixpath.join(open_files.directory, path))
        yield finding(
            "image-unreachable",
            f"QEMU opens the image {path} again at the switch, and from {open_files.left_for}, where its process is "
            f"now, that is not {image}",
            remedy=f"until it has moved: ln -s {shlex.quote(image)} {shlex.quote(at)}",
        )


def differences(here: ProcessIdentity, there: ProcessIdentity) -> Iterator[str]:
    """Yield the differences between two processes, users aside, each as the beginning of a sentence."""
    for what, show in _SHOWN.items():
        mine, theirs = show(here), show(there)
        if mine != theirs:
            yield f"its {what} is {mine}, and {theirs}"
    for name, words in _LIMITS.items():
        mine_, theirs_ = here.limits.get(name), there.limits.get(name)
        if mine_ is None or theirs_ is None or mine_ == theirs_:
            continue
        if name not in _BY_HOST or _number(theirs_[0]) < _number(mine_[0]):
            yield f"its limit of {words} is {_limit(mine_)}, and {_limit(theirs_)}"
    if here.capabilities != there.capabilities and here.user == there.user:
        yield f"its set of capabilities is {here.capabilities:#x}, and {there.capabilities:#x}"
    if here.no_new_privileges and not there.no_new_privileges:
        yield "it may gain no privileges, and may"
    if here.filtered and not there.filtered:
        yield "a filter of system calls was put on it from outside, and is not"


#: Properties that must be the same, by name.
_SHOWN: Mapping[str, Callable[[ProcessIdentity], str]] = {
    "list of groups": lambda of: ",".join(map(str, [of.group, *sorted(of.groups - {of.group})])),
    "umask": lambda of: "unknown" if of.umask is None else f"{of.umask:04o}",
    "set of CPUs": lambda of: of.cpus or "every one",
    "nice value": lambda of: str(of.nice),
    "scheduling": lambda of: f"{of.policy} {of.priority}",
    "input and output class": lambda of: of.io or "none",
    "OOM adjustment": lambda of: str(of.oom_adjustment),
    "label": lambda of: of.label or "none",
}


def _number(limit: str) -> float:
    return float("inf") if limit == "unlimited" else int(limit)


def _limit(limit: tuple[str, str]) -> str:
    return limit[0] if limit[0] == limit[1] else f"{limit[0]} (hard {limit[1]})"


# --- files that it writes -----------------------------------------------------------------------------------


def written_paths(command: CommandLine) -> list[str]:
    """Return the paths of files that QEMU makes or adds to: what devices say, and their logs."""
    found = []
    for option in command.all("chardev"):
        if option["backend"] == "file":
            found.append(option["path"])
        found.append(option["logfile"])
    for option in command.all("serial", "parallel", "monitor", "debugcon"):
        kind, _, path = option.text.removeprefix("mon:").partition(":")
        if kind == "file":
            found.append(path.partition(",")[0])
    return [path for path in dict.fromkeys(found) if path and not path.startswith("/dev/")]


def paths_to_try(command: CommandLine) -> list[str]:
    """Return the paths of which :func:`check` must know what that user may do with them."""
    files = [path for each in written_paths(command) for path in (each, _directory_of(each))]
    return [*files, _KVM, _TUN]


def _directory_of(path: str) -> str:
    head = path.rpartition("/")[0]
    return head or ("/" if path.startswith("/") else ".")


def _opened_itself(pair: ProcessPair, command: CommandLine, target: str, *, kvm: bool) -> Iterator[Finding]:
    user = f"uid {pair.user}" if pair.user is not None else "that user"
    for path in written_paths(command):
        may = pair.may.get(path, "ew")
        in_directory = set(pair.may.get(_directory_of(path), "wx"))
        if "w" not in may and ("e" in may or not {"w", "x"} <= in_directory):
            yield finding(
                "file-access", f"{path}, which QEMU writes to, cannot be written by {user} at {target}"
            )
    has_tap = any(option["type"] == "tap" for option in command.network())
    for path in [_KVM] * kvm + [_TUN] * has_tap:
        if not {"r", "w"} <= set(pair.may.get(path, "rw")):
            yield finding("file-access", f"{path} cannot be opened by {user} at {target}")
