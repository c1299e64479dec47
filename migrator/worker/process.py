"""``python -m migrator.worker.process``: computes what it is asked over its standard input until that ends."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from migrator.machine import end_with
from migrator.worker import frames

#: Whoever drives migrations goes first where both want to run.
_NICE = 10
_FUNCTIONS_OF = "migrator.core."


def main(arguments: Sequence[str]) -> None:
    """Answer requests one after the other."""
    parser = argparse.ArgumentParser(prog="python -m migrator.worker.process", description=__doc__)
    parser.add_argument("--parent", type=int, required=True)
    given = parser.parse_args(arguments)
    if not end_with(given.parent):
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the service, which ends this process
    with contextlib.suppress(OSError):  # a sandbox may forbid it; then both are treated alike
        os.nice(_NICE)
    into, out = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing but answers goes where the answers go
    while (name := _read(into)) is not None:
        portions = []
        while portion := _read(into):
            portions.append(pickle.loads(portion))  # noqa: S301 - from the process that started this one
        out.write(frames.frame(pickle.dumps(_answer(name.decode(), portions), protocol=5)))
        out.flush()


def _read(stream: BinaryIO) -> bytes | None:
    """Return the next frame's body; ``None`` at the end of everything."""
    head = stream.read(frames.LENGTH_BYTES)
    if len(head) < frames.LENGTH_BYTES:
        return None
    return stream.read(frames.length(head))


def _answer(name: str, portions: Sequence[Any]) -> tuple[bool, Any]:
    try:
        return True, _function(name)(portions)
    except Exception as error:  # noqa: BLE001 - an error of ours is the service's to tell, and this goes on
        return False, f"{type(error).__name__}: {error}"


def _function(name: str) -> Callable[[Sequence[Any]], Any]:
    module, _, function = name.partition(":")
    if not module.startswith(_FUNCTIONS_OF):
        raise ValueError(f"{module} is not pure")
    found: Callable[[Sequence[Any]], Any] = getattr(importlib.import_module(module), function)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
