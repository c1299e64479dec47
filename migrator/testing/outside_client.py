"""A client of a Linux guest, outside of it: asks its Redis and pings it at a steady pace, and notes when it answers.

A program of its own, as nothing else may hold it up; how late it was itself is noted too.

::

    async with Client(host, "10.219.78.2") as client:
        await client.wait_connected()
        ...  # the guest moves
        seen = await client.end()
    seen.longest_silence(began, ended)
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self

from migrator.testing.network import LabHost

#: Seconds between two requests, and between two pings.
PERIOD_SECONDS = 0.005
#: A client notices a pause of so many periods.
_NOTICED_PERIODS = 4
_PORT = 6379
_WAIT_SECONDS = 120.0

# Arguments: address, port, seconds between two requests, and `asks` where it asks Redis too. At each line of its input
# it says when the last ping was answered; at the end of it, all that it saw.
_PROGRAM = """
import json, os, select, socket, struct, sys, time
address, port, period, asks = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "asks"
answers, pings, late, work = [], [], [], []

def connected():
    while True:
        try:
            found = socket.create_connection((address, port), 1.0)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            found.settimeout(30.0)
            found.sendall(b"PING\\r\\n")
            if found.recv(100):
                return found
        except OSError:
            if select.select([sys.stdin], [], [], 0.1)[0]:
                sys.exit(1)

def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF

redis = connected()
print("connected", flush=True)
redis.setblocking(False)
icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
icmp.setblocking(False)
mark = os.getpid() & 0xFFFF
number, unsent, buffer, waiting = 0, b"", b"", []
due = time.monotonic()
while True:
    readable = select.select([redis, icmp, sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]
    now = time.monotonic()
    if sys.stdin in readable:
        if not os.read(0, 100):
            break
        print(pings[-1] if pings else 0.0, flush=True)
    if icmp in readable:
        packet = icmp.recv(2000)
        if packet[20] == 0 and struct.unpack("!H", packet[24:26])[0] == mark:
            pings.append(now)
    if redis in readable:
        buffer += redis.recv(65536)
        *lines, buffer = buffer.split(b"\\r\\n")
        for line in lines:
            if line.startswith(b"+"):
                answers.append(now)
            elif line.isdigit():
                work.append((now, int(line)))
    if now >= due:
        if now - due > period:
            late.append((now, now - due))
        number += 1
        header = struct.pack("!BBHHH", 8, 0, 0, mark, number & 0xFFFF)
        data = b"x" * 56
        header = struct.pack("!BBHHH", 8, 0, checksum(header + data), mark, number & 0xFFFF)
        try:
            icmp.sendto(header + data, (address, 0))
        except OSError:
            pass
        if asks:
            unsent += b"SET key:%d %s\\r\\n" % (number % 1000, b"v" * 100)
        if asks and number % 50 == 0:
            unsent += b"INCRBY work 0\\r\\n"
        try:
            unsent = unsent[redis.send(unsent):]
        except BlockingIOError:
            pass
        due = max(due + period, now)
print(json.dumps({"answers": answers, "pings": pings, "late": late, "work": work}), flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class ClientView:
    """Answers that a client got, and those that came late, by ``time.monotonic`` of this machine."""

    #: When requests were answered, and when pings were.
    answers: Sequence[float]
    pings: Sequence[float]
    #: When the client itself was late, and by how much.
    late: Sequence[Sequence[float]]
    #: What a program beside Redis had done by then.
    work: Sequence[Sequence[float]]

    def requests_per_second(self, since: float, until: float) -> float:
        """Return the rate at which requests were answered in that time."""
        return sum(since <= at < until for at in self.answers) / max(1e-9, until - since)

    def work_per_second(self, since: float, until: float) -> float:
        """Return the rate at which a program beside Redis has got on; 0 where there is none."""
        seen = [(at, count) for at, count in self.work if since <= at <= until]
        if len(seen) < 2:
            return 0.0
        return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])

    def longest_silence(self, since: float, until: float) -> float:
        """Return the longest time without the answer to a ping, of those that begin or end within."""
        return _longest(self.pings, since, until)

    def longest_wait(self, since: float, until: float) -> float:
        """Return the longest time without the answer to a request, likewise."""
        return _longest(self.answers, since, until)

    def waited(self, since: float, until: float) -> float:
        """Return the time without the answer to a ping, all together, but for what is usual between two of them."""
        gaps = [
            second - first for first, second in pairwise(self.pings) if second >= since and first <= until
        ]
        return sum(gap - PERIOD_SECONDS for gap in gaps if gap > _NOTICED_PERIODS * PERIOD_SECONDS)

    def silence_at(self, moment: float) -> float:
        """Return how long no ping was answered around that moment."""
        return _longest(self.pings, moment, moment)

    def lateness(self, since: float, until: float) -> float:
        """Return how late the client was at the worst: what it saw may be wrong by as much."""
        return max((by for at, by in self.late if since <= at <= until), default=0.0)


def _longest(times: Sequence[float], since: float, until: float) -> float:
    gaps = [second - first for first, second in pairwise(times) if second >= since and first <= until]
    return max(gaps, default=float("inf"))


class Client:
    """A client that runs at a host. A context manager, ``async``.

    :param asks: it asks Redis too; else it only pings.
    """

    def __init__(
        self, host: LabHost, address: str, *, period_seconds: float = PERIOD_SECONDS, asks: bool = True
    ) -> None:
        self._host, self._address, self._period = host, address, period_seconds
        self._asks = "asks" if asks else "pings"
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        program = [*self._host.prefix, sys.executable, "-c", _PROGRAM]
        self._process = await asyncio.create_subprocess_exec(
            *(*program, self._address, str(_PORT), str(self._period), self._asks),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=64 << 20,
        )
        return self

    async def wait_connected(self) -> None:
        """Wait until the guest's Redis answers.

        :raise TimeoutError: it does not in time.
        """
        async with asyncio.timeout(_WAIT_SECONDS):
            if await self._line() != b"connected\n":
                raise TimeoutError(f"nobody answers at {self._address}")

    async def _line(self) -> bytes:
        if self._process is None or self._process.stdout is None:
            raise RuntimeError("it was not started")
        return await self._process.stdout.readline()

    async def last_reply(self) -> float:
        """Return when the last ping was answered (``time.monotonic``); 0: none was."""
        self._input().write(b"\n")
        return float(await self._line())

    def _input(self) -> asyncio.StreamWriter:
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("it was not started")
        return self._process.stdin

    async def end(self) -> ClientView:
        """Have it stop, and return what it saw."""
        self._input().close()
        return ClientView(**json.loads(await self._line()))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
