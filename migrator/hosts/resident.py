"""How much memory processes of a host really hold: what a guest never touched need not be sent."""

from __future__ import annotations

import re
from collections.abc import Iterable

from migrator.hosts.access import Access

_LINE = re.compile(r"/proc/(\d+)/status:Rss(?:Anon|Shmem):\s+(\d+) kB")


async def read_resident(access: Access, pids: Iterable[int], *, timeout: float = 10.0) -> dict[int, int]:
    """Bytes of anonymous and shared memory of each process (RssAnon and RssShmem of proc(5)); those that cannot be
    read, huge pages among them, are left out.

    :raise HostError: the host cannot be asked.
    """
    files = [f"/proc/{pid}/status" for pid in pids]
    if not files:
        return {}
    output = await access.run(["grep", "-aHE", "^Rss(Anon|Shmem):", "--", *files], timeout=timeout)
    found: dict[int, int] = {}
    for line in output.text.splitlines():
        if match := _LINE.match(line):
            found[int(match[1])] = found.get(int(match[1]), 0) + int(match[2]) * 1024
    return found
