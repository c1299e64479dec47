"""Runs the `migrator` command as a user would, with a state and a cache of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).with_name("migrator")


class Failed(RuntimeError):
    """A run did not do what it was measured for."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run of `migrator direct`."""

    #: Of the process, the start of Python included.
    wall_seconds: float
    preflight_seconds: float
    duration_seconds: float
    downtime_seconds: float
    #: How long the guest waited for pages in postcopy; ``None`` where it did not move so, or it was not measured.
    postcopy_stall_seconds: float | None = None
    #: What the stream's sockets held when the guest was stopped, where that could be seen.
    queued_at_stop_bytes: int | None = None


class Migrator:
    """The command with private directories below ``directory``.

    :param prefix: a command that it is run through.
    """

    def __init__(self, directory: Path, *, prefix: Sequence[str] = ()) -> None:
        self._prefix = tuple(prefix)
        self._cache = directory / "cache"
        # As after an installation: the bytecode is kept, even where the caller's Python does not keep it.
        self._environment = {
            name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
        } | {
            "PYTHONPYCACHEPREFIX": str(directory / "bytecode"),
            "XDG_CACHE_HOME": str(self._cache),
            "XDG_STATE_HOME": str(directory / "state"),
        }

    def forget(self) -> None:
        """Empty the cache of introspection."""
        shutil.rmtree(self._cache, ignore_errors=True)

    def help_cpu_seconds(self) -> float:
        """CPU time of ``migrator --help``, user and system."""
        return self._cpu_seconds(PROGRAM, "--help")

    def direct_cpu_seconds(self) -> float:
        """CPU time of ``migrator direct`` from its start to its end, without a migration."""
        ends = "--source", "unix:/nowhere", "--destination", "unix:/elsewhere"
        return self._cpu_seconds(PROGRAM, "direct", *ends, "--accept", "nothing-of-that-name", code=2)

    def libraries_cpu_seconds(self) -> float:
        """CPU time of Python with the libraries that no migration is without."""
        return self._cpu_seconds(sys.executable, "-c", "import asyncio, pydantic_core")

    def python_cpu_seconds(self) -> float:
        """CPU time of Python with nothing to do."""
        return self._cpu_seconds(sys.executable, "-c", "pass")

    def _cpu_seconds(self, *command: str | Path, code: int = 0) -> float:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self._environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != code:
            raise Failed(f"{' '.join(map(str, command))} ended with {process.returncode}")
        return usage.ru_utime + usage.ru_stime

    async def python(self, *arguments: str) -> None:
        """Run Python as the command has it.

        :raise Failed: it fails.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self._environment,
        )
        _, complaints = await process.communicate()
        if process.returncode:
            raise Failed(f"{' '.join(arguments)}: {complaints.decode(errors='replace')}")

    async def direct(self, source: Path | str, destination: Path | str, *options: str, mode: str) -> Outcome:
        """Move a guest between two unix sockets, or two addresses.

        :param mode: that it has to take, ``precopy`` or ``postcopy``; empty: any.
        :raise Failed: when the guest is not moved, or in another mode.
        """
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *self._prefix,
            *(
                PROGRAM,
                "direct",
                "--json",
                *("--accept", "tcg-loses-writes"),
                "--source",
                _address(source),
                "--destination",
                _address(destination),
            ),
            *options,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
        )
        try:
            out, complaints = await process.communicate()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        wall = time.monotonic() - began
        result: dict[str, Any] = json.loads(out) if out else {}
        if process.returncode or (mode and result.get("mode") != mode):
            raise Failed(
                f"migrator direct ended with {process.returncode}, mode {result.get('mode')}: "
                f"{result.get('error')} {result.get('findings')} {complaints.decode(errors='replace')}"
            )
        return Outcome(
            wall_seconds=wall,
            preflight_seconds=result["preflight_seconds"],
            duration_seconds=result["duration_seconds"],
            downtime_seconds=result["downtime_seconds"],
            postcopy_stall_seconds=result["postcopy_stall_seconds"],
            queued_at_stop_bytes=result["queued_at_stop_bytes"],
        )


def _address(end: Path | str) -> str:
    return f"unix:{end}" if isinstance(end, Path) else end
