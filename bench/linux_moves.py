"""Moves of a Linux guest whose Redis a client outside asks at a steady pace: what the client saw of them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from bench.libvirt import GUEST, Libvirtd, Unavailable
from bench.ours import Migrator, Outcome
from migrator.testing import linux_guest, network
from migrator.testing.lab import Lab, binaries
from migrator.testing.network import LabHosts
from migrator.testing.outside_client import Client, ClientView

#: QEMU that carries a Linux guest under TCG.
VERSION = "10.0"
#: The guest is watched for so long before its move and after it.
_AROUND_SECONDS = 4.0
_DOMAIN = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='b'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{arguments}</cmdline>
  </os>
  <features><acpi/><tcg><tb-cache unit='MiB'>64</tb-cache></tcg></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <devices>
    <emulator>{binary}</emulator>
    <interface type='ethernet'>
      <mac address='52:54:00:6d:67:02'/><target dev='{tap}' managed='no'/><model type='virtio'/>
    </interface>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:/run/guest.qmp,server=on,wait=off'/>
  </qemu:commandline>
</domain>
"""


@dataclass(frozen=True, kw_only=True)
class SeenMove:
    """One move, as its client saw it."""

    view: ClientView
    began: float
    ended: float
    #: ``None``: libvirt moved it.
    outcome: Outcome | None = None

    @property
    def duration_seconds(self) -> float:
        """From the command to its end."""
        return self.ended - self.began

    @property
    def silence_seconds(self) -> float:
        """Longest time without the answer to a ping, from the command on."""
        return self.view.longest_silence(self.began, self.ended + _AROUND_SECONDS)

    @property
    def waited_seconds(self) -> float:
        """Time without the answer to a ping, all together, above what was usual before the move."""
        until = self.ended + _AROUND_SECONDS
        usual = self.view.waited(self.began - _AROUND_SECONDS, self.began) / _AROUND_SECONDS
        return max(0.0, self.view.waited(self.began, until) - usual * (until - self.began))

    @property
    def wait_seconds(self) -> float:
        """Longest time without the answer to a request, likewise."""
        return self.view.longest_wait(self.began, self.ended + _AROUND_SECONDS)

    @property
    def late_seconds(self) -> float:
        """How late the client itself was, at the worst."""
        return self.view.lateness(self.began, self.ended + _AROUND_SECONDS)

    def rates(self, of: Callable[[float, float], float]) -> tuple[float, float, float]:
        """Return a rate before, during and after the move."""
        before, after = self.began - _AROUND_SECONDS, self.ended + _AROUND_SECONDS
        return of(before, self.began), of(self.began, self.ended), of(self.ended, after)


def why_not() -> str | None:
    """``None`` where it can be measured here, else the reason."""
    if reason := network.possible():
        return reason
    if VERSION not in binaries():
        return f"a Linux guest under TCG takes QEMU {VERSION}: run scripts/qemu-backports"
    if linux_guest.files() is None:
        return "there is no Linux guest: run scripts/linux-guest"
    return None


def joined() -> LabHosts:
    """Return the hosts alpha and beta, and the client, with the guest's own network between all three.

    :raise Unavailable: it cannot be measured here.
    """
    if reason := why_not():
        raise Unavailable(reason)
    hosts = LabHosts("alpha", "beta", "client", isolated=True)
    linux_guest.join(hosts["client"], hosts["alpha"], hosts["beta"])
    return hosts


async def _watched(
    hosts: LabHosts,
    move: Callable[[], Awaitable[Outcome | None]],
    *,
    ready: Callable[[], Awaitable[None]] | None = None,
) -> SeenMove:
    async with Client(hosts["client"], linux_guest.GUEST_ADDRESS) as client:
        await client.wait_connected()
        if ready is not None:
            await ready()
        await asyncio.sleep(_AROUND_SECONDS + 1.0)
        began = time.monotonic()
        outcome = await move()
        ended = time.monotonic()
        await asyncio.sleep(_AROUND_SECONDS)
        return SeenMove(view=await client.end(), began=began, ended=ended, outcome=outcome)


async def ours(
    migrator: Migrator, hosts: LabHosts, workload: str, *options: str, mode: str = "precopy"
) -> SeenMove:
    """Move it by ``migrator direct``.

    :raise Failed: it was not moved, or otherwise than by `mode`.
    """
    machine, binary = linux_guest.machine(workload), binaries()[VERSION]
    async with Lab() as lab:
        source = await lab.start(machine, binary=binary, prefix=hosts["alpha"].prefix)

        async def move() -> Outcome:
            waiting = await lab.start(machine, binary=binary, incoming=True, prefix=hosts["beta"].prefix)
            listen = ("--listen", f"tcp:{hosts['beta'].address}:0")
            return await migrator.direct(source.qmp, waiting.qmp, *listen, *options, mode=mode)

        return await _watched(hosts, move)


async def virsh(
    source: Libvirtd, destination: Libvirtd, hosts: LabHosts, workload: str, *, max_downtime_seconds: float
) -> SeenMove:
    """Move it by ``virsh migrate``.

    :raise Unavailable: with its message when it fails.
    """
    kernel, initrd = linux_guest.files() or (Path(), Path())
    definition = _DOMAIN.format(
        name=GUEST,
        uuid=uuid.uuid4(),
        memory=linux_guest.MEMORY_BYTES,
        kernel=kernel,
        initrd=initrd,
        arguments=linux_guest.kernel_arguments(workload),
        binary=binaries()[VERSION],
        tap=linux_guest.TAP,
    )

    async def ready() -> None:
        await source.virsh("migrate-setmaxdowntime", GUEST, f"{max_downtime_seconds * 1e3:.0f}")

    async def move() -> None:
        await source.virsh(
            *("migrate", "--live", GUEST, destination.uri, "--unsafe"),
            *("--migrateuri", f"tcp://{destination.host.address}"),
        )

    try:
        await source.create_domain(definition)
        return await _watched(hosts, move, ready=ready)
    finally:
        await source.destroy()
        await destination.destroy()
