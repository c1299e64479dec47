"""Errors of our own: said as such, with an id to find them by in the log, and kept from ending anything else.

Here, and nowhere else, every exception is caught: what was not foreseen cannot be listed. What a fault may cost is what
it was about: one look, one migration, one turn of a task that then begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import traceback
from collections.abc import Awaitable, Callable, Iterator

from migrator import logs
from migrator.errors import Fault, MigratorError
from migrator.text import clean

#: Seconds before a task that failed begins anew: at first, and at most; it doubles until one lasts longer than that.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0


def _nobody() -> None:
    pass


#: Told of every fault; set once, by the service. Returns at once and never raises.
on_fault: Callable[[], None] = _nobody
#: Tasks that failed last time, by their names, each with why in one line.
complaints: dict[str, str] = {}


@contextlib.contextmanager
def contained(what: str) -> Iterator[None]:
    """Whatever is raised within on purpose passes; anything else becomes a :class:`Fault`, and its traceback is logged.

    :param what: it was about, for the message and the log: ``the look at host a``.
    :raise Fault: an error of our own.
    """
    try:
        yield
    except MigratorError:
        raise
    except ExceptionGroup as group:
        if (meant := _meant(group)) is not None:
            raise meant from group
        raise told(what, group) from group
    except Exception as error:
        raise told(what, error) from error


def told(what: str, error: BaseException) -> Fault:
    """The fault that an unforeseen error is; its traceback is in the log, once."""
    identifier = os.urandom(4).hex()
    text = "".join(traceback.format_exception(error, limit=-20))
    logs.logger().warning("an error of migrator itself", fault=identifier, about=what, traceback=text)
    on_fault()
    return Fault(identifier, what, f"{type(error).__name__}: {clean(str(error)[:200])}")


def _meant(group: ExceptionGroup[Exception]) -> MigratorError | None:
    """The first of them, where all were raised on purpose."""
    first: MigratorError | None = None
    for each in group.exceptions:
        found = _meant(each) if isinstance(each, ExceptionGroup) else each
        if not isinstance(found, MigratorError):
            return None
        first = first or found
    return first


async def keep_going(name: str, work: Callable[[], Awaitable[None]], *, again: bool = True) -> None:
    """Do `work`, and begin it anew whenever it fails, after a pause that grows; nothing but being cancelled ends that.

    :param name: of the task, for the log and for :data:`complaints`.
    :param again: it is begun anew after a failure.
    """
    loop = asyncio.get_running_loop()
    pause = _PAUSE_SECONDS
    while True:
        began = loop.time()
        try:
            with contained(name):
                await work()
        except MigratorError as error:
            complaints[name] = str(error)
            logs.logger().warning("a task failed", task=name, error=complaints[name], again_in_seconds=pause)
        else:
            complaints.pop(name, None)
            return
        if not again:
            return
        if loop.time() - began > _LONGEST_PAUSE_SECONDS:
            pause = _PAUSE_SECONDS
        await asyncio.sleep(pause)
        pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause)
