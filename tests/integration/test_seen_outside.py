"""What a client outside sees of a move is what is reported: a Linux guest is pinged through a bridge meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from migrator.core.model import Mode, State
from migrator.core.policy import Policy, PostcopyMode
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.testing import linux_guest, network
from migrator.testing.lab import Lab, Pair, binaries, until
from migrator.testing.network import LabHosts
from migrator.testing.outside_client import Client
from migrator.testing.tap_frames import Frame, TapFrames
from tests.conftest import missing
from tests.driven import PLAIN, driven

#: What a client may notice beyond what is reported, seconds.
_UNTOLD_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Felt:
    """A move as it was reported, and as a client felt it; seconds."""

    result: MigrationOutcome
    #: Without an answer around the guest's first moment at the destination.
    silence: float
    #: From that moment until the first answer left the guest, and what its vCPU had of it: time on a CPU, and time in
    #: which it waited for one.
    first_reply: float
    computed: float
    #: How late the client itself was, at the worst.
    late: float
    #: Pings went to the guest's tap at the source until it was announced at the target, and from then on only there,
    #: the first of them before it had said anything: whatever the clock says, nothing was waited for but the guest.
    followed: bool


class ScheduledTime:
    """Time that the only vCPU of a QEMU was on a CPU or waited for one, read again and again."""

    def __init__(self, pid: int, thread: int) -> None:
        self._path = Path(f"/proc/{pid}/task/{thread}/schedstat")
        self._seen: list[tuple[float, float]] = []

    async def run(self) -> None:
        """Read it until cancelled."""
        while True:
            on_cpu, waited = map(int, self._path.read_text().split()[:2])
            self._seen.append((time.time(), (on_cpu + waited) / 1e9))
            await asyncio.sleep(0.003)

    def between(self, since: float, until: float) -> float:
        """Return the most that it can have been from one moment to another, by the machine's real-time clock."""
        before = [spent for at, spent in self._seen if at <= since] or [self._seen[0][1]]
        after = [spent for at, spent in self._seen if at >= until] or [self._seen[-1][1]]
        return after[0] - before[-1]


def _first(frames: Sequence[Frame], kind: str) -> float:
    return next(each.at for each in frames if each.kind == kind)


async def moved(policy: Policy, *, bytes_per_second: float | None = None) -> Felt:
    """Move a Linux guest that a client pings."""
    if reason := network.possible():
        missing(reason)
    if linux_guest.files() is None:
        missing("there is no Linux guest: run scripts/linux-guest")
    if (binary := binaries().get("10.0")) is None:
        missing("a Linux guest under TCG takes QEMU 10.0")
    with LabHosts("alpha", "beta", "client", isolated=True) as hosts:
        alpha, beta, client_host = hosts["alpha"], hosts["beta"], hosts["client"]
        linux_guest.join(client_host, alpha, beta)
        for host in (alpha, beta):
            host.set_speed(bytes_per_second)
        machine = linux_guest.machine()
        async with Lab() as lab:
            source = await lab.start(machine, binary=binary, prefix=alpha.prefix)
            waiting = await lab.start(machine, binary=binary, incoming=True, prefix=beta.prefix)
            (vcpu,) = await waiting.query("query-cpus-fast")
            spent = ScheduledTime(waiting.pid, vcpu["thread-id"])
            reading = asyncio.create_task(spent.run())
            frames, left = TapFrames(beta, linux_guest.TAP), TapFrames(alpha, linux_guest.TAP)
            try:
                async with Client(client_host, linux_guest.GUEST_ADDRESS) as client:
                    await client.wait_connected()
                    began = time.monotonic()
                    async with waiting.monitor(timeout=100.0) as monitor:
                        listen = f"tcp:{beta.address}:0"
                        async with driven(Pair(source, waiting), policy=policy, listen=listen) as drive:
                            result = await drive.run()
                        resumed = (await monitor.event("RESUME", within=10.0))["timestamp"]
                    assert result.state is State.COMPLETED, result.error
                    stamp = resumed["seconds"] + resumed["microseconds"] / 1e6
                    runs_since = stamp - time.time() + time.monotonic()

                    async def answers() -> bool:
                        return bool(await client.last_reply() > runs_since)

                    await until(answers, what="an answer of the guest where it is now", within=60.0)
                    seen, ended = await client.end(), time.monotonic()
                here, there = left.read(), frames.read()
            finally:
                frames.close()
                left.close()
                reading.cancel()
    replied = _first(there, "reply")
    return Felt(
        result=result,
        followed=_first(there, "announcement") < _first(there, "request") < replied
        and max(each.at for each in here if each.kind == "request") < _first(there, "request"),
        silence=seen.silence_at(runs_since),
        first_reply=max(0.0, replied - stamp),
        computed=spent.between(stamp, replied),
        late=seen.lateness(began, ended),
    )


@pytest.mark.timeout(240)
async def test_client_is_not_kept_waiting_for_longer_than_is_reported() -> None:
    felt = await moved(PLAIN)
    assert felt.result.mode is Mode.PRECOPY
    assert felt.result.downtime_seconds is not None
    assert felt.followed
    # A guest under TCG is slow at first: the QEMU that it has come to has translated nothing of it yet.
    assert felt.silence <= felt.result.downtime_seconds + felt.first_reply + _UNTOLD_SECONDS + felt.late


@pytest.mark.matrix
@pytest.mark.timeout(240)
async def test_what_a_client_waits_for_in_postcopy_is_in_the_downtime_or_in_the_stall() -> None:
    felt = await moved(PLAIN.but(postcopy=PostcopyMode.IMMEDIATE), bytes_per_second=25e6)
    result = felt.result
    assert result.mode is Mode.POSTCOPY
    assert result.downtime_seconds is not None
    assert result.postcopy_stall_seconds is not None
    assert felt.silence <= result.downtime_seconds + felt.first_reply + _UNTOLD_SECONDS + felt.late
    assert felt.first_reply <= result.postcopy_stall_seconds + felt.computed + _UNTOLD_SECONDS
