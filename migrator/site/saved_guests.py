"""Guests whose state is in files: what they are saved into and loaded from, as ends of migrations.

What is true of a file is what a fresh look at it says; see :mod:`migrator.hosts.state_program`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

from migrator.core.findings import finding
from migrator.core.inventory import RUN_DIRECTORY, Guest
from migrator.core.managed_guest import uuid_at
from migrator.core.model import RUNNING_STATES, Finding
from migrator.core.process.command_line import path_of
from migrator.core.process.replica import TargetEnvironment
from migrator.core.saved_guest import (
    FORMAT,
    PREFIX,
    FileForm,
    SavedGuest,
    SavedState,
    SurveyedFile,
    reads_mapped,
)
from migrator.errors import CommandFailed, HostError, UsageError
from migrator.ports import SourceQemu
from migrator.qemu import runtime_state
from migrator.qemu.cmdline import paths
from migrator.qemu.source import Configuration, SourceEndpoint
from migrator.site.connections import HostConnections
from migrator.site.file_end import FileEnd, StateFile
from migrator.site.loading_file import LoadingFile
from migrator.site.process_checks import read_source_process
from migrator.site.saving_file import SavingDestination, SavingFile
from migrator.units import show_bytes

_MAPPED = str(FileForm.MAPPED)
#: A stream is somewhat larger than what the guest has in memory; zero pages take next to nothing.
_LARGER_RATIO = 1.02


def by_virsh(guest: Guest, path: str) -> str:
    """Return how a guest of libvirt is saved into a file, and taken up from there, by who manages it."""
    name, file, definition = (shlex.quote(each) for each in (guest.name, path, f"{path}.xml"))
    if guest.domain is not None and not guest.domain.persistent:
        return (
            f"on {guest.host}: virsh save {name} {file}; it goes on there, or on another host that sees its disks and "
            f"that file, by: virsh restore {file}"
        )
    return (
        f"on {guest.host}: virsh dumpxml --inactive --security-info {name} >{definition}; virsh save {name} {file}; "
        f"it goes on there by: virsh restore {file}; or on another host that sees its disks and both files by: virsh "
        f"define {definition}; virsh restore {file}; and then on {guest.host}: virsh undefine --keep-nvram {name}"
    )


class SavedGuestFiles:
    """Implements :class:`migrator.ports.SavedGuests`."""

    def __init__(self, connections: HostConnections) -> None:
        self._connections = connections

    def _file(self, host: str, path: str) -> StateFile:
        return StateFile(self._connections.access(host), path.removeprefix(PREFIX))

    async def open(self, host: str, path: str, *, role: str, migration: str = "") -> FileEnd:
        """Open a file as an end of a migration.

        :raise HostError: its host cannot be asked, or it is no saved guest.
        """
        file = self._file(host, path)
        if role == "destination":
            return SavingFile(file, migration=migration, saved=None)
        saved = await file.description()
        if saved is None:
            raise HostError(host, f"{file.path} is no saved guest: there is no {file.path}.json")
        return LoadingFile(file, migration=migration, saved=saved)

    async def read(self, host: str, path: str) -> SavedGuest:
        """See :meth:`migrator.ports.SavedGuests.read`."""
        saved = await self._file(host, path).description()
        if saved is None:
            raise UsageError(f"{path} on {host} is no saved guest: there is no {path}.json")
        return saved

    async def survey(self, host: str, paths: Sequence[str]) -> Mapping[str, SurveyedFile]:
        """See :meth:`migrator.ports.SavedGuests.survey`."""
        return await StateFile.survey(self._connections.access(host), paths)

    async def check(self, guest: Guest, source: SourceQemu, path: str) -> tuple[Finding, ...]:
        """See :meth:`migrator.ports.SavedGuests.check`."""
        if uuid_at(guest.socket) is not None:
            text = f"{guest.label} is libvirt's, and cannot be saved into a file by us"
            return (finding("libvirt-policy", text, by_virsh(guest, path)),)
        return tuple([each async for each in self._check(guest, source, path)])

    async def _check(self, guest: Guest, source: SourceQemu, path: str) -> Any:
        seen = await self._file(guest.host, path).look()
        if seen.free_bytes is None:
            yield finding("save-path", f"the directory of {path} is not there on {guest.host}")
            return
        if seen.distrust:
            yield finding("save-path", f"{path} could not be believed when it is loaded: {seen.distrust}")
        if seen.there or seen.saved is not None or seen.locked:
            yield finding("save-path", f"{path} is there already on {guest.host}")
        facts = await source.facts()
        needed = int(facts.memory_bytes * _LARGER_RATIO)
        if seen.free_bytes < needed:
            yield finding(
                "save-room",
                f"{path} may need {show_bytes(needed)}, and {show_bytes(seen.free_bytes)} are free on the file system "
                f"at {seen.filesystem} of {guest.host}: {show_bytes(needed - seen.free_bytes)} are missing",
            )
        if not isinstance(source, SourceEndpoint) or source.process is None:
            yield finding("save-process", f"the process of {guest.label} cannot be told")
            return
        if plugged := await source.hot_plugged():
            yield finding("save-plugged", f"plugged in since its start: {', '.join(plugged[:5])}")
        argv = source.process.arguments()
        if not argv:
            yield finding("save-process", f"the command line of {guest.label} cannot be read")
            return
        access = self._connections.access(guest.host)
        process = await read_source_process(access, source.process, recent=self._connections.processes)
        uid = (await access.run(["id", "-u"], timeout=10.0)).text.strip()
        if process is None or process.drops.user or str(process.identity.user) != uid:
            yield finding(
                "save-process", f"the QEMU of {guest.label} runs as another user than migrator there"
            )
        configuration = await source.configuration(argv)
        now = configuration.current()
        if any("vfio-" in word for word in now):
            yield finding("save-process", f"{guest.label} has a device of its host passed through")
        relative = len(paths(now, "/")) != len(paths(now)) or any(
            (found := path_of(disk.file)) and "/" in found and not found.startswith("/")
            for disk in facts.disks
        )
        if relative:
            yield finding("save-process", f"the command line of {guest.label} has paths that are relative")
        where = TargetEnvironment(binary=argv[0], run_directory=f"{RUN_DIRECTORY}/XXXXXX")
        for each in configuration.replicate(where).findings:
            yield each

    async def check_load(self, host: str, path: str) -> tuple[Finding, ...]:
        """See :meth:`migrator.ports.SavedGuests.check_load`."""
        changed = (await self._file(host, path).look()).changed
        if not changed:
            return ()
        shown = ", ".join(changed[:5])
        return (finding("load-disks", f"not there on {host}, or changed since {path} was saved: {shown}"),)

    async def flush(self, guest: Guest, source: SourceQemu) -> str:
        """See :meth:`migrator.ports.SavedGuests.flush`."""
        if not isinstance(source, SourceEndpoint):
            return ""
        return await source.flush_disks(self._connections.access(guest.host).forward)

    async def thaw(self, guest: Guest, source: SourceQemu) -> bool:
        """See :meth:`migrator.ports.SavedGuests.thaw`."""
        if not isinstance(source, SourceEndpoint):
            return True
        return await source.thaw_disks(self._connections.access(guest.host).forward)

    async def start(
        self, guest: Guest, source: SourceQemu, path: str, *, migration: str, as_stream: bool
    ) -> SavingDestination:
        """See :meth:`migrator.ports.SavedGuests.start`."""
        argv = source.process.arguments() if source.process is not None else []
        configuration, facts = await source.configuration(argv), await source.facts()
        # Such a file is opened by the QEMU itself: one that sees another root cannot.
        rooted = not any("chroot" in word for word in argv)
        able = rooted and not as_stream
        mapped = able and _MAPPED in facts.capabilities and not self._older(argv)
        if not isinstance(configuration, Configuration):
            raise CommandFailed(source.name, "save", "GenericError", "its configuration cannot be kept")
        saved = SavedGuest(
            format=FORMAT if mapped else 1,
            form=FileForm.MAPPED if mapped else FileForm.STREAM,
            migration=migration,
            state=SavedState.UNCONFIRMED,
            saved_at=time.time(),
            guest={"key": guest.key, "uuid": guest.uuid, "name": guest.name},
            host=guest.host,
            source=dict(source.identity),
            runs=facts.run in RUNNING_STATES,
            arguments=tuple(configuration.current()),
            machine=configuration.machine,
            naming=tuple(await source.naming_options()),
            facts=facts,
            runtime=runtime_state.to_json(await source.read_runtime_state()),
            # QEMU writes those of its firmware anew when it takes the guest out of the file.
            images={image: () for disk in facts.disks if not disk.is_flash and (image := path_of(disk.file))},
        )
        return SavingDestination(SavingFile(self._file(guest.host, path), migration=migration, saved=saved))

    def _older(self, argv: Sequence[str]) -> bool:
        """Return whether a host is known to have an older QEMU at the path of the guest's: it may have to load it."""
        found = self._connections.facts.known()
        return any(not reads_mapped(facts.qemus.get(argv[0], "9.0")) for facts in found if argv)

    async def discard(self, host: str, path: str, seen: SavedGuest) -> bool:
        """See :meth:`migrator.ports.SavedGuests.discard`."""
        same = {"migration": seen.migration, "sha256": seen.sha256, "state": str(seen.state)}
        return await self._file(host, path).discard(same)

    async def confirm(self, host: str, path: str, *, migration: str) -> None:
        """See :meth:`migrator.ports.SavedGuests.confirm`."""
        own = {"migration": migration, "state": str(SavedState.UNCONFIRMED)}
        await self._file(host, path).mark(own, state=SavedState.SAVED)
