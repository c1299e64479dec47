"""A move as it is felt from outside: a Linux guest on bridges in network namespaces, pinged every 5 ms.

The target has a CPU of its own, as in a real move: the QEMU that the guest comes to shares none with the one that it
leaves, nor with the client or migrator.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import linux_moves
from bench.figures import Figures, ms, paragraphs, table
from bench.machine import Quiet, describe
from bench.options import Options
from bench.ours import Failed, Migrator
from migrator.testing import linux_guest
from migrator.testing.lab import Lab, binaries, until
from migrator.testing.network import LabHosts
from migrator.testing.outside_client import PERIOD_SECONDS, Client
from migrator.testing.tap_frames import TapFrames
from migrator.testing.vcpu_time import VcpuTime

#: A client may notice so much more than what is reported.
AIM_SECONDS = 0.05
_MAX_DOWNTIME_SECONDS = 0.3
_LINKS = {"unlimited": None, "1 Gbit/s": 125e6}
_RUNS = 10
#: The guest is pinged for so long before its move and after its first answer.
_AROUND_SECONDS = 1.0
_LOOK_SECONDS = 0.003


@dataclass(frozen=True, kw_only=True)
class FeltMove:
    """One move, as it was reported and as it was felt; seconds."""

    reported: float
    #: Longest time without the answer to a ping, from the command on.
    gap: float
    #: From the guest's first moment at the target until a ping was at its tap there, and until its first answer was.
    arrives: float
    answers: float
    #: What its vCPU had of the latter: time in which it had work and no CPU of this machine.
    waited: float
    #: How late the client was itself, at the worst.
    late: float

    @property
    def untold(self) -> float:
        """How much longer than the reported downtime the gap was."""
        return self.gap - self.reported


async def run(options: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text.

    :raise Unavailable: where there can be no such guest.
    """
    runs = options.runs or _RUNS
    seen: dict[str, list[FeltMove]] = {link: [] for link in _LINKS}
    with ExitStack() as stack:
        hosts = stack.enter_context(linux_moves.joined())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        migrator = Migrator(directory / "migrator")
        for number in range(runs):
            for link, speed in _LINKS.items():
                print(f"network: {link}, {number + 1} of {runs}", flush=True)
                for name in ("alpha", "beta"):
                    hosts[name].set_speed(speed)
                await quiet.wait()
                seen[link].append(await _felt(migrator, hosts))
    return paragraphs(
        f"{describe(str(binaries()[linux_moves.VERSION]))} · {runs} moves over each link · {quiet}",
        f"Debian's cloud kernel with {linux_guest.MEMORY_BYTES >> 20} MiB under TCG, on a bridge at either host. A "
        f"third namespace pings it every {PERIOD_SECONDS * 1e3:.0f} ms over a bridge of its own, and is told nothing "
        "of the move but what the guest's QEMU announces. The target has a CPU of its own. Milliseconds: median "
        "(minimum – maximum). Gap: the longest time without an answer. Above: the gap without the reported downtime. "
        "Of that, from the guest's first moment at the target: until a ping was at its tap there, and until its first "
        "answer was; waited: time in which its vCPU had work and no CPU. Before it answers, a guest under TCG has "
        "much of its kernel translated anew, which one under KVM has not.",
        _text(seen),
    )


def _text(seen: dict[str, list[FeltMove]]) -> str:
    rows = []
    for link, moves in seen.items():
        worst = max(each.untold for each in moves)
        rows.append(
            [
                link,
                str(Figures.of(each.reported for each in moves)),
                str(Figures.of(each.gap for each in moves)),
                str(Figures.of(each.untold for each in moves)),
                str(Figures.of(each.arrives for each in moves)),
                str(Figures.of(each.answers for each in moves)),
                str(Figures.of(each.waited for each in moves)),
                str(Figures.of(each.late for each in moves)),
                f"each ≤ {ms(AIM_SECONDS)} above",
                "aim met" if worst <= AIM_SECONDS else f"**aim not met** by {_above(moves)} of {len(moves)}",
            ]
        )
    header = ["link", "reported", "gap", "above", "ping arrives", "answers", "waited", "late", "aim", ""]
    return table(header, rows)


def _above(moves: Sequence[FeltMove]) -> int:
    return sum(each.untold > AIM_SECONDS for each in moves)


@contextmanager
def _cpus() -> Iterator[tuple[str, ...]]:
    """Keep the last CPU free for what runs behind the prefix that is returned; empty where there is one only."""
    before = os.sched_getaffinity(0)
    *others, last = sorted(before)
    if not others:
        yield ()
        return
    os.sched_setaffinity(0, others)
    try:
        yield ("taskset", "-c", str(last))
    finally:
        os.sched_setaffinity(0, before)


async def _felt(migrator: Migrator, hosts: LabHosts) -> FeltMove:
    """Move the guest once.

    :raise Failed: it was not moved.
    """
    machine, binary = linux_guest.machine(), binaries()[linux_moves.VERSION]
    alpha, beta = hosts["alpha"], hosts["beta"]
    ceiling = ("--max-downtime", f"{_MAX_DOWNTIME_SECONDS * 1e3:.0f}ms", "--postcopy", "never")
    with _cpus() as of_its_own:
        async with Lab() as lab, Client(hosts["client"], linux_guest.GUEST_ADDRESS, asks=False) as client:
            source = await lab.start(machine, binary=binary, prefix=alpha.prefix)
            await client.wait_connected()
            waiting = await lab.start(
                machine, binary=binary, incoming=True, prefix=(*beta.prefix, *of_its_own)
            )
            vcpu = _Waiting(waiting.pid)
            with TapFrames(beta, linux_guest.TAP) as frames:
                looking = asyncio.create_task(vcpu.look(), name="look at the vCPU")
                try:
                    await asyncio.sleep(_AROUND_SECONDS)
                    async with waiting.monitor(timeout=100.0) as monitor:
                        began = time.monotonic()
                        outcome = await migrator.direct(
                            *(source.qmp, waiting.qmp, "--listen", f"tcp:{beta.address}:0", *ceiling),
                            mode="precopy",
                        )
                        event = await monitor.event("RESUME", within=10.0)
                    stamp = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
                    runs_since = stamp - time.time() + time.monotonic()

                    async def answered() -> bool:
                        return bool(await client.last_reply() > runs_since)

                    await until(answered, what="an answer of the guest where it is now", within=60.0)
                    await asyncio.sleep(_AROUND_SECONDS)
                    seen, ended = await client.end(), time.monotonic()
                finally:
                    looking.cancel()
                at_tap = frames.read()
    replied = next((each.at for each in at_tap if each.kind == "reply" and each.at > stamp), None)
    pinged = next((each.at for each in at_tap if each.kind == "request"), None)
    if replied is None or pinged is None:
        raise Failed("nobody pinged the guest where it is now")
    return FeltMove(
        reported=outcome.downtime_seconds,
        gap=seen.longest_silence(began, ended),
        arrives=max(0.0, pinged - stamp),
        answers=replied - stamp,
        waited=vcpu.waited(stamp, replied),
        late=seen.lateness(began, ended),
    )


class _Waiting:
    """Time in which a guest's vCPU had work and no CPU, looked at again and again."""

    def __init__(self, pid: int) -> None:
        self._time = VcpuTime(pid)
        self._seen: list[tuple[float, float]] = []

    async def look(self) -> None:
        """Look until cancelled."""
        while True:
            self._seen.append((time.time(), self._time.waited_nanoseconds() / 1e9))
            await asyncio.sleep(_LOOK_SECONDS)

    def waited(self, since: float, until_: float) -> float:
        """Return the most that it can have been from one moment to another, by the machine's real-time clock."""
        before = [waited for at, waited in self._seen if at <= since] or [self._seen[0][1]]
        after = [waited for at, waited in self._seen if at >= until_] or [self._seen[-1][1]]
        return after[0] - before[-1]
