"""Certificates of the two hosts of ``migrator direct``: read in this process, or over SSH."""

from __future__ import annotations

import asyncio
import os
import socket
import time

from migrator.addresses import host_port
from migrator.cli.over_ssh import OverSsh
from migrator.core.policy import Policy, TlsUse
from migrator.core.preflight.stream_tls import TlsChoice, TlsEnd, choose
from migrator.core.process.certificates import HostCertificates
from migrator.qemu.address import Address

#: Where QEMU and libvirt look for certificates by custom.
_CUSTOMARY = "/etc/pki/qemu"


class DirectTls:
    """Decides whether the stream between two QEMUs that are named by their addresses is encrypted.

    :param directory: of the certificates at both hosts; ``None``: the customary one.
    :param name: of the destination's host in its certificate; ``None``: what its address says.
    :param listen: where the destination takes the stream: ``tcp:ADDR:0``.
    """

    def __init__(
        self,
        over_ssh: OverSsh,
        source: Address,
        destination: Address,
        *,
        directory: str | None,
        name: str | None,
        listen: str,
    ) -> None:
        self._over_ssh = over_ssh
        self._source, self._destination = source, destination
        self._directory = directory or _CUSTOMARY
        self._name, self._listen = name, listen

    async def choose(self, policy: Policy) -> TlsChoice:
        """Read the certificates of both hosts, and decide.

        :raise HostError: a host cannot be asked.
        """
        if policy.tls_use is TlsUse.OFF:
            return choose(policy, _unread(self._source), _unread(self._destination), now=time.time())
        here, there = await asyncio.gather(self._read(self._source), self._read(self._destination))
        return choose(
            policy,
            TlsEnd(host=_host(self._source), certificates=here),
            TlsEnd(host=_host(self._destination), certificates=there, names=self._names()),
            now=time.time(),
        )

    def _names(self) -> tuple[str, ...]:
        if self._name is not None:
            return (self._name,)
        listens = host_port(self._listen.partition(":")[2], least=0)[0]
        if self._destination.kind == "unix":
            return tuple(dict.fromkeys((socket.gethostname(), listens, "localhost")))
        return tuple(dict.fromkeys((self._destination.host, listens)))

    async def _read(self, address: Address) -> HostCertificates | None:
        """Return the certificates of the host of a QEMU; ``None`` where they cannot be read from here."""
        if address.kind == "unix" and not os.path.isdir(self._directory):  # noqa: PTH112, ASYNC240 - of this machine
            return HostCertificates(directory=self._directory)
        if address.kind not in ("unix", "ssh"):
            return None
        from migrator.hosts.certificates import read_certificates  # noqa: PLC0415 - for who has certificates
        from migrator.hosts.local import LocalAccess  # noqa: PLC0415 - likewise

        access = self._over_ssh.access(address) if address.kind == "ssh" else LocalAccess("this machine")
        return await read_certificates(access, self._directory)


def _unread(address: Address) -> TlsEnd:
    return TlsEnd(host=_host(address), certificates=None)


def _host(address: Address) -> str:
    return address.host if address.kind != "unix" else "this machine"
