"""Access to a host: the few operations that everything else about hosts is made of."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from migrator.errors import HostError
from migrator.ports import GuestProcess


@dataclass(frozen=True, kw_only=True)
class Output:
    """Output and exit status of a command on a host."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, bytes that are no UTF-8 escaped."""
        return self.stdout.decode(errors="surrogateescape")

    @property
    def complaint(self) -> str:
        """The end of its standard error as one line, for a message."""
        return " ".join(self.stderr.decode(errors="replace").split())[-500:]


class Coprocess(Protocol):
    """A command that runs at a host beside us."""

    lines: AsyncIterator[bytes]

    async def exit_status(self) -> int | None:
        """Return its exit status once its output has ended."""

    def write(self, data: bytes) -> None:
        """Write to its standard input, without waiting."""

    def close(self) -> None:
        """End it."""


class CoprocessRunner(Protocol):
    """Host on which such commands run."""

    name: str

    async def coprocess(self, argv: Sequence[str]) -> Coprocess:
        """Begin one; raises :class:`~migrator.errors.HostError` when the host cannot be reached."""


class HostAccess(Protocol):
    """One host. Every call raises :class:`~migrator.errors.HostError` when the host cannot be reached in time."""

    name: str
    #: Script that reads what :meth:`process` must know of the process of its only argument; empty where it needs none.
    process_script: str

    async def run(self, argv: Sequence[str], *, timeout: float = 30.0, stdin: bytes = b"") -> Output:
        """Run a command there and wait for its end. Never through a shell that would read `argv`: any byte but NUL may
        stand in it.

        A command that does not end in time is killed there, as far as the host can be reached.
        """

    async def coprocess(self, argv: Sequence[str]) -> Coprocess:
        """Begin a command there that goes on beside us; its input ends when we do, or the connection.

        :raise HostError: also when it cannot be started.
        """

    async def forward(self, socket: str) -> str:
        """Return a local path at which that host's unix socket can be connected to; kept until :meth:`close`."""

    async def process(self, pid: int, read: Output | None = None) -> GuestProcess | None:
        """Return a handle on a process there; ``None`` when there is none of that pid.

        :param read: what :attr:`process_script` said of it a moment ago, in a command that had something else to do.
        """

    async def client_identity(self) -> Mapping[str, Any]:
        """The process of that host that holds our connections to sockets there: ``pid``, ``start_time``, ``boot_id``.

        Of this machine it is this process, over SSH the server's process of our connection: another one after each
        reconnection.
        """

    async def ask_sockets(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have a request about sockets of a process there answered: see :func:`migrator.process_sockets.answer`.

        What the rights there do not allow stands in the answer.
        """

    async def close(self) -> None:
        """Release the connection to the host."""


@dataclass(frozen=True, kw_only=True)
class HostCommand:
    """A command for a host, that only reads."""

    argv: Sequence[str]
    stdin: bytes = b""


async def run_together(
    access: HostAccess, commands: Sequence[HostCommand], *, timeout: float
) -> list[Output]:
    """Run commands one after the other by one command, as the way to another host is longer than they are.

    :return: the output of each; all have the same standard error.
    :raise HostError: the host cannot be asked, or not all of them were run.
    """
    import shlex  # noqa: PLC0415 - not of hosts that are here

    script = ""
    for command in commands:
        words = " ".join(shlex.quote(word) for word in command.argv)
        script += f"{{ base64 -d <<'@' | {words}; printf 'status %s' $?; }} | base64 -w 0; echo\n"
        script += f"{base64.b64encode(command.stdin).decode()}\n@\n"
    done = await access.run(["sh", "-s"], stdin=os.fsencode(script), timeout=timeout)
    found = [read_besides(line) for line in done.stdout.split(b"\n")[:-1]]
    outputs = [replace(each, stderr=done.stderr) for each in found if each is not None]
    if len(outputs) != len(commands):
        raise HostError(access.name, f"it cannot be looked at: {done.complaint or 'no answer'}")
    return outputs


def also_read_process(script: str) -> str:
    """Return what a script may end with to read the process $p besides, in one line; empty where `script` is.

    :param script: :attr:`HostAccess.process_script`.
    """
    return f"set -- \"$p\"\n{{ ({script}); printf 'status %s' $?; }} | base64 -w 0\n" if script else ""


def read_besides(line: bytes) -> Output | None:
    """Return the output of the script of :func:`also_read_process` from its line; ``None``: it is no such line."""
    try:
        stdout, _, status = base64.b64decode(line, validate=True).rpartition(b"status ")
        return Output(status=int(status), stdout=stdout, stderr=b"")
    except (binascii.Error, ValueError):
        return None
