"""Facts of the files that a guest uses, as its host shows them: one script there, one pure function here."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from migrator.core.process.command_line import path_of
from migrator.core.process.files import FileFacts, FileKind, HostFiles, QemuProgramFacts
from migrator.errors import HostError
from migrator.hosts import held_room
from migrator.hosts.access import HostAccess, HostCommand, Output
from migrator.hosts.held_room import HELD_ROOM
from migrator.hosts.host_output import reading_output
from migrator.text import writable

#: Where the images' locks stand in /proc/locks: QEMU marks with the first byte that it writes, with the second that
#: nobody else may.
_WRITER_BYTES = (101, 201)
#: Names of SCSI and NVMe devices that are unique in the world; others are made up by whoever emulates a disk.
_UNIQUE = ("naa.", "eui.", "uuid.")
_KINDS = {
    stat.S_IFREG: FileKind.REGULAR,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFBLK: FileKind.BLOCK,
    stat.S_IFCHR: FileKind.CHARACTER,
    stat.S_IFSOCK: FileKind.SOCKET,
}
# Arguments: a pid or nothing; the QEMU that is known already; how many to choose from, and these, best first; how many
# paths, and these; then the format and path of each image.
# Answers end with NUL, as anything else may stand in a path.
_SCRIPT = (
    HELD_ROOM
    + rb"""
LC_ALL=C; export LC_ALL
pid=$1 known=$2 qemus=$3; shift 3
put() { printf '%s\0' "$@"; }
directory=; program=
if [ -n "$pid" ]; then
  directory=$(readlink "/proc/$pid/cwd" 2>/dev/null)
  program=$(readlink "/proc/$pid/exe" 2>/dev/null)
fi
absolute() { case $p in /*) ;; *) p=${directory%/}/$p ;; esac; }
serial() {
  [ -b "$1" ] || return 0
  set -- $(stat -L -c '%t %T' -- "$1")
  d=/sys/dev/block/$((0x$1)):$((0x$2))
  for k in size partition; do [ -r "$d/$k" ] && echo "$k $(cat "$d/$k")"; done
  [ -r "$d/partition" ] && d=$d/..
  for k in dm/uuid wwid device/wwid device/cluster_fsid device/pool_id device/name; do
    [ -r "$d/$k" ] && echo "$k $(cat "$d/$k")"
  done
  for s in "$d"/slaves/*; do
    for k in wwid device/wwid; do [ -r "$s/$k" ] && echo "slave $(cat "$s/$k")"; done
  done
} 2>/dev/null
put "$(id -u)" "$directory" "$program" "$(cat /proc/self/mountinfo)" "$(cat /proc/locks 2>/dev/null)"
put "$(ip -o link 2>/dev/null)" "$(cat /sys/module/kvm_*/parameters/nested 2>/dev/null)"
boot= kvm=
{ IFS= read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null
( : <>/dev/kvm ) 2>/dev/null && kvm=kvm
put "$boot" "$kvm"
qemu=
while [ "$qemus" -gt 0 ]; do
  qemus=$((qemus - 1))
  [ -n "$qemu" ] || qemu=$(command -v "$1" 2>/dev/null)
  [ -x "$qemu" ] || qemu=
  shift
done
identity=; [ -z "$qemu" ] || identity=$(stat -L -c '%d:%i:%Y:%s' -- "$qemu")
put "$qemu" "$identity"
for what in --version '-machine help' '-device help' '-cpu help'; do
  [ -z "$qemu" ] || [ "$identity" = "$known" ] || timeout 10 "$qemu" $what </dev/null 2>/dev/null
  put ''
done
paths=$1; shift
while [ "$paths" -gt 0 ]; do
  paths=$((paths - 1)) p=$1; shift
  absolute
  if s=$(stat -L -c '%f %s %d %i %t %T %u %g %a' -- "$p" 2>/dev/null); then
    a=-; [ -r "$p" ] && a=r$a; [ -w "$p" ] && a=w$a; [ -x "$p" ] && a=x$a
    h=; [ ! -d "$p" ] || h=$(held "$p")
    put "$s $a $(stat -L -f -c '%S %a' -- "$p" 2>/dev/null || echo 0 0)$h" "$(serial "$p")"
    readlink -fz -- "$p" 2>/dev/null || put ''
  else
    put '' '' ''
  fi
done
while [ $# -gt 1 ]; do
  f=$1 p=$2; shift 2
  absolute
  if command -v qemu-img >/dev/null; then
    said=$(timeout 10 qemu-img info -U --backing-chain --output=json -f "$f" -- "$p" </dev/null 2>&1)
    put "$?" "$said"
  else
    put none ''
  fi
done
put end
"""
)


@dataclass(frozen=True, kw_only=True)
class FileQuery:
    """Files and programs to be read of a host."""

    paths: Sequence[str] = ()
    #: Path of each image that may be based on others, and its format: qemu-img must not guess it.
    images: Mapping[str, str] | None = None
    #: QEMUs, the first of which that is there is asked what it knows: paths, or names to be found in PATH.
    qemus: Sequence[str] = ()
    #: Facts of the program from before: not read again as long as it is the same file.
    known: QemuProgramFacts | None = None
    #: The source's process.
    pid: int | None = None
    #: From where relative paths go; empty: from the directory where that process is, else from the root.
    directory: str = ""

    @property
    def absolute(self) -> bool:
        """True where no path depends on where a process was started."""
        return all(path.startswith("/") for path in (*self.paths, *(self.images or {})))


async def read_host_files(access: HostAccess, question: FileQuery, *, timeout: float = 30.0) -> HostFiles:
    """Read the files in one command.

    :raise HostError: when the host cannot be asked, or did not answer in time.
    """
    command = files_command(question)
    output = await access.run(command.argv, stdin=command.stdin, timeout=timeout)
    return parse_files(access.name, question, output)


def files_command(question: FileQuery) -> HostCommand:
    """Return the command that reads the files, for :func:`parse_files`."""
    root = _root(question)
    images = question.images or {}
    argv = [
        *("sh", "-s", "--", "" if question.pid is None else str(question.pid)),
        *(
            question.known.identity if question.known else "",
            str(len(question.qemus)),
            *question.qemus,
            str(len(question.paths)),
        ),
        *(_absolute(path, root) for path in question.paths),
        *(word for path, kind in images.items() for word in (kind, _absolute(path, root))),
    ]
    return HostCommand(argv=argv, stdin=_SCRIPT)


def _root(question: FileQuery) -> str:
    # Without a process the script has no directory: then it gets absolute paths.
    return question.directory or ("" if question.pid is not None else "/")


def parse_files(host: str, question: FileQuery, output: Output) -> HostFiles:
    """Parse the output of :func:`files_command` at a host.

    :raise HostError: it is none.
    """
    answers = output.text.split("\0")
    if answers[-2:] != ["end", ""]:
        raise HostError(host, f"its files cannot be read: {output.complaint or 'no answer'}")
    with reading_output(host, "its files"):
        seen = parse(
            answers, paths=question.paths, images=question.images or {}, directory=_root(question) or "/"
        )
    known = question.known
    return replace(seen, offer=known) if known and known.identity == seen.offer.identity else seen


def _absolute(path: str, root: str) -> str:
    return path if path.startswith("/") or not root else f"{root.rstrip('/')}/{path}"


def parse(
    answers: Sequence[str], *, paths: Sequence[str], images: Mapping[str, str], directory: str
) -> HostFiles:
    """Parse the script's answer. Pure."""
    rest = iter(answers)
    user, where, program, mounts, locks, links, nested, boot, kvm = (next(rest) for _ in range(9))
    qemu, identity, version, machines, devices, cpus = (next(rest) for _ in range(6))
    numbered = re.search(r"version (\d+(?:\.\d+)+)", version)
    table = list(_mounts(mounts))
    files = {path: _file(next(rest), next(rest), next(rest), table) for path in paths}
    directory = where or directory
    chains: dict[str, tuple[str, ...]] = {}
    complaints: dict[str, str] = {}
    for path in images:
        status, said = next(rest), next(rest)
        chain = _chain(said) if status == "0" else ()
        if chain:
            chains[path] = (path, *(_absolute(file, directory) for file in chain[1:]))
        elif status != "none":
            complaints[path] = " ".join(said.split())[-300:] or f"qemu-img ended with status {status}"
    return HostFiles(
        files=files,
        chains=chains,
        complaints=complaints,
        qemu=qemu,
        offer=QemuProgramFacts(
            identity=identity,
            version=numbered[1] if numbered else "",
            machines=frozenset(line.split()[0] for line in machines.splitlines()[1:] if line.strip()),
            devices=frozenset(re.findall(r'^name "([^"]+)"', devices, re.MULTILINE)),
            cpus=frozenset(re.findall(r"^\s*(?:x86\s+)?([A-Za-z0-9][\w.+-]*)", cpus, re.MULTILINE)),
        ),
        masters=dict(re.findall(r"^\d+: ([^:@\s]+)[:@].* master (\S+)", links, re.MULTILINE)),
        nested={"Y": True, "1": True, "N": False, "0": False}.get(nested.strip()),
        kvm=bool(kvm),
        boot_id=writable(boot, 256),
        written=frozenset(_written(locks)),
        user=int(user) if user.isdigit() else None,
        directory=directory,
        program=program.removesuffix(" (deleted)"),
    )


def _file(numbers: str, serial: str, real: str, mounts: Sequence[_Mount]) -> FileFacts:
    if not numbers:
        return FileFacts()
    mode, size, device, inode, major, minor, owner, group, permissions, access, block, *free = numbers.split()
    kind = _KINDS.get(stat.S_IFMT(int(mode, 16)), FileKind.OTHER)
    named = f"{int(major, 16)}:{int(minor, 16)}" if kind is FileKind.BLOCK else _device(int(device))
    lines = dict(line.split(" ", 1) for line in serial.splitlines() if " " in line)
    slaves = sorted(line.split(" ", 1)[1] for line in serial.splitlines() if line.startswith("slave "))
    mount = _mount_of(real, mounts)
    return FileFacts(
        kind=kind,
        real=real,
        size_bytes=int(lines.get("size", "0")) * 512 if kind is FileKind.BLOCK else int(size),
        device=named,
        inode=int(inode),
        filesystem=mount.kind if mount else "",
        mount_source=mount.source if mount else "",
        inner_path=mount.inner(real) if mount else "",
        block_bytes=int(block),
        free_bytes=int(block) * int(free[0]) if free else 0,
        held_bytes=held_room.parse(free[1:]),
        serial=_serial(lines, slaves),
        readable="r" in access,
        writable="w" in access,
        executable="x" in access,
        owner=int(owner),
        group=int(group),
        permissions=int(permissions, 8),
    )


def _device(number: int) -> str:
    major = (number >> 8 & 0xFFF) | (number >> 32 & ~0xFFF)
    minor = (number & 0xFF) | (number >> 12 & 0xFFFFFF00)
    return f"{major}:{minor & 0xFFFFFFFF}"


def _serial(lines: Mapping[str, str], slaves: Sequence[str]) -> str:
    """Return the identity of a block device that no other in the world has; empty where nothing certain tells it."""
    wwid = next((lines[key].strip() for key in ("wwid", "device/wwid") if key in lines), "")
    mapped = lines.get("dm/uuid", "")
    found = ""
    if "device/cluster_fsid" in lines:
        keys = ("device/cluster_fsid", "device/pool_id", "device/name")
        found = "rbd=" + "/".join(lines.get(key, "") for key in keys)
    elif mapped.startswith("mpath-3"):
        found = f"wwid=naa.{mapped.removeprefix('mpath-3')}"
    elif mapped.startswith("LVM-"):
        # Hosts made from one template have the same LVM uuids; what the volume lies on tells them apart.
        if slaves and all(slave.startswith(_UNIQUE) for slave in slaves):
            found = f"lvm={mapped} on {','.join(slaves)}"
    elif wwid.startswith(_UNIQUE):
        found = f"wwid={wwid}"
    if found and "partition" in lines:
        found += f" partition {lines['partition']}"
    return found


@dataclass(frozen=True)
class _Mount:
    point: str
    root: str
    kind: str
    source: str

    def inner(self, path: str) -> str:
        return self.root.rstrip("/") + "/" + path.removeprefix(self.point).lstrip("/")


def _mounts(text: str) -> Iterator[_Mount]:
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        words, kind = fields.split(" "), rest.split(" ")
        if len(words) >= 5 and len(kind) >= 2:
            yield _Mount(_plain(words[4]), _plain(words[3]), kind[0], _plain(kind[1]))


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _mount_of(path: str, mounts: Sequence[_Mount]) -> _Mount | None:
    best: _Mount | None = None
    for mount in mounts:
        within = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        # Of two at the same point the later hides the earlier.
        if within and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def _written(locks: str) -> Iterator[str]:
    for line in locks.splitlines():
        found = re.search(r"([0-9a-f]+):([0-9a-f]+):(\d+) (\d+) (\d+|EOF)$", line)
        if found is None or "->" in line:
            continue
        first = int(found[4])
        last = float("inf") if found[5] == "EOF" else int(found[5])
        if any(first <= byte <= last for byte in _WRITER_BYTES):
            yield f"{int(found[1], 16)}:{int(found[2], 16)}:{found[3]}"


def _chain(said: str) -> tuple[str, ...]:
    start = said.find("[")
    try:
        entries = json.loads(said[start:]) if start >= 0 else []
        names = [str(entry["filename"]) for entry in entries]
    except (ValueError, TypeError, KeyError):
        return ()
    return tuple(path for path in (path_of(name) for name in names) if path)
