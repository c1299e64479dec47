"""Everything that can be seen of one QEMU: by QMP what it has, by /proc what its process is. One flat dictionary."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from migrator.testing.lab import LabQemu, RawMonitor, RawQmpError

#: What counts, measures or numbers, and differs from look to look.
_NOT_READ = frozenset({"thread-id", "pid", "dirty-bitmaps", "actual-size"})
#: Answers that are taken as they are, and what tells their entries apart.
_LISTS = {
    "query-block": "device",
    "query-chardev": "label",
    "query-iothreads": "id",
    "query-memdev": "id",
    "query-memory-devices": "",
    "query-vnc-servers": "id",
    "query-cpus-fast": "cpu-index",
    "query-hotpluggable-cpus": "",
    "query-rx-filter": "name",
    "query-fdsets": "fdset-id",
    "query-block-exports": "id",
    "query-jobs": "id",
    "query-tpm": "id",
}
_SINGLE = (
    *("query-name", "query-uuid", "query-status", "query-spice", "query-memory-size-summary"),
    *("query-kvm", "query-current-machine"),
)
_HMP = ("info network", "info usb", "info roms", "info usernet", "info snapshots", "info mtree -f")
_QOM = ("/machine", "/objects", "/machine/peripheral", "/machine/peripheral-anon")
#: Of which children are read.
_HOLDERS = _QOM[1:]
_STATUS = re.compile(
    r"^(Uid|Gid|Groups|Umask|NoNewPrivs|Seccomp|CapEff|CapBnd|Cpus_allowed_list):[ \t]*(.*?)[ \t]*$",
    re.MULTILINE,
)


async def observe(qemu: LabQemu) -> dict[str, str]:
    """All of one that runs; looked at by its rescue monitor."""
    found: list[tuple[str, str]] = []
    async with qemu.monitor() as monitor:
        for node in await monitor.execute("query-named-block-nodes", {"flat": True}):
            # QEMU numbers those that nobody has named.
            name = node["node-name"]
            name = f"{node['file']} ({node['drv']})" if name.startswith("#") else name
            found += _flat(f"node/{name}", {**node, "node-name": name})
        for command, key in _LISTS.items():
            for number, entry in enumerate(await _ask(monitor, command, [])):
                name = entry.get(key) or entry.get("qdev") or str(number)
                found += _flat(f"{command}/{name}", entry)
        for command in _SINGLE:
            found += _flat(command, await _ask(monitor, command, {}))
        for line in _HMP:
            text = await monitor.execute("human-monitor-command", {"command-line": line})
            said = Counter(each.strip() for each in text.splitlines() if each.strip())
            found += [(f"{line}/{words}", str(count)) for words, count in said.items()]
        for holder in _QOM:
            found += await _object(monitor, holder, children=holder in _HOLDERS)
    return dict(found) | dict(_process(qemu.pid))


async def _ask(monitor: RawMonitor, command: str, otherwise: Any) -> Any:
    try:
        return await monitor.execute(command)
    except RawQmpError:
        return otherwise  # this version, or this machine, has no such thing


async def _object(monitor: RawMonitor, path: str, *, children: bool) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for entry in await monitor.execute("qom-list", {"path": path}):
        name, kind = entry["name"], entry["type"]
        if not kind.startswith("child<"):
            try:
                value = await monitor.execute("qom-get", {"path": path, "property": name})
            except RawQmpError:
                continue  # it can only be set
            found += _flat(f"{path}/{name}", value)
        elif children and not name.startswith("migrator-"):
            found.append((f"{path}/{name}", kind))
            found += await _object(monitor, f"{path}/{name}", children=False)
    return found


def _flat(before: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _NOT_READ:
                yield from _flat(f"{before}/{key}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _flat(f"{before}/{number}", inner)
    else:
        yield before, str(value)


def _process(pid: int) -> Iterator[tuple[str, str]]:
    proc = Path(f"/proc/{pid}")
    for name, value in _STATUS.findall((proc / "status").read_text()):
        yield f"process/{name}", value
    for line in (proc / "limits").read_text().splitlines()[1:]:
        yield f"process/limit {line[:25].strip()}", " ".join(line[25:].split())
    for name in ("cwd", "root"):
        yield f"process/{name}", str((proc / name).readlink())
    yield "process/oom_score_adj", (proc / "oom_score_adj").read_text().strip()
    stat = (proc / "stat").read_text().rpartition(")")[2].split()
    yield "process/nice", stat[16]
    yield "process/scheduling", f"{stat[38]} {stat[37]}"
    for (path, flags), count in Counter(_open_files(proc)).items():
        yield f"open/{path} {flags}", str(count)


def _open_files(proc: Path) -> Iterable[tuple[str, str]]:
    for entry in (proc / "fd").iterdir():
        try:
            path = str(entry.readlink())
            flags = int(re.findall(r"flags:\s*(\d+)", (proc / "fdinfo" / entry.name).read_text())[0], 8)
        except OSError:
            continue  # it was closed meanwhile
        if path.startswith("/"):
            how = ("read", "write", "both")[flags & os.O_ACCMODE]
            more = [name for name in ("O_DIRECT", "O_APPEND", "O_SYNC") if flags & getattr(os, name)]
            yield path, " ".join([how, *more])


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """By key: what it was, and what it is; empty for nothing."""
    return {
        key: (before.get(key, ""), after.get(key, ""))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }
