"""Held migrations: one thing at a time is done with each, and each is judged again when anything about it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from migrator import logs
from migrator.core.model import State
from migrator.engine import resolving
from migrator.engine.documents import ResolutionDocument
from migrator.engine.resolving import Said
from migrator.errors import MigratorError

if TYPE_CHECKING:
    from migrator.engine.controller import Engine
    from migrator.engine.job import Job

Found = TypeVar("Found")

#: Both ends of a held migration are looked at so often.
_LOOK_SECONDS = 5.0
#: A word is answered once it is done, or after so long while it still goes on.
_PATIENCE_SECONDS = 20.0


class NotHeld(MigratorError):
    """It is not held any more: it goes on, or has ended."""


class Held:
    """What is done with held migrations; see :meth:`alone`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wake = asyncio.Event()
        self._log = logs.logger()

    # --- a person's word ---------------------------------------------------------------------------------------------

    async def weigh(self, job: Job, said: Said) -> ResolutionDocument:
        """What a person's word would come to; nothing is done.

        :raise MigratorError: it is not held, or that cannot be told.
        """

        async def way(tell: Callable[[ResolutionDocument], None]) -> None:
            tell(await resolving.weigh(job, said))

        return await self._alone(job, way)

    async def resolve(self, job: Job, said: Said) -> None:
        """Do what a person said; returns when it has ended or is held again, or while it still goes on after a while.

        :raise MigratorError: it is not held, or the word is refused; nothing was changed.
        """

        async def way(tell: Callable[[None], None]) -> None:
            await resolving.resolve(job, said, agreed=lambda: tell(None))

        await self._alone(job, way)
        if (task := self._engine.task(job)) is not None:
            await asyncio.wait({task}, timeout=_PATIENCE_SECONDS)

    async def _alone(self, job: Job, way: Callable[[Callable[[Found], None]], Awaitable[None]]) -> Found:
        """Do it in the one task that a migration has, once the one before is done.

        :param way: is given what to call with what was found; what it raises before is raised here.
        """
        while (task := self._engine.task(job)) is not None and job.state is State.HELD:
            await asyncio.wait({task}, timeout=_PATIENCE_SECONDS)
            if not task.done():
                break
        if job.state is not State.HELD or self._engine.task(job) is not None:
            raise NotHeld(f"migration {job.id} is {job.state}, not held")
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
