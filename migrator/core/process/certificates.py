"""Certificates for QEMU's streams, as a host has them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Files of a directory of certificates, as QEMU names them.
CA_FILE = "ca-cert.pem"
SERVER_FILES = ("server-cert.pem", "server-key.pem")
CLIENT_FILES = ("client-cert.pem", "client-key.pem")
#: A group for Diffie-Hellman; where it is missing a QEMU that waits for a guest computes one.
DH_FILE = "dh-params.pem"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """One certificate with what vouches for it. Times are seconds since the epoch."""

    #: Distinguished name, in every spelling in which a QEMU may write it; empty where it has parts whose spelling is
    #: not known.
    subjects: tuple[str, ...] = ()
    #: DNS names and IP addresses that it is for.
    names: tuple[str, ...] = ()
    begins: float = 0.0
    expires: float = 0.0
    #: Hash of the key of the authority that vouches for it, of those in the host's own file; empty where none does.
    authority: str = ""
    #: Why no QEMU would take it whatever the time; empty where nothing is known to speak against it.
    problem: str = ""

    def problem_at(self, now: float) -> str:
        """Return why it cannot be used at that time; empty where it can."""
        if self.problem:
            return self.problem
        if now < self.begins:
            return "is not valid yet"
        if now >= self.expires:
            return "has expired"
        return "" if self.authority else f"is signed by no authority in {CA_FILE} beside it"

    def is_for(self, name: str) -> bool:
        """Return whether it is for that DNS name or IP address; a wildcard stands for one label."""
        wanted = name.lower().rstrip(".")
        parent = wanted.partition(".")[2]
        wildcard = f"*.{parent}" if parent else ""
        return any(each.lower() in (wanted, wildcard) for each in self.names if each)


@dataclass(frozen=True, kw_only=True)
class HostCertificates:
    """Content of the directory of certificates of one host. Whatever is not there is at its default."""

    directory: str = ""
    #: Hashes of the keys of the authorities that the host trusts, and when the first of them expires.
    authorities: frozenset[str] = frozenset()
    authorities_expire: float | None = None
    server: Certificate | None = None
    client: Certificate | None = None
    server_key: bool = False
    client_key: bool = False
    #: What is wrong with files that are there, each in a few words that begin with the file's name.
    problems: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Return whether there is anything for QEMU to encrypt with, usable or not."""
        return bool(self.server or self.client or self.problems)

    @property
    def expires(self) -> float | None:
        """Return when the first of all expires; ``None`` where there is none."""
        each = [cert.expires for cert in (self.server, self.client) if cert is not None]
        if each and self.authorities_expire is not None:
            each.append(self.authorities_expire)
        return min(each, default=None)

    def missing(self, side: str) -> Sequence[str]:
        """Return the files that an end lacks.

        :param side: ``source``, where QEMU is TLS's client, or ``destination``.
        """
        certificate, key = (
            (self.client, self.client_key) if side == "source" else (self.server, self.server_key)
        )
        files = CLIENT_FILES if side == "source" else SERVER_FILES
        there = (bool(self.authorities), certificate is not None, key)
        broken = {problem.partition(" ")[0] for problem in self.problems}
        return [
            name
            for name, present in zip((CA_FILE, *files), there, strict=True)
            if not present and name not in broken
        ]
