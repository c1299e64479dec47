"""Survey of a target before a QEMU is started there like another: programs, paths, and who may use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from migrator.core.process.listening import ListeningPort
from migrator.errors import HostError
from migrator.hosts import bound_ports
from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import reading_output

_SHORT = 10.0

# Arguments: pid of the source, should it be of this machine; two QEMUs; where run directories are made; then a command
# that becomes the user that QEMU will be.
_AS_WE_ARE = (
    r"""
printf '%s\0' "$(cat /proc/sys/kernel/random/boot_id)" "$(readlink /proc/self/ns/net)"
printf '%s\0' "$(readlink "/proc/$1/ns/net" 2>/dev/null)"
printf '%s\0' "$(
"""
    + bound_ports.SOCKETS.decode()
    + r""")" "$(ip -o addr show 2>/dev/null)"
for q in "$2" "$3"; do
  q=$(command -v "$q" 2>/dev/null)
  if [ -f "$q" ] && [ -x "$q" ]; then printf '%s\0' "$q"; else printf '\0'; fi
done
base=${4%/}; shift 4
# Those that are ours will be opened for whoever has to pass.
passed=$base
for d in "$base" "${base%/*}"; do
  case $d in */migrator|*/migrator/guests|"$base")
    [ "$passed" != "$d" ] || { [ -e "$d" ] && [ ! -O "$d" ]; } || passed=${d%/*}
  esac
done
export MIGRATOR_PASSED="${passed:-/}"
exec "$@"
"""
)
_AS_QEMU = r"""
d=$MIGRATOR_PASSED
while [ ! -e "$d" ] && [ -n "$d" ]; do d=${d%/*}; done
if [ -x "${d:-/}" ]; then printf 'yes\0'; else printf 'no\0'; fi
for p; do
  if [ -d "$p" ]; then printf 'directory\0'
  elif [ -e "$p" ] || [ -L "$p" ]; then printf 'occupied\0'
  elif [ -w "${p%/*}/" ] && [ -x "${p%/*}/" ]; then printf 'free\0'
  else printf 'homeless\0'; fi
done
"""


@dataclass(frozen=True, kw_only=True)
class TargetSurvey:
    """Programs, ports and paths that a target showed."""

    boot_id: str
    #: Identity of its network, and of the source's where that is of this machine.
    network: str
    network_of_source: str
    #: Where somebody listens there, and the addresses that it has.
    taken: frozenset[ListeningPort]
    addresses: frozenset[str]
    #: The first of the QEMUs that is there; empty: none is.
    binary: str
    #: QEMU's user may enter the directory in which run directories are made.
    enters: bool
    #: By path: there is something that is no directory; there is nothing, and nothing can be made.
    occupied: frozenset[str]
    missing_directories: frozenset[str]


async def survey_target(
    access: HostAccess,
    *,
    source_pid: int | None,
    binaries: tuple[str, str],
    base: str,
    paths: Sequence[str],
    become: Sequence[str] = (),
) -> TargetSurvey:
    """Survey a target; nothing is changed.

    :param base: where run directories are made.
    :param become: what makes a command run as the user that QEMU will be.
    :raise HostError: when it cannot be asked.
    """
    arguments = [str(source_pid or ""), *binaries, base]
    argv = ["sh", "-c", _AS_WE_ARE, "sh", *arguments, *become, "sh", "-c", _AS_QEMU, "sh", *paths]
    done = await access.run(argv, timeout=_SHORT)
    answers = done.text.split("\0")[:-1]
    if len(answers) == 7 and become:  # it cannot become that user, which is said elsewhere
        answers += ["yes", *("free" for _ in paths)]
    if len(answers) != 8 + len(paths):
        raise HostError(
            access.name, f"it cannot be looked at: {done.complaint or 'sh gave a strange answer'}"
        )
    boot, network, network_of_source, taken, addresses, first, second, enters = answers[:8]
    states: Mapping[str, str] = dict(zip(paths, answers[8:], strict=True))
    with reading_output(access.name, "itself"):
        return TargetSurvey(
            boot_id=boot,
            network=network,
            network_of_source=network_of_source,
            taken=bound_ports.parse_sockets(taken),
            addresses=bound_ports.parse_addresses(addresses),
            binary=first or second,
            enters=enters == "yes",
            occupied=frozenset(path for path, state in states.items() if state == "occupied"),
            missing_directories=frozenset(path for path, state in states.items() if state == "homeless"),
        )
