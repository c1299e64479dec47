"""The process behind a monitor: identified once, and from then on no other is accepted in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from migrator.core.model import ProcessState
from migrator.errors import HostError, MigratorError, QemuError
from migrator.machine import LocalProcess, describes, is_gone
from migrator.ports import GuestProcess
from migrator.qemu.transport import MonitorTransport


class ProcessHandle:
    """A handle on the process of one end.

    :param name: of the end, for messages.
    :param pid: on this machine, where the monitor's address does not tell it.
    :param transport: to the monitor of another host; ``None`` for a monitor that this machine reaches by itself.
    """

    def __init__(self, name: str, *, pid: int | None, transport: MonitorTransport | None) -> None:
        self.process: GuestProcess | None = None
        #: Proven dead otherwise than by its process.
        self.gone = False
        self._name = name
        self._pid = pid
        self._transport = transport
        #: Of the process that is meant, where that is known and it could not be taken hold of yet.
        self._expected: Mapping[str, Any] = {}

    @property
    def state(self) -> ProcessState:
        """Alive, dead or unknown, as far as that can be told now."""
        alive = None if self.process is None else self.process.alive
        if self.gone or alive is False:
            return ProcessState.DEAD
        return ProcessState.ALIVE if alive else ProcessState.UNKNOWN

    @property
    def identity(self) -> Mapping[str, Any]:
        """Identity of the process (pid, start time, boot); empty while no process is known."""
        return self.process.identity if self.process else {}

    @property
    def is_local(self) -> bool:
        """True where the process runs on this machine."""
        return isinstance(self.process, LocalProcess)

    async def verify(self, peer: int | None) -> None:
        """Find out whose session was opened, after every attempt to open one.

        :param peer: pid at the other end of the monitor's socket; not used where a transport leads there.
        :raise QemuError: another process answers there than the one that is held: the session must not be used.
        :raise HostError: the host cannot be asked.
        """
        if self._transport is None:
            pid = peer or self._pid
            if self.process is None and pid is not None:
                try:
                    self._take(LocalProcess(pid))
                except ProcessLookupError:
                    pass  # it has ended since
        else:
            pid = await self._transport.listener_pid()
            if self.process is None and self._expected:
                await self._take_expected(self._transport)
            elif self.process is None and pid is not None:
                process = await self._transport.find_process(pid)
                if process is not None:
                    self._take(process)
        meant = self.process.pid if self.process is not None else self._expected.get("pid")
        if pid is not None and meant is not None and (self.gone or pid != meant):
            raise QemuError(
                self._name, f"pid {pid} answers there, not the process that is meant (pid {meant})"
            )

    def _take(self, process: GuestProcess) -> None:
        if process.is_qemu:
            self.process = process
        else:
            process.close()

    async def _take_expected(self, transport: MonitorTransport) -> None:
        process = await transport.find_process(int(self._expected["pid"]))
        if process is None:
            self.gone = True
        elif describes(self._expected, process.identity):
            self.process = process
        else:
            process.close()
            self.gone = True

    def expect(self, identity: Mapping[str, Any]) -> None:
        """Bind to the process of this machine that a record speaks of; one that is gone is then known to be dead.

        :raise MigratorError: when another is held already.
        """
        if not identity:
            return
        self._refuse_another(identity)
        if is_gone(identity):
            self.gone = True
        elif self.process is None:
            self.process = LocalProcess(int(identity["pid"]))

    async def expect_remote(self, identity: Mapping[str, Any]) -> None:
        """Bind to the process that a record speaks of, on whatever host it is.

        While its host cannot be asked nothing is known of the process, and no other is accepted later.

        :raise MigratorError: when another is held already.
        """
        if self._transport is None:
            self.expect(identity)
            return
        if not identity:
            return
        self._refuse_another(identity)
        self._expected = identity
        if self.process is None:
            try:
                await self._take_expected(self._transport)
            except HostError:
                pass  # it stays unknown

    def _refuse_another(self, identity: Mapping[str, Any]) -> None:
        if self.process is not None and not describes(identity, self.process.identity):
            raise MigratorError(
                f"{self._name}: another process (pid {self.process.pid}) answers there than the one that the "
                f"record speaks of (pid {identity['pid']}); end that one, or use its own address"
            )

    def close(self) -> None:
        """Release the process; it is left alone."""
        if self.process is not None:
            self.process.close()
            self.process = None
