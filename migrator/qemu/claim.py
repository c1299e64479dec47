"""The right to change a QEMU: one controller has it at a time, and its mark says who.

Whoever is about to change a QEMU adds the mark first. Of two who do so at once one fails, as no QEMU has two marks of
one name. A mark is taken over only by the rule of :func:`migrator.core.migration.drivers.may_follow`; who takes one
over holds a mark of that name first, so that of several who see the same dead owner one alone replaces him.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from migrator.core.migration.drivers import MARK, Driver, may_follow
from migrator.errors import Driven, QemuError
from migrator.machine import is_gone_as_seen_here
from migrator.qemu import marks
from migrator.qemu.monitor import Monitor

#: A mark that comes and goes under our hands is read so often.
_TRIES = 10
#: Whoever has not heard of a QEMU for so long may have slept while another took it over.
ASLEEP_AFTER_SECONDS = 1.0


class DriverClaim:
    """The right of one controller to change one QEMU: nothing that changes QEMU is sent before its mark is there.

    :param driver: who claims it; ``None`` for whoever does without marks.
    :param name: of the end, for messages.
    :param lease_holds: whether nobody can have followed the driver by a later lease yet; by default nobody can.
    :param by_force: a person has said that whoever the mark names is dead, where that cannot be seen from here.
    :param asleep_after_seconds: whoever has not heard of a QEMU for so long may have slept: the mark is read again.
    """

    def __init__(
        self,
        monitor: Monitor,
        driver: Driver | None,
        *,
        name: str,
        lease_holds: Callable[[], bool] = lambda: True,
        by_force: bool = False,
        asleep_after_seconds: float = ASLEEP_AFTER_SECONDS,
    ) -> None:
        self._monitor = monitor
        self._asleep_after = asleep_after_seconds
        self._lease_holds = lease_holds
        self._driver = driver
        self._name = name
        self._by_force = by_force
        #: The mark was ours when it was last looked at.
        self._held = False
        #: The driver that took over while we slept; nothing is sent any more, even when it has gone.
        self._lost = ""
        self._answered_at = 0.0

    @property
    def token(self) -> str:
        """Return the token of our mark; empty where there are none."""
        return self._driver.token if self._driver is not None else ""

    def note_answer(self) -> None:
        """Note that QEMU has answered just now."""
        self._answered_at = asyncio.get_running_loop().time()

    async def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = 5.0
    ) -> Any:
        """Execute a command that changes something, with :meth:`ensure` before it.

        :param timeout: seconds that the command itself may take.
        :raise Driven: another drives it; the command was not sent.
        :raise QemuError: see :meth:`migrator.qemu.monitor.Monitor.execute`.
        """
        await self.ensure()
        return await self._monitor.execute(command, arguments, timeout=timeout)

    async def ensure(self, *, timeout: float = 5.0) -> None:
        """Make sure that QEMU has our mark, and still has it after a time in which this controller may have slept, or
        once another may have the lease.

        :raise Driven: another drives it.
        :raise QemuError: it cannot be asked.
        """
        if not self._held:
            await self.take(timeout=timeout)
        elif (
            asyncio.get_running_loop().time() - self._answered_at > self._asleep_after
            or not self._lease_holds()
        ):
            await self.verify(timeout=timeout)

    async def refuse_another(self) -> None:
        """Refuse to go on where another controller drives QEMU; one that does not answer is let pass, so that it can be
        ended, but not once another may have the lease.

        :raise Driven: another drives it, or may do so.
        """
        try:
            await self.ensure(timeout=1.0)
        except Driven:
            raise
        except QemuError as error:
            if not self._lease_holds():
                # Whoever took it over holds its monitor: what is silent here may be the guest's only process by now.
                raise Driven(
                    self._name, f"another controller may have it by now, and it cannot be asked: {error}"
                ) from error

    async def take(
        self, migration: str = "", was: Mapping[str, Any] | None = None, *, timeout: float = 5.0
    ) -> None:
        """Add the mark, or take it over by rule; one that is ours already is left as it is.

        :param migration: what it is claimed for.
        :param was: how things were, for whoever finds it left standing.
        :param timeout: seconds that each question may take.
        :raise Driven: another has it.
        :raise QemuError: QEMU cannot be asked, or cannot have marks.
        """
        if self._driver is None:
            return
        if self._lost:
            raise Driven(self._name, self._lost)
        if migration:
            self._driver = replace(self._driver, migration=migration, was=was or {})
        await self._take(self._driver, MARK, timeout)
        self._held = True
        self.note_answer()

    async def verify(self, *, timeout: float = 5.0) -> None:
        """Check that the mark is still ours.

        :raise Driven: it is not.
        :raise QemuError: QEMU cannot be asked.
        """
        if self._driver is None:
            return
        found = (await marks.read(self._monitor, MARK, timeout=timeout)).get(MARK)
        self.note_answer()
        if found is None or Driver.read(found).token != self._driver.token:
            self._held = False
            whose = f"it is marked by {Driver.read(found)}" if found is not None else "its mark was removed"
            self._lost = f"another controller has taken it over: {whose}"
            raise Driven(self._name, self._lost)

    async def release(self) -> None:
        """Remove the mark if it is ours; where that fails it stays, and is taken over by rule."""
        if self._driver is None or not self._held:
            return
        self._held = False
        with contextlib.suppress(QemuError):
            found = (await marks.read(self._monitor, MARK, timeout=1.0)).get(MARK)
            if found is not None and Driver.read(found).token == self._driver.token:
                await marks.remove(self._monitor, MARK)

    async def read_driver(self) -> Driver | None:
        """Return the driver that the mark names; ``None`` where there is no mark.

        :raise QemuError: QEMU cannot be asked.
        """
        text = (await marks.read(self._monitor, MARK)).get(MARK)
        return Driver.read(text) if text is not None else None

    async def blocking_driver(self) -> str:
        """Describe the other controller that has the mark and may not be followed; empty where there is none.

        :raise QemuError: QEMU cannot be asked.
        """
        if self._driver is None:
            return ""
        other = await self.read_driver()
        return self._in_the_way(self._driver, other) if other is not None else ""

    def _in_the_way(self, mine: Driver, other: Driver) -> str:
        gone = is_gone_as_seen_here(other.process)
        if may_follow(mine, other, other_is_gone=True if gone is None and self._by_force else gone):
            return ""
        return f"{other}, which " + ("is alive" if gone is False else "cannot be seen from here")

    async def _take(self, mine: Driver, mark: str, timeout: float) -> None:
        text = mine.text()
        for _ in range(_TRIES):
            if await marks.add(self._monitor, mark, text, timeout=timeout):
                return
            found = (await marks.read(self._monitor, mark, timeout=timeout)).get(mark)
            if found is None:
                continue  # it has just been removed
            other = Driver.read(found)
            if not mine.was:  # it goes on with what the other has begun
                mine = replace(mine, was=other.was)
                text = mine.text()
            if other.token == mine.token:
                if found != text:
                    await marks.change(self._monitor, mark, text, timeout=timeout)
                return
            if why := self._in_the_way(mine, other):
                raise Driven(self._name, f"it is driven by {why}")
            turn = f"{mark}-after-{hashlib.sha256(found.encode()).hexdigest()[:16]}"
            await self._take(mine, turn, timeout)
            try:
                if (await marks.read(self._monitor, mark, timeout=timeout)).get(mark) == found:
                    await marks.remove(self._monitor, mark, timeout=timeout)
                    if await marks.add(self._monitor, mark, text, timeout=timeout):
                        return
            finally:
                with contextlib.suppress(QemuError):
                    await marks.remove(self._monitor, turn, timeout=timeout)
        raise Driven(self._name, "its mark changes hands again and again: other controllers are at it")
