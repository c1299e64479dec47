"""Encryption of what goes between two hosts: whether there is any, and what speaks against it. Pure.

Nothing is encrypted by half: either both ends have certificates that the other takes, or the stream is plain, or the
migration is refused, as the policy says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.policy import Policy, StreamRoute, TlsUse
from migrator.core.process.certificates import (
    CA_FILE,
    CLIENT_FILES,
    SERVER_FILES,
    Certificate,
    HostCertificates,
)

#: A certificate that expires within so many seconds is worth a word.
EXPIRES_SOON_SECONDS = 14 * 86_400.0


@dataclass(frozen=True, kw_only=True)
class StreamTls:
    """Certificates that both ends of a stream use, and whom they take on the other side."""

    #: Directory of certificates at the host of the source, and of the destination.
    source_directory: str
    destination_directory: str
    #: Name in the destination's certificate.
    hostname: str
    #: Name of the source as its certificate has it, in each spelling that a QEMU may use.
    subjects: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TlsChoice:
    """Decision about one stream: encrypted with this, or plain; and what is to be said of it."""

    tls: StreamTls | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TlsEnd:
    """One host of a stream."""

    #: Of the host, for messages.
    host: str
    #: ``None``: nobody can read what is there.
    certificates: HostCertificates | None
    #: Under which others know it, those that a person configured first; of the target alone.
    names: tuple[str, ...] = ()


def choose(policy: Policy, source: TlsEnd, destination: TlsEnd, *, now: float) -> TlsChoice:
    """Decide about the stream from one host to another.

    :param now: seconds since the epoch.
    """
    if (
        policy.stream is StreamRoute.SSH or policy.tls_use is TlsUse.OFF
    ):  # what goes through SSH needs it no more
        return TlsChoice()
    required = policy.tls_use is TlsUse.REQUIRE
    here, there = source.certificates, destination.certificates
    if here is None or there is None:
        if not required:
            return TlsChoice()
        lacking = source if here is None else destination
        text = (
            f"the policy requires encryption, and the certificates of {lacking.host} cannot be read from here"
        )
        return TlsChoice(findings=(finding("tls-required", text),))
    missing = [*_missing(source, "source"), *_missing(destination, "destination")]
    broken = [*_broken(source, here), *_broken(destination, there)]
    if missing and not broken:
        text = "; ".join(missing)
        if required:
            return TlsChoice(
                findings=(finding("tls-required", f"the policy requires encryption, and {text}"),)
            )
        one_sided = here.any or there.any
        return TlsChoice(findings=(finding("tls-plain", f"not encrypted: {text}"),) if one_sided else ())
    problems = [*broken, *missing, *_problems(source, destination, here, there, now)]
    if problems:
        text = "; ".join(problems)
        code = "tls-required" if required else "tls-certificate"
        return TlsChoice(findings=(finding(code, text),))
    tls = StreamTls(
        source_directory=here.directory,
        destination_directory=there.directory,
        hostname=_name(destination, there) or "",
        subjects=_certificate(here.client).subjects,
    )
    return TlsChoice(tls=tls, findings=tuple(_soon(source, destination, now)))


def _certificate(found: Certificate | None) -> Certificate:
    return found or Certificate()


def _missing(end: TlsEnd, side: str) -> list[str]:
    certificates = end.certificates or HostCertificates()
    files = certificates.missing(side)
    return [f"{end.host} has no {', '.join(files)} in {certificates.directory}"] if files else []


def _broken(end: TlsEnd, certificates: HostCertificates) -> list[str]:
    return [f"{end.host}: {certificates.directory}/{problem}" for problem in certificates.problems]


def _problems(
    source: TlsEnd, destination: TlsEnd, here: HostCertificates, there: HostCertificates, now: float
) -> Iterator[str]:
    client, server = _certificate(here.client), _certificate(there.server)
    own = [
        *_own(source, here, client, CLIENT_FILES[0], now),
        *_own(destination, there, server, SERVER_FILES[0], now),
    ]
    if own:
        yield from own
        return
    if client.authority not in there.authorities:
        yield _stranger(source, here, CLIENT_FILES[0], destination, there)
    if server.authority not in here.authorities:
        yield _stranger(destination, there, SERVER_FILES[0], source, here)
    if not client.subjects:
        yield (
            f"{source.host}: the name in {here.directory}/{CLIENT_FILES[0]} has parts that QEMU's rule for the "
            "destination cannot be written with"
        )
    if _name(destination, there) is None:
        yield (
            f"{destination.host}: {there.directory}/{SERVER_FILES[0]} is for {', '.join(server.names) or 'no name'}, "
            f"not for {' or '.join(destination.names)}"
        )


def _own(
    end: TlsEnd, certificates: HostCertificates, certificate: Certificate, file: str, now: float
) -> Iterator[str]:
    if problem := certificate.problem_at(now):
        yield f"{end.host}: {certificates.directory}/{file} {problem}"
    if certificates.authorities_expire is not None and now >= certificates.authorities_expire:
        yield f"{end.host}: {certificates.directory}/{CA_FILE} has expired"


def _stranger(
    end: TlsEnd, certificates: HostCertificates, file: str, other: TlsEnd, others: HostCertificates
) -> str:
    return (
        f"{end.host}: {certificates.directory}/{file} is signed by another authority than those that {other.host} "
        f"trusts ({others.directory}/{CA_FILE})"
    )


def _name(destination: TlsEnd, there: HostCertificates) -> str | None:
    """Return the first of its names that the certificate of the target is for; ``None`` where it is for none."""
    server = _certificate(there.server)
    return next((name for name in destination.names if server.is_for(name)), None)


def _soon(source: TlsEnd, destination: TlsEnd, now: float) -> Iterator[Finding]:
    for end, side in ((source, "client"), (destination, "server")):
        certificates = end.certificates or HostCertificates()
        certificate: Certificate = _certificate(getattr(certificates, side))
        expires = min(certificate.expires, certificates.authorities_expire or certificate.expires)
        if expires - now < EXPIRES_SOON_SECONDS:
            days = max(0, int((expires - now) // 86_400))
            yield finding(
                "tls-expires",
                f"the certificates of {end.host} in {certificates.directory} expire in {days} d",
            )
