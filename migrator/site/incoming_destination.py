"""A QEMU that waits at a target: greeted, looked at, and discarded unless a guest has arrived in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from migrator.core.model import Finding, MigrationStatus, ProcessState, RunState, View
from migrator.errors import HostError, QemuError, Unreachable
from migrator.hosts.launch import Launcher, LaunchProfile
from migrator.hosts.run_directories import RunDirectory, finish_cleanup
from migrator.ports import GuestProcess, Qemu
from migrator.qemu.endpoint import Endpoint
from migrator.qemu.source import SourceEndpoint
from migrator.site.connections import HostConnections

#: Seconds that a QEMU may take to greet, once it is known to run.
_GREETING_SECONDS = 2.0
#: Seconds that one may be silent that is to be discarded; the way to it may have to be opened again.
_ANSWER_SECONDS = 4.0


class WaitingQemu:
    """Implements :class:`migrator.ports.IncomingDestination`.

    :param run_dir: where it lives, if it was started by us.
    :param rescue: makes an end of its other monitor, for when the first is silent.
    :param notes: what is not the same as at the source, and does not concern the guest.
    :param new_images: disks whose images were made for it.
    :param anew: starts another in its directory once it has ended; see :meth:`start_anew`.
    """

    def __init__(
        self,
        qemu: SourceEndpoint,
        *,
        listen: str,
        socket: str,
        launcher: Launcher | None = None,
        run_dir: RunDirectory | None = None,
        rescue: Callable[[], Endpoint] | None = None,
        notes: tuple[Finding, ...] = (),
        new_images: tuple[str, ...] = (),
        anew: Callable[[], Awaitable[SourceEndpoint]] | None = None,
    ) -> None:
        self._qemu, self._listen, self._socket, self._rescue = qemu, listen, socket, rescue
        self._launcher, self._run_dir = launcher, run_dir
        self.notes, self.new_images, self._anew = notes, new_images, anew

    @property
    def qemu(self) -> Qemu:
        """Connected; ``inmigrate``."""
        return self._qemu

    @property
    def end(self) -> SourceEndpoint:
        """The same, with what the site does to it before the guest comes."""
        return self._qemu

    @property
    def listen(self) -> str:
        """Where it shall take the stream."""
        return self._listen

    @property
    def socket(self) -> str:
        """Path of its QMP socket on its host."""
        return self._socket

    async def start_anew(self) -> SourceEndpoint:
        """Start another in its place, now that it has ended: that waits for no guest, and boots its own once it is let
        run.

        :raise HostError: it was started by somebody else, or does not start; then nothing but the log is left.
        """
        if self._anew is None or self._launcher is None or self._run_dir is None:
            raise HostError(
                "the target", f"{self._qemu.name} was not started by us, and cannot be started anew"
            )
        await self._qemu.close()
        await self._launcher.forget_end(self._run_dir)
        self._qemu = await self._anew()
        return self._qemu

    async def discard(self, *, images: bool = False) -> None:
        """End the process if it still waits, and remove what was made for it but its log; its monitor is closed.

        :param images: see :meth:`migrator.ports.IncomingDestination.discard`.

        :raise HostError: it could not be ended, or nobody can tell whether it waits: it does not answer.
        """
        try:
            view = await self._look()
            if view.answers and not _waits(view.run, view.status):
                return  # the guest has arrived in it
            if self._launcher is None or self._run_dir is None:
                if view.answers:
                    await self._qemu.quit()
                return
            silent = not view.answers and view.process is not ProcessState.DEAD
            if silent and await self._launcher.is_running(self._run_dir):
                raise HostError(
                    self._launcher.host.name,
                    f"{self._qemu.name} does not answer, so whether a guest is in it cannot be told; look at it, "
                    f"then end it and remove {self._run_dir.path}",
                )
            await self._launcher.discard(self._run_dir, self._qemu.process, images=images)
        finally:
            await self._qemu.close()

    async def _look(self) -> View:
        """Look at it by its monitor, or by the other one where somebody holds that, or the transport has broken."""
        view = await self._qemu.observe(timeout=1.0)
        deadline = time.monotonic() + _ANSWER_SECONDS
        if self._launcher is None or self._run_dir is None or self._rescue is None:
            return view
        if not view.answers and not await self._launcher.is_running(self._run_dir):
            return view
        rescue = self._rescue()
        try:
            while not (view.answers or view.process is ProcessState.DEAD or time.monotonic() > deadline):
                view = await rescue.observe(timeout=1.0)
                if not view.answers and view.process is not ProcessState.DEAD:
                    view = await self._qemu.observe(timeout=1.0)
        finally:
            await rescue.close()
        return view


_HOLDS_A_GUEST = frozenset(
    {
        MigrationStatus.COMPLETED,
        MigrationStatus.POSTCOPY_DEVICE,
        MigrationStatus.POSTCOPY_ACTIVE,
        MigrationStatus.POSTCOPY_PAUSED,
        MigrationStatus.POSTCOPY_RECOVER_SETUP,
        MigrationStatus.POSTCOPY_RECOVER,
    }
)


def _waits(run: RunState, status: MigrationStatus) -> bool:
    """No guest is in it, or only a part of one that runs elsewhere: not where postcopy has begun, whatever it shows.

    Nor where it was to boot one, and was never let run.
    """
    if run is RunState.PRELAUNCH and status is MigrationStatus.NONE:
        return True
    return run is RunState.INMIGRATE and status not in _HOLDS_A_GUEST


async def require_incoming(qemu: Endpoint) -> None:
    """:raise QemuError: it does not wait for a guest."""
    view = await qemu.observe(timeout=_GREETING_SECONDS)
    if view.answers and view.run is not RunState.INMIGRATE:
        raise QemuError(
            qemu.name, f"it does not wait for a guest (run state {view.run}): start it with -incoming defer"
        )


async def connect_when_up(
    qemu: Endpoint,
    launcher: Launcher,
    run_dir: RunDirectory,
    process: GuestProcess | None,
    program: str,
    *,
    incoming: bool = True,
) -> None:
    """Connect; returns once it is seen to wait.

    :param incoming: it waits for a guest; else only to be let run.

    :raise HostError: it has ended, or does not answer in time.
    """
    deadline = time.monotonic() + launcher.timeout_seconds
    while True:
        try:
            await qemu.connect(timeout=_GREETING_SECONDS)
            if incoming:
                await require_incoming(qemu)
        except Unreachable as error:
            if process is not None and process.alive is False:
                raise HostError(launcher.host.name, await launcher.explain_exit(run_dir, program)) from error
            if time.monotonic() > deadline:
                words = await launcher.log_tail(run_dir)
                said = f"; it said: {words}" if words else ""
                raise HostError(launcher.host.name, f"{program} was started, but {error}{said}") from error
            await asyncio.sleep(0.05)
        else:
            return


async def clear_away(launcher: Launcher, run_dir: RunDirectory, qemu: Endpoint) -> None:
    """Remove one that was started and did not come to wait, with all that was made for it but its log."""
    process = qemu.process  # closed only once it has been killed
    try:
        await launcher.discard(run_dir, process, images=True)
    finally:
        await qemu.close()


async def start_to_run(
    connections: HostConnections,
    launcher: Launcher,
    run_dir: RunDirectory,
    argv: Sequence[str],
    *,
    control: str,
    role: str,
    like: LaunchProfile | None = None,
) -> SourceEndpoint:
    """Start a QEMU whose guest boots once it is let run; it is not let run yet.

    :param argv: without what has it wait.
    :param control: path of its monitor.
    :raise HostError: it does not start; nothing but its log is left.
    """
    host, own = launcher.host.name, [*argv, "-S", "-pidfile", run_dir.pid_file]
    with connections.starting(host, run_dir.path):
        process = await launcher.start(run_dir, own, like=like or LaunchProfile())
    end = connections.endpoint(host, control, role=role, listener=process)
    try:
        await connect_when_up(end, launcher, run_dir, process, argv[0], incoming=False)
    except BaseException:  # cancelled too: nothing is left at the host; raised again
        await finish_cleanup(clear_away(launcher, run_dir, end), name=f"clear {run_dir.path}")
        raise
    finally:
        if process is not None:
            process.close()
    return end
