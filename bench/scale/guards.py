"""Measure what guards at the hosts cost the process that steers: their signs of life, over real SSH connections."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from bench.figures import paragraphs, table
from bench.lateness import processor_seconds
from bench.libvirt import Unavailable
from migrator.hosts.guard import BEAT_SECONDS, NEAR_BEAT_SECONDS, SILENCE_SECONDS, GuardPace, HostGuard
from migrator.hosts.ssh import SshAccess
from migrator.qemu import guard as guard_program
from tests.sshd import Sshd

#: Connections to one sshd, each as to a host of its own. With fewer a sign of life would find the processor's caches
#: cold, and cost more than it does with many.
_CONNECTIONS = 50
COUNTS = (100, 300, 1000)
_SETTLE_SECONDS, _WATCH_SECONDS = 2.0, 20.0
_MOST_CORE = 0.25


async def cost(counts: Sequence[int] = COUNTS) -> str:
    """Return what the guards of so many hosts take, each of which guards a guest that copies.

    :raise Unavailable: there is no sshd here.
    """
    if shutil.which("sshd") is None and not Path("/usr/sbin/sshd").exists():
        raise Unavailable("there is no sshd here")
    each, rows, most = await _each(_CONNECTIONS), [], 0.0
    for count in counts:
        pace = GuardPace()
        pace.guards = count
        rate = 1 / (BEAT_SECONDS * pace.slower)
        most = max(most, core := each * rate * count)
        silence = SILENCE_SECONDS * pace.slower
        rows.append([f"{count:,}", f"{rate:.1f}", f"{rate * count:.0f}", f"{silence:.2f}", f"{core:.0%}"])
    heads = ["hosts", "signs of life a second each", "of all", "a silence is noticed after s", "of a core"]
    return paragraphs(
        "A guard at the source's host is given signs of life for as long as a guest moves away from there, over that "
        f"host's SSH connection. One takes the process that steers {each * 1e6:.0f} µs, as measured with "
        f"{_CONNECTIONS} connections and guards whose guests are near their switch, {1 / NEAR_BEAT_SECONDS:.0f} a "
        "second each; guards and sshd are other processes. So while guests copy:",
        table(heads, rows),
        f"Aim: at most {_MOST_CORE:.0%} of a core. {'Aim met.' if most <= _MOST_CORE else '**Aim not met.**'}",
    )


async def _each(count: int) -> float:
    """Return the processor seconds of this process that one sign of life takes."""
    with ExitStack() as files:
        directory = Path(files.enter_context(tempfile.TemporaryDirectory(prefix="bench-guards-")))
        options = ("MaxStartups 1000", "MaxSessions 100")
        sshd = files.enter_context(Sshd(directory / "sshd", options=options))
        async with AsyncExitStack() as stack:
            guards = []
            for number in range(count):
                access = SshAccess(f"h{number}", sshd.config())
                stack.push_async_callback(access.close)
                guard = HostGuard.of(access, program=guard_program.PROGRAM, module=guard_program)
                stack.push_async_callback(guard.close)
                if why := await guard.start():
                    raise Unavailable(f"no guard: {why}")
                # Nobody is there: it would look for it only if this process fell silent.
                guard.guard(
                    "guest", {"socket": str(directory / "none"), "rescue": "", "token": "", "migration": "m"}
                )
                guard.near("guest", True)
                guards.append(guard)
            await asyncio.sleep(_SETTLE_SECONDS)
            before, began = processor_seconds(os.getpid()), time.monotonic()
            await asyncio.sleep(_WATCH_SECONDS)
            used, seconds = processor_seconds(os.getpid()) - before, time.monotonic() - began
            if missing := [guard.missing for guard in guards if guard.missing]:
                raise RuntimeError(f"{len(missing)} guards have ended: {missing[0]}")
            return used / seconds / count * NEAR_BEAT_SECONDS
