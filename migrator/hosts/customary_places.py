"""Customary places of run directories and logs at a host, and whether systemd runs there; read once of each host."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import reading_output

_SECONDS = 10.0
#: Where those without a directory of their own have it: whose that one is may change, so it is found out each time.
_SHARED = "/tmp/"  # noqa: S108 - how what is made there is guarded, the script says
# Of the user $u.
_CUSTOMARY = """
if [ "$u" = 0 ]; then r=/run s=/var/log
else r=${XDG_RUNTIME_DIR:-} s=${XDG_STATE_HOME:-$HOME/.local/state}
fi
if [ "$u" = 0 ] && [ -d /run/systemd/system ]; then i=systemd; else i=; fi
"""
_PRINT = """printf '%s\\0' "$r/migrator/guests" "$s/migrator/guests" "$i"
"""
_READ = (
    "u=$(id -u)"
    + _CUSTOMARY
    + """
if [ -z "$r" ]; then
  r=/tmp/migrator-$u
  mkdir -m 700 -- "$r" 2>/dev/null
  if [ -L "$r" ] || [ ! -O "$r" ]; then echo "$r belongs to somebody else" >&2; exit 1; fi
fi
"""
    + _PRINT
)
#: For scripts that read other things and have the number of their user in $u: prints the same, for
#: :func:`note_places`, where nothing has to be made for it.
SHOW_PLACES = f'{_CUSTOMARY}[ -z "$r" ] || {_PRINT}'


class CustomaryPlaces(NamedTuple):
    """Places of a host for what is not configured."""

    run_directories: str
    logs: str
    systemd: bool


_KNOWN: WeakKeyDictionary[HostAccess, CustomaryPlaces] = WeakKeyDictionary()


def note_places(access: HostAccess, text: str) -> None:
    """Note what :data:`SHOW_PLACES` has printed there; nothing where that was nothing."""
    words = text.strip("\n").split("\0")
    if len(words) == 4 and not words[0].startswith(_SHARED):
        _KNOWN[access] = CustomaryPlaces(words[0], words[1], words[2] == "systemd")


async def customary_places(access: HostAccess) -> CustomaryPlaces:
    """Return them, as they were read before or as they are read now.

    :raise HostError: the host cannot be asked, or nothing can be made there.
    """
    if (known := _KNOWN.get(access)) is not None:
        return known
    done = await access.run(["sh", "-c", _READ], timeout=_SECONDS)
    if done.status:
        raise HostError(access.name, done.complaint or f"sh ended with status {done.status}")
    note_places(access, done.text)
    with reading_output(access.name, "its directories"):
        base, logs, init = done.text.split("\0")[:3]
        return CustomaryPlaces(base, logs, init == "systemd")
