"""The paths that an operator knows, as symbolic links into the directory of a process that we started.

Which path leads where stands in a file of that directory. Nothing of anybody else's is ever overwritten or removed: a
link is made only where nothing is, and removed only while it still leads where it was told to.
"""

from __future__ import annotations

from collections.abc import Mapping

from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import reading_output
from migrator.hosts.run_directories import RunDirectory

_SECONDS = 10.0
_READ = 'if [ -f "$1/paths" ]; then cat -- "$1/paths"; fi'
# In a directory of ours that is gone: the link was left by a process that ended with its machine.
_ONE = """
to=$(readlink -- "$1")
if [ "$to" = "$2" ]; then exit 0; fi
if [ -n "$to" ] && [ ! -e "$1" ]; then
  case $to in "$0"/*-??????/*) if [ ! -d "${to%/*}" ]; then rm -f -- "$1"; fi;; esac
fi
if [ -e "$1" ] || [ -L "$1" ]; then printf '%s\\0%s\\0taken\\0' "$1" "$2"
elif [ ! -d "${1%/*}/" ]; then printf '%s\\0%s\\0homeless\\0' "$1" "$2"
elif ! ln -s -- "$2" "$1" 2>/dev/null; then printf '%s\\0%s\\0refused\\0' "$1" "$2"
fi
"""
_LINK = 'if [ -f "$1/paths" ]; then xargs -0 -r -n 2 sh -c "$2" "${1%/*}" <"$1/paths"; fi'
_WHY = {
    "taken": "something else is there",
    "homeless": "its directory is not there",
    "refused": "a link could not be made there",
}


def links_file(links: Mapping[str, str]) -> str:
    """Return the content of the file that says which path of the operator's shall lead where; empty without links."""
    return "".join(f"{path}\0{to}\0" for path, to in links.items())


async def read_links(host: HostAccess, run_dir: RunDirectory) -> dict[str, str]:
    """Return the operator's path of each path of the process's own; empty where nothing was saved.

    :raise HostError: when the host cannot be asked.
    """
    done = await host.run(["sh", "-c", _READ, "sh", run_dir.path], timeout=_SECONDS)
    words = done.text.split("\0")[:-1]
    with reading_output(host.name, "the paths of a process"):
        return {to: path for path, to in zip(words[::2], words[1::2], strict=True)}


async def make_links(host: HostAccess, run_dir: RunDirectory) -> list[str]:
    """Make the links, leaving those that are there; return what could not be made, each in one sentence.

    :raise HostError: when the host cannot be asked.
    """
    done = await host.run(["sh", "-c", _LINK, "sh", run_dir.path, _ONE], timeout=_SECONDS)
    words = done.text.split("\0")[:-1]
    with reading_output(host.name, "the paths of a process"):
        return [
            f"{path} is at {to} now: {_WHY[why]}"
            for path, to, why in zip(words[::3], words[1::3], words[2::3], strict=True)
        ]


async def resolve_link(host: HostAccess, path: str) -> str:
    """Return where a path leads, if it is a symbolic link; the path itself if it is none.

    :raise HostError: when the host cannot be asked.
    """
    done = await host.run(["readlink", "--", path], timeout=_SECONDS)
    return done.text.removesuffix("\n") if done.status == 0 else path
