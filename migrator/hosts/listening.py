"""Ports that the QEMUs of a host were told to listen at."""

from __future__ import annotations

from collections.abc import Iterable

from migrator.core.process.listening import ListeningPort, listens
from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import reading_output

# What may listen, each option with the word after it; the names of files and the rest of the command lines stay there.
_OPTIONS = "^--?(vnc|display|spice|netdev|nic|net|chardev|serial|parallel|monitor|debugcon)$"


async def read_listening(
    access: HostAccess, pids: Iterable[int], *, timeout: float = 10.0
) -> dict[int, tuple[ListeningPort, ...]]:
    """Read the ports of each process; one whose command line cannot be read is left out.

    :raise HostError: the host cannot be asked.
    """
    files = [f"/proc/{pid}/cmdline" for pid in pids]
    if not files:
        return {}
    argv = ["grep", "-azEHZ", "--no-group-separator", "-A1", "-e", _OPTIONS, "--", *files]
    output = await access.run(argv, timeout=timeout)
    with reading_output(access.name, "where its QEMUs listen"):
        return parse(output.text)


def parse(text: str) -> dict[int, tuple[ListeningPort, ...]]:
    """Parse the output of grep. Pure."""
    parts = text.split("\0")
    words: dict[int, list[str]] = {}
    # With -Z the name of the file and each line end in the same NUL.
    for place, word in zip(parts[::2], parts[1::2], strict=False):
        if place.startswith("/proc/") and place.endswith("/cmdline"):
            words.setdefault(int(place.split("/")[2]), []).append(word)
    return {pid: listens(said) for pid, said in words.items()}
