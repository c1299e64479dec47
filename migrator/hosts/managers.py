"""Managers of a host's QEMUs besides us, and the units of systemd that are told not to start one again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from migrator.core.preflight.managers import Ancestor, ProcessSigns
from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import reading_output

# Of every process a record: what it is, NUL, its text, NUL. A program's name may hold anything but a NUL; what the
# kernel says of a process follows the last closing bracket. Hosts have many guests, most of them of the same parents: a
# parent is looked at once, and what the shell can read by itself it does, as each command is a process of its own.
_READ = rb"""
loops='(^|[;&|[:space:]])(while|until|for)[[:space:]]'
for pid; do
  [ -d "/proc/$pid" ] || continue
  printf 'pid\0%s\0words\0' "$pid"
  tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline"
  group=
  while IFS= read -r line; do
    case $line in 0::*) group=${line#0::} ;; 1:name=systemd:*) group=${line#1:name=systemd:} ;; esac
  done 2>/dev/null <"/proc/$pid/cgroup"
  printf '\0cgroup\0%s\0' "$group"
  unit=${group##*/}
  case $group in
    */user@*) ;;
    *.service)
      if command -v systemctl >/dev/null; then
        printf 'unit\0%s\0' "$(systemctl show -p Id -p Restart -p MainPID -- "$unit" 2>/dev/null)"
      fi ;;
  esac
  above=$pid
  for _ in 1 2 3 4; do
    stat=
    IFS= read -r stat 2>/dev/null <"/proc/$above/stat"
    case $stat in
      '') break ;;
      *') '*) ;;
      *) stat=$(cat "/proc/$above/stat" 2>/dev/null) || break ;; # a line break in its name
    esac
    stat=${stat##*) }; stat=${stat#* }; above=${stat%% *}
    [ "$above" -gt 0 ] 2>/dev/null || break
    eval "known=\${seen_$above-}"
    if [ -z "$known" ]; then
      loop= program=
      IFS= read -r program 2>/dev/null <"/proc/$above/comm"
      case $program in
        sh|bash|dash|ash|zsh|ksh|mksh|fish|busybox)
          if tr '\0' '\n' <"/proc/$above/cmdline" 2>/dev/null | grep -qE "$loops"; then loop=loop
          else
            for number in 2 3 4; do
              word=$(tr '\0' '\n' <"/proc/$above/cmdline" 2>/dev/null | sed -n "${number}p")
              case $word in
                ''|-*) continue ;;
                /*) file=/proc/$above/root$word ;;
                *) file=/proc/$above/cwd/$word ;;
              esac
              if [ -f "$file" ] && grep -qE "$loops" "$file" 2>/dev/null; then loop=loop; fi
              break
            done
          fi ;;
      esac
      known="${loop:--} $program"
      eval "seen_$above=\$known"
    fi
    printf 'above\0%s %s\0' "$above" "$known"
    [ "$above" = 1 ] && break
  done
done
printf 'end\0\0'
"""


async def read_processes(
    access: HostAccess, pids: Iterable[int], *, timeout: float = 10.0
) -> dict[int, ProcessSigns]:
    """Read the signs of a manager of each of these processes; those that have ended are left out.

    :raise HostError: the host cannot be asked.
    """
    wanted = [str(pid) for pid in pids]
    if not wanted:
        return {}
    output = await access.run(["sh", "-s", "--", *wanted], stdin=_READ, timeout=timeout)
    if not output.stdout.endswith(b"end\0\0"):
        raise HostError(
            access.name, f"who manages its guests cannot be read: {output.complaint or 'no answer'}"
        )
    with reading_output(access.name, "who manages its guests"):
        return parse(output.text)


def parse(text: str) -> dict[int, ProcessSigns]:
    """Parse the script's answer. Pure."""
    parts = text.split("\0")
    found: dict[int, dict[str, object]] = {}
    ancestors: dict[int, list[Ancestor]] = {}
    pid = 0
    for kind, said in zip(parts[::2], parts[1::2], strict=False):
        if kind == "pid":
            pid = int(said)
            found[pid], ancestors[pid] = {}, []
        elif kind in ("words", "cgroup"):
            found[pid][kind] = said
        elif kind == "unit":
            found[pid]["unit"] = dict(re.findall(r"^(\w+)=(.*)$", said, re.MULTILINE))
        elif kind == "above":
            number, loop, program = said.split(" ", 2)
            ancestors[pid].append(Ancestor(pid=int(number), program=program, loops=loop == "loop"))
    return {
        pid: ProcessSigns(pid=pid, ancestors=tuple(ancestors[pid]), **fields)  # type: ignore[arg-type]  # by kind, above
        for pid, fields in found.items()
    }


class SystemdUnits:
    """Units of systemd that must not start a guest again which has left.

    A drop-in below /run tells them: it is gone after a boot, and a unit that is edited, masked or started by a person
    is theirs as before.

    :param directory: where systemd looks for what holds until the next boot.
    """

    def __init__(self, access: HostAccess, *, directory: str = "/run/systemd/system") -> None:
        self._access = access
        self._directory = directory

    async def suppress_restart(self, unit: str) -> None:
        """Tell the unit not to restart what it runs; may be called again.

        :raise HostError: it could not be told, and is as it was.
        """
        folder, file = self._paths(unit)
        script = (
            f"mkdir -p -- {folder} && printf '[Service]\\nRestart=no\\n' >{file} && systemctl daemon-reload "
            f'&& [ "$(systemctl show -p Restart --value -- {shlex.quote(unit)})" = no ] '
            f"|| {{ rm -f -- {file}; rmdir -- {folder} 2>/dev/null; systemctl daemon-reload; false; }}"
        )
        await self._run(script, f"the unit {unit} cannot be told not to start the guest again")

    async def allow_restart(self, unit: str) -> None:
        """Undo :meth:`suppress_restart`, where it was called.

        :raise HostError: it could not be told.
        """
        folder, file = self._paths(unit)
        script = f"[ ! -e {file} ] || {{ rm -f -- {file}; rmdir -- {folder} 2>/dev/null; systemctl daemon-reload; }}"
        await self._run(script, f"the unit {unit} cannot be put back as it was")

    def _paths(self, unit: str) -> tuple[str, str]:
        folder = f"{self._directory}/{unit}.d"
        return shlex.quote(folder), shlex.quote(f"{folder}/90-migrator.conf")

    async def _run(self, script: str, what: str) -> None:
        output = await self._access.run(["sh", "-c", script], timeout=20.0)
        if output.status != 0:
            raise HostError(self._access.name, f"{what}: {output.complaint or 'systemctl does not say why'}")
