"""Both ends of a move in which the guest is shut down at the source and started anew at the target.

They show that move as a migration: the source copies until its guest is off, is at its switch then, and has completed
once its process is gone; the destination has completed once it has a QEMU that waits to be let run. So the rules that
keep a guest from running twice, or not at all, are those of every migration.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from typing import Any

from migrator.core.cold_start import BUTTON_SECONDS, not_shut_down
from migrator.core.model import MigrationStatus, ProcessState, RunState, View
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.core.preflight.stream_tls import StreamTls
from migrator.errors import HostError, MigratorError, QemuError
from migrator.ports import GuestProcess, QemuEvent
from migrator.ports.disk_mirrors import DiskMirroring
from migrator.ports.qemu import GuestConfiguration, MigrationSettings
from migrator.ports.unmonitored_end import UnmonitoredEnd
from migrator.qemu.source import SourceEndpoint

#: Key of an end's identity that says that it is one of these.
KEY = "cold"
#: Seconds that a look may take on which something rests.
_LOOK_SECONDS = 5.0
#: An end that can be asked, and whose process lives; what it shows is filled in.
_ALIVE = View(process=ProcessState.ALIVE, answers=True, can_fence=True)

S, R = MigrationStatus, RunState


class ColdEnd(UnmonitoredEnd):
    """A QEMU, which may become another, as an end of a migration without a stream.

    :ivar end: the QEMU that it is now.
    """

    def __init__(self, end: SourceEndpoint) -> None:
        super().__init__()
        self.end = end
        self._notify: Callable[[], None] = lambda: None
        #: What went wrong, in words.
        self.problem = ""

    def become(self, end: SourceEndpoint) -> None:
        """Be another QEMU from now on."""
        self.end = end
        end.on_change(self._notify)

    @property
    def name(self) -> str:  # type: ignore[override]  # of the QEMU that it is now
        return self.end.name

    @property
    def address_text(self) -> str:
        return self.end.address_text

    @property
    def shares_clock(self) -> bool:
        return self.end.shares_clock

    @property
    def round_trip_seconds(self) -> float:
        return self.end.round_trip_seconds

    @property
    def least_round_trip_seconds(self) -> float:
        return self.end.least_round_trip_seconds

    @property
    def connected(self) -> bool:
        return self.end.connected

    @property
    def process(self) -> GuestProcess | None:
        return self.end.process

    @property
    def mirroring(self) -> DiskMirroring:
        return self.end.mirroring

    def on_change(self, callback: Callable[[], None]) -> None:
        self._notify = callback
        self.end.on_change(callback)

    def take_events(self) -> Sequence[QemuEvent]:
        return self.end.take_events()

    async def disk_users(self) -> DiskUsers:
        return await self.end.disk_users()

    async def facts(self) -> Facts:
        return await self.end.facts()

    async def claim(self, migration: str, *, was: Mapping[str, Any] | None = None) -> None:
        await self.end.claim(migration, was=was)

    async def release(self) -> None:
        await self.end.release()

    async def encrypt(self, migration: str, tls: StreamTls) -> None:
        """Encrypt what is copied of disks."""
        await self.end.encrypt(migration, tls)

    async def do_not_encrypt(self) -> None:
        await self.end.do_not_encrypt()

    async def forget_encryption(self) -> None:
        if not self.end.dead:
            await self.end.forget_encryption()

    async def announce(self) -> None:
        await self.end.announce()

    async def quit(self, *, timeout: float = 5.0) -> bool:
        return self.end.dead or await self.end.quit(timeout=timeout)

    async def fence(self) -> bool:
        return self.end.dead or await self.end.fence()

    async def configuration(self, arguments: Sequence[str]) -> GuestConfiguration:
        return await self.end.configuration(arguments)

    async def naming_options(self) -> Sequence[str]:
        return await self.end.naming_options()

    def stderr_tail(self) -> str:
        return self.problem or self.end.stderr_tail()

    async def close(self) -> None:
        await self.end.close()


class _Phase(Enum):
    #: Its guest was not asked for anything.
    IDLE = auto()
    #: It was asked to shut down.
    ASKED = auto()
    #: It is off, and its QEMU is being ended, or has ended.
    ENDED = auto()
    #: It goes on here.
    BACK = auto()


class ColdSource(ColdEnd):
    """The source; implements :class:`migrator.ports.ColdSourceEnd`.

    :param migration: for which its guest is shut down.
    :param command: starts its QEMU again, should it have to be.
    :param restart: does so, and returns a QEMU that does not let its guest run yet.
    :param local: leads to a socket of its host.
    :param seconds: within which the guest has to shut down.
    :param by_force: its QEMU is ended where it does not.
    :param stays: its QEMU goes on when the guest has shut down, whoever asked for that.
    """

    def __init__(
        self,
        end: SourceEndpoint,
        *,
        migration: str,
        command: Sequence[str],
        restart: Callable[[Sequence[str]], Awaitable[SourceEndpoint]],
        local: Callable[[str], Awaitable[str]],
        seconds: float,
        by_force: bool,
        stays: bool,
    ) -> None:
        super().__init__(end)
        self._migration, self._command, self._restart = migration, list(command), restart
        self._local, self._seconds, self._by_force, self._stays = local, seconds, by_force, stays
        self._phase, self._status = _Phase.IDLE, S.NONE
        self._asked_at = 0.0
        self._button = False
        #: Its guest is elsewhere, and it is started again by nobody.
        self._retired = False
        self._heard: list[QemuEvent] = []
        #: Has the destination begin once this one has ended; see :meth:`ColdDestination.begin`.
        self.begin_there: Callable[[], Awaitable[None]] | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        own = {
            "migration": self._migration,
            "command": self._command,
            "seconds": self._seconds,
            "stays": self._stays,
        }
        return {**self.end.identity, KEY: own}

    async def find_phase(self, *, back: bool) -> None:
        """Find out how far another controller came.

        :param back: its QEMU is one that was started again.
        :raise QemuError: it cannot be asked.
        """
        if back:
            self._phase = _Phase.BACK
        elif self.end.dead:
            self._phase = _Phase.ENDED
        elif self.end.connected and await self.end.was_asked():
            self._phase, self._status, self._asked_at = _Phase.ASKED, S.ACTIVE, time.monotonic()
            self._button = True

    async def facts(self) -> Facts:
        """Facts of a guest that nothing keeps from being started anew."""
        return replace(await self.end.facts(), blockers=())

    async def migrate(self, uri: str) -> None:  # noqa: ARG002 - nothing is sent
        await self.end.stay_after_shutdown(stays=True)
        await self.end.mark_asked(self._migration)
        self._phase, self._status, self._asked_at = _Phase.ASKED, S.ACTIVE, time.monotonic()
        # It is away for whoever uses it from here on, not only once it is off.
        self._heard.append(QemuEvent(name="STOP", arrived=time.monotonic(), stamped=time.time(), data={}))
        how = await self.end.power_down(self._local)
        self._button = "button" in how

    def take_events(self) -> Sequence[QemuEvent]:
        found = [each for each in self.end.take_events() if each.name != "STOP" or self._phase is _Phase.IDLE]
        heard, self._heard = self._heard, []
        return [*heard, *found]

    async def observe(self, *, timeout: float = 1.0) -> View:
        view = await self.end.observe(timeout=timeout)
        if self._phase in (_Phase.IDLE, _Phase.BACK):
            return replace(view, error=self.problem) if self.problem else view
        if view.process is ProcessState.DEAD and self._retired:
            return view
        if view.process is ProcessState.DEAD:
            return replace(_ALIVE, run=R.POSTMIGRATE, status=S.COMPLETED, error=self.problem)
        if not view.answers:
            return view
        if self._phase is _Phase.ENDED:
            return replace(view, run=R.FINISH_MIGRATE, status=S.DEVICE, sample=None)
        if view.run is R.SHUTDOWN or (view.run is R.PAUSED and self._forces):
            return replace(view, run=R.FINISH_MIGRATE, status=S.PRE_SWITCHOVER, sample=None)
        await self._wait_on()
        return replace(view, status=self._status, sample=None, error=self.problem)

    @property
    def _waited_seconds(self) -> float:
        return time.monotonic() - self._asked_at

    @property
    def _forces(self) -> bool:
        return self._by_force and self._waited_seconds > self._seconds

    async def _wait_on(self) -> None:
        """Do what is due while the guest has not shut down yet."""
        try:
            if not self._button and self._waited_seconds > BUTTON_SECONDS:
                self._button = True
                await self.end.power_down(None)
            if self._forces:
                await self.end.stop()
        except QemuError as error:
            self.problem = str(error)
        if self._waited_seconds > self._seconds and not self._by_force and self._status is S.ACTIVE:
            self._status = S.FAILED
            late = not_shut_down(self._seconds)
            self.problem = f"{late.message} ({late.remedy})"

    async def switch(self) -> None:
        """End its QEMU, whose guest is off: from then on its disks can be opened elsewhere."""
        self._phase = _Phase.ENDED
        if not await self.end.quit():
            raise QemuError(self.name, "it does not end")
        if self.begin_there is not None:
            await self.begin_there()

    async def cancel(self) -> None:
        """Have a guest that is off boot again; one that was asked is waited for: it may shut down any moment.

        None is ended by force any more.
        """
        self._by_force = False
        view = await self.end.observe(timeout=_LOOK_SECONDS)
        if self._phase is _Phase.ASKED and view.answers and view.run in (R.SHUTDOWN, R.PAUSED):
            await self.cont()

    async def cont(self) -> None:
        """Have the guest go on here: boot again where it is off, by a QEMU that is started again where that is gone."""
        if self.end.dead:
            try:
                again = await self._restart(self._command)
            except HostError as error:
                self.problem = str(error)
                raise QemuError(self.name, str(error)) from error
            await self.end.close()
            self.become(again)
            await again.claim(self._migration)
            await again.cont()
        elif (view := await self.end.observe(timeout=_LOOK_SECONDS)).run is R.SHUTDOWN:
            await self.end.boot_again()
        elif not view.answers:
            raise QemuError(self.name, "whether its guest is off cannot be told")
        else:
            await self.end.cont()
        self._phase, self._status = _Phase.BACK, S.NONE

    async def quit(self, *, timeout: float = 5.0) -> bool:
        gone = await super().quit(timeout=timeout)
        self._retired = self._retired or gone
        return gone

    async def fence(self) -> bool:
        gone = await super().fence()
        self._retired = self._retired or gone
        return gone

    async def stop(self) -> None:
        await self.end.stop()

    async def restore(self, settings: MigrationSettings) -> None:  # noqa: ARG002 - there are none
        """Have its QEMU end with its guest again, where it did before."""
        if not self.end.dead:
            await self.end.stay_after_shutdown(stays=self._stays)
            await self.end.forget_asked()


class ColdDestination(ColdEnd):
    """The destination.

    :param end: waits for a migration: it shows that one like it can be started.
    :param start: starts one in its place whose guest boots, and returns that, which does not let it run yet; ``None``:
        another controller began it, and it is not begun any more.
    """

    def __init__(self, end: SourceEndpoint, *, start: Callable[[], Awaitable[SourceEndpoint]] | None) -> None:
        super().__init__(end)
        self._start = start
        self._failed = False
        #: The one that waited has ended, and no other was started that anybody would let run.
        self._gone = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**self.end.identity, KEY: {}}

    async def listen(self, uri: str) -> str:
        return uri

    async def begin(self) -> None:
        """Have it be one whose guest boots. Never raises; where it cannot be, it is as one that has failed."""
        if self._start is None or not await self.end.quit():
            self._failed = True
            return
        try:
            self.become(await self._start())
        except MigratorError as error:
            self._gone, self.problem = True, str(error)

    async def observe(self, *, timeout: float = 1.0) -> View:
        if self._gone:
            return View(process=ProcessState.DEAD, error=self.problem)
        view = await self.end.observe(timeout=timeout)
        if not view.answers:
            return replace(view, error=self.problem)
        if view.run is R.INMIGRATE:
            waits = self._start is not None and not self._failed
            return replace(view, status=S.ACTIVE if waits else S.FAILED, error=self.problem)
        return replace(view, status=S.COMPLETED)

    async def quit(self, *, timeout: float = 5.0) -> bool:
        return self._gone or await super().quit(timeout=timeout)

    async def fence(self) -> bool:
        return self._gone or await super().fence()

    async def cont(self) -> None:
        await self.end.cont()

    async def stop(self) -> None:
        await self.end.stop()

    async def was_run(self) -> bool:
        return await self.end.was_run()
