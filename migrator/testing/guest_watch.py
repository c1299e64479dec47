"""A cheap look, again and again, at which processes run a site's guests: by the CPU time of their vCPUs."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from migrator.testing.lab import GuestMachine, LabQemu
from migrator.testing.site import LabSite

#: A process that is no QEMU after so long does not become one: what starts a QEMU has become it by then.
_SETTLED_SECONDS = 10.0


_TICKS = os.sysconf("SC_CLK_TCK")


def _began(pid: int) -> float:
    """Return when a process was started, on the clock that counts from the boot on; infinity where it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return math.inf
    return int(stat.rpartition(")")[2].split()[19]) / _TICKS


class GuestWatch:
    """Processes of some guests, kept from one look to the next. To be asked several times a second, or a pid may have
    become another's between two looks.
    """

    def __init__(self, site: LabSite, machines: Iterable[GuestMachine]) -> None:
        self._site = site
        self._machines = {str(machine.uuid): machine for machine in machines}
        self._qemus: dict[int, LabQemu] = {}
        #: vCPU time of each at the last look.
        self._taken: dict[int, int] = {}
        #: Other processes, and when each was started.
        self._others: dict[int, float] = {}
        #: Guests that are asked whether they run twice.
        self._judging: dict[UUID, asyncio.Task[None]] = {}
        #: Guests that ran in two processes at once, with those.
        self.doubled: list[str] = []

    def look(self) -> dict[UUID, list[LabQemu]]:
        """Return by guest the processes in which it has run since the last look, or since they were first seen."""
        self._find()
        ran: dict[UUID, list[LabQemu]] = {machine.uuid: [] for machine in self._machines.values()}
        for pid, qemu in self._qemus.items():
            before, now = self._taken.get(pid, 0), qemu.vcpu_time.nanoseconds()
            if before and now > before:
                ran[qemu.machine.uuid].append(qemu)
            self._taken[pid] = now
        return ran

    def instances(self, machine: GuestMachine) -> list[LabQemu]:
        """Return every process of that guest, as of the last look."""
        return [qemu for qemu in self._qemus.values() if qemu.machine.uuid == machine.uuid]

    async def running(self, machine: GuestMachine) -> set[int]:
        """Ask every process of that guest whether it runs; return the pids of those."""
        return {qemu.pid for qemu in self.instances(machine) if await qemu.runs()}

    def judge(self, ran: dict[UUID, list[LabQemu]]) -> None:
        """Note which guests run twice, asking beside further looks: a monitor that somebody holds answers late."""
        self._judging = {
            uuid: task for uuid, task in self._judging.items() if not task.done() or task.exception()
        }
        for machine in self._machines.values():
            if len(ran[machine.uuid]) > 1 and machine.uuid not in self._judging:
                task = asyncio.create_task(
                    self._judge(machine, ran[machine.uuid]), name=f"judge {machine.name}"
                )
                self._judging[machine.uuid] = task

    async def settle(self) -> None:
        """Wait until all that was judged is noted."""
        await asyncio.gather(*self._judging.values())

    async def _judge(self, machine: GuestMachine, ran: list[LabQemu]) -> None:
        if await self.runs_twice(machine, ran):
            self.doubled.append(f"{machine.name}: {self.instances(machine)}")

    async def runs_twice(self, machine: GuestMachine, ran: list[LabQemu]) -> bool:
        """Tell whether a guest runs in two processes at once, both of which have run between two looks.

        Two questions, one after the other, are no proof that both were true at once; so they are asked again.
        """
        if len(ran) < 2:
            return False
        first = await self.running(machine)
        return len(first) > 1 and len(first & await self.running(machine)) > 1

    def _find(self) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        there = {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208 - several times a second
        self._qemus = {pid: qemu for pid, qemu in self._qemus.items() if pid in there and qemu.alive}
        self._taken = {pid: taken for pid, taken in self._taken.items() if pid in self._qemus}
        self._others = {pid: since for pid, since in self._others.items() if pid in there}
        # Each is read once, however old: a guest may have run for long before it is watched.
        first = there - self._qemus.keys() - self._others.keys()
        for pid in first:
            self._others[pid] = _began(pid)
        new = [
            pid
            for pid, began in self._others.items()
            if pid not in self._qemus and (pid in first or now - began < _SETTLED_SECONDS)
        ]
        for qemus in self._site.instances_of(self._machines.values(), among=new).values():
            for qemu in qemus:
                self._qemus[qemu.pid] = qemu
