"""The machine the controller runs on, or a network namespace of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from io import FileIO
from typing import Any

from migrator import process_sockets
from migrator.errors import HostError
from migrator.hosts.access import Output
from migrator.machine import LocalProcess, child_environment, wait_readable

#: A command that writes more than this, in bytes, is not one of ours: it is killed.
MAX_OUTPUT_BYTES = 8 << 20
#: How often its output is measured, in seconds; it may grow beyond the limit for that long.
_MEASURE_SECONDS = 0.1
#: Seconds that the end of a command may take whose output has ended.
_END_SECONDS = 5.0


class LocalAccess:
    """A host that is this machine; see :class:`~migrator.hosts.access.HostAccess` for what each call promises.

    :param prefix: put before every command: ``("nsenter", "--net=/run/netns/a", "--")``. It has to exec. Sockets and
        processes are those of this machine all the same.
    """

    def __init__(self, name: str, prefix: Sequence[str] = ()) -> None:
        self.name = name
        self.process_script = ""
        self._prefix = tuple(prefix)

    @property
    def prefix(self) -> tuple[str, ...]:
        """Return what is put before every command."""
        return self._prefix

    async def run(self, argv: Sequence[str], *, timeout: float = 30.0, stdin: bytes = b"") -> Output:
        """Run a command; one that does not end in time is killed with the children that stayed in its group.

        A program that is not there is no :class:`HostError` but status 127, as with a shell.
        """
        command = [*self._prefix, *argv]
        # Files in memory instead of pipes: a daemon that keeps them open does not make its starter look unfinished.
        with _memory(stdin) as input_, _memory() as stdout, _memory() as stderr:
            try:
                child = subprocess.Popen(  # noqa: ASYNC220 - returns once it has exec'ed; what waits is below
                    command,
                    stdin=input_,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                    env=child_environment(os.environ),
                )
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                return Output(status=127, stdout=b"", stderr=f"{command[0]}: {error.strerror}".encode())
            except (OSError, ValueError) as error:  # too long; NUL in it
                raise HostError(self.name, f"{command[0]} cannot be started: {error}") from error
            try:
                await self._wait(child, argv[0], timeout, (stdout.fileno(), stderr.fileno()))
            finally:
                if child.returncode is None:
                    os.killpg(child.pid, signal.SIGKILL)  # it is not reaped yet, so the group is its own
                    child.wait()
            return Output(status=child.returncode, stdout=_content(stdout), stderr=_content(stderr))

    async def _wait(
        self, child: subprocess.Popen[bytes], program: str, timeout: float, outputs: tuple[int, int]
    ) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        pidfd = os.pidfd_open(child.pid)
        try:
            ended = False
            while not ended:
                ended = await wait_readable(pidfd, min(_MEASURE_SECONDS, max(0.0, deadline - loop.time())))
                if sum(os.fstat(fd).st_size for fd in outputs) > MAX_OUTPUT_BYTES:
                    raise HostError(
                        self.name, f"{program} wrote more than {MAX_OUTPUT_BYTES >> 20} MiB; it was killed"
                    )
                if not ended and loop.time() >= deadline:
                    raise HostError(self.name, f"{program} did not end within {timeout:g} s; it was killed")
        finally:
            os.close(pidfd)
        child.wait()

    async def coprocess(self, argv: Sequence[str]) -> LocalCoprocess:
        """Begin a command in a session of its own, that goes on until it ends by itself: its input does when we do.

        Without the prefix: it is of this machine, whichever network its host has.
        """
        try:
            return await LocalCoprocess.begin(argv)
        except OSError as error:
            raise HostError(self.name, f"{argv[0]} cannot be started: {error.strerror}") from error

    async def forward(self, socket: str) -> str:
        """Return the path itself."""
        return socket

    async def process(self, pid: int, read: Output | None = None) -> LocalProcess | None:  # noqa: ARG002 - the kernel tells
        """Return a handle on a process by its pidfd; ``None`` when there is none of that pid."""
        try:
            return LocalProcess(pid)
        except ProcessLookupError:
            return None

    async def client_identity(self) -> Mapping[str, Any]:
        """Return the identity of this process, which is the client."""
        process = LocalProcess(os.getpid())
        try:
            return process.identity
        finally:
            process.close()

    async def ask_sockets(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have a request about sockets answered in this process: that takes less than a millisecond."""
        return process_sockets.answer(dict(request))

    async def close(self) -> None:
        """Do nothing: no connection is held."""


class LocalCoprocess:
    """A command that runs beside us: its lines as they come, and what is written to it. It outlives us."""

    def __init__(self, pid: int, input_: int, reader: asyncio.StreamReader) -> None:
        self.pid, self._input = pid, input_
        self.lines: AsyncIterator[bytes] = reader
        self._transport: asyncio.BaseTransport | None = None
        self._status: int | None = None

    @classmethod
    async def begin(cls, argv: Sequence[str]) -> LocalCoprocess:
        """Start it.

        :raise OSError: it cannot be started.
        """
        _reap_closed()
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        try:
            pid = os.posix_spawnp(  # noqa: ASYNC221 - returns once it has exec'ed
                argv[0],
                list(argv),
                child_environment(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs_in, 0),
                    (os.POSIX_SPAWN_DUP2, theirs_out, 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,
            )
        except BaseException:  # whatever it was: no descriptor stays open; raised again
            os.close(ours_in)
            os.close(ours_out)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        os.set_blocking(ours_in, False)
        reader = asyncio.StreamReader()
        made = cls(pid, ours_in, reader)
        protocol = asyncio.StreamReaderProtocol(reader)
        made._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: protocol, os.fdopen(ours_out, "rb", buffering=0)
        )
        return made

    async def exit_status(self) -> int | None:
        """Return its exit status once its output has ended."""
        if self.reap() is not None:
            return self._status
        pidfd = os.pidfd_open(self.pid)
        try:
            await wait_readable(pidfd, _END_SECONDS)
        finally:
            os.close(pidfd)
        return self.reap()

    def reap(self) -> int | None:
        """Return its exit status, ``None`` while it runs; it is gone from the table of processes then."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def write(self, data: bytes) -> None:
        """Write to its standard input, without waiting.

        :raise OSError: it has ended, or does not read.
        """
        if os.write(self._input, data) < len(data):
            raise BlockingIOError

    def close(self) -> None:
        """End its input; it ends when it has nothing left to do."""
        if self._input >= 0:
            os.close(self._input)
            self._input = -1
            # Whoever ends without having been waited for stays in the table of processes until the next one begins.
            _closed.append(self)
        if self._transport is not None:
            self._transport.close()


#: Those whose end was not waited for.
_closed: list[LocalCoprocess] = []


def _reap_closed() -> None:
    _closed[:] = [each for each in _closed if each.reap() is None]


def _memory(content: bytes = b"") -> FileIO:
    file = FileIO(os.memfd_create("migrator"), "w+b")
    file.write(content)
    file.seek(0)
    return file


def _content(file: FileIO) -> bytes:
    # The child shares our offset, so it stands where the child stopped.
    return os.pread(file.fileno(), MAX_OUTPUT_BYTES, 0)
