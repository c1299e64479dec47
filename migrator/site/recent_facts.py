"""Facts of hosts, read once for all who want them within the same moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from migrator.core.inventory import HostFacts
from migrator.hosts.facts import read_facts
from migrator.site.host_directory import HostDirectory

#: What was read so long ago still holds for a check of a guest that will move later than that anyway. No guest is
#: refused for it, though: it may have been mended since.
_SECONDS = 2.0


class RecentFacts:
    """Facts of hosts by their names."""

    def __init__(self, hosts: HostDirectory) -> None:
        self._hosts = hosts
        self._read: dict[str, tuple[float, HostFacts]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def known(self) -> Sequence[HostFacts]:
        """Return what was read last of every host that was read."""
        return [facts for _, facts in self._read.values()]

    async def fresh(self, host: str) -> HostFacts:
        """Read them.

        :raise HostError: the host cannot be asked.
        """
        access, config = self._hosts.access(host), self._hosts.config(host)
        began = time.monotonic()
        facts = await read_facts(
            access,
            address=config.address,
            qemus=[config.qemu] if config.qemu else [],
            tls_directory=config.tls_dir,
        )
        self._read[host] = began, facts
        return facts

    async def recent(self, host: str, *, since: float | None = None) -> HostFacts:
        """Return those of a moment ago; who asks while another reads them waits for that one's.

        :param since: none whose reading began before that (``time.monotonic``).
        :raise HostError: the host cannot be asked.
        """
        async with self._locks.setdefault(host, asyncio.Lock()):
            began, facts = self._read.get(host, (0.0, None))
            oldest = time.monotonic() - _SECONDS if since is None else since
            if facts is not None and began >= oldest:
                return facts
            return await self.fresh(host)
