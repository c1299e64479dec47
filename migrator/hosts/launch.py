"""Starts a QEMU on a host so that it outlives whoever started it, and leaves nothing behind when it does not start."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from migrator.errors import HostError
from migrator.hosts import launch_scripts
from migrator.hosts.access import Output, read_besides
from migrator.hosts.new_files import remove_files, remove_images, remove_memory
from migrator.hosts.new_volumes import remove_volumes
from migrator.hosts.run_directories import RunDirectories, RunDirectory, finish_cleanup
from migrator.hosts.tpm_emulators import end_emulator
from migrator.ports import GuestProcess
from migrator.text import clean

_WORDS_BYTES = 2000
#: Time-out of a small command, in seconds.
_SHORT = 10.0
_KILL_SECONDS = 10.0
#: How often, and how many seconds apart, the command line of one that was started is looked for: a dead one has none.
_EXEC_LOOKS, _EXEC_PAUSE_SECONDS = 20, 0.02
#: For what puts a process into the background.
_START_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class LaunchProfile:
    """User, slice and properties that a QEMU gets beside its command line."""

    #: Put before its command line: it makes the process so, and becomes it.
    become: Sequence[str] = ()
    #: Slice and properties of its unit, where it has one.
    slice: str = "machine.slice"
    properties: Sequence[str] = ()


_AS_WE_ARE = LaunchProfile()


class Launcher(RunDirectories):
    """Starts QEMUs on one host, each in a run directory of its own, and ends what is left of them."""

    async def start(
        self,
        run_dir: RunDirectory,
        argv: Sequence[str],
        *,
        by_itself: bool = False,
        like: LaunchProfile = _AS_WE_ARE,
    ) -> GuestProcess | None:
        """Start a QEMU, and return a handle on its process.

        :param argv: without ``-daemonize``, and with ``-pidfile`` in the run directory.
        :param like: what its process is to be.
        :param by_itself: `argv` is a command that starts QEMU in whatever way it likes, and ends.
        :returns: ``None`` when a command wrote no pid file: nobody knows which process it is.
        :raise HostError: it did not start, in its own words; whatever came up is ended, only the log is left.
        """
        try:
            if by_itself:
                await self._run_starter(run_dir, argv)
                pid, read = await self._read_pid(run_dir), None
            else:
                pid, read = await self._start(run_dir, argv, like)
            process = await self.host.process(pid, read) if pid else None
            if process is None and not by_itself:
                raise HostError(self.host.name, await self.explain_exit(run_dir, argv[0]))
            return process
        except BaseException:  # cancelled too: nothing is left at the host; raised again
            await finish_cleanup(self.discard(run_dir, images=True), name=f"clear {run_dir.path}")
            raise

    async def _run_starter(self, run_dir: RunDirectory, argv: Sequence[str]) -> None:
        try:
            done = await self.host.run(
                ["sh", "-c", launch_scripts.LOGGED, run_dir.log, *argv], timeout=self.timeout_seconds
            )
        except HostError as error:
            raise HostError(self.host.name, f"{await self._too_slow(run_dir, argv[0])}; {error}") from error
        if done.status:
            words = await self.log_tail(run_dir) or done.complaint or "it said nothing"
            raise HostError(
                self.host.name, f"{argv[0]} ended with status {done.status}: {words} (log: {run_dir.log})"
            )

    async def _start(
        self, run_dir: RunDirectory, argv: Sequence[str], like: LaunchProfile
    ) -> tuple[int | None, Output | None]:
        """Start it and wait until it is up; return its pid, ``None`` where it has ended, and what was read of it."""
        whole = [*like.become, *argv]
        session = [
            "sh",
            "-c",
            launch_scripts.start(self.host.process_script),
            "sh",
            launch_scripts.DETACHED,
            run_dir.log,
            run_dir.path,
            *whole,
        ]
        command = unit_command(run_dir, whole, like) if run_dir.unit else session
        done = await self.host.run(command, timeout=_START_SECONDS)
        if done.status:
            words = await self.log_tail(run_dir) or done.complaint or "it said nothing"
            raise HostError(self.host.name, f"{argv[0]} could not be started: {words} (log: {run_dir.log})")
        # There is a process; that it is a QEMU shows when it has written its pid file.
        state = b"" if run_dir.unit else done.stdout
        wait = launch_scripts.await_pid(self.host.process_script)
        try:
            async with asyncio.timeout(self.timeout_seconds):
                while not state:
                    waiting = ["sh", "-c", wait, "sh", run_dir.path, run_dir.unit]
                    state = (await self.host.run(waiting, timeout=_START_SECONDS)).stdout
        except TimeoutError as error:
            raise HostError(self.host.name, await self._too_slow(run_dir, argv[0])) from error
        first, _, read = state.partition(b"\n")
        pid = first.removeprefix(b"up ").strip()
        if not pid.isdigit():
            return await self._read_pid(run_dir), None
        return int(pid), read_besides(read)

    async def _too_slow(self, run_dir: RunDirectory, program: str) -> str:
        words = await self.log_tail(run_dir)
        said = f": {words}" if words else ""
        limit = f"{self.timeout_seconds:g} s (start_timeout)"
        return f"{program} did not come up within {limit} and was ended{said} (log: {run_dir.log})"

    async def forget_end(self, run_dir: RunDirectory) -> None:
        """Have another QEMU be started in a directory whose former one has ended.

        :raise HostError: the host cannot be asked.
        """
        if run_dir.unit:
            await self.host.run(["systemctl", "stop", run_dir.unit], timeout=_KILL_SECONDS + _SHORT)
            await self.host.run(["systemctl", "reset-failed", run_dir.unit], timeout=_SHORT)
        await self._run("rm", "-f", "--", run_dir.pid_file)

    async def explain_exit(self, run_dir: RunDirectory, program: str = "QEMU") -> str:
        """Explain, for a message, why a QEMU has ended: its last words and where its log is."""
        words = await self.log_tail(run_dir) or "it said nothing"
        return f"{program} ended right after its start: {words} (log: {run_dir.log})"

    async def _read_pid(self, run_dir: RunDirectory) -> int | None:
        done = await self.host.run(["cat", "--", run_dir.pid_file], timeout=_SHORT)
        return int(done.text) if done.status == 0 and done.text.strip().isdecimal() else None

    async def log_tail(self, run_dir: RunDirectory) -> str:
        """Return the end of its log in one line; empty where there is none. Never raises for a host that is gone."""
        try:
            done = await self.host.run(["tail", "-c", str(_WORDS_BYTES), "--", run_dir.log], timeout=_SHORT)
        except HostError:
            return ""
        lines = done.stdout.decode(errors="replace").split("\n")
        said = [" ".join(line.split()) for line in lines if line.strip()]
        return "; ".join("".join(c if c.isprintable() else "?" for c in line) for line in said[-5:])[-500:]

    async def discard(
        self, run_dir: RunDirectory, process: GuestProcess | None = None, *, images: bool = False
    ) -> None:
        """End whatever was started in this directory and remove it; the log is kept, unless it is empty.

        :param process: one that is not to be found by its command line.
        :param images: remove the images of disks that were made for it too: the guest has never run in it.

        :raise HostError: the host cannot be asked, or the process could not be seen dead; then the run_dir is left.
        """
        if run_dir.unit:
            await self.host.run(["systemctl", "kill", "--signal=SIGKILL", run_dir.unit], timeout=_SHORT)
            await self.host.run(["systemctl", "stop", run_dir.unit], timeout=_KILL_SECONDS + _SHORT)
            await self.host.run(["systemctl", "reset-failed", run_dir.unit], timeout=_SHORT)
        found = await self._find_processes(run_dir, end=True)
        try:
            for one in [*found, *([process] if process is not None else [])]:
                if not await one.kill(_KILL_SECONDS):
                    raise HostError(
                        self.host.name,
                        f"QEMU (pid {one.pid}) could not be ended; end it, then remove {run_dir.path}",
                    )
        finally:
            for one in found:
                one.close()
        await end_emulator(self.host, run_dir.path, state=images)
        await remove_files(self.host, run_dir.path)
        if images:
            await remove_images(self.host, run_dir.path)
            await remove_volumes(self.host, run_dir.path)
        await self.remove(run_dir)

    async def _find_processes(self, run_dir: RunDirectory, *, end: bool = False) -> list[GuestProcess]:
        """Return every QEMU, and what becomes one, whose command line names the run directory, a name nobody else has.

        :param end: one that is only about to be started is not started any more.
        """
        argv = ["sh", "-c", launch_scripts.STARTED, "sh", run_dir.path, "end" if end else ""]
        started = (await self.host.run(argv, timeout=_SHORT)).text
        users = await self.host.run(["sh", "-c", launch_scripts.USERS, "sh", run_dir.path], timeout=_SHORT)
        pids = dict.fromkeys(re.findall(r"(?m)^/proc/(\d+)/cmdline$", users.text))
        found = []
        for pid in dict.fromkeys([*([started] if started else []), *pids]):
            process = await self._named(int(pid), run_dir.path, wait=pid == started)
            if process is None:
                continue
            if process.is_qemu or pid == started or launch_scripts.DETACHED in process.arguments():
                found.append(process)
            else:
                process.close()
        return found

    async def _named(self, pid: int, run_directory: str, *, wait: bool) -> GuestProcess | None:
        """Take hold of a process whose command line names the run directory; ``None``: it is gone, or another.

        :param wait: at the instant at which a process becomes another program its command line is empty.
        """
        for _ in range(_EXEC_LOOKS if wait else 1):
            process = await self.host.process(pid)
            if process is None:
                return None
            words = process.arguments()
            if any(run_directory in word for word in words):
                return process
            process.close()
            if words:
                return None
            await asyncio.sleep(_EXEC_PAUSE_SECONDS)
        return None

    async def is_running(self, run_dir: RunDirectory) -> bool:
        """Tell whether a QEMU of this directory is there.

        :raise HostError: when the host cannot be asked.
        """
        found = await self._find_processes(run_dir)
        for one in found:
            one.close()
        return bool(found)

    async def clear(self, run_dir: RunDirectory) -> None:
        """Remove the run directory of a process that has ended by itself.

        :raise HostError: the host cannot be asked, or the process still lives.
        """
        if await self.is_running(run_dir):
            raise HostError(self.host.name, f"a QEMU still runs in {run_dir.path}, which is left as it is")
        await end_emulator(self.host, run_dir.path, state=False)
        await remove_memory(self.host, run_dir.path)
        await self.remove(run_dir)


def unit_command(run_dir: RunDirectory, argv: Sequence[str], like: LaunchProfile = _AS_WE_ARE) -> list[str]:
    """Return the systemd-run command that starts it as a unit. Pure."""
    # systemd puts the values of variables into a command line; a dollar that is doubled stands for itself.
    return [
        *("systemd-run", "--quiet", "--collect", f"--unit={run_dir.unit}", f"--slice={like.slice}"),
        f"--description={_description(argv)}",
        *("--service-type=exec", "--property=KillMode=mixed", "--property=TasksMax=16384"),
        # A host that goes down stops it only after that unit, which moves guests away: contrib/systemd.
        "--property=Before=migrator-drain.service",
        *(
            f"--property=StandardOutput=append:{run_dir.log}",
            f"--property=StandardError=append:{run_dir.log}",
        ),
        *(f"--property={each}" for each in like.properties),
        "--",
        *(word.replace("$", "$$") for word in argv),
    ]


def _description(argv: Sequence[str]) -> str:
    """Return what lists of units say of it: else systemd puts the command line there, with all of its lines."""
    named = (argv[place + 1] for place, word in enumerate(argv[:-1]) if word in ("-name", "--name"))
    name = next(named, "").split(",")[0].removeprefix("guest=")
    return clean(f"Guest {name}".strip())
