"""Held migrations: one thing at a time is done with each, and each is judged again when anything about it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from migrator import logs
from migrator.api.documents import ResolutionDocument
from migrator.core.migration.answer_review import awaited_actions
from migrator.core.migration.invariants import Invariant
from migrator.core.migration.lifecycle import Step, decide
from migrator.core.model import ProcessState, State, View
from migrator.engine.migration import resolution
from migrator.engine.migration.resolution import Said
from migrator.errors import MigratorError

if TYPE_CHECKING:
    from migrator.engine.controller import Engine
    from migrator.engine.migration.session import MigrationSession

Found = TypeVar("Found")

#: Another controller drives it: see :meth:`migrator.engine.migration.driver.MigrationDriver`.
DRIVEN_ELSEWHERE = "driven-elsewhere"
#: At least so long between two rounds.
_SECONDS_BETWEEN = 1.0
#: Both ends of a held migration are looked at so often.
_LOOK_SECONDS = 5.0
#: A word is answered once it is done, or after so long while it still goes on.
_PATIENCE_SECONDS = 20.0


class NotHeld(MigratorError):
    """It is not held any more: it goes on, or has ended."""


class HeldMigrations:
    """What is done with held migrations; see :meth:`alone`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wake = asyncio.Event()
        self._log = logs.logger()

    # --- judged again ------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """A host may answer that did not, or a guest be where it was not."""
        self._wake.set()

    async def run(self) -> None:
        """Look at every held migration from time to time, and when a host has changed, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass  # their time has come
            self._wake.clear()
            engine = self._engine
            for job in list(engine.jobs.values()):
                if job.state is State.HELD and engine.task(job) is None and not engine.stopping:
                    engine.begin_job(job, self._look(job))
            await asyncio.sleep(_SECONDS_BETWEEN)

    async def _look(self, job: MigrationSession) -> None:
        """Go on with it, where what both ends show now has an answer; else say what is the matter now."""
        if job.shown is None and job.unreachable:
            await job.take_up()  # they could not even be looked at
            return
        try:
            async with resolution.looked_at(job) as held:
                goes_on = self._judge(job, held)
        except MigratorError as error:
            self._log.info("held migration not looked at", migration=job.id, error=str(error))
            return
        if goes_on:
            await job.take_up()

    def _judge(self, job: MigrationSession, held: resolution.HeldCase) -> bool:
        before, now = job.shown, (held.here, held.there)
        if before is None:
            job.shown = now
            return False
        if not _news(before, now):
            return False
        if held.record is None:
            return True  # what both ends show now is said; nothing is done
        answer = decide(held.intent, *now)
        if job.result.held_code in set(Invariant):
            job.shown = now  # both ends may not go on by themselves: that is for a person to say
            return False
        if answer.state is State.HELD:
            code = held.held_code and answer.row
            until = awaited_actions(held.intent, *now, code)
            job.judged_again(answer.row, answer.why, until, now)
            return False
        if job.result.held_code == DRIVEN_ELSEWHERE and answer.step is not Step.END:
            job.shown = now  # whoever drives it is still about it
            return False
        self._log.info("held migration goes on", migration=job.id, row=answer.row)
        return True

    # --- a person's word ---------------------------------------------------------------------------------------------

    async def weigh(self, job: MigrationSession, said: Said) -> ResolutionDocument:
        """What a person's word would come to; nothing is done.

        :raise MigratorError: it is not held, or that cannot be told.
        """

        async def way(tell: Callable[[ResolutionDocument], None]) -> None:
            tell(await resolution.weigh(job, said))

        return await self._alone(job, way)

    async def resolve(self, job: MigrationSession, said: Said) -> None:
        """Do what a person said; returns when it has ended or is held again, or while it still goes on after a while.

        :raise MigratorError: it is not held, or the word is refused; nothing was changed.
        """

        async def way(tell: Callable[[None], None]) -> None:
            await resolution.resolve(job, said, agreed=lambda: tell(None))

        await self._alone(job, way)
        if (task := self._engine.task(job)) is not None:
            await asyncio.wait({task}, timeout=_PATIENCE_SECONDS)

    async def _alone(
        self, job: MigrationSession, way: Callable[[Callable[[Found], None]], Awaitable[None]]
    ) -> Found:
        """Do it in the one task that a migration has, once the one before is done.

        :param way: is given what to call with what was found; what it raises before is raised here.
        """
        while (task := self._engine.task(job)) is not None and job.state is State.HELD:
            await asyncio.wait({task}, timeout=_PATIENCE_SECONDS)
            if not task.done():
                break
        if job.state is not State.HELD:
            raise NotHeld(f"migration {job.id} is {job.state}: only a held one takes a word")
        if self._engine.task(job) is not None:
            raise NotHeld(
                f"migration {job.id} is held, and is being looked at just now; ask again in a moment"
            )
        found: asyncio.Future[Found] = asyncio.get_running_loop().create_future()

        def tell(what: Found) -> None:
            if not found.done():
                found.set_result(what)

        async def run() -> None:
            try:
                await way(tell)
            except MigratorError as error:
                if found.done():
                    raise
                found.set_exception(error)
            finally:
                if not found.done():
                    found.set_exception(NotHeld("the service is stopping; ask again once it runs"))

        self._engine.begin_job(job, run())
        return await found


def _news(before: tuple[View, View], now: tuple[View, View]) -> bool:
    """Something has changed, and neither end says less than it did: a person may just be asking one that is silent."""
    for was, shows in zip(before, now, strict=True):
        if was.answers and not shows.answers and shows.process is not ProcessState.DEAD:
            return False
    return _seen(before) != _seen(now)


def _seen(views: tuple[View, View]) -> tuple[object, ...]:
    return tuple(
        (view.process, view.answers, view.run, view.status, view.sample and view.sample.transferred_bytes)
        for view in views
    )
