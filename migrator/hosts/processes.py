"""QEMU processes of a host, whether or not anybody can ask them: found by what /proc shows of every process."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from migrator.core.process.qemu_program import TELLING, is_qemu_by_name, is_qemu_by_words
from migrator.text import writable

#: Options whose values are read, from the command line of every process.
READ_OPTIONS = (
    *("uuid", "name", "qmp", "qmp-pretty", "mon", "chardev", "machine", "M", "cpu", "accel", "m", "incoming"),
    *("version", "help", "h", "daemonize", "smbios", "object"),
)


def _any_of(options: Iterable[str]) -> bytes:
    """Return a pattern for grep: each option a whole argument, with one dash or two."""
    return b" ".join(b"-e '^--\\{0,1\\}%s$'" % each.encode() for each in options)


#: What comes first says that /proc could be read at all: the shell itself has to be found in it. As few programs as can
#: be: starting them is most of what a look costs.
SCRIPT = (
    rb"""
first= boot=
{ read -r first </proc/1/comm; read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null
printf '%s\0' "$$" "$first" "$boot"
find /proc/[0-9]*/exe -maxdepth 0 -printf '%p %l\0' 2>/dev/null
printf '@counts\0'; grep -azc """
    + _any_of(TELLING)
    + rb""" /proc/[0-9]*/cmdline 2>/dev/null
printf '\0@sockets\0'
"""
)
#: As grep takes them in the script that lists sockets.
READ = _any_of(READ_OPTIONS)

_SIZE = re.compile(r"(?:size=)?(\d+(?:\.\d+)?)([bkmgt]?)", re.IGNORECASE)
#: As every QEMU takes one.
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Characters; as of one that says its name over QMP.
_LONGEST_NAME = 4_096
_DEFAULT_MEMORY_BYTES = 128 << 20


@dataclass(frozen=True, kw_only=True)
class FoundProcess:
    """One QEMU process."""

    pid: int
    #: Name of its program; as the kernel keeps it where the path cannot be read.
    program: str = ""
    #: Arguments that are read: options, each with its value.
    words: tuple[str, ...] = ()
    #: Its network namespace; empty where that cannot be read.
    network: str = ""
    #: True where it listens at a unix socket, wherever that is.
    listens: bool = False
    #: In clock ticks since its host's boot; empty where that cannot be read.
    started: str = ""
    #: Its arguments and its network were seen; one without is likely to be at its end.
    sure: bool = True

    @property
    def name(self) -> str:
        """Name of the guest, as its command line has it."""
        return guest_name(option_value(self.words, "name"))

    @property
    def uuid(self) -> str:
        """Uuid of the guest, as its command line has it."""
        return uuid_of(self.words)

    @cached_property
    def monitors(self) -> tuple[str, ...]:
        """Places of its QMP monitors, as its command line has them: ``unix:PATH``, ``tcp:…``, ``stdio``."""
        chardevs = {}
        found = []
        for word, value in pairwise(self.words):
            option = word.lstrip("-")
            if option in ("qmp", "qmp-pretty"):
                found.append(_first(value))
            elif option == "chardev":
                parts = _parts(value)
                chardevs[parts.get("id", "")] = _chardev(_first(value), parts)
        for word, value in pairwise(self.words):
            parts = _parts(value)
            if word.lstrip("-") == "mon" and parts.get("mode") == "control":
                found.append(chardevs.get(parts.get("chardev", _first(value)), _first(value)))
        return tuple(chardevs.get(each.removeprefix("chardev:"), each) for each in found)

    @property
    def named(self) -> str:
        """Our name for the guest, where we started its QEMU and it has no uuid; else empty."""
        for word, value in pairwise(self.words):
            parts = _parts(value) if word.lstrip("-") == "object" else {}
            if parts.get("id") == "migrator-guest":
                return parts.get("identity", "")
        return ""

    @property
    def daemonizes(self) -> bool:
        """True where it lets another QEMU, with the same command line, go on in its place."""
        return any(word.lstrip("-") == "daemonize" for word in self.words)

    @property
    def memory_bytes(self) -> int:
        """Memory that the guest was given at its start."""
        match = _SIZE.match(option_value(self.words, "m"))
        if match is None:
            return _DEFAULT_MEMORY_BYTES
        shift = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[match[2].lower() or "m"]
        return min(2**60, int(float(match[1][:30]) * (1 << shift)))


@dataclass(frozen=True, kw_only=True)
class QemuProcesses:
    """QEMU processes of a host, and how much of the host its /proc shows."""

    qemus: tuple[FoundProcess, ...] = ()
    boot_id: str = ""
    #: The network namespace that the host's commands run in.
    network: str = ""
    #: That is the one of the machine itself: processes in other namespaces, containers for example, are its own too.
    whole_machine: bool = True
    #: The processes of other users are hidden there.
    hidden: bool = False


class ProcessStat(NamedTuple):
    """One process, as the kernel has it."""

    #: The first line of its name.
    name: str
    parent: int
    #: In clock ticks since the boot.
    started: str


def parse(
    text: str,
    words: Mapping[int, Sequence[str]],
    networks: Mapping[int, str],
    stats: Mapping[int, ProcessStat],
) -> QemuProcesses | None:
    """Parse the output of :data:`SCRIPT`, up to its last mark; ``None`` where it could not read /proc. Pure.

    :param words: of each process those arguments that :data:`READ` matches, with what follows them.
    :param networks: the network namespace of each process, read after all that tells a QEMU: one that is being started
        meanwhile is not seen without its own.
    :param stats: of each process that was there at the end.
    """
    head, _, counts = text.partition("@counts\0")
    shell, first, boot, *exes = [*head.split("\0"), *[""] * 3]
    programs = _links(exes)
    if not shell.isdigit() or int(shell) not in programs:
        return None
    telling = {
        int(pid): int(count)
        for pid, count in re.findall(r"^/proc/(\d+)/cmdline:(\d+)$", counts, re.MULTILINE)
    }
    network, first_network = networks.get(int(shell), ""), networks.get(1, "")
    found = {}
    # What the kernel says comes last: it was there all the time.
    for pid in (programs.keys() | telling.keys()) & stats.keys():
        program = programs.get(pid, "").removesuffix(" (deleted)").rpartition("/")[2] or stats[pid].name
        said, count = tuple(words.get(pid, ())), telling.get(pid, 0)
        by_name = is_qemu_by_name(program) and (bool(programs.get(pid)) or count > 0)
        by_words = is_qemu_by_words(program, count)
        if (by_name or by_words) and not _only_tells(said):
            found[pid] = (
                by_name,
                FoundProcess(
                    pid=pid,
                    program=program,
                    words=said,
                    network=networks.get(pid, ""),
                    sure=bool(said) and bool(networks.get(pid) or not first_network),
                    started=stats[pid].started,
                ),
            )
    running = _ancestors(found, stats)
    return QemuProcesses(
        qemus=tuple(each for pid, (by_name, each) in sorted(found.items()) if by_name or pid not in running),
        boot_id=boot,
        network=network,
        whole_machine=network == first_network or not first_network,
        hidden=not first,
    )


def parse_stats(text: str) -> dict[int, ProcessStat]:
    """Parse what grep prints of ``/proc/PID/stat``, every line with its file's name before it."""
    lines: dict[int, list[str]] = {}
    for pid, line in re.findall(r"^/proc/(\d+)/stat:(.*)$", text, re.MULTILINE):
        lines.setdefault(int(pid), []).append(line)  # a program's name may have newlines
    found = {}
    for pid, each in lines.items():
        # It may have brackets, too, and whatever the kernel writes after it.
        before, _, after = "\n".join(each).rpartition(") ")
        fields = after.split()
        if len(fields) > 19:
            found[pid] = ProcessStat(before.partition("(")[2].partition("\n")[0], int(fields[1]), fields[19])
    return found


def _ancestors(found: Iterable[int], stats: Mapping[int, ProcessStat]) -> set[int]:
    """Return the processes that began these: a program that waits for a QEMU has its options, too."""
    seen: set[int] = set()
    for pid in found:
        while pid in stats and (parent := stats[pid].parent) > 1 and parent not in seen:
            seen.add(parent)
            pid = parent
    return seen


def _only_tells(words: Sequence[str]) -> bool:
    """Tell whether QEMU was only asked about its abilities, and runs no guest."""
    for word, value in pairwise([*words, ""]):
        option = word.lstrip("-") if word.startswith("-") else ""
        if option in ("version", "help", "h"):
            return True
        if option in ("machine", "M", "cpu", "accel") and value in ("help", "?"):
            return True
        if option in ("machine", "M") and _first(value).removeprefix("type=") == "none":
            return True
    return False


def _links(records: Iterable[str]) -> dict[int, str]:
    """Parse records of the form ``/proc/PID/… TARGET``."""
    found = {}
    for record in records:
        place, _, target = record.partition(" ")
        if place.startswith("/proc/"):
            found[int(place.split("/")[2])] = target
    return found


def option_value(words: Sequence[str], option: str) -> str:
    """Return the word after that option, the last where there are several; empty where it is not there."""
    found = [value for word, value in pairwise(words) if word.startswith("-") and word.lstrip("-") == option]
    return found[-1] if found else ""


def uuid_of(words: Sequence[str]) -> str:
    """Return the guest's uuid; empty where it has none, which QEMU writes with zeros."""
    uuid = option_value(words, "uuid").lower()
    for word, value in pairwise(words) if not uuid else ():
        parts = _parts(value) if word.lstrip("-") == "smbios" else {}
        uuid = parts.get("uuid", "").lower() if parts.get("type") == "1" else uuid
    return uuid if _UUID.fullmatch(uuid) and uuid.strip("0-") else ""


def guest_name(value: str) -> str:
    """Return the guest's name in the value of ``-name``, in which a comma is written twice."""
    for part in _split(value):
        key, equals, text = part.partition("=")
        if not equals or key == "guest":
            return writable((text if equals else key).replace(",,", ","), _LONGEST_NAME)
    return ""


def _split(value: str) -> list[str]:
    return re.split(r"(?<!,),(?!,)", value)


def _first(value: str) -> str:
    return _split(value)[0].replace(",,", ",")


def _parts(value: str) -> dict[str, str]:
    return {key: text.replace(",,", ",") for key, _, text in (part.partition("=") for part in _split(value))}


def _chardev(kind: str, parts: Mapping[str, str]) -> str:
    if kind == "socket" and "path" in parts:
        return f"unix:{parts['path']}"
    if kind == "socket" and "port" in parts:
        return f"tcp:{parts.get('host', '')}:{parts['port']}"
    return kind
