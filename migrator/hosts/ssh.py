"""A host over SSH."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh

from migrator.errors import HostError
from migrator.hosts.access import Output
from migrator.hosts.host_output import number, reading_output
from migrator.hosts.local import MAX_OUTPUT_BYTES
from migrator.hosts.private_directory import PrivateDirectory
from migrator.hosts.process_watch import READ_PROCESS, SILENCE_SECONDS, ProcessWatch
from migrator.hosts.remote_process import RemoteProcess
from migrator.hosts.socket_helper import SocketHelper
from migrator.hosts.ssh_config import SshConfig
from migrator.hosts.ssh_connection import SshConnection

# What it logs of connections that fail is raised to whoever asked.
logging.getLogger("asyncssh").addHandler(logging.NullHandler())
logging.getLogger("asyncssh").propagate = False

#: Sockets that are forwarded at a time; the one used longest ago is given up for another.
_FORWARDED = 64
#: Seconds that the output of a command that has ended is waited for, where a child keeps it open.
_LAST_OUTPUT_SECONDS = 0.5
#: How often it is tried to open a session; the server may still count some that have ended.
_OPENINGS = 8
#: Seconds that the killing of a command may take.
_KILL_SECONDS = 10.0
#: What the shell of a command says first: its process group. The protocol's own request to kill it is refused by
#: OpenSSH when root is logged in.
_GROUP = re.compile(rb"@group (\d+)\n")
#: Prints pid, start time and boot of the process that began this shell.
_SERVER = (
    "read -r stat </proc/$PPID/stat; read -r boot </proc/sys/kernel/random/boot_id; set -- ${stat##*) }; "
    'echo "$PPID ${20} $boot"'
)
#: Output before it was written by files that the user's shell reads when it starts.
_OUTPUT = b"@output\n"

_Process = asyncssh.SSHClientProcess[bytes]


class SshAccess:
    """A host over SSH; see :class:`~migrator.hosts.access.HostAccess` for what each call promises.

    One connection serves all; it is opened when it is first needed and again after it was lost. The user's shell there
    has to be a POSIX shell, the tools GNU's. Keys are those of the agent and the usual files, or the configured one.
    """

    def __init__(
        self, name: str, config: SshConfig, *, watch_silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        self.name = name
        self.process_script = READ_PROCESS
        self._config = config
        self._connection = SshConnection(
            name, config, in_use=lambda: bool(self._running or self._watch.needed)
        )
        self._sessions = asyncio.Semaphore(config.max_sessions)
        self._directory: PrivateDirectory | None = None
        self._forwarded: OrderedDict[str, tuple[asyncssh.SSHClientConnection, asyncssh.SSHListener, Path]] = (
            OrderedDict()
        )
        self._numbers = 0
        self._watch = ProcessWatch(self, silence_seconds=watch_silence_seconds)
        #: Identity of the server process of a connection.
        self._server: tuple[asyncssh.SSHClientConnection, Mapping[str, Any]] | None = None
        self._sockets = SocketHelper(self)
        self._killing: set[asyncio.Task[None]] = set()
        #: Commands that run now.
        self._running = 0

    def configure(self, config: SshConfig) -> None:
        """Use this configuration from now on.

        A connection that was opened with other keys is given up as soon as no migration, and no command, depends on it.
        """
        old, self._config = self._config, config
        if config.max_sessions != old.max_sessions:  # those that run have their place in the old one
            self._sessions = asyncio.Semaphore(config.max_sessions)
        self._connection.configure(config)

    # --- commands ----------------------------------------------------------------------------------------------------

    async def run(self, argv: Sequence[str], *, timeout: float = 30.0, stdin: bytes = b"") -> Output:
        """Run a command; when it does not end in time its process group there is killed."""
        command = self._quoted(argv)
        try:
            async with asyncio.timeout(timeout), self._sessions:
                process = await self._begin(command)
                self._running += 1
                try:
                    return await self._output(process, argv[0], stdin)
                finally:
                    self._running -= 1
        except TimeoutError as error:
            self._connection.check_often()
            text = (
                f"{argv[0]} did not end within {timeout:g} s; it was killed as far as the host can be reached"
            )
            raise HostError(self.name, text) from error

    def _quoted(self, argv: Sequence[str]) -> bytes:
        if any("\0" in word for word in argv):
            raise HostError(self.name, f"{argv[0]} cannot be started: NUL in its arguments")
        words = " ".join(shlex.quote(word) for word in argv)
        return b"echo @group $$ >&2; echo @output; exec " + os.fsencode(words)

    async def _begin(self, command: bytes) -> _Process:
        """Start a command. What was refused before it began is tried again."""
        for attempt in range(_OPENINGS):
            connection = await self._connection.opened()
            try:
                return await self._create(connection, command)
            except asyncssh.ChannelOpenError as error:
                if error.code == asyncssh.OPEN_REQUEST_SESSION_FAILED or attempt == _OPENINGS - 1:
                    raise HostError(self.name, f"a command cannot be started: {error}") from error
            except (asyncssh.Error, OSError) as error:
                raise HostError(self.name, f"a command cannot be started: {error}") from error
            # The connection was found to be lost, or has as many sessions as the server allows.
            await asyncio.sleep(0.05 * attempt)
        raise AssertionError

    async def _create(self, connection: asyncssh.SSHClientConnection, command: bytes) -> _Process:
        """Begin the command now.

        The command may run there before that is known here: a caller that goes away meanwhile leaves nothing running.
        """

        async def create() -> _Process:
            return await connection.create_process(command, encoding=None)

        creating = asyncio.create_task(create(), name=f"begin a command on {self.name}")
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            self._clear_up(self._kill_new(creating))
            raise

    async def _kill_new(self, creating: asyncio.Task[_Process]) -> None:
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                process = await creating
        except (asyncssh.Error, OSError):
            return  # it has not begun, or nothing can be done there
        _, stderr, read = self._reading(process, "a command")
        await self._kill(process, read, stderr)

    def _reading(
        self, process: _Process, program: str
    ) -> tuple[bytearray, bytearray, list[asyncio.Task[None]]]:
        stdout, stderr = bytearray(), bytearray()
        read = [
            asyncio.create_task(_read(stream, into), name=f"{program} on {self.name}")
            for stream, into in ((process.stdout, stdout), (process.stderr, stderr))
        ]
        return stdout, stderr, read

    async def _output(self, process: _Process, program: str, stdin: bytes) -> Output:
        stdout, stderr, read = self._reading(process, program)
        ended = False
        try:
            try:
                process.stdin.write(stdin)
                process.stdin.write_eof()
            except OSError:
                pass  # it has ended, or its connection: what follows finds out
            while not (ended := _has_ended(process)):
                done, _ = await asyncio.wait(read, timeout=0.05)
                if max(len(stdout), len(stderr)) > MAX_OUTPUT_BYTES:
                    text = f"{program} wrote more than {MAX_OUTPUT_BYTES >> 20} MiB; it was killed"
                    raise HostError(self.name, text)
                if len(done) == len(read):
                    await process.wait_closed()
                    ended = True
                    break
            await asyncio.wait(read, timeout=_LAST_OUTPUT_SECONDS)
        finally:
            if ended:
                process.close()
                await _cancel(read)
            else:
                self._clear_up(self._kill(process, read, stderr))
        if process.returncode is None:
            raise HostError(self.name, f"the SSH connection was lost while {program} ran; it may still run")
        await process.wait_closed()  # the server counts it until then
        _, begun, said = bytes(stdout).partition(_OUTPUT)
        if not begun:
            complaint = " ".join((stdout + stderr).decode(errors="replace").split())[-300:]
            raise HostError(
                self.name, f"its SSH server does not run our commands: {complaint or 'no answer'}"
            )
        return Output(status=process.returncode, stdout=said, stderr=_GROUP.sub(b"", bytes(stderr), count=1))

    async def _kill(self, process: _Process, read: Sequence[asyncio.Task[None]], stderr: bytearray) -> None:
        """Have the process group of a command there killed."""
        try:
            async with asyncio.timeout(_KILL_SECONDS):
                while (
                    not (said := _GROUP.search(stderr))
                    and not _has_ended(process)
                    # Not whether it is closing: that it is from the end of its input on.
                    and not all(each.done() for each in read)
                ):
                    await asyncio.sleep(0.02)
                if said:
                    killer = await self._begin(b"kill -9 -- -" + said[1])
                    await killer.wait_closed()
        except (HostError, TimeoutError):
            pass  # it cannot be reached: that much is promised, and no more
        finally:
            process.close()
            await _cancel(read)

    def _clear_up(self, killing: Coroutine[Any, Any, None]) -> None:
        """Kill in the background; :meth:`close` waits for it."""
        task = asyncio.create_task(killing, name=f"kill a command on {self.name}")
        self._killing.add(task)
        task.add_done_callback(self._killing.discard)

    @asynccontextmanager
    async def stream(
        self, argv: Sequence[str], *, steering: bool = True
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Run a command for as long as the block lasts; its lines as they come. Counts for no limit.

        :param steering: a migration depends on it: that the connection is lost has to be known soon.

        :raise HostError: when the host cannot be reached, or the connection is lost.
        """
        coprocess = await self.coprocess(argv, steering=steering)
        try:
            yield coprocess.lines
        except (asyncssh.Error, OSError) as error:
            raise HostError(self.name, f"the SSH connection was lost: {error}") from error
        finally:
            coprocess.close()

    async def coprocess(self, argv: Sequence[str], *, steering: bool = True) -> SshCoprocess:
        """Begin a command that goes on until it is closed, or its connection is lost. Counts for no limit.

        :param steering: see :meth:`stream`.
        :raise HostError: when the host cannot be reached.
        """
        command = self._quoted(argv)
        await self._connection.opened()
        if steering:
            self._connection.check_often()
        return SshCoprocess(await self._begin(command))

    async def ask_sockets(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """See :meth:`migrator.hosts.access.HostAccess.ask_sockets`."""
        return await self._sockets.ask(request)

    # --- sockets and processes -------------------------------------------------------------------------------------

    async def forward(self, socket: str) -> str:
        """Return a local path that leads to the socket there.

        The path is good until the connection is lost, or until many others were asked for: ask for it before each use.
        """
        connection = await self._connection.opened()
        kept = self._forwarded.pop(socket, None)
        if kept is not None and kept[0] is connection:
            self._forwarded[socket] = kept
            return str(kept[2])
        if kept is not None:
            _give_up(kept[1], kept[2])
        if self._directory is None:
            self._directory = PrivateDirectory()
        self._numbers += 1
        local = self._directory.path / str(self._numbers)
        try:
            listener = await connection.forward_local_path(str(local), os.fsencode(socket))
        except (OSError, asyncssh.Error) as error:
            raise HostError(self.name, f"{socket} cannot be forwarded: {error}") from error
        self._forwarded[socket] = connection, listener, local
        while len(self._forwarded) > _FORWARDED:
            _, (_, old, path) = self._forwarded.popitem(last=False)
            _give_up(old, path)
        return str(local)

    async def client_identity(self) -> Mapping[str, Any]:
        """The server's process of our connection; see :meth:`migrator.hosts.access.HostAccess.client_identity`."""
        connection = await self._connection.opened()
        if self._server is None or self._server[0] is not connection:
            # The server begins every command itself, in the process that also makes connections for us there.
            output = await self.run(["sh", "-c", _SERVER])
            with reading_output(self.name, "the process of our connection"):
                pid, started, boot = output.text.split()
                self._server = (
                    connection,
                    {"pid": number(pid), "start_time": number(started), "boot_id": boot},
                )
        return self._server[1]

    async def process(self, pid: int, read: Output | None = None) -> RemoteProcess | None:
        """See :meth:`migrator.hosts.access.HostAccess.process`."""
        return await self._watch.hold(pid, read)

    async def close(self) -> None:
        """Release the host; what still runs there ends as it does when a connection is lost."""
        await self._watch.close()
        await self._sockets.close()
        if self._killing:
            _, late = await asyncio.wait(set(self._killing), timeout=1.0)
            for task in late:
                task.cancel()
            while self._killing:  # one that was about to begin another leaves that to be killed in its turn
                await asyncio.wait(set(self._killing), timeout=1.0)
                for task in set(self._killing):
                    task.cancel()
        for _, listener, path in self._forwarded.values():
            _give_up(listener, path)
        self._forwarded.clear()
        await self._connection.close()
        if self._directory is not None:
            self._directory.remove()
            self._directory = None


def _give_up(listener: asyncssh.SSHListener, path: Path) -> None:
    listener.close()
    path.unlink(missing_ok=True)


class SshCoprocess:
    """A command that runs at a host beside us: its lines as they come, and what is written to it."""

    def __init__(self, process: _Process) -> None:
        self._process = process
        #: Raises OSError where the connection is lost.
        self.lines = _after_greeting(process.stdout)

    async def exit_status(self) -> int | None:
        """Return its exit status once its output has ended; ``None`` where the connection ended instead."""
        await self._process.wait_closed()
        return self._process.exit_status

    def write(self, data: bytes) -> None:
        """Write to its standard input, without waiting.

        :raise OSError: it has ended, or its connection is lost.
        """
        self._process.stdin.write(data)

    def close(self) -> None:
        """End its input, and it with it."""
        self._process.close()


async def _after_greeting(stream: asyncssh.SSHReader[bytes]) -> AsyncIterator[bytes]:
    begun = False
    try:
        async for line in stream:
            if begun and line:  # the last may be empty
                yield line
            begun = begun or line.endswith(_OUTPUT)
    except asyncssh.Error as error:
        raise ConnectionError(str(error)) from error


def _has_ended(process: _Process) -> bool:
    return process.exit_status is not None or process.exit_signal is not None


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _read(stream: asyncssh.SSHReader[bytes], into: bytearray) -> None:
    """Read all of a stream, or a little more than is allowed."""
    while len(into) <= MAX_OUTPUT_BYTES and (chunk := await stream.read(65536)):
        into += chunk
