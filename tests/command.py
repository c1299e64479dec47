"""``migrator direct`` as a user types it, in a process of its own.

::

    ended = await direct(pair, "--policy", "gentle")
    assert ended.code == 0

    async with running(pair) as command:
        command.signal(signal.SIGINT)
        ended = await command.ended()
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migrator.testing.lab import WAIT_SECONDS, Pair, until

MIGRATOR = (str(Path(sys.executable).with_name("migrator")),)
#: The same command, which does something to itself at a given step: see ``doomed.py``.
DOOMED = (sys.executable, str(Path(__file__).with_name("doomed.py")))
#: These guests run under TCG, in QEMU 7.2 too, and are made so that it does not matter.
ACCEPTED_CODES = ("tcg-loses-writes",)
ACCEPTED = ("--accept", *ACCEPTED_CODES)
#: The guest stays in precopy, until its memory of at least 16 MiB is copied or somebody lifts the limit.
SLOWLY = ("--postcopy", "never", "--max-bandwidth", "1MiB/s")


@dataclass(frozen=True)
class Ended:
    """What a command left: its exit code and its output."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What ``--json`` printed: one document and nothing else."""
        assert self.out.startswith("{"), f"exit code {self.code}, no document but {self.out!r}; {self.err!r}"
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def state(self) -> str:
        return str(self.document["state"])

    @property
    def error(self) -> str:
        return str(self.document["error"])

    @property
    def codes(self) -> list[str]:
        """Of its findings."""
        return [finding["code"] for finding in self.document["findings"]]

    @property
    def actions(self) -> list[str]:
        """Of its decisions."""
        return [decision["action"] for decision in self.document["decisions"]]


class Command:
    """One that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._output = asyncio.create_task(process.communicate(), name="output of a command")

    async def signalled(self, number: signal.Signals) -> None:
        """Send a signal and wait until it was delivered: of two that are pending a process sees one."""
        self.signal(number)

        def delivered() -> bool:
            status = Path(f"/proc/{self.pid}/status").read_text()
            pending = re.findall(r"^(?:Sig|Shd)Pnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
            return not any(int(mask, 16) >> (number - 1) & 1 for mask in pending)

        await until(delivered, what=f"{number.name} being delivered")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self, *, within: float = WAIT_SECONDS) -> Ended:
        """Wait for its end.

        :raise TimeoutError: when there is none.
        """
        done, _ = await asyncio.wait({self._output}, timeout=within)
        if not done:
            raise TimeoutError(f"the command still runs after {within:g} s")
        out, err = self._output.result()
        assert self._process.returncode is not None
        assert "Traceback" not in err.decode(), err.decode()
        return Ended(self._process.returncode, out.decode(), err.decode())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.returncode is None

    async def kill(self) -> None:
        """SIGKILL, and wait for its end; nothing happens to one that has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._output


def addresses(pair: Pair) -> tuple[str, ...]:
    return ("--source", f"unix:{pair.source.qmp}", "--destination", f"unix:{pair.destination.qmp}")


@asynccontextmanager
async def started(
    *arguments: str,
    program: Sequence[str] = MIGRATOR,
    variables: dict[str, str] | None = None,
    accepting: bool = True,
) -> AsyncIterator[Command]:
    """Any command of ours; it does not outlive the block, nor the tests.

    :param accepting: ``direct`` is given :data:`ACCEPTED`.
    """
    if accepting and arguments[0] == "direct" and "--rescue" not in arguments:
        arguments = (*arguments, *ACCEPTED)
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *program, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(variables or {})},
    )
    command = Command(process)
    try:
        yield command
    finally:
        await command.kill()


def running(pair: Pair, *options: str) -> contextlib.AbstractAsyncContextManager[Command]:
    """``migrator direct --json`` from one end of the pair to the other."""
    return started("direct", *addresses(pair), "--json", *options)


async def run(*arguments: str) -> Ended:
    """``migrator`` with these arguments, to its end."""
    async with started(*arguments) as command:
        return await command.ended()


async def direct(pair: Pair, *options: str, within: float = WAIT_SECONDS) -> Ended:
    """As :func:`running`, to its end."""
    async with running(pair, *options) as command:
        return await command.ended(within=within)


async def direct_doomed(pair: Pair, fate: str, *options: str) -> Ended:
    """As :func:`direct`, by a controller with a ``fate``: see ``doomed.py``."""
    arguments = ("direct", *addresses(pair), "--json", *options)
    async with started(*arguments, program=DOOMED, variables={"FATE": fate}) as command:
        return await command.ended()
