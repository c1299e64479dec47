"""Held migrations: one thing at a time is done with each, and each is judged again when anything about it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from migrator import logs
from migrator.api.documents import ResolutionDocument
from migrator.core.migration.answer_review import awaited_actions
from migrator.core.migration.invariants import Invariant
from migrator.core.migration.lifecycle import Step
from migrator.core.migration.managed_lifecycle import awaited
from migrator.core.model import ProcessState, State, View
from migrator.engine.migration import resolution, take_over
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.resolution import ResolutionRequest
from migrator.errors import MigratorError

Found = TypeVar("Found")

#: Another controller drives it: see :meth:`migrator.engine.migration.driver.MigrationDriver`.
DRIVEN_ELSEWHERE = "driven-elsewhere"
#: Nothing has come through its stream for a long time: it goes on once the network carries that again.
BROKEN_STREAM = "postcopy-broken"
#: At least so long between two rounds.
_SECONDS_BETWEEN = 1.0
#: Both ends of a held migration are looked at so often.
_LOOK_SECONDS = 5.0
#: A word is answered once it is done, or after so long while it still goes on.
_ANSWER_SECONDS = 20.0


class NotHeld(MigratorError):
    """The migration is not held any more: it goes on, or has ended."""


class SessionTasks(Protocol):
    """The sessions of a controller, and the one task that each of them has at a time."""

    @property
    def migrations(self) -> Mapping[str, JournalledSession]:
        """Return all of them by their ids."""

    @property
    def may_begin(self) -> bool:
        """Return whether anything new is begun."""

    def task(self, session: JournalledSession, /) -> asyncio.Task[None] | None:
        """Return the one that drives it, or does something else with it, now."""

    def start(self, session: JournalledSession, work: Coroutine[Any, Any, None], /) -> None:
        """Do this with it, in its task."""


class HeldMigrations:
    """Looks at held migrations, and carries out what a person says of one; see :meth:`resolve`."""

    def __init__(self, tasks: SessionTasks) -> None:
        self._tasks = tasks
        self._wake = asyncio.Event()
        self._log = logs.logger()

    # --- judged again ------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Say that a host may answer that did not, or a guest be where it was not."""
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
            tasks = self._tasks
            for session in list(tasks.migrations.values()):
                if session.state is not State.HELD or session.driven_elsewhere:
                    continue
                if tasks.task(session) is None and tasks.may_begin:
                    tasks.start(session, self._look(session))
            await asyncio.sleep(_SECONDS_BETWEEN)

    async def _look(self, session: JournalledSession) -> None:
        """Go on with it, where what both ends show now has an answer; else say what is the matter now."""
        if session.shown is None and session.unreachable:
            await take_over.take_up(session)  # they could not even be looked at
            return
        try:
            async with resolution.inspect(session) as held:
                goes_on = self._judge(session, held)
                if not goes_on and session.result.held_code == BROKEN_STREAM:
                    goes_on = await _carries(session)
        except MigratorError as error:
            self._log.info("held migration not looked at", migration=session.id, error=str(error))
            return
        if goes_on:
            await take_over.take_up(session)

    def _judge(self, session: JournalledSession, held: resolution.HeldCase) -> bool:
        before, now = session.shown, (held.here, held.there)
        if before is None:
            session.note_views(now)
            return False
        if not _news(before, now):
            return False
        if held.record is None:
            return True  # what both ends show now is said; nothing is done
        answer = held.next()
        if session.result.held_code in set(Invariant):
            session.note_views(now)  # both ends may not go on by themselves: that is for a person to say
            return False
        if answer.state is State.HELD:
            code = held.held_code and answer.row
            until = awaited(answer.row) if held.managed else awaited_actions(held.intent, *now, code)
            session.update_hold(answer.row, answer.why, until, now)
            return False
        if session.result.held_code == DRIVEN_ELSEWHERE and answer.step is not Step.END:
            session.note_views(now)  # whoever drives it is still about it
            return False
        self._log.info("held migration goes on", migration=session.id, row=answer.row)
        return True

    # --- a person's word ---------------------------------------------------------------------------------------------

    async def review(self, session: JournalledSession, said: ResolutionRequest) -> ResolutionDocument:
        """Return what a person's answer would come to; nothing is done.

        :raise MigratorError: it is not held, or that cannot be told.
        """

        async def work(tell: Callable[[ResolutionDocument], None]) -> None:
            tell(await resolution.review(session, said))

        return await self._alone(session, work)

    async def resolve(self, session: JournalledSession, said: ResolutionRequest) -> None:
        """Do what a person said; returns when it has ended or is held again, or while it still goes on after a while.

        :raise MigratorError: it is not held, or the word is refused; nothing was changed.
        """

        async def work(tell: Callable[[None], None]) -> None:
            await resolution.resolve(session, said, agreed=lambda: tell(None))

        await self._alone(session, work)
        if (task := self._tasks.task(session)) is not None:
            await asyncio.wait({task}, timeout=_ANSWER_SECONDS)

    async def _alone(
        self, session: JournalledSession, work: Callable[[Callable[[Found], None]], Awaitable[None]]
    ) -> Found:
        """Do it in the one task that a migration has, once the one before is done.

        :param work: is given what to call with what was found; what it raises before is raised here.
        """
        while (task := self._tasks.task(session)) is not None and session.state is State.HELD:
            await asyncio.wait({task}, timeout=_ANSWER_SECONDS)
            if not task.done():
                break
        if session.state is not State.HELD:
            raise NotHeld(f"migration {session.id} is {session.state}: only a held one takes a word")
        if session.driven_elsewhere:
            raise NotHeld(
                f"migration {session.id} is held, and its driver is just letting go of it; ask again in a moment"
            )
        if self._tasks.task(session) is not None:
            raise NotHeld(
                f"migration {session.id} is held, and is being looked at just now; ask again in a moment"
            )
        found: asyncio.Future[Found] = asyncio.get_running_loop().create_future()

        def tell(what: Found) -> None:
            if not found.done():
                found.set_result(what)

        async def run() -> None:
            try:
                await work(tell)
            except MigratorError as error:
                if found.done():
                    raise
                found.set_exception(error)
            finally:
                if not found.done():
                    found.set_exception(NotHeld("the service is stopping; ask again once it runs"))

        self._tasks.start(session, run())
        return await found


async def _carries(session: JournalledSession) -> bool:
    path = session.stream_path()
    return any([(await path.probe(address)).carries for address in path.addresses])


def _news(before: tuple[View, View], now: tuple[View, View]) -> bool:
    """Tell whether both ends show something new, and neither less than before: a person may be asking one just now."""
    for was, shows in zip(before, now, strict=True):
        if was.answers and not shows.answers and shows.process is not ProcessState.DEAD:
            return False
    return _seen(before) != _seen(now)


def _seen(views: tuple[View, View]) -> tuple[object, ...]:
    return tuple(
        (view.process, view.answers, view.run, view.status, view.sample and view.sample.transferred_bytes)
        for view in views
    )
