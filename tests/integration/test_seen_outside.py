"""What a client outside sees of a move is what is reported: a Linux guest is pinged through a bridge meanwhile."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from migrator.core.model import Mode, State
from migrator.testing import linux_guest, network
from migrator.testing.lab import Lab, Pair, binaries, until
from migrator.testing.network import LabHost, LabHosts
from migrator.testing.outside_client import Client
from tests.conftest import missing
from tests.driven import PLAIN, driven
from tests.sshd import inside

#: What a client may notice beyond what is reported, seconds.
_UNTOLD_SECONDS = 0.05
_SO_TIMESTAMPNS = 35
#: All protocols: a bridge takes the frames of its ports away from those who want one only.
_ALL, _IPV4 = 3, b"\x08\x00"
_ICMP_REPLY = b"\x00"


class Frames:
    """Frames at a tap, with the kernel's time of each: however late this process is, they are not."""

    def __init__(self, host: LabHost, interface: str) -> None:
        with inside(host.namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        self._socket.bind((interface, _ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        self._socket.setblocking(False)

    def first_reply(self) -> float:
        """When the guest answered a ping here for the first time, by the machine's real-time clock."""
        while True:
            frame, said, _, _ = self._socket.recvmsg(2000, 100)
            if frame[12:14] == _IPV4 and frame[23] == socket.IPPROTO_ICMP and frame[34:35] == _ICMP_REPLY:
                (seconds, nanoseconds) = struct.unpack("qq", said[0][2])
                return float(seconds + nanoseconds / 1e9)

    def close(self) -> None:
        self._socket.close()


@pytest.mark.timeout(240)
async def test_client_is_not_kept_waiting_for_longer_than_is_reported() -> None:
    if reason := network.possible():
        missing(reason)
    if linux_guest.files() is None:
        missing("there is no Linux guest: run scripts/linux-guest")
    if (binary := binaries().get("10.0")) is None:
        missing("a Linux guest under TCG takes QEMU 10.0")
    with LabHosts("alpha", "beta", "client", isolated=True) as hosts:
        alpha, beta, client_host = hosts["alpha"], hosts["beta"], hosts["client"]
        linux_guest.join(client_host, alpha, beta)
        machine = linux_guest.machine()
        async with Lab() as lab:
            source = await lab.start(machine, binary=binary, prefix=alpha.prefix)
            waiting = await lab.start(machine, binary=binary, incoming=True, prefix=beta.prefix)
            frames = Frames(beta, linux_guest.TAP)
            try:
                async with Client(client_host, linux_guest.GUEST_ADDRESS) as client:
                    await client.wait_connected()
                    began = time.monotonic()
                    async with waiting.monitor(timeout=100.0) as monitor:
                        listen = f"tcp:{beta.address}:0"
                        async with driven(Pair(source, waiting), policy=PLAIN, listen=listen) as drive:
                            result = await drive.run()
                        resumed = (await monitor.event("RESUME", within=10.0))["timestamp"]
                    assert (result.state, result.mode) == (State.COMPLETED, Mode.PRECOPY)
                    stamp = resumed["seconds"] + resumed["microseconds"] / 1e6
                    runs_since = stamp - time.time() + time.monotonic()

                    async def answers() -> bool:
                        return bool(await client.last_reply() > runs_since)

                    await until(answers, what="an answer of the guest where it is now", within=60.0)
                    seen, ended = await client.end(), time.monotonic()
                # A guest under TCG is slow at first: the QEMU that it has come to has translated nothing of it yet.
                slow = frames.first_reply() - stamp
            finally:
                frames.close()
    assert result.downtime_seconds is not None
    allowed = result.downtime_seconds + max(0.0, slow) + _UNTOLD_SECONDS + seen.lateness(began, ended)
    assert seen.silence_at(runs_since) <= allowed
