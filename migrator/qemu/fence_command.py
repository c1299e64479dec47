"""The command of an operator that kills a QEMU where this program cannot."""

from __future__ import annotations

import asyncio
import os

from migrator.machine import child_environment

#: Seconds that it may take.
_FENCE_SECONDS = 60.0


async def run_fence_command(command: str) -> bool:
    """Run it; True only where it says by its exit status 0 that the process is dead for certain.

    One that takes too long is killed, and has proven nothing.
    """
    child = await asyncio.create_subprocess_shell(
        command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        env=child_environment(os.environ),
    )
    try:
        async with asyncio.timeout(_FENCE_SECONDS):
            return await child.wait() == 0
    except TimeoutError:
        child.kill()
        await child.wait()
        return False
