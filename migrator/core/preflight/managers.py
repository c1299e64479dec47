"""Managers of a guest besides us, as its process shows them, and what they mean for a move. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from migrator.core.findings import finding
from migrator.core.inventory import Guest
from migrator.core.managed_guest import LIBVIRT
from migrator.core.model import Finding

SYSTEMD = "systemd:"
_PARENT = "parent:"
#: Beginning of the names of units that we start guests in ourselves.
_OURS = "migrator-guest-"
#: Words of a command line, and parts of a cgroup's path, that only one manager writes.
_SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (LIBVIRT, re.compile(r"/libvirt/qemu/|id=charmonitor|machine-qemu\\x2d|libvirt-qemu")),
    ("proxmox", re.compile(r"/run/qemu-server/|/qemu\.slice/\d+\.scope")),
    ("incus", re.compile(r"/(?:run|log|lib)/incus/")),
    ("lxd", re.compile(r"/(?:run|log|lib|snap)/lxd/|/common/lxd/")),
    ("ganeti", re.compile(r"/ganeti/kvm-hypervisor/")),
)
#: Programs that start what they watch again when it ends.
_SUPERVISORS = frozenset(
    {
        *("runsv", "supervise", "s6-supervise", "supervisord", "monit", "perpd", "nomad", "circusd"),
        *("pacemaker-execd", "lrmd", "containerd-shim", "conmon", "docker-init", "tini", "dumb-init"),
    }
)
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "busybox"})


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """One process above a QEMU."""

    pid: int
    #: Name of its program, as the kernel keeps it.
    program: str
    #: What it runs has a loop in it: a script, or the text of a shell's ``-c``.
    loops: bool = False


@dataclass(frozen=True, kw_only=True)
class ProcessSigns:
    """Signs of a manager that one QEMU process shows."""

    pid: int
    words: str = ""
    cgroup: str = ""
    #: Its parent first, up to init.
    ancestors: Sequence[Ancestor] = ()
    #: Properties of the unit that its cgroup is of, as systemctl shows them; empty where it is of none.
    unit: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manager:
    """The manager of one guest."""

    #: ``libvirt``, ``proxmox``, ``systemd:UNIT``, ``parent:PROGRAM``…; empty: nobody is known to.
    name: str = ""
    #: The manager would start the guest again when its process ends.
    restarts: bool = False


#: The manager of guests whose arguments are libvirt's.
LIBVIRTS = Manager(name=LIBVIRT, restarts=True)


def find_manager(process: ProcessSigns) -> Manager:
    """Return the manager of the guest in that process, as far as it shows."""
    for name, sign in _SIGNS:
        if sign.search(process.words) or sign.search(process.cgroup):
            return Manager(name=name, restarts=True)
    unit = process.unit.get("Id", "")
    mains = {process.pid, *(each.pid for each in process.ancestors)}
    if unit and not unit.startswith(_OURS) and int(process.unit.get("MainPID") or 0) in mains:
        return Manager(name=f"{SYSTEMD}{unit}", restarts=process.unit.get("Restart", "no") != "no")
    parent = process.ancestors[0] if process.ancestors else None
    if parent is None or parent.pid == 1 or parent.program == "systemd":
        return Manager()
    watches = parent.program in _SUPERVISORS or parent.program.startswith("containerd-shim")
    return Manager(
        name=f"{_PARENT}{parent.program}",
        restarts=watches or (parent.program in _SHELLS and parent.loops),
    )


def unit_of(guest: Guest) -> str:
    """Return the unit of systemd that would start the guest again; empty where none would."""
    return (
        guest.managed_by.removeprefix(SYSTEMD)
        if guest.restarts and guest.managed_by.startswith(SYSTEMD)
        else ""
    )


def findings(guest: Guest) -> Iterator[Finding]:
    """Yield the findings that its manager has against a move of a guest."""
    if not guest.restarts or guest.managed_by == LIBVIRT:
        return  # of libvirt that it cannot be moved at all is said already
    if unit := unit_of(guest):
        yield finding(
            "managed-unit",
            f"the unit {unit} would start the guest again when it has left: it is told not to, until that host boots",
            f"systemctl disable {unit}, if the guest shall not be started there when its host boots",
        )
        return
    who = guest.managed_by.removeprefix(_PARENT)
    yield finding(
        "managed-elsewhere",
        f"{who} manages this guest, and may start it again at the source when it has left: it would run twice",
    )
