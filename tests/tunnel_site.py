"""Two hosts of which the first can log in at the second, for guests that move through a tunnel."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import Pair, until
from migrator.testing.network import LabHost, LabHosts
from tests.command import MIGRATOR, Command, Ended, addresses, started
from tests.conftest import missing
from tests.sshd import Sshd

#: What of a user's SSH configuration the client reads is set for one command alone.
_WITH_CONFIG = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/ssh/ssh_config && exec "$@"')


@dataclass(frozen=True)
class Site:
    """Two hosts, of which the second has an SSH server that the first can log in to."""

    alpha: LabHost
    beta: LabHost
    server: Sshd
    config: Path

    @property
    def prefixes(self) -> dict[str, Any]:
        return {"source_prefix": self.alpha.prefix, "destination_prefix": self.beta.prefix}

    def processes(self) -> list[str]:
        """Return the command lines of the SSH clients that use this configuration."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if words[0] == "ssh" and self.beta.address in words and _is_in(directory, self.alpha):
                    found.append(" ".join(words))
        return found

    @asynccontextmanager
    async def running(self, pair: Pair, *options: str) -> AsyncIterator[Command]:
        program = (*_WITH_CONFIG, str(self.config), *MIGRATOR)
        listen = ("--listen", f"tcp:{self.beta.address}:0")
        arguments = ("direct", *addresses(pair), "--json", *listen, *options)
        async with started(*arguments, program=program) as command:
            yield command

    async def direct(self, pair: Pair, *options: str) -> Ended:
        async with self.running(pair, *options) as command:
            return await command.ended()

    async def nothing_left(self) -> None:
        await until(lambda: not self.processes(), what="no tunnel being left")
        await until(lambda: not self.server.sessions(), what="no connection being left at the server")


def _is_in(process: Path, host: LabHost) -> bool:
    names = (process / "ns/net").stat(), Path(f"/run/netns/{host.namespace}").stat()
    return names[0].st_ino == names[1].st_ino


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if (why := network.possible()) is not None:
        missing(why)
    with LabHosts("alpha", "beta", isolated=True) as hosts:
        alpha, beta = hosts["alpha"], hosts["beta"]
        with Sshd(tmp_path / "sshd", address=beta.address, prefix=beta.prefix) as server:
            config = tmp_path / "ssh_config"
            lines = ("Host *", f"IdentityFile {server.key}", f"UserKnownHostsFile {server.known_hosts}")
            config.write_text("\n".join(lines) + "\n")
            yield Site(alpha, beta, server, config)
