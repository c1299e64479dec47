"""Volumes (LVM, ZFS, …) that a host's own commands make for the disks of a guest, and remove where it does not come."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import reading_output

#: Time-out of the site's commands, in seconds.
_SECONDS = 60.0
#: Volumes of images that grow are a multiple of this.
_ROUNDED_BYTES = 1 << 20
# Arguments: the directory of the notes and the number of this one; path, size, owner and mode of the volume; format of
# the image in it, the options of that and the size that the guest sees; how many words the command that removes it has,
# these, and the command that makes it. What it is is noted before it is used: one of which that is not known is removed
# by nobody, as it may be somebody else's.
_MAKE = r"""
d=$1 k=$2 p=$3 s=$4 o=$5 m=$6 f=$7 g=$8 v=$9; shift 9
n=$1; shift
[ ! -e "$p" ] && [ ! -L "$p" ] || { echo "$p is there already" >&2; exit 1; }
umask 077
mkdir -p -- "$d" && : >"$d/$k.words" || exit
while [ "$n" -gt 0 ]; do
  env printf '%s\0' "$1" >>"$d/$k.words" || exit
  n=$((n - 1)); shift
done
"$@" </dev/null >/dev/null || {
  n=$?
  [ ! -e "$p" ] || echo "$p is there now, and is left: it may be somebody else's; remove it by hand if not" >&2
  exit $n
}
i=0
while [ ! -b "$p" ] && [ $i -lt 50 ]; do sleep 0.1; i=$((i + 1)); done
[ -b "$p" ] || { echo "$1 has made no block device at $p" >&2; exit 1; }
set -- $(stat -L -c '%t %T' -- "$p")
b=/sys/dev/block/$((0x$1)):$((0x$2))
env printf '%s\0%s' "$p" "$1:$2 $(cat "$b/dm/uuid" 2>/dev/null)" >"$d/$k.is" || exit
z=$(($(cat "$b/size") * 512))
if [ "$f" = raw ]; then
  [ "$z" = "$s" ] || { echo "$p has $z bytes, and the disk has $s" >&2; exit 1; }
else
  [ "$z" -ge "$s" ] || { echo "$p has $z bytes, and $f takes $s" >&2; exit 1; }
  qemu-img create -q -f "$f" ${g:+-o "$g"} -- "$p" "$v" || exit
fi
[ "$(id -u)" != 0 ] || { chown -- "$o" "$p" && chmod -- "$m" "$p"; }
"""
# One that is another by now, or is not there any more, stays as it is.
_REMOVE = r"""
for w in "$1"/*.words; do
  k=${w%.words}
  [ -s "$k.is" ] || continue
  W=$w xargs -0 sh -c '
    p=$1 was=$2
    [ -b "$p" ] || exit 0
    set -- $(stat -L -c "%t %T" -- "$p")
    [ "$was" = "$1:$2 $(cat "/sys/dev/block/$((0x$1)):$((0x$2))/dm/uuid" 2>/dev/null)" ] || exit 0
    xargs -0 env -- <"$W" >/dev/null
  ' sh <"$k.is" || exit
done
rm -rf -- "$1"
"""


@dataclass(frozen=True, kw_only=True)
class NewVolume:
    """A volume whose contents come with the guest."""

    path: str
    #: Size of the volume: that of the disk where the format is raw, else the least that the image takes.
    size_bytes: int
    #: Size that the guest sees.
    virtual_bytes: int
    #: ``uid:gid``, given where we may.
    owner: str
    #: As chmod takes it.
    mode: str
    #: Commands of the site, run without a shell.
    make: tuple[str, ...]
    remove: tuple[str, ...]
    #: Format of the image in it, and options of that as qemu-img takes them.
    format: str = "raw"
    options: tuple[str, ...] = ()


async def volume_bytes(host: HostAccess, form: str, virtual_bytes: int, options: Sequence[str]) -> int:
    """Return how large a volume has to be for an image of that format however much the guest writes to it.

    :raise HostError: qemu-img is not there, or does not know the format or an option.
    """
    if form == "raw":
        return virtual_bytes
    options = [each for each in options if not each.startswith("backing_")]
    given = ["-o", ",".join(options)] if options else []
    argv = ["qemu-img", "measure", "--output=json", "-O", form, *given, "--size", str(virtual_bytes)]
    done = await host.run(argv, timeout=_SECONDS)
    if done.status:
        raise HostError(host.name, f"the size of a volume cannot be measured: {done.complaint}")
    with reading_output(host.name, "qemu-img measure"):
        full = int(json.loads(done.text)["fully-allocated"])
    return -(-full // _ROUNDED_BYTES) * _ROUNDED_BYTES


async def make_volumes(host: HostAccess, run_directory: str, volumes: Sequence[NewVolume]) -> None:
    """Make volumes, none of which may be there yet; :func:`remove_volumes` removes what was made.

    :raise HostError: one could not be made, is there already, or has another size; others may have been made.
    """
    for number, each in enumerate(volumes):
        about = (
            *(each.path, str(each.size_bytes), each.owner, each.mode, each.format),
            *(",".join(each.options), str(each.virtual_bytes)),
        )
        words = (str(number), *about, str(len(each.remove)), *each.remove, *each.make)
        by_hand = f"see whether {each.path} is there, and remove it by hand: {shlex.join(each.remove)}"
        await _run(
            host, _MAKE, _notes(run_directory), *words, otherwise=f"{shlex.join(each.make)}; {by_hand}"
        )


async def remove_volumes(host: HostAccess, run_directory: str) -> None:
    """Remove the volumes that were made for a guest that has never run there.

    :raise HostError: the host cannot be asked, or a command failed.
    """
    notes = _notes(run_directory)
    await _run(
        host,
        _REMOVE,
        notes,
        otherwise=f"the commands in {notes}/*.words, each for the volume in the .is beside",
    )


async def forget_volumes(host: HostAccess, run_directory: str) -> None:
    """Have :func:`remove_volumes` never remove what was made: the guest has run there.

    :raise HostError: the host cannot be asked.
    """
    await _run(host, 'rm -rf -- "$1"', _notes(run_directory))


def _notes(run_directory: str) -> str:
    return f"{run_directory}/volumes"


async def _run(host: HostAccess, script: str, *words: str, otherwise: str = "") -> None:
    """Run a script.

    :param otherwise: what is to be said where nobody knows how far it came.
    """
    try:
        done = await host.run(["sh", "-c", script, "sh", *words], timeout=_SECONDS)
    except HostError as error:
        why = str(error).removeprefix(f"host {host.name}: ")
        raise HostError(host.name, f"volumes of the guest: {why}: {otherwise}") from error
    if done.status:
        raise HostError(
            host.name, f"volumes of the guest: {done.complaint or f'a command ended with {done.status}'}"
        )
