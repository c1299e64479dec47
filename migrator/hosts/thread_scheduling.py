"""CPUs and scheduling policy of the threads of a process: read of one process, and given to another's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from migrator.core.process.process_identity import ThreadScheduling
from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import reading_output

_SHORT = 10.0
_POLICIES = ("other", "fifo", "rr", "batch", "", "idle")

#: For scripts: what the kernel shows of the CPUs of every thread of the process $pid, and of all else.
THREAD_CPUS = "grep -Hs '^Cpus_allowed_list:' /proc/\"$pid\"/task/*/status"
THREAD_STATS = "grep -aHs '' /proc/\"$pid\"/task/*/stat"
_READ = f"""
pid=$1
[ -d "/proc/$pid/task" ] && printf '%s\\0' "$({THREAD_CPUS})" "$({THREAD_STATS})" end
""".encode()
# Arguments: of each thread its id, CPUs, nice value, policy and priority. What may not be done is left as it is.
_GIVE = rb"""
while [ $# -gt 4 ]; do
  taskset -pc "$2" "$1"
  renice "$3" -p "$1"
  [ -z "$4" ] || chrt --pid "--$4" "$5" "$1"
  shift 5
done >/dev/null 2>&1
"""


async def read_scheduling(access: HostAccess, pid: int) -> dict[int, ThreadScheduling]:
    """Read how each thread of a process runs.

    :raise HostError: when the host cannot be asked, or there is no such process.
    """
    output = await access.run(["sh", "-s", "--", str(pid)], stdin=_READ, timeout=_SHORT)
    answers = output.text.split("\0")
    if answers[2:] != ["end", ""]:
        raise HostError(
            access.name, f"threads of pid {pid} cannot be read: {output.complaint or 'no answer'}"
        )
    with reading_output(access.name, f"the threads of pid {pid}"):
        return parse_threads(*answers[:2])


def parse_threads(cpus: str, stats: str) -> dict[int, ThreadScheduling]:
    """Parse the outputs of :data:`THREAD_CPUS` and :data:`THREAD_STATS`, by thread. Pure."""
    allowed = dict(
        re.findall(r"^/proc/\d+/task/(\d{1,10})/status:Cpus_allowed_list:\s*(\S+)$", cpus, re.MULTILINE)
    )
    found = {}
    # A thread's name may have newlines, of which grep makes lines of their own; what follows it is on the last.
    for thread, rest in re.findall(r"^/proc/\d+/task/(\d{1,10})/stat:.*\) (\S .*)$", stats, re.MULTILINE):
        fields = rest.split()
        if thread in allowed and len(fields) > 38:
            policy = int(fields[38])
            found[int(thread)] = ThreadScheduling(
                cpus=allowed[thread],
                nice=int(fields[16]),
                policy=_POLICIES[policy] if policy < len(_POLICIES) else "",
                priority=int(fields[37]),
            )
    return found


async def apply_scheduling(
    turns: Mapping[int, ThreadScheduling],
    pid: int,
    threads: Mapping[str, int],
    target: HostAccess,
    other_pid: int,
    others: Mapping[str, int],
) -> list[str]:
    """Give the threads of another process the scheduling of these, where they differ from their process as a whole.

    :param turns: how the threads of the first process run, `pid`.
    :param threads: by what they do; `others` likewise.
    :return: what could not be, each as a sentence.
    :raise HostError: when the target cannot be asked.
    """
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
    given = await read_scheduling(target, other_pid)
    return [
        f"{name} has {turn} at the source, and {given.get(thread, 'nothing known')} at {target.name}"
        for thread, (name, turn) in wanted.items()
        if given.get(thread) != turn
    ]
