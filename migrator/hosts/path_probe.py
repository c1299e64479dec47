"""Probe of the network between two hosts: a burst over TCP in each direction, by what the hosts have."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from migrator.errors import HostError
from migrator.hosts.access import HostAccess, Output
from migrator.hosts.local import LocalAccess
from migrator.ports import PathHealth

#: Bytes of a burst: some hundred packets of full size, and nothing to a link that carries guests.
_BURST = 256 << 10
#: Seconds for the other side to listen, and for each part of the exchange.
_BEGIN_SECONDS, _PART_SECONDS = 4.0, 3.0
#: ... and for a side that has no part left to play.
_ENDS_SECONDS = 0.3
#: A probe takes no longer, whatever hangs.
_PROBE_SECONDS = 20.0
#: Where kernels take ports that nobody asks for by number.
_PORTS = range(32_768, 60_999)
_TRIES = 4
#: Of an IPv4 packet of 1,500 bytes, without its headers.
_PING_BYTES = 1_472
_TAKEN, _NO_CONNECTION, _NOT_THERE, _NOT_BACK, _NO_ADDRESS = 3, 4, 5, 6, 7
_NO_PROGRAM = 127
_WHY = {
    _NO_CONNECTION: "no connection from {here} to {address} of {there}",
    _NOT_THERE: "from {here} to {address} of {there} large packets do not come through",
    _NOT_BACK: "from {address} of {there} to {here} large packets do not come through",
}
# The listening side answers one byte once it has the whole burst, and then sends its own.
_PROGRAM = """
import errno, socket, sys, time
role, address, port, burst, begin, part = sys.argv[1:]
port, burst, begin, part = int(port), int(burst), float(begin), float(part)
family = socket.AF_INET6 if ":" in address else socket.AF_INET
def take(link, size):
    link.settimeout(part)
    until = time.monotonic() + part
    while size:
        data = link.recv(min(size, 1 << 16))
        if not data or time.monotonic() > until:
            raise TimeoutError
        size -= len(data)
if role == "listen":
    with socket.socket(family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((address, port))
        except OSError as error:
            sys.exit(7 if error.errno == errno.EADDRNOTAVAIL else 3)
        server.listen(1)
        server.settimeout(begin + part)
        try:
            link, _ = server.accept()
            with link:
                take(link, burst)
                link.sendall(b"k" + bytes(burst))
                link.recv(1)
        except OSError:
            sys.exit(4)
    sys.exit(0)
until = time.monotonic() + begin
link = None
while link is None:
    try:
        link = socket.create_connection((address, port), timeout=min(1.0, part))
    except OSError:
        if time.monotonic() > until:
            sys.exit(4)
        time.sleep(0.05)
status = 5
try:
    link.settimeout(part)
    link.sendall(bytes(burst))
    take(link, 1)
    status = 6
    take(link, burst)
except OSError:
    sys.exit(status)
"""


@dataclass(frozen=True, kw_only=True)
class PathProbe:
    """Implements :class:`migrator.ports.StreamPath` between two hosts.

    :param here: the source's host.
    :param there: the destination's.
    :param addresses: of the destination's host, the usual one first.
    """

    here: HostAccess
    there: HostAccess
    addresses: Sequence[str]

    async def probe(self, address: str) -> PathHealth:
        """See :meth:`migrator.ports.StreamPath.probe`."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                return await self._burst(address)
        except TimeoutError:
            return PathHealth(carries=None, why=f"its probe did not end within {_PROBE_SECONDS:g} s")
        except HostError as error:
            return PathHealth(carries=None, why=str(error))

    async def _burst(self, address: str) -> PathHealth:
        taken = Output(status=_TAKEN, stdout=b"", stderr=b"")
        for _ in range(_TRIES):
            port = random.choice(_PORTS)  # noqa: S311 - no secret
            taken, sent = await self._exchange(address, port)
            if _NO_PROGRAM in (taken.status, sent.status):
                return await self._ping(address)
            if taken.status == _TAKEN:
                continue
            if taken.status == _NO_ADDRESS:
                return PathHealth(carries=None, why=f"{self.there.name} has no address {address} now")
            if sent.status == 0:
                return PathHealth(carries=True)
            if sent.status in _WHY:
                names = {"here": self.here.name, "there": self.there.name, "address": address}
                return PathHealth(carries=False, why=_WHY[sent.status].format(**names))
            return PathHealth(carries=None, why=f"{self.here.name}: {sent.complaint or sent.status}")
        return PathHealth(carries=None, why=f"{self.there.name} cannot listen at {address}")

    async def _exchange(self, address: str, port: int) -> tuple[Output, Output]:
        """Run both sides; neither goes on for long once the other has given up.

        :raise HostError: one of them cannot be asked.
        """
        unknown = Output(status=0, stdout=b"", stderr=b"")
        listening = asyncio.create_task(
            self._run(self.there, "listen", address, port), name=f"probe at {self.there.name}"
        )
        sending = asyncio.create_task(
            self._run(self.here, "send", address, port), name=f"probe at {self.here.name}"
        )
        try:
            await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and listening.result().status in (_TAKEN, _NO_ADDRESS):
                return listening.result(), unknown  # there is nobody to send to
            sent = await sending
            await asyncio.wait({listening}, timeout=_PART_SECONDS if sent.status == 0 else _ENDS_SECONDS)
            return listening.result() if listening.done() else unknown, sent
        finally:
            for side in (listening, sending):
                side.cancel()
            await asyncio.wait({listening, sending})

    async def _run(self, host: HostAccess, role: str, address: str, port: int) -> Output:
        python = sys.executable if isinstance(host, LocalAccess) else "python3"
        numbers = map(str, (port, _BURST, _BEGIN_SECONDS, _PART_SECONDS))
        argv = [python, "-I", "-S", "-c", _PROGRAM, role, address, *numbers]
        return await host.run(argv, timeout=_PROBE_SECONDS)

    async def _ping(self, address: str) -> PathHealth:
        """Ask by ping: what answers has got a large packet and sends one as large."""
        argv = ["ping", "-q", "-c", "3", "-i", "0.2", "-W", "1", "-M", "do", "-s", str(_PING_BYTES), address]
        sent = await self.here.run(argv, timeout=10.0)
        if sent.status == 0:
            return PathHealth(carries=True)
        if sent.status == 1:
            why = f"from {self.here.name} no packet of 1,500 bytes to {address} of {self.there.name} is answered"
            return PathHealth(carries=False, why=why)
        why = f"{self.here.name} and {self.there.name} do not both have python3, nor has the first ping"
        return PathHealth(carries=None, why=why)
