"""The source's process and what one started like it at a target would be, read from both hosts."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from migrator.core.preflight import host_files, host_process
from migrator.core.preflight.host_process import ProcessPair
from migrator.core.process.command_line import CommandLine, ImageUse
from migrator.core.process.files import FileFacts, HostFiles
from migrator.core.process.process_identity import DroppedPrivileges, OpenFiles, ProcessIdentity
from migrator.hosts.access import HostAccess, run_together
from migrator.hosts.host_files import FileQuery, files_command, parse_files, read_host_files
from migrator.hosts.launch import LaunchProfile
from migrator.hosts.process_identity import parse_process, process_command, try_process
from migrator.hosts.run_as import run_as, unit_properties
from migrator.hosts.run_directories import RunDirectory
from migrator.ports import GuestProcess
from migrator.site.recent_processes import RecentProcesses

#: Seconds that reading a process and its files may take.
_SECONDS = 30.0


async def read_source(
    access: HostAccess,
    pid: int | None,
    command: CommandLine,
    paths: Sequence[str],
    *,
    recent: RecentProcesses,
) -> tuple[ProcessIdentity, OpenFiles] | None:
    """The source's process; ``None`` where it is not known which one it is, or it has ended.

    :param recent: has what was read of it a moment ago.
    :raise HostError: when its host cannot be asked.
    """
    if pid is None:
        return None
    return await recent.read(access, pid, paths=paths, daemonized=command.has("daemonize"))


async def read_source_and_files(
    access: HostAccess,
    command: CommandLine,
    query: FileQuery,
    *,
    recent: RecentProcesses,
) -> tuple[tuple[ProcessIdentity, OpenFiles] | None, HostFiles]:
    """Read the source's process, and files that do not depend on where it was started, by one command.

    :param query: with its pid.
    :param recent: gets what was read of it.
    :raise HostError: when the host cannot be asked.
    """
    if query.pid is None:
        return None, await read_host_files(access, query)
    began, daemonized = time.monotonic(), command.has("daemonize")
    of_process, of_files = await run_together(
        access,
        [process_command(query.pid, query.paths), files_command(query)],
        timeout=_SECONDS,
    )
    process = parse_process(access.name, query.pid, of_process, paths=query.paths, daemonized=daemonized)
    recent.note(access, query.pid, process, began=began, paths=query.paths, daemonized=daemonized)
    return process, parse_files(access.name, query, of_files)


async def with_unreachable(
    access: HostAccess,
    process: tuple[ProcessIdentity, OpenFiles] | None,
    command: CommandLine,
    opened: Mapping[str, ImageUse],
) -> tuple[ProcessIdentity, OpenFiles] | None:
    """The source's process, with the images that it could not open again by their names from where it is now.

    :param opened: those that it has open for writing.
    :raise HostError: when the host cannot be asked.
    """
    if process is None or not process[1].left_for or not process[1].directory:
        return process
    identity, open_files = process
    again = {each.path for each in command.images() if each.reopened and each.path in opened}
    now = {open_files.resolve(path): path for path in host_process.relative_paths(again)}
    if not now:
        return process
    files = (await read_host_files(access, FileQuery(paths=list(now)))).files
    lost = (path for at, path in now.items() if at not in files or not open_files.has(files[at]))
    return identity, replace(open_files, unreachable=frozenset(lost))


async def read_beside(
    source: tuple[ProcessIdentity, OpenFiles] | None,
    target: HostAccess,
    command: CommandLine,
    paths: Sequence[str],
    *,
    replicated: bool,
) -> ProcessPair | None:
    """Compare the process with what it would be at the target, and read what it may do with files there.

    :param source: as :func:`read_source` gave it.
    :param replicated: the destination is started like the source.
    :raise HostError: when the target cannot be asked.
    """
    if source is None:
        return None
    identity, open_files = source
    if not replicated:
        return ProcessPair(source=identity, open_files=open_files, target=None, replicated=False)
    tried = list(dict.fromkeys([*paths, *host_process.paths_to_try(command)]))
    trial = await try_process(target, identity, drops=DroppedPrivileges.of(command), paths=tried)
    return ProcessPair(
        source=identity,
        open_files=open_files,
        target=trial.identity,
        complaint=trial.complaint,
        account=trial.accounts.name,
        number=trial.accounts.number,
        may=trial.may,
    )


def seen_by(
    seen: HostFiles, case: ProcessPair | None, command: CommandLine, disks: Collection[str]
) -> HostFiles:
    """Return what was seen of the target's files, with what QEMU's user may do with them there.

    :param disks: paths of disks; a QEMU that drops its rights opens only these afterwards.
    """
    if case is None or not case.replicated or case.target is None:
        return seen
    drops = bool(DroppedPrivileges.of(command).user)
    files: Mapping[str, FileFacts] = {
        path: file if drops and path not in disks else _with(file, case.may.get(path))
        for path, file in seen.files.items()
    }
    return replace(seen, files=files, user=case.target.user)


def _with(file: FileFacts, may: str | None) -> FileFacts:
    if may is None or not file.exists:
        return file
    return replace(file, readable="r" in may, writable="w" in may, executable="x" in may)


@dataclass(frozen=True, kw_only=True)
class SourceProcess:
    """The source's process, for one to be started like it."""

    identity: ProcessIdentity
    drops: DroppedPrivileges

    @property
    def other_user(self) -> bool:
        """True where its user need not be the one that migrator is."""
        return bool(self.drops.user) or self.identity.user != 0

    def as_user(self) -> list[str]:
        """Makes a command run as the user that QEMU will be."""
        return run_as(self.identity, as_user=self.drops.user)

    def like(self, run_dir: RunDirectory) -> LaunchProfile:
        """How the launcher shall start it."""
        return LaunchProfile(
            become=run_as(self.identity, drops=self.drops, run_directory=run_dir.path),
            slice=self.identity.slice or "machine.slice",
            properties=unit_properties(self.identity),
        )


async def read_source_process(
    access: HostAccess, process: GuestProcess, *, recent: RecentProcesses
) -> SourceProcess | None:
    """Read whose a process is; ``None`` when it has ended.

    :param recent: has what was read of it a moment ago.
    :raise HostError: when its host cannot be asked.
    """
    command = CommandLine(process.arguments())
    named = [*(image.path for image in command.images()), *host_files.paths_to_read(command)]
    found = await read_source(access, process.pid, command, named, recent=recent)
    return None if found is None else SourceProcess(identity=found[0], drops=DroppedPrivileges.of(command))
