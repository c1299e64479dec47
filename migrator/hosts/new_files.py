"""Files that a guest has on its new host and had not before: images made for it, and files of its memory.

What is made for a guest that does not come is removed again; the memory of one that has left is, too.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass

from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.held_room import HELD_ROOM

#: Time-out of a command, in seconds.
_SECONDS = 10.0
# Arguments: the list of what is made, each with its device and inode; a name that nobody else gives; the migration that
# images are for, of which none may be there yet, or nothing; then of each file its path, format, size, owner, mode,
# options, and how much is expected to be written to it. Made beside its place and put there by a link, so that nothing
# of anybody else's is ever written over. Beside each image stands what it will take yet, for whoever counts the room.
_MAKE = (
    HELD_ROOM.decode()
    + """
list=$1 mark=$2 new=$3; shift 3
umask 077
k=0
while [ $# -ge 7 ]; do
  p=$1 f=$2 s=$3 o=$4 m=$5 t=$1.$mark i=$6 w=$7 k=$((k + 1)); shift 7
  if [ -e "$p" ] || [ -L "$p" ]; then
    [ -z "$new" ] || { echo "$p is there already" >&2; exit 1; }
    continue
  fi
  env printf -- '- %s\\0' "$t" >>"$list" || exit
  if [ "$f" = raw ]; then truncate -s "$s" -- "$t"
  else qemu-img create -q -f "$f" ${i:+-o "$i"} -- "$t" "$s"; fi || exit
  [ "$(id -u)" != 0 ] || chown -- "$o" "$t" || exit
  chmod -- "$m" "$t" && n=$(stat -c %d:%i -- "$t") && env printf '%s %s\\0' "$n" "$p" >>"$list" &&
    ln -T -- "$t" "$p" || exit
  rm -f -- "$t"
  [ -n "$new" ] && [ "$w" -gt 0 ] || continue
  d=${p%/*}/ r=${p%/*}/.migrator-room-$mark-$k
  # A note of this image is of one that was here before: nobody fills that one any more.
  for old in "$d".migrator-room-*; do
    [ -f "$old" ] && read -r _ _ of <"$old" && [ "$of" = "${p##*/}" ] && rm -f -- "$old"
  done 2>/dev/null
  env printf -- '- %s\\0' "$r" >>"$list" && (umask 022; echo "$new $w ${p##*/}" >"$r") || exit
  mine=0 others=0
  for each in $(held "$d"); do
    case $each in "$new:"*) mine=$((mine + ${each##*:}));; *) others=$((others + ${each##*:}));; esac
  done
  room=$(stat -L -f -c '%S * %a' -- "$d") && room=$(($room))
  if [ "$others" -gt 0 ] && [ $((mine + others)) -gt "$room" ]; then
    echo "$d has $room bytes left, which are promised to images that other migrations are filling" >&2; exit 1
  fi
done
"""
)
# What has taken its place meanwhile is somebody else's. (Of the first kind nobody else knows the name.)
_REMOVE = r"""
[ ! -s "$1" ] || xargs -0 -n 1 sh -c '
  n=${0%% *} p=${0#* }
  if [ "$n" = - ] || [ "$n" = "$(stat -c %d:%i -- "$p" 2>/dev/null)" ]; then rm -f -- "$p"; fi
' <"$1"
"""
_FORGET = r"""
[ ! -s "$1" ] || xargs -0 -n 1 sh -c 'case $0 in "- "*) rm -f -- "${0#- }";; esac' <"$1"
rm -f -- "$1"
"""
# Links would leave the file in its place, and of a block device there is nothing to be renamed. Who still has it open
# has locked it, as QEMU does, also for reading. One that was renamed before stays so.
_PUT_ASIDE = r"""
suffix=$1; shift
locked() {
  set -- $(stat -c '%d %i' -- "$1")
  d=$(printf '%02x:%02x' $(($1 >> 8 & 0xfff | $1 >> 32 & ~0xfff)) $(($1 & 0xff | $1 >> 12 & 0xfff00)))
  grep -q " $d:$2 " /proc/locks
}
for p; do
  if [ ! -e "$p" ] && [ ! -L "$p" ] && [ -f "$p$suffix" ]; then printf 'moved\0'
  elif [ -f "$p" ] && [ ! -L "$p" ] && [ ! -e "$p$suffix" ] && ! locked "$p" &&
    mv -n -T -- "$p" "$p$suffix" && [ ! -e "$p" ]
  then printf 'moved\0'; else printf 'left\0'; fi
done
"""
# Whether no process has it mapped, as far as we may know: others' mappings are shown to root alone.
_UNUSED = r"""
unused() {
  [ -f "$1" ] && { [ "$(id -u)" = 0 ] || [ -O "$1" ]; } || return 1
  ! cat /proc/[0-9]*/maps 2>/dev/null | grep -qE " $(stat -L -c %i -- "$1") +/"
}
"""
_LIST_UNUSED = (
    _UNUSED
    + r"""
for p; do if unused "$p"; then printf 'yes\0'; else printf 'no\0'; fi; done
"""
)
_NOTE_MEMORY = r"""
list=$1; shift
env printf '%s\0' "$@" >>"$list"
"""
_REMOVE_MEMORY = (
    _UNUSED
    + r"""
[ -s "$1" ] || exit 0
tr '\0\n' '\n\0' <"$1" | while IFS= read -r p; do
  p=$(printf '%s.' "$p" | tr '\0' '\n')
  if unused "${p%.}"; then rm -f -- "${p%.}"; fi
done
"""
)


@dataclass(frozen=True, kw_only=True)
class NewFile:
    """An image whose contents come with the guest."""

    path: str
    format: str
    #: Size that the guest sees.
    size_bytes: int
    #: ``uid:gid``, given where we may.
    owner: str
    #: As chmod takes it.
    mode: str
    #: Options of its format, as qemu-img takes them.
    options: tuple[str, ...] = ()
    #: So much is expected to be written to it.
    expected_bytes: int = 0


async def make_files(host: HostAccess, run_directory: str, files: Sequence[NewFile]) -> None:
    """Make those of the files that are not there; :func:`remove_files` removes what was made.

    :param run_directory: of the QEMU that they are for; the list is kept there.
    :raise HostError: one could not be made; others may have been.
    """
    await _make(host, _list(run_directory), files, new="")


async def make_images(
    host: HostAccess, run_directory: str, files: Sequence[NewFile], *, migration: str
) -> None:
    """Make images of disks, none of which may be there yet; :func:`remove_images` removes what was made.

    The room that they will take is held for the migration, whoever else counts what is left there.

    :raise HostError: one could not be made, is there already, or its room is held for others; some may have been made.
    """
    await _make(host, f"{run_directory}/images", files, new=migration)


async def copy_header(source: HostAccess, target: HostAccess, path: str, there: str, count: int) -> None:
    """Copy the first bytes of an image into the one that was made for it at the target.

    :param there: path of that one.

    :raise HostError: they cannot be read, or written.
    """
    read = await source.run(["head", "-c", str(count), "--", path], timeout=_SECONDS)
    if read.status or len(read.stdout) != count:
        raise HostError(
            source.name, f"the header of {path} cannot be read: {read.complaint or 'it is too short'}"
        )
    argv = ["dd", f"of={there}", "conv=notrunc,fsync", "bs=1M", "status=none"]
    done = await target.run(argv, stdin=read.stdout, timeout=_SECONDS)
    if done.status:
        raise HostError(target.name, f"the header of {there} cannot be written: {done.complaint}")


async def remove_images(host: HostAccess, run_directory: str) -> None:
    """Remove the images that were made for a guest that has never run there.

    :raise HostError: the host cannot be asked, or one could not be removed.
    """
    await _run(host, _REMOVE, f"{run_directory}/images")


async def forget_images(host: HostAccess, run_directory: str) -> None:
    """Have :func:`remove_images` never remove what was made: the guest has run there.

    :raise HostError: the host cannot be asked.
    """
    await _run(host, _FORGET, f"{run_directory}/images")


async def put_aside(host: HostAccess, paths: Sequence[str], suffix: str) -> dict[str, str]:
    """Give images of a guest that has left another name beside their own; return it by the path that each had.

    One that is no regular file, or that a process has locked, stays as it is.

    :raise HostError: the host cannot be asked.
    """
    done = await host.run(["sh", "-c", _PUT_ASIDE, "sh", suffix, *paths], timeout=_SECONDS)
    answers = done.text.split("\0")
    return {
        path: f"{path}{suffix}" for path, answer in zip(paths, answers, strict=False) if answer == "moved"
    }


async def _make(host: HostAccess, made: str, files: Sequence[NewFile], *, new: str) -> None:
    if files:
        mark = "migrator-" + "".join(secrets.choice(string.ascii_letters) for _ in range(8))
        words = [
            word
            for file in files
            for word in (
                *(file.path, file.format, str(file.size_bytes), file.owner, file.mode),
                ",".join(file.options),
                str(file.expected_bytes),
            )
        ]
        await _run(host, _MAKE, made, mark, new, *words)


async def remove_files(host: HostAccess, run_directory: str) -> None:
    """Remove what was made for a guest that has not come.

    :raise HostError: the host cannot be asked, or something could not be removed.
    """
    await _run(host, _REMOVE, _list(run_directory))
    await remove_memory(host, run_directory)


async def unused(host: HostAccess, paths: Sequence[str]) -> frozenset[str]:
    """Return the files that are there and that no process has its memory in: QEMU can take them for its own.

    :raise HostError: the host cannot be asked.
    """
    done = await host.run(["sh", "-c", _LIST_UNUSED, "sh", *paths], timeout=_SECONDS)
    return frozenset(
        path for path, answer in zip(paths, done.text.split("\0"), strict=False) if answer == "yes"
    )


async def note_memory(host: HostAccess, run_directory: str, paths: Sequence[str]) -> None:
    """Note the files that QEMU will make for the guest's memory, for :func:`remove_memory`.

    :raise HostError: it could not be noted.
    """
    if paths:
        await _run(host, _NOTE_MEMORY, f"{run_directory}/memory", *paths)


async def remove_memory(host: HostAccess, run_directory: str) -> None:
    """Remove the files of the memory of a guest that is not there any more; one that a process uses is left.

    :raise HostError: the host cannot be asked, or something could not be removed.
    """
    await _run(host, _REMOVE_MEMORY, f"{run_directory}/memory")


def _list(run_directory: str) -> str:
    return f"{run_directory}/made"


async def _run(host: HostAccess, script: str, *words: str) -> None:
    done = await host.run(["sh", "-c", script, "sh", *words], timeout=_SECONDS)
    if done.status:
        why = done.complaint or f"status {done.status}"
        raise HostError(host.name, f"files of the guest, as noted in {words[0]}: {why}")
