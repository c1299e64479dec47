"""``FATE='KILL before destination.cont' python tests/doomed.py direct …``: the command, sent a signal at one step.

The step is a call of an end (``source.switch``, ``destination.listen``…) or of the record (``record.begin``,
``record._append``, ``record.note``, ``record.end``), the first one; a note may be named by what it says
(``record.note:switching``, ``record.note:failed``). ``before``: nothing of it was done; ``after``: all of it was, and
nobody heard of it.

It has no guard: on a machine that is busy enough one would have started beside it by some of these steps, and would end
what it left there. What guards do is ``tests/acceptance/test_direct_guard.py``.
"""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable
from functools import wraps
from typing import Any

from migrator.cli import direct_guard, main
from migrator.qemu.endpoint import Endpoint
from migrator.store.records import FileRecord

SIGNAL, MOMENT, STEP = os.environ["FATE"].split()
STEP, _, NOTE = STEP.partition(":")
_met = False


def meet(moment: str) -> None:
    """Once."""
    global _met  # noqa: PLW0603 - the process has one fate
    if moment == MOMENT and not _met:
        _met = True
        os.kill(os.getpid(), signal.Signals[f"SIG{SIGNAL}"])


def doom(owner: type, name: str, due: Callable[..., bool]) -> None:
    """Have `owner`'s method `name` meet its fate, where `due` says so of its arguments."""
    plain = getattr(owner, name)

    @wraps(plain)
    async def fateful(*arguments: Any, **named: Any) -> Any:
        if not due(*arguments):
            return await plain(*arguments, **named)
        meet("before")
        answer = await plain(*arguments, **named)
        meet("after")
        return answer

    @wraps(plain)
    def fateful_at_once(*arguments: Any, **named: Any) -> Any:
        if not due(*arguments):
            return plain(*arguments, **named)
        meet("before")
        answer = plain(*arguments, **named)
        meet("after")
        return answer

    setattr(owner, name, fateful if inspect.iscoroutinefunction(plain) else fateful_at_once)


end, _, method = STEP.partition(".")
if STEP == "record.note":
    doom(
        FileRecord,
        "note_behind",
        lambda _, intent: not NOTE or NOTE in (intent.milestone.name.lower(), intent.undo),
    )
elif end == "record":
    doom(FileRecord, method, lambda *_: True)
else:
    doom(Endpoint, method, lambda this, *_: bool(this.name.startswith(end)))

direct_guard._DELAY_SECONDS = 3600.0

main()
