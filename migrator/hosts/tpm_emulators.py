"""Emulators of TPMs (swtpm): found at a source, started at a target, and ended where the guest does not come."""

from __future__ import annotations

from dataclasses import dataclass

from migrator.core.process.tpm_emulator import TpmEmulator, TpmObstacles
from migrator.errors import HostError, Refused
from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import reading_output

#: Time-outs of a small command, and of a start, in seconds.
_SHORT, _START = 10.0, 20.0
# The socket in a command line may be another's whose path begins alike: that is seen here. One in the same mount
# namespace comes first, as others may have another file at that path.
_FIND = r"""
of() {
  for f in $(grep -lsaF -e "path=$1" /proc/[0-9]*/cmdline); do
    d=${f%/cmdline}
    case $(readlink "$d/exe") in */swtpm|*'/swtpm (deleted)') ;; *) continue ;; esac
    own=other; [ "$(readlink "$d/ns/mnt")" != "$(readlink /proc/self/ns/mnt)" ] || own=same
    [ "$own" = "$2" ] || continue
    printf '%s\0' "$(stat -c '%u:%g' "$d")" "$(tr '\0' '\n' <"$f" | wc -l)"; cat "$f"
  done
}
of "$1" same
of "$1" other
"""
# Arguments: the state directory, then the files that the emulator is given.
_LOOK = r"""
command -v swtpm >/dev/null && printf 'yes\0' || printf 'no\0'
if [ -e "$1" ] || [ -L "$1" ]; then
  if [ -d "$1" ] && [ -z "$(ls -A -- "$1")" ]; then printf 'empty\0'; else printf 'taken\0'; fi
elif [ -d "${1%/*}/" ]; then printf 'absent\0'
else printf 'homeless\0'; fi
shift
for f; do [ -r "$f" ] || printf '%s\0' "$f"; done
"""
# Arguments: the run directory; the state directory, its owner and mode; the user; and the command. What is made is
# noted by the device and inode of the directory.
_START_SCRIPT = r"""
run=$1 d=$2 o=$3 m=$4 u=$5; shift 5
umask 077
made=
if [ -e "$d" ] || [ -L "$d" ]; then
  [ -d "$d" ] && [ -z "$(ls -A -- "$d")" ] || { echo "$d has the state of a TPM already" >&2; exit 1; }
else
  mkdir -- "$d" || exit
  made=made
fi
env printf '%s\0%s\0%s\0' "$(stat -c %d:%i -- "$d")" "$d" "$made" >"$run/tpm-made" && mkdir -- "$run/tpm" || exit
if [ "$(id -u)" = 0 ]; then
  [ -z "$made" ] || { chown -- "$o" "$d" && chmod -- "$m" "$d"; } || exit
  chown -- "$u" "$run/tpm" && chmod 711 "$run/tpm" || exit
  if [ "${u%:*}" != 0 ]; then
    chmod go+x "$run" && set -- setpriv --reuid="${u%:*}" --regid="${u#*:}" --clear-groups "$@" || exit
  fi
fi
umask 007
"$@" </dev/null >"$run/tpm-log" 2>&1 || { tr '\n' ' ' <"$run/tpm-log" >&2; exit 1; }
n=0
while [ ! -S "$run/tpm/control" ] && [ $n -lt 100 ]; do sleep 0.05; n=$((n + 1)); done
[ -S "$run/tpm/control" ] || { echo "swtpm does not serve $run/tpm/control" >&2; exit 1; }
"""
_END = r"""
end() {
  p=$(cat -- "$1/tpm/pid" 2>/dev/null) || return 0
  case $p in ''|*[!0-9]*) return 0 ;; esac
  n=0
  while tr '\0' '\n' <"/proc/$p/cmdline" 2>/dev/null | grep -qF -e "$1/tpm/"; do
    [ $n -lt 100 ] || { echo "swtpm (pid $p) does not end" >&2; return 1; }
    if [ $n -lt 20 ]; then kill "$p" 2>/dev/null; else kill -9 "$p" 2>/dev/null; fi
    sleep 0.05; n=$((n + 1))
  done
}
end "$1" || exit
"""
# What has taken the directory's place meanwhile is somebody else's.
_REMOVE = r"""
[ -s "$1/tpm-made" ] || exit 0
xargs -0 sh -c '
  [ "$0" = "$(stat -c %d:%i -- "$1" 2>/dev/null)" ] || exit 0
  find "$1" -mindepth 1 -delete && { [ -z "$2" ] || rmdir -- "$1"; }
' <"$1/tpm-made" && rm -f -- "$1/tpm-made"
"""
# Those in other mount namespaces may have another directory of that name.
_PUT_ASIDE = r"""
n=0
used() {
  for f in $(grep -lsaF -e "dir=$1" /proc/[0-9]*/cmdline); do
    case $(readlink "${f%/cmdline}/exe") in */swtpm|*'/swtpm (deleted)') ;; *) continue ;; esac
    [ "$(readlink "${f%/cmdline}/ns/mnt")" != "$(readlink /proc/self/ns/mnt)" ] || return 0
  done
  return 1
}
while used "$1"; do [ $n -lt 40 ] || exit 3; sleep 0.05; n=$((n + 1)); done
[ -d "$1" ] && [ ! -L "$1" ] && [ ! -e "$1$2" ] && mv -n -T -- "$1" "$1$2"
"""


@dataclass(frozen=True, kw_only=True)
class _TargetState:
    """A target as one that starts an emulator there finds it."""

    installed: bool
    #: The state directory is ``absent``, ``empty``, ``taken``, or ``homeless``: what it would be in is not there.
    state: str
    #: Files that it would be given and that are not there, or cannot be read.
    lacking: tuple[str, ...] = ()


async def find_emulator(host: HostAccess, socket: str) -> TpmEmulator:
    """Return the emulator behind a socket of a host.

    :raise Refused: there is none, or another like it cannot be started; says why.
    :raise HostError: the host cannot be asked.
    """
    done = await host.run(["sh", "-c", _FIND, "sh", socket], timeout=_SHORT)
    words = done.text.split("\0")[:-1]
    why = "no swtpm is seen that serves it"
    with reading_output(host.name, "its TPMs"):
        while words:
            user, count = words[0], int(words[1])
            argv, words = words[2 : 2 + count], words[2 + count :]
            try:
                found = TpmEmulator.parse(argv, socket)
            except Refused as refused:
                why = str(refused)
                continue
            about = await host.run(["stat", "-c", "%u:%g %a", "--", found.state_directory], timeout=_SHORT)
            owner, _, mode = about.text.strip().partition(" ")
            if about.status or not mode:
                why = f"its state directory {found.state_directory} cannot be looked at"
                continue
            return TpmEmulator.parse(argv, socket, user=user, owner=owner, mode=mode)
    raise Refused(why)


async def check_emulator(source: HostAccess, target: HostAccess, socket: str) -> TpmObstacles:
    """Return why one like the emulator behind a socket of the source cannot be started at a target.

    :raise HostError: a host cannot be asked.
    """
    try:
        emulator = await find_emulator(source, socket)
    except Refused as refused:
        return TpmObstacles(source=str(refused))
    seen, state, lacks = await _look(target, emulator), emulator.state_directory, ""
    if not seen.installed:
        lacks = f"{target.name} has no swtpm"
    elif seen.lacking:
        lacks = f"{', '.join(seen.lacking)} cannot be read at {target.name}"
    elif seen.state == "homeless":
        lacks = f"its state is in {state}, of which {target.name} has not the directory above"
    taken = f"its state is in {state}, and {target.name} has something there" if seen.state == "taken" else ""
    return TpmObstacles(target=lacks, state=taken)


async def _look(host: HostAccess, emulator: TpmEmulator) -> _TargetState:
    argv = ["sh", "-c", _LOOK, "sh", emulator.state_directory, *emulator.key_files]
    done = await host.run(argv, timeout=_SHORT)
    words = done.text.split("\0")[:-1]
    with reading_output(host.name, "its TPMs"):
        return _TargetState(installed=words[0] == "yes", state=words[1], lacking=tuple(words[2:]))


async def start_emulator(host: HostAccess, run_directory: str, emulator: TpmEmulator) -> None:
    """Start one like it, with an empty state, for the QEMU of a run directory; it ends with that.

    :raise HostError: it could not be started; what was begun is there until :func:`end_emulator`.
    """
    about = (run_directory, emulator.state_directory, emulator.owner, emulator.mode, emulator.user)
    argv = ["sh", "-c", _START_SCRIPT, "sh", *about, *emulator.command(run_directory)]
    done = await host.run(argv, timeout=_START)
    if done.status:
        raise HostError(
            host.name, f"the emulator of its TPM: {done.complaint or 'swtpm could not be started'}"
        )


async def end_emulator(host: HostAccess, run_directory: str, *, state: bool) -> None:
    """End the emulator that was started for a QEMU which has ended; nothing where there is none.

    :param state: remove the state that was made for it too: the guest has never run with it.
    :raise HostError: the host cannot be asked, or it does not end.
    """
    done = await host.run(
        ["sh", "-c", _END + _REMOVE if state else _END, "sh", run_directory], timeout=_START
    )
    if done.status:
        raise HostError(host.name, f"the emulator of a TPM: {done.complaint or 'it does not end'}")


async def forget_state(host: HostAccess, run_directory: str) -> None:
    """Have :func:`end_emulator` never remove what was made: the guest has run with it.

    :raise HostError: the host cannot be asked.
    """
    await host.run(["rm", "-f", "--", f"{run_directory}/tpm-made"], timeout=_SHORT)


async def put_state_aside(host: HostAccess, directory: str, suffix: str) -> bool:
    """Give the state of a TPM whose guest has left another name; tell whether it was done.

    It is not where its emulator goes on.

    :raise HostError: the host cannot be asked.
    """
    done = await host.run(["sh", "-c", _PUT_ASIDE, "sh", directory, suffix], timeout=_SHORT)
    return done.status == 0
