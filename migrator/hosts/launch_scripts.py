"""The scripts that make a run directory at a host, start a QEMU in it, and clear it away."""

from __future__ import annotations

from migrator.hosts.access import also_read_process

# Fixed texts: what comes from outside is only ever in their arguments.
# A run directory is its owner's alone. Those above it may be passed through, where QEMU will be somebody else.
MAKE = """
umask 077 && mkdir -p -- "$1" "$2" && mkdir -- "$3" || exit
env printf %s "$4" >"$3/migration" || { echo "(writing $3/migration)" >&2; exit 1; }
echo "$(cat /proc/sys/kernel/random/boot_id) $(readlink /proc/self/ns/pid)" >"$3/made-in"
if [ -n "$6" ]; then cat >"$3/paths" || { echo "(writing $3/paths)" >&2; exit 1; }; fi
if [ -n "$5" ] && [ "$(id -u)" = 0 ]; then
  for d in "$1" "${1%/*}"; do
    case $d in */migrator|*/migrator/guests|"$1") [ ! -O "$d" ] || chmod go+x -- "$d" || exit ;; esac
  done
fi
shift 6
for p; do if [ -e "$p" ] || [ -L "$p" ]; then printf 'there\\0'; else printf 'absent\\0'; fi; done
"""
OF_MIGRATION = """
for d in "$1"/*-??????; do
  if [ -f "$d/migration" ] && [ "$(cat -- "$d/migration")" = "$2" ]; then printf '%s\\0' "$d"; fi
done
"""
LOGGED = 'exec "$@" >>"$0" 2>&1 </dev/null'
_AWAIT = """
turn=0
while [ $turn -lt 100 ]; do
  turn=$((turn + 1))
  if [ -s "$1/qemu.pid" ]; then
    p=$(cat -- "$1/qemu.pid"); printf 'up %s\\n' "$p"
    @up
    exit
  fi
  if [ -n "$2" ]; then
    systemctl is-active --quiet "$2" || { printf gone; exit; }
  elif [ ! -e "$1/starting" ]; then
    p=$(cat -- "$1/start.pid" 2>/dev/null) || { printf gone; exit; }
    case $p in
      ''|*[!0-9]*) ;;
      *) case $(sed 's/.*) //; s/ .*//' "/proc/$p/stat" 2>/dev/null) in ''|Z|X) printf gone; exit ;; esac ;;
    esac
  fi
  sleep 0.02
done
"""
# What can fail is tried where its reason can still be told. As long as there is a file `starting`, it does.
_START = """
script=$1; shift
: >>"$1" || exit
env printf starting >"$2/starting" || { echo "(writing $2/starting)" >&2; exit 1; }
setsid --fork sh -c "$script" "$@" || exit
set -- "$2" ""
"""
# A session of its own, a child of nobody. Not -daemonize: QEMU's sandbox kills it for that where it forbids to fork.
# Whoever renames or removes `starting` first decides whether it goes on; its pid stands in `start.pid` from then on.
DETACHED = """
exec >>"$0" 2>&1 </dev/null &&
  [ -e "$1/starting" ] && mv -- "$1/starting" "$1/start.pid" || { rm -f -- "$1/starting"; exit; }
env printf %s "$$" >"$1/start.pid" || { rm -f -- "$1/start.pid"; exit; }
shift
exec "$@"
"""
# With a second argument, a start that has not gone on so far does not go on any more.
STARTED = """
[ -z "$2" ] || rm -f -- "$1/starting"
n=0
while p=$(cat -- "$1/start.pid" 2>/dev/null) && [ $n -lt 200 ]; do
  case $p in ''|*[!0-9]*) n=$((n + 1)); sleep 0.01 ;; *) printf %s "$p"; exit ;; esac
done
"""
USERS = 'grep -lsaF -e "$1" /proc/[0-9]*/cmdline'
# With the links that lead into it (migrator.hosts.path_links).
REMOVE = """
case "$1" in */*-??????) ;; *) exit 2;; esac
if [ -f "$1/paths" ]; then
  xargs -0 -r -n 2 sh -c 'if [ "$(readlink -- "$0")" = "$1" ]; then rm -f -- "$0"; fi' <"$1/paths" || :
fi
rm -rf -- "$1"
"""


def await_pid(process_script: str) -> str:
    """Return the script that waits a while until QEMU has written its pid file, or has ended.

    Its arguments: the run directory, and its unit where it has one, which leaves no trace of its start. It prints the
    pid, and in a second line what `process_script` says of the process (:func:`migrator.hosts.access.read_besides`).
    """
    return _AWAIT.replace("@up", also_read_process(process_script) or ":")


def start(process_script: str) -> str:
    """Return the script that starts QEMU, and then does what that of :func:`await_pid` does."""
    return _START + await_pid(process_script)
