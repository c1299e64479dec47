"""What goes over a network interface, captured by tcpdump."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from migrator.testing.lab import until
from tests.conftest import missing


class Wire:
    """What went over an interface, or a part of it."""

    def __init__(self, process: asyncio.subprocess.Process, file: Path) -> None:
        self._process, self._file = process, file

    async def content(self) -> bytes:
        """End the capture; return all of it."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
            await self._process.wait()
        return self._file.read_bytes()

    async def shows(self, pattern: bytes) -> bool:
        return pattern in await self.content()


@contextlib.asynccontextmanager
async def captured(
    directory: Path, *, port: int | None = None, interface: str = "lo", prefix: Sequence[str] = ()
) -> AsyncIterator[Wire]:
    """Capture TCP on an interface, of one port or of all.

    :param prefix: a command that tcpdump is run through, which has to exec.
    """
    file = directory / "wire.pcap"
    ports = ("port", str(port)) if port is not None else ()
    options = ("-i", interface, "-U", "-w", str(file), "-B", "65536", "tcp", *ports)
    if shutil.which("tcpdump") is None:
        missing("there is no tcpdump here: install the package tcpdump")
    process = await asyncio.create_subprocess_exec(
        *prefix, "tcpdump", "-Z", "root", *options, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await until(lambda: file.exists() and file.stat().st_size > 0, what="tcpdump that captures")
        yield Wire(process, file)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
