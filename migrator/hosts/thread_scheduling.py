"""CPUs and scheduling policy of the threads of a process: read of one process, and given to another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import reading_output

_SHORT = 10.0
_POLICIES = ("other", "fifo", "rr", "batch", "", "idle")

# Arguments: a pid, and threads of it.
_READ = rb"""
pid=$1; shift
for t; do
  d=/proc/$pid/task/$t
  printf '%s\0' "$(sed -n 's/^Cpus_allowed_list:[^0-9]*//p' "$d/status" 2>/dev/null)" "$(cat "$d/stat" 2>/dev/null)"
done
"""
# Arguments: of each thread its id, CPUs, nice value, policy and priority. What may not be done is left as it is.
_GIVE = rb"""
while [ $# -gt 4 ]; do
  taskset -pc "$2" "$1"
  renice "$3" -p "$1"
  [ -z "$4" ] || chrt --pid "--$4" "$5" "$1"
  shift 5
done >/dev/null 2>&1
"""


@dataclass(frozen=True, kw_only=True)
class ThreadScheduling:
    """CPUs, policy and priority with which one thread runs."""

    cpus: str
    nice: int
    policy: str
    priority: int

    def __str__(self) -> str:
        kind = self.policy + (f" {self.priority}" if self.priority else "")
        return f"CPUs {self.cpus}, nice {self.nice}, {kind}"


async def read_scheduling(
    access: HostAccess, pid: int, threads: Sequence[int]
) -> dict[int, ThreadScheduling]:
    """Read the scheduling of each thread that is there.

    :raise HostError: when the host cannot be asked.
    """
    numbers = [str(thread) for thread in threads]
    output = await access.run(["sh", "-s", "--", str(pid), *numbers], stdin=_READ, timeout=_SHORT)
    answers = output.text.split("\0")[:-1]
    if len(answers) != 2 * len(numbers):
        raise HostError(
            access.name, f"threads of pid {pid} cannot be read: {output.complaint or 'no answer'}"
        )
    with reading_output(access.name, f"the threads of pid {pid}"):
        return _turns(threads, answers)


def _turns(threads: Sequence[int], answers: Sequence[str]) -> dict[int, ThreadScheduling]:
    found = {}
    for thread, cpus, line in zip(threads, answers[::2], answers[1::2], strict=True):
        fields = line.rpartition(")")[2].split()
        if cpus and len(fields) > 38:
            policy = int(fields[38])
            found[thread] = ThreadScheduling(
                cpus=cpus,
                nice=int(fields[16]),
                policy=_POLICIES[policy] if policy < len(_POLICIES) else "",
                priority=int(fields[37]),
            )
    return found


async def apply_scheduling(
    source: HostAccess,
    pid: int,
    threads: Mapping[str, int],
    target: HostAccess,
    other_pid: int,
    others: Mapping[str, int],
) -> list[str]:
    """Give the threads of another process the scheduling of these, where they differ from their process as a whole.

    :param threads: by what they do; `others` likewise.
    :return: what could not be, each as a sentence.
    :raise HostError: when a host cannot be asked.
    """
    turns = await read_scheduling(source, pid, [pid, *threads.values()])
    whole = turns.get(pid)
    wanted = {
        others[name]: (name, turns[thread])
        for name, thread in threads.items()
        if name in others and thread in turns and turns[thread] != whole
    }
    if not wanted:
        return []
    words = [
        word
        for thread, (_, turn) in wanted.items()
        for word in (str(thread), turn.cpus, str(turn.nice), turn.policy, str(turn.priority))
    ]
    await target.run(["sh", "-s", "--", *words], stdin=_GIVE, timeout=_SHORT)
    given = await read_scheduling(target, other_pid, list(wanted))
    return [
        f"{name} has {turn} at {source.name}, and {given.get(thread, 'nothing known')} at {target.name}"
        for thread, (name, turn) in wanted.items()
        if given.get(thread) != turn
    ]
