"""Access to a host: the few operations that everything else about hosts is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


class HostAccess(Protocol):
    """One host. Every call raises :class:`~migrator.errors.HostError` when the host cannot be reached in time."""

    name: str

    async def run(self, argv: Sequence[str], *, timeout: float = 30.0, stdin: bytes = b"") -> Output:
        """Run a command there and wait for its end. Never through a shell that would read `argv`: any byte but NUL may
        stand in it.

        A command that does not end in time is killed there, as far as the host can be reached.
        """

    async def forward(self, socket: str) -> str:
        """Return a local path at which that host's unix socket can be connected to; kept until :meth:`close`."""

    async def process(self, pid: int) -> GuestProcess | None:
        """Return a handle on a process there; ``None`` when there is none of that pid."""

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
