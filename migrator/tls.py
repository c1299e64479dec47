"""TLS contexts from files; a file that cannot be used is told by its name."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from migrator.errors import UsageError

if TYPE_CHECKING:
    from cryptography import x509


@dataclass(frozen=True, kw_only=True)
class File:
    """One of them, and what it is called where it was given."""

    name: str
    path: Path

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


def client_context(
    *, ca: File | None = None, certificate: File | None = None, key: File | None = None
) -> ssl.SSLContext:
    """For whoever connects.

    :param ca: whom to believe; the system's authorities without.
    :param certificate: its own, with `key` or with the key in the same file.
    :raise UsageError: a file cannot be used; names it, and says why.
    """
    if ca is not None:
        _read(ca)
        _has_certificate(ca)
    context = ssl.create_default_context(cafile=ca.path if ca is not None else None)
    if certificate is not None:
        _load(context, certificate, key)
    return context


def server_context(*, certificate: File, key: File | None) -> ssl.SSLContext:
    """For whoever is connected to.

    :raise UsageError: as for :func:`client_context`.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(context, certificate, key)
    return context


def names_in(certificate: File) -> list[str]:
    """DNS names that a server certificate is for; empty where it names none.

    :raise UsageError: the file cannot be used.
    """
    from cryptography import x509  # noqa: PLC0415 - only the service has a certificate, and this takes a while

    _read(certificate)
    try:
        found = x509.load_pem_x509_certificate(certificate.path.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except ValueError as error:
        raise UsageError(f"{certificate} cannot be used: there is no certificate in PEM in it") from error
    return list(names.get_values_for_type(x509.DNSName))


def read_certificates(file: File) -> list[x509.Certificate]:
    """Return the certificates in a file, at least one.

    :raise UsageError: the file cannot be used.
    """
    from cryptography import x509  # noqa: PLC0415 - as in names_in

    _read(file)
    try:
        return x509.load_pem_x509_certificates(file.path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{file} cannot be used: there is no certificate in PEM in it") from error


def _read(file: File) -> None:
    try:
        file.path.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error


def _has_certificate(file: File) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file.path)
    except ssl.SSLError as error:
        raise UsageError(f"{file} cannot be used: there is no certificate in PEM in it") from error


def _load(context: ssl.SSLContext, certificate: File, key: File | None) -> None:
    holder = key or certificate
    for file in (certificate, holder):
        _read(file)
    _has_certificate(certificate)
    try:
        # With a password, though it is none, OpenSSL does not ask for one at the terminal.
        context.load_cert_chain(certificate.path, holder.path, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = f"it is not the key of the certificate in {certificate.path}"
        else:
            why = "there is no private key in PEM in it, or one with a passphrase"
        raise UsageError(f"{holder} cannot be used: {why}") from error
