"""Checks of a target, read from both hosts and the source's QEMU and judged by the catalogue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from migrator.core.findings import errors_first
from migrator.core.inventory import Guest, HostFacts
from migrator.core.model import Finding, Severity
from migrator.core.policy import Policy
from migrator.core.preflight import host_checks, host_disks, host_files, host_network
from migrator.core.preflight.compare import source_ready
from migrator.core.preflight.host_pair import HostPair
from migrator.core.process.command_line import CommandLine, path_of
from migrator.core.process.files import HostFiles, QemuProgramFacts
from migrator.core.process.image_paths import ImagePaths
from migrator.core.process.tpm_emulator import tpm_socket
from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.host_files import FileQuery, read_host_files
from migrator.hosts.sharing_probe import probe_sharing
from migrator.hosts.tpm_emulators import check_emulator
from migrator.ports import SourceQemu
from migrator.site.host_directory import HostDirectory
from migrator.site.process_checks import (
    read_beside,
    read_source,
    read_source_and_files,
    seen_by,
    with_unreachable,
)
from migrator.site.recent_facts import RecentFacts
from migrator.site.recent_processes import RecentProcesses

#: Seconds that one check may take in all.
_SECONDS = 60.0


T = TypeVar("T")
U = TypeVar("U")


class HostChecks:
    """Checks one guest against one target; changes nothing but by the probe of sharing (see :func:`probe_sharing`)."""

    def __init__(self, *, seconds: float = _SECONDS, processes: RecentProcesses | None = None) -> None:
        self._seconds = seconds
        self._processes = processes or RecentProcesses()
        #: What the QEMU of a host was found to know, by name of the host: asking it costs more than all the rest.
        self._offers: dict[str, QemuProgramFacts] = {}

    async def check(
        self,
        guest: Guest,
        source: SourceQemu,
        source_access: HostAccess,
        target_access: HostAccess,
        *,
        here: HostFacts,
        there: HostFacts,
        qemu: str = "",
        volumes: bool = False,
        image_paths: ImagePaths | None = None,
        policy: Policy | None = None,
        replicated: bool = True,
        newer: Callable[[], Awaitable[tuple[HostFacts, HostFacts]]] | None = None,
    ) -> tuple[Finding, ...]:
        """Every finding of the guest against that host, errors first.

        :param here: what was read of the source's host.
        :param there: what was read of the target.
        :param qemu: the QEMU that is configured to be started there; empty: the one that corresponds to the source's.
        :param volumes: the target can make volumes for disks that are block devices.
        :param image_paths: where images of the source's host are at the target; ``None``: at the same paths.
        :param policy: without it nothing is said about what policies need.
        :param replicated: the destination is started like the source, not by a command of the configuration.
        :param newer: returns `here` and `there` as they are now: an error is reported only where it holds for these.
        :raise HostError: when a host cannot be asked, or not in time.
        :raise QemuError: when the source's QEMU cannot.
        """

        async def read(here: HostFacts, there: HostFacts) -> HostPair:
            case = await self._read(
                guest,
                source,
                source_access,
                target_access,
                here,
                there,
                qemu,
                image_paths=image_paths or ImagePaths(),
                replicated=replicated,
            )
            return replace(case, policy=policy, volumes=volumes)

        remembered = target_access.name in self._offers
        try:
            async with asyncio.timeout(self._seconds):
                found = host_checks.check(case := await read(here, there))
                if remembered and any(each.code.endswith("-not-offered") for each in found):
                    # A module package may have been installed meanwhile, which leaves the program as it was.
                    self._offers.pop(target_access.name, None)
                    found = host_checks.check(case := await read(here, there))
                if newer is not None and _refuses_hosts(case, found):
                    # What somebody has mended since the facts were read is no reason to refuse.
                    here, there = await newer()
                    if host_checks.check(replace(case, here=here, there=there)) != found:
                        found = host_checks.check(await read(here, there))
        except TimeoutError:
            raise HostError(target_access.name, f"it was not checked within {self._seconds:g} s") from None
        return errors_first([*host_checks.obstacle(guest), *found])

    async def _read(
        self,
        guest: Guest,
        source: SourceQemu,
        source_access: HostAccess,
        target_access: HostAccess,
        here: HostFacts,
        there: HostFacts,
        qemu: str,
        *,
        image_paths: ImagePaths,
        replicated: bool,
    ) -> HostPair:
        facts, open_images = await source.facts(), await source.images()
        held = source.process
        if held is not None and held.pid == guest.pid:
            arguments = held.arguments()
        else:
            arguments = await _arguments(source_access, guest.pid)
        now = (await source.configuration(arguments)).current_with_networks() if arguments else []
        command = CommandLine(now)
        images = host_disks.images(facts)
        paths = [path_of(disk.file) for disk in facts.disks]
        paths += [*(image.path for image in command.images()), *host_disks.paths_to_read(facts, image_paths)]
        paths += [*host_files.paths_to_read(command), *host_network.paths_to_read(command)]
        paths += [file for path in images for file in open_images.chains.get(path, ())[1:]]
        # As the destination is started: the configured one, else the source's own program, else what is in PATH.
        qemus = [qemu] if qemu else _each_once([command.program, command.program.rpartition("/")[2]])
        mine = FileQuery(paths=_each_once(paths), images=images, pid=guest.pid)
        started, seen = CommandLine(arguments), None
        if mine.absolute:
            process, seen = await read_source_and_files(source_access, started, mine, recent=self._processes)
        else:
            process = await read_source(source_access, guest.pid, started, mine.paths, recent=self._processes)
        process = await with_unreachable(source_access, process, command, open_images.opened)
        # Relative paths go from where it was started, which need not be where it is.
        mine = replace(mine, directory=process[1].directory if process else "")
        elsewhere = {image_paths.at_target(path): kind for path, kind in images.items()}
        theirs = replace(
            mine,
            images={**images, **elsewhere},
            pid=None,
            qemus=qemus,
            known=self._offers.get(target_access.name),
        )
        (files_here, files_there), beside = await _both(
            _both(_seen_or(seen, source_access, mine), read_host_files(target_access, theirs)),
            read_beside(process, target_access, command, mine.paths, replicated=replicated),
        )
        if files_there.offer.devices:
            self._offers[target_access.name] = files_there.offer
        chains = [*files_here.chains.values(), *files_there.chains.values()]
        further = _each_once([file for chain in chains for file in chain[1:] if file not in mine.paths])
        if further:  # QEMU was not asked, or the image says otherwise
            more = FileQuery(paths=further, directory=files_here.directory)
            here_too, there_too = await _both(
                read_host_files(source_access, more), read_host_files(target_access, more)
            )
            files_here = replace(files_here, files={**files_here.files, **here_too.files})
            files_there = replace(files_there, files={**files_there.files, **there_too.files})
            if process and replicated:
                beside = await read_beside(
                    process, target_access, command, [*mine.paths, *further], replicated=True
                )
        tpm = None
        socket = tpm_socket(command)
        same_machine = bool(here.boot_id) and here.boot_id == there.boot_id
        if socket and replicated and (same_machine or not files_there.file(socket).exists):
            tpm = await check_emulator(source_access, target_access, socket)
        own = [path_of(disk.file) for disk in facts.disks]
        disks = {*own, *map(image_paths.at_target, own), *further}

        case = HostPair(
            target=target_access.name,
            source=facts,
            command=command,
            here=here,
            there=there,
            files_here=files_here,
            files_there=seen_by(files_there, beside, command, disks),
            opened=open_images.opened,
            based=open_images.chains,
            process=beside,
            image_paths=image_paths,
            tpm=tpm,
        )
        unclear = host_disks.paths_to_probe(case)
        if unclear:
            found = await probe_sharing(
                source_access, target_access, {path: case.image(path) for path in unclear}
            )
            case = replace(case, probed=found)
        return case


class SiteChecks:
    """Checks of hosts by their names, as a site asks for them.

    :param connections: to them.
    :param replicated: whether the destination of a guest on a host is started like its source.
    :param facts: what was read of the hosts a moment ago; of its own where it is not given.
    :param processes: ... of the guests' processes.
    """

    def __init__(
        self,
        connections: HostDirectory,
        *,
        replicated: Callable[[Guest, str], bool] = lambda guest, host: True,
        facts: RecentFacts | None = None,
        processes: RecentProcesses | None = None,
    ) -> None:
        self._connections = connections
        self._replicated = replicated
        self._facts = facts or RecentFacts(connections)
        self._checks = HostChecks(processes=processes)

    async def check(
        self, guest: Guest, source: SourceQemu, target: str, policy: Policy
    ) -> tuple[Finding, ...]:
        """See :meth:`migrator.ports.Site.check`."""
        began = time.monotonic()
        here, there = await _both(self._facts.recent(guest.host), self._facts.recent(target))
        return await self._checks.check(
            guest,
            source,
            self._connections.access(guest.host),
            self._connections.access(target),
            here=here,
            there=there,
            qemu=self._connections.config(target).qemu,
            volumes=self._connections.config(target).volumes,
            image_paths=ImagePaths(
                here=self._connections.config(guest.host).image_directories,
                there=self._connections.config(target).image_directories,
            ),
            policy=policy,
            replicated=self._replicated(guest, target),
            newer=lambda: _both(
                self._facts.recent(guest.host, since=began), self._facts.recent(target, since=began)
            ),
        )


def _refuses_hosts(case: HostPair, found: tuple[Finding, ...]) -> bool:
    """Return whether there are errors beside those of the source's QEMU, whatever the hosts are."""
    alone = set(source_ready(case.source, case.policy))
    return any(each.severity is Severity.ERROR and each not in alone for each in found)


async def _both(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Run them at the same time; the first error ends the other.

    :raise HostError: that error itself.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = group.create_task(first, name="check here"), group.create_task(second, name="check there")
    except* HostError as errors:
        raise errors.exceptions[0] from None
    return tasks[0].result(), tasks[1].result()


async def _seen_or(seen: HostFiles | None, access: HostAccess, query: FileQuery) -> HostFiles:
    return await read_host_files(access, query) if seen is None else seen


async def _arguments(access: HostAccess, pid: int | None) -> list[str]:
    process = None if pid is None else await access.process(pid)
    if process is None:
        return []
    try:
        return process.arguments()
    finally:
        process.close()


def _each_once(paths: list[str]) -> list[str]:
    return [path for path in dict.fromkeys(paths) if path]
