"""Run directories whose QEMU is gone: its guest ended by itself, or somebody killed it.

Sockets, notes and the links that lead to them go; the log stays. Only what was made on the same boot and in the same
space of process ids is judged: a controller in another container sees none of the QEMUs of this one.
"""

from __future__ import annotations

from collections.abc import Callable

from migrator.errors import HostError
from migrator.hosts.launch import Launcher

#: Nothing has come or gone in it for so long, longer than any start lasts.
IDLE_SECONDS = 300.0
_SECONDS = 20.0
# The pattern comes by a pipe: in an argument it would find the grep itself.
_FIND = """
b=$(cat /proc/sys/kernel/random/boot_id) n=$(readlink /proc/self/ns/pid)
for d in "$1"/*-??????; do
  [ -f "$d/made-in" ] && [ "$(cat -- "$d/made-in")" = "$b $n" ] || continue
  [ -n "$(find "$d" -maxdepth 0 ! -newermt "-$2 seconds")" ] || continue
  if printf '%s/' "$d" | grep -qsaF -f - /proc/[0-9]*/cmdline; then continue; fi
  printf '%s\\0%s\\0' "$d" "$(cat -- "$d/migration")"
done
"""


async def remove_stale(
    launcher: Launcher, *, under_way: Callable[[str], bool], idle_seconds: float = IDLE_SECONDS
) -> list[str]:
    """Remove the stale run directories of one host; return their paths.

    :param under_way: whether a migration of that id has not ended: it clears up after itself.
    :raise HostError: the host cannot be asked, or one cannot be removed.
    """
    removed = []
    for pair in await launcher.places():
        base, log_directory = pair
        done = await launcher.host.run(
            ["sh", "-c", _FIND, "sh", base.rstrip("/"), str(int(idle_seconds))], timeout=_SECONDS
        )
        if done.status:
            raise HostError(launcher.host.name, f"{base} cannot be looked through: {done.complaint}")
        words = done.text.split("\0")[:-1]
        for path, migration in zip(words[::2], words[1::2], strict=True):
            if not under_way(migration):
                await launcher.clear(launcher.run_directory(path, log_directory))
                removed.append(path)
    return removed
