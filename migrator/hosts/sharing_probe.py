"""The probe that tells which files are the same on two hosts, where what both show of them does not.

It makes empty files of random names beside images and removes them again; nothing else is changed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from migrator.core.process.files import FileFacts, SameFile
from migrator.hosts.access import HostAccess

_MARKER = ".migrator-probe-"
#: Tenths of a second that all markers together may take to be seen. A network file system shows a name that nobody
#: has asked for before at once.
_TENTHS_TO_SHOW = 20

_MAKE = rb"""
name=$1; shift
for d; do
  if ( umask 077; set -C; : >"$d/$name" ) 2>/dev/null; then printf 'made\0'; else printf 'no\0'; fi
done
# Whatever becomes of us: they do not stay.
(
  n=0
  while [ $n -lt 60 ]; do
    left=; for d; do [ -e "$d/$name" ] && left=1; done
    [ -n "$left" ] || exit 0
    sleep 1; n=$((n + 1))
  done
  for d; do rm -f -- "$d/$name"; done
) </dev/null >/dev/null 2>&1 &
"""
_SEE = rb"""
name=$1 tenths=$2; shift 2
for d; do
  while [ ! -e "$d/$name" ] && [ "$tenths" -gt 0 ]; do sleep 0.1; tenths=$((tenths - 1)); done
  if [ -e "$d/$name" ]; then printf 'seen\0'; else printf 'no\0'; fi
done
"""
_REMOVE = rb"""
name=$1; shift
for d; do rm -f -- "$d/$name"; done
"""


async def probe_sharing(
    source: HostAccess,
    target: HostAccess,
    files: Mapping[str, tuple[FileFacts, FileFacts]],
    *,
    timeout: float = 10.0,
) -> dict[str, SameFile]:
    """Find out which files are the same on two hosts: an empty file made beside each is looked for at the other.

    The images themselves are not touched. Markers are removed whatever happens, by the host itself if need be (after a
    minute, should we be killed).

    :param files: by any name: the file as the source and as the target sees it.
    :return: an entry for each of which that could be found out; none where neither host may write there.
    :raise HostError: when a host cannot be asked.
    """
    found: dict[str, SameFile] = {}
    places = {name: (_directory(here), _directory(there)) for name, (here, there) in files.items()}
    for writer, reader, side in ((source, target, 0), (target, source, 1)):
        left = sorted({pair for name, pair in places.items() if name not in found})
        if not left:
            break
        seen = await _seen(writer, reader, [(pair[side], pair[1 - side]) for pair in left], timeout)
        shared = {pair: seen[pair[side], pair[1 - side]] for pair in left}
        for name, (here, there) in files.items():
            answer = shared.get(places[name]) if name not in found else None
            if answer is not None:
                alike = here.real.rpartition("/")[2] == there.real.rpartition("/")[2]
                found[name] = SameFile.YES if answer and alike else SameFile.NO
    return found


def _directory(file: FileFacts) -> str:
    return file.real.rpartition("/")[0] or "/"


async def _seen(
    writer: HostAccess, reader: HostAccess, pairs: Sequence[tuple[str, str]], timeout: float
) -> dict[tuple[str, str], bool | None]:
    """Tell for each pair of directories whether the second shows a marker made in the first; ``None``: not writable."""
    name = _MARKER + os.urandom(16).hex()
    writing = [pair[0] for pair in pairs]
    found: dict[tuple[str, str], bool | None] = dict.fromkeys(pairs)
    try:
        output = await writer.run(["sh", "-s", "--", name, *writing], stdin=_MAKE, timeout=timeout)
        made = [
            pair for pair, answer in zip(pairs, output.text.split("\0"), strict=False) if answer == "made"
        ]
        if made:
            argv = ["sh", "-s", "--", name, str(_TENTHS_TO_SHOW), *(pair[1] for pair in made)]
            output = await reader.run(argv, stdin=_SEE, timeout=timeout)
            for pair, answer in zip(made, output.text.split("\0"), strict=False):
                found[pair] = {"seen": True, "no": False}.get(answer)
    finally:
        removal = asyncio.create_task(
            writer.run(["sh", "-s", "--", name, *writing], stdin=_REMOVE, timeout=timeout),
            name=f"markers of {writer.name} removed",
        )
        await _finish(removal)
    return found


async def _finish(task: asyncio.Task[object]) -> None:
    """Wait for the end of `task`, also when cancelled meanwhile."""
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
