"""Guests of libvirt that are shut down at one host and started anew at another: their ends, made and found again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from migrator.core.findings import PreflightRefused, finding
from migrator.core.inventory import Guest
from migrator.core.managed_guest import place_of
from migrator.core.model import Finding, Severity
from migrator.core.policy import Policy
from migrator.core.process.files import SameFile, same_file
from migrator.errors import HostError
from migrator.hosts.host_files import FileQuery, read_host_files
from migrator.libvirt.cold_destination import ColdDomainDestination
from migrator.libvirt.cold_end import KEY
from migrator.libvirt.cold_guest import ColdGuest, RestartableGuest, read_restartable
from migrator.libvirt.cold_source import ColdDomainSource
from migrator.libvirt.domain_xml import DomainXml, with_images
from migrator.libvirt.migration import DomainDestination, DomainSource
from migrator.libvirt.target_checks import TargetAnswers, ask_target, judge
from migrator.ports import IncomingDestination
from migrator.site.host_directory import ManagedHosts, image_paths
from migrator.site.managed_ends import ManagedEnds

#: Seconds that the libvirt of a host may take to answer all that it is asked.
_SECONDS = 30.0
#: What is said of a live move, and of no guest that is started anew, or here in other words.
_NOT_HERE = frozenset({"duplicate", "libvirt-host-device", "libvirt-snapshots"})
_REMEDY = (
    "mend what it says, or shut the guest down and move its definition yourself (virsh migrate --offline)"
)


class ManagedColdStarts:
    """Makes and opens the ends of such moves."""

    def __init__(self, connections: ManagedHosts, ends: ManagedEnds) -> None:
        self._connections, self._ends = connections, ends

    async def source(
        self,
        guest: Guest,
        source: DomainSource,
        *,
        target: str,
        migration: str,
        policy: Policy,
        by_force: bool,
    ) -> ColdDomainSource:
        """See :meth:`migrator.ports.ColdStarts.source`."""
        uuid = source.uuid
        found = await source.connection.call(
            lambda connection: read_restartable(connection, uuid), what="read the guest", timeout=_SECONDS
        )
        answers, files = await asyncio.gather(
            self._ends.connection(target).call(
                lambda connection: ask_target(connection, found.leaving),
                what="ask whether the guest could be started",
                timeout=_SECONDS,
            ),
            self._files(guest.host, target, found),
        )
        refused = [
            *(_impossible(guest, why) for why in (*found.against, *_known(answers, target), *files)),
            *_against(found, answers, target),
        ]
        if refused:
            raise PreflightRefused(refused)
        made = ColdDomainSource(
            source,
            guest=found.cold,
            migration=migration,
            seconds=policy.max_shutdown_seconds,
            by_force=by_force,
        )
        moved = self._moved(guest.host, target, found.leaving.xml)
        made.guest_there = replace(found.cold, definition=with_images(found.cold.definition, moved))
        return made

    def _moved(self, host: str, target: str, xml: DomainXml) -> dict[str, str]:
        """Return the images that have another path at the target, by the one that they have here."""
        paths = image_paths(self._connections, host, target)
        images = (
            disk.source for disk in xml.disks if disk.kind == "file" and not disk.read_only and disk.source
        )
        return {path: there for path in images if (there := paths.at_target(path)) != path}

    async def _files(self, host: str, target: str, found: RestartableGuest) -> list[str]:
        """Return what the guest's next start needs of its host and the target has not."""
        xml = found.leaving.xml
        moved = self._moved(host, target, xml)
        images = {
            moved.get(disk.source, disk.source): disk.target
            for disk in xml.disks
            if disk.kind in ("file", "block") and disk.source.startswith("/")
        }
        devices = dict(_device_files(xml.host_devices))
        variables = [xml.nvram] if xml.nvram else []
        here, there = await asyncio.gather(
            read_host_files(self._connections.access(host), FileQuery(paths=variables)),
            read_host_files(
                self._connections.access(target),
                FileQuery(paths=[*images, *found.bases, *devices, *variables]),
            ),
        )
        one_machine = bool(here.boot_id) and here.boot_id == there.boot_id
        return [
            *(
                f"{path} of disk {disk} does not exist at {target}, and libvirt copies disks in live moves alone: copy "
                "it there, or put it on shared storage"
                for path, disk in images.items()
                if not there.file(path).exists
            ),
            *(
                f"{path}, which a disk is based on, does not exist at {target}"
                for path in found.bases
                if not there.file(path).exists
            ),
            *(
                f"{target} has no device {name}"
                for path, name in devices.items()
                if not there.file(path).exists
            ),
            *(
                f"{path}, where its firmware keeps its settings, is not seen to be the same file at {target}"
                for path in variables
                if same_file(here.file(path), there.file(path), one_machine=one_machine) is not SameFile.YES
            ),
        ]

    def incoming(self, incoming: IncomingDestination, source: ColdDomainSource) -> IncomingDestination:
        """See :meth:`migrator.ports.ColdStarts.incoming`."""
        return ManagedColdArrival(incoming, source)

    async def open(
        self, host: str, place: str, *, role: str, identity: Mapping[str, Any]
    ) -> ColdDomainSource | ColdDomainDestination:
        """Open an end that another controller has left, by its identity; its libvirt may be away.

        :raise HostError: the configuration leaves the host's guests to libvirt.
        """
        known = identity[KEY]
        end = await self._ends.open(host, place, role=role, known=True)
        if role == "destination":
            return ColdDomainDestination(end, guest=None, like=None, autostart=bool(known["autostart"]))
        return ColdDomainSource(
            end,
            guest=ColdGuest(
                definition="",
                persistent=bool(known["persistent"]),
                autostart=bool(known["autostart"]),
            ),
            migration=str(known["migration"]),
            seconds=float(known["seconds"]),
            left=True,
        )


class ManagedColdArrival:
    """The place at its target of a guest of libvirt that is started anew.

    Implements :class:`migrator.ports.IncomingDestination`.
    """

    def __init__(self, incoming: IncomingDestination, source: ColdDomainSource) -> None:
        end = incoming.qemu
        if not isinstance(end, DomainDestination):
            raise HostError("the target", "it is no target for a guest of libvirt")
        self._incoming = incoming
        self.qemu = ColdDomainDestination(
            end, guest=source.guest_there, like=source.facts, autostart=source.guest.autostart
        )
        source.begin_there = self.qemu.begin
        self.listen, self.notes, self.new_images = incoming.listen, incoming.notes, incoming.new_images
        self.socket = place_of(end.uuid)

    async def discard(self, *, images: bool = False) -> None:
        await self._incoming.discard(images=images)


def _impossible(guest: Guest, why: str) -> Finding:
    return finding("cold-start-impossible", f"{guest.label} cannot be started anew: {why}", _REMEDY)


def _known(answers: TargetAnswers, target: str) -> Iterator[str]:
    """Yield why the target's libvirt could not be given the guest, and give it back, without losing something."""
    if answers.defined or answers.runs:
        yield f"the libvirt of {target} has a definition of it already: virsh undefine it there"


def _against(found: RestartableGuest, answers: TargetAnswers, target: str) -> Iterator[Finding]:
    """Yield what the libvirt of the target has against the guest's next start."""
    for each in judge(found.leaving, answers, target):
        if each.severity is Severity.ERROR and each.code not in _NOT_HERE:
            yield each


def _device_files(devices: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the paths by which a host shows that it has these devices, each with the device's name."""
    for device in devices:
        kind, _, address = device.partition(" ")
        if kind == "pci" and address:
            yield f"/sys/bus/pci/devices/{address}", device
        elif kind == "mdev" and address:
            yield f"/sys/bus/mdev/devices/{address}", device
