"""What speaks against a target, read from both hosts and the source's QEMU and judged by the catalogue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from migrator.core import host_checks, host_disks, host_files, host_network
from migrator.core.command_line import CommandLine, path_of
from migrator.core.files import Offer
from migrator.core.findings import errors_first
from migrator.core.host_case import Case
from migrator.core.inventory import Guest, HostFacts
from migrator.core.model import Finding
from migrator.core.policy import Policy, builtin
from migrator.errors import HostError, UsageError
from migrator.hosts.access import Access
from migrator.hosts.facts import read_facts
from migrator.hosts.identify import Question, look, probe
from migrator.hosts.site_config import HostConfig
from migrator.ports import Qemu

#: Seconds that one check may take in all.
_SECONDS = 60.0


class Reach(Protocol):
    """How hosts are reached."""

    def access(self, host: str) -> Access:
        """The way to a host."""

    def config(self, host: str) -> HostConfig:
        """What is configured of a host."""


class HostChecks:
    """Checks one guest against one target; changes nothing but by the probe of sharing (see :func:`probe`)."""

    def __init__(self, *, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        #: What the QEMU of a host was found to know, by name of the host: asking it costs more than all the rest.
        self._offers: dict[str, Offer] = {}

    async def check(
        self,
        guest: Guest,
        source: Qemu,
        source_access: Access,
        target_access: Access,
        *,
        here: HostFacts,
        there: HostFacts,
        qemu: str = "",
        policy: Policy | None = None,
    ) -> tuple[Finding, ...]:
        """Every finding of the guest against that host, errors first.

        :param here: what was read of the source's host.
        :param there: what was read of the target.
        :param qemu: the QEMU that is configured to be started there; empty: the one that corresponds to the source's.
        :param policy: without it nothing is said about what policies need.
        :raise HostError: when a host cannot be asked, or not in time.
        :raise QemuError: when the source's QEMU cannot.
        """

        async def judged() -> tuple[Finding, ...]:
            case = await self._read(guest, source, source_access, target_access, here, there, qemu)
            return host_checks.check(replace(case, policy=policy))

        remembered = target_access.name in self._offers
        try:
            async with asyncio.timeout(self._seconds):
                found = await judged()
                if remembered and any(each.code.endswith("-not-offered") for each in found):
                    # A module package may have been installed meanwhile, which leaves the program as it was.
                    self._offers.pop(target_access.name, None)
                    found = await judged()
        except TimeoutError:
            raise HostError(target_access.name, f"it was not checked within {self._seconds:g} s") from None
        return errors_first([*host_checks.obstacle(guest), *found])

    async def _read(
        self,
        guest: Guest,
        source: Qemu,
        source_access: Access,
        target_access: Access,
        here: HostFacts,
        there: HostFacts,
        qemu: str,
    ) -> Case:
        facts = await source.facts()
        command = CommandLine(await _arguments(source_access, guest.pid))
        paths = [path_of(disk.file) for disk in facts.disks]
        paths += [image.path for image in command.images()]
        paths += [*host_files.to_read(command), *host_network.to_read(command)]
        images = host_disks.images(facts)

        question = Question(paths=_each_once(paths), images=images, pid=guest.pid)
        seen_here = await look(source_access, question)
        # As the destination is started: the source's own program, else the configured or what is in PATH.
        program = command.program or seen_here.program
        qemus = _each_once([program, qemu or program.rpartition("/")[2]])
        # What an image is based on has to be at the target too; the chain is known only now.
        based = [file for chain in seen_here.chains.values() for file in chain[1:]]
        question = Question(
            paths=_each_once([*paths, *based]),
            images=images,
            qemus=qemus,
            known=self._offers.get(target_access.name),
            directory=seen_here.directory,
        )
        seen_there = await look(target_access, question)
        if seen_there.offer.devices:
            self._offers[target_access.name] = seen_there.offer
        further = [file for chain in seen_there.chains.values() for file in chain[1:]]
        unread = _each_once([file for file in (*based, *further) if file not in seen_here.files])
        if unread:
            more = await look(source_access, Question(paths=unread))
            seen_here = replace(seen_here, files={**seen_here.files, **more.files})
        unread = _each_once([file for file in further if file not in seen_there.files])
        if unread:
            more = await look(target_access, Question(paths=unread))
            seen_there = replace(seen_there, files={**seen_there.files, **more.files})

        case = Case(
            target=target_access.name,
            source=facts,
            command=command,
            here=here,
            there=there,
            seen_here=seen_here,
            seen_there=seen_there,
        )
        unclear = host_disks.to_probe(case)
        if unclear:
            found = await probe(source_access, target_access, {path: case.files(path) for path in unclear})
            case = replace(case, probed=found)
        return case


class SiteChecks:
    """The same for hosts by their names, as a site asks for it.

    :param reach: the way to them.
    :param policy: the policy of a guest; ``None``: the built-in of that name, if there is one.
    """

    def __init__(self, reach: Reach, *, policy: Callable[[Guest], Policy | None] | None = None) -> None:
        self._reach = reach
        self._policy = policy or _builtin
        self._checks = HostChecks()

    async def check(self, guest: Guest, source: Qemu, target: str) -> tuple[Finding, ...]:
        """As :meth:`migrator.ports.Site.check`."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._facts(host), name=f"facts of {host}")
                    for host in (guest.host, target)
                ]
        except* HostError as errors:
            raise errors.exceptions[0] from None
        here, there = (task.result() for task in tasks)
        return await self._checks.check(
            guest,
            source,
            self._reach.access(guest.host),
            self._reach.access(target),
            here=here,
            there=there,
            qemu=self._reach.config(target).qemu,
            policy=self._policy(guest),
        )

    async def _facts(self, host: str) -> HostFacts:
        config = self._reach.config(host)
        qemus = [config.qemu] if config.qemu else []
        return await read_facts(self._reach.access(host), address=config.address, qemus=qemus)


def _builtin(guest: Guest) -> Policy | None:
    try:
        return builtin(guest.policy or "default")
    except UsageError:
        return None  # one of the configuration's: nothing is said about what it needs


async def _arguments(access: Access, pid: int | None) -> list[str]:
    process = None if pid is None else await access.process(pid)
    if process is None:
        return []
    try:
        return process.arguments()
    finally:
        process.close()


def _each_once(paths: list[str]) -> list[str]:
    return [path for path in dict.fromkeys(paths) if path]
