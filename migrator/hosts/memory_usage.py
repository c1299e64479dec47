"""Memory that processes of a host really hold: what a guest never touched need not be sent."""

from __future__ import annotations

import re
from collections.abc import Iterable

from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import number, reading_output

_LINE = re.compile(r"/proc/(\d{1,10})/status:Rss(?:Anon|Shmem):\s+(\d+) kB")


async def read_memory_usage(
    access: HostAccess, pids: Iterable[int], *, timeout: float = 10.0
) -> dict[int, int]:
    """Return the bytes of anonymous and shared memory of each process (RssAnon and RssShmem of proc(5)).

    Those that cannot be read, huge pages among them, are left out.
    """
    files = [f"/proc/{pid}/status" for pid in pids]
    if not files:
        return {}
    output = await access.run(["grep", "-aHE", "^Rss(Anon|Shmem):", "--", *files], timeout=timeout)
    with reading_output(access.name, "the memory of its QEMUs"):
        return parse(output.text)


def parse(text: str) -> dict[int, int]:
    """Parse the output of grep. Pure."""
    found: dict[int, int] = {}
    for line in text.splitlines():
        if match := _LINE.match(line):
            found[int(match[1])] = found.get(int(match[1]), 0) + number(match[2]) * 1024
    return found
