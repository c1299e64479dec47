"""``FATE='KILL before destination.cont' python tests/doomed.py direct …``: the command, sent a signal at one step.

The step is a call of an end (``source.switch``, ``destination.listen``…) or of the record (``record.begin``,
``record._append``, ``record.note``, ``record.end``), the first one; a note may be named by what it says
(``record.note:switching``, ``record.note:failed``). ``before``: nothing of it was done; ``after``: all of it was, and
nobody heard of it.
"""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable
from functools import wraps
from typing import Any

from migrator.cli import main
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

main()
