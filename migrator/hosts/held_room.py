"""Room that images take yet which migrations are filling: noted beside each of them, so that whoever asks sees it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

#: Defines a shell function that prints of a directory what each migration's images there will take yet: ``ID:BYTES``
#: each, separated by spaces. A note of an image that is not there any more counts nothing, and one of an image that
#: nobody has written to for two days, or that is itself a month old, neither: nobody is left who fills it.
HELD_ROOM = rb"""
held() {
  for r in "${1%/}"/.migrator-room-*; do
    [ -f "$r" ] && read -r m w f <"$r" && [ -f "${1%/}/$f" ] || continue
    b=$(stat -c %b -- "${1%/}/$f")
    case $w:$b in :*|*:|0[0-9]*|*[!0-9:]*) continue ;; esac
    [ -z "$(find "$r" -mtime +30)" ] && [ -z "$(find "${1%/}/$f" -mtime +1)" ] || continue
    l=$((w - b * 512))
    [ "$l" -le 0 ] || printf ' %s:%s' "$m" "$l"
  done
} 2>/dev/null
"""
_HELD = re.compile(r"([A-Za-z0-9._-]{1,64}):(\d{1,18})")


def parse(words: Iterable[str]) -> Mapping[str, int]:
    """Return the bytes that are held for each migration, as the function printed them; others' words are left out."""
    held: dict[str, int] = {}
    for word in words:
        if found := _HELD.fullmatch(word):
            held[found[1]] = held.get(found[1], 0) + int(found[2])
    return held
