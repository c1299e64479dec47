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
from migrator.hosts.guard import GuardPace, HostGuard
from migrator.hosts.ssh import SshAccess
from migrator.qemu import guard as guard_program
from tests.sshd import Sshd

#: Connections to one sshd, each as to a host of its own; the cost of so many more is in proportion.
COUNTS = (25,)
_HOSTS = 1000
_SETTLE_SECONDS, _WATCH_SECONDS = 2.0, 20.0
_MOST_CORE = 0.25


async def cost(counts: Sequence[int] = COUNTS) -> str:
    """Return what the guards of a thousand hosts compute, each of which guards one guest.

    :raise Unavailable: there is no sshd here.
    """
    if shutil.which("sshd") is None and not Path("/usr/sbin/sshd").exists():
        raise Unavailable("there is no sshd here")
    rows, met = [], True
    for count in counts:
        for near in (False, True):
            each = await _each(count, near=near)
            core = each * _HOSTS
            met = met and (near or core <= _MOST_CORE)
            what = "a guest may come to its switch at any moment" if near else "it copies"
            rows.append([f"{count}", what, f"{each * 1e6:.0f}", f"{core:.0%}"])
    heads = [
        "connections measured",
        "while",
        "each, µs of computing a second",
        f"{_HOSTS:,} hosts, of a core",
    ]
    return paragraphs(
        "A guard at the source's host is given signs of life for as long as a guest moves away from there. Each has an "
        "SSH connection of its own; the guards and their sshd are other processes, whose computing is not in it.",
        table(heads, rows),
        f"Aim: of {_HOSTS:,} hosts whose guests copy at most {_MOST_CORE:.0%} of a core. "
        f"{'Aim met.' if met else '**Aim not met.**'}",
    )


async def _each(count: int, *, near: bool) -> float:
    """Return what one guard takes of this process a second."""
    with ExitStack() as files:
        directory = Path(files.enter_context(tempfile.TemporaryDirectory(prefix="bench-guards-")))
        options = ("MaxStartups 1000", "MaxSessions 100")
        sshd = files.enter_context(Sshd(directory / "sshd", options=options))
        async with AsyncExitStack() as stack:
            guards, pace = [], GuardPace()
            pace.guards = _HOSTS - count  # they come as often as with so many
            for number in range(count):
                access = SshAccess(f"h{number}", sshd.config())
                stack.push_async_callback(access.close)
                guard = HostGuard.of(access, program=guard_program.PROGRAM, module=guard_program, pace=pace)
                stack.push_async_callback(guard.close)
                if why := await guard.start():
                    raise Unavailable(f"no guard: {why}")
                # Nobody is there: it would look for it only if this process fell silent.
                guard.guard(
                    "guest", {"socket": str(directory / "none"), "rescue": "", "token": "", "migration": "m"}
                )
                guard.near("guest", near)
                guards.append(guard)
            await asyncio.sleep(_SETTLE_SECONDS)
            before, began = processor_seconds(os.getpid()), time.monotonic()
            await asyncio.sleep(_WATCH_SECONDS)
            used, seconds = processor_seconds(os.getpid()) - before, time.monotonic() - began
            if missing := [guard.missing for guard in guards if guard.missing]:
                raise RuntimeError(f"{len(missing)} guards have ended: {missing[0]}")
            return used / seconds / count
