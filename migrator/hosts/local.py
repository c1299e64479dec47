"""The machine the controller runs on, or a network namespace of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
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


class LocalAccess:
    """A host that is this machine; see :class:`~migrator.hosts.access.HostAccess` for what each call promises.

    :param prefix: put before every command: ``("nsenter", "--net=/run/netns/a", "--")``. It has to exec. Sockets and
        processes are those of this machine all the same.
    """

    def __init__(self, name: str, prefix: Sequence[str] = ()) -> None:
        self.name = name
        self._prefix = tuple(prefix)

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

    async def forward(self, socket: str) -> str:
        """Return the path itself."""
        return socket

    async def process(self, pid: int) -> LocalProcess | None:
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


def _memory(content: bytes = b"") -> FileIO:
    file = FileIO(os.memfd_create("migrator"), "w+b")
    file.write(content)
    file.seek(0)
    return file


def _content(file: FileIO) -> bytes:
    # The child shares our offset, so it stands where the child stopped.
    return os.pread(file.fileno(), MAX_OUTPUT_BYTES, 0)
