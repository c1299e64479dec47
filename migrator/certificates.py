"""Certificates in PEM, read into what is judged of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from migrator.core.process.certificates import (
    CA_FILE,
    CLIENT_FILES,
    SERVER_FILES,
    Certificate,
    HostCertificates,
)

if TYPE_CHECKING:
    from cryptography import x509

#: Lists of more certificates than these are no host's.
_MOST_CERTIFICATES = 64
_NO_CERTIFICATE = "has no certificate in PEM in it"
#: Escaped by GnuTLS in names, wherever they stand.
_ESCAPED = ',+"\\<>;'
#: Attributes of names that GnuTLS has words for, which are as RFC 4514 has them, and a few more.
_ATTRIBUTES = {
    "2.5.4.3": "CN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "EMAIL",
}


def host_certificates(
    directory: str, certificates: Mapping[str, bytes], *, keys: Sequence[str], problems: Sequence[str] = ()
) -> HostCertificates:
    """Return what a directory of certificates comes to.

    :param certificates: content of its files of certificates, by their names; only of those that are there.
    :param keys: names of the files of keys that are there and can be used, as far as that shows.
    :param problems: what is wrong with others; see :class:`HostCertificates`.
    """
    found = list(problems)
    parsed: dict[str, list[x509.Certificate]] = {}
    for name, content in certificates.items():
        parsed[name] = _load(content)
        if not parsed[name]:
            found.append(f"{name} {_NO_CERTIFICATE}")
    authorities = parsed.get(CA_FILE, [])
    expire = [each.not_valid_after_utc.timestamp() for each in authorities]

    def one(name: str, purpose: str) -> Certificate | None:
        chain = parsed.get(name)
        return _certificate(chain, authorities, purpose) if chain else None

    return HostCertificates(
        directory=directory,
        authorities=frozenset(key_hash(each) for each in authorities),
        authorities_expire=min(expire, default=None),
        server=one(SERVER_FILES[0], "server"),
        client=one(CLIENT_FILES[0], "client"),
        server_key=SERVER_FILES[1] in keys,
        client_key=CLIENT_FILES[1] in keys,
        problems=tuple(found),
    )


def key_hash(certificate: x509.Certificate) -> str:
    """Return the hash of a certificate's public key: the same for one that was renewed with its key."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - as in _load

    return hashlib.sha256(
        certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    ).hexdigest()


def _load(content: bytes) -> list[x509.Certificate]:
    """Return the certificates in PEM; none where there is none that can be read."""
    from cryptography import x509  # noqa: PLC0415 - takes a while, and most hosts have no certificates

    with contextlib.suppress(ValueError):
        return x509.load_pem_x509_certificates(content)[:_MOST_CERTIFICATES]
    return []


def _certificate(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate], purpose: str
) -> Certificate:
    leaf = chain[0]
    return Certificate(
        subjects=_subjects(leaf),
        names=_names(leaf),
        begins=leaf.not_valid_before_utc.timestamp(),
        expires=leaf.not_valid_after_utc.timestamp(),
        authority=_authority(leaf, chain[1:], authorities),
        problem=_problem(leaf, purpose),
    )


def _authority(
    leaf: x509.Certificate, between: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> str:
    """Return the hash of the key of the authority that vouches for a certificate, directly or over others beside it."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - as in _load

    current, left = leaf, list(between)
    while True:
        for candidates, trusted in ((authorities, True), (left, False)):
            for candidate in candidates:
                with contextlib.suppress(ValueError, TypeError, InvalidSignature):
                    current.verify_directly_issued_by(candidate)
                    break
            else:
                continue
            if trusted:
                return key_hash(candidate)
            left.remove(candidate)
            current = candidate
            break
        else:
            return ""


def _problem(leaf: x509.Certificate, purpose: str) -> str:
    from cryptography import x509  # noqa: PLC0415 - as in _load
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415 - as in _load

    wanted = {
        "server": ExtendedKeyUsageOID.SERVER_AUTH,
        "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    }[purpose]
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return ""
    except ValueError:
        return "has extensions that cannot be read"
    allowed = {wanted, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    return "" if allowed & set(usage) else f"is not for a {purpose} of TLS (its purposes leave that out)"


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    from cryptography import x509  # noqa: PLC0415 - as in _load

    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return tuple(str(each.value) for each in common)  # which GnuTLS goes by then
    except ValueError:
        return ()
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*names.get_values_for_type(x509.DNSName), *(str(each) for each in addresses))


def _subjects(leaf: x509.Certificate) -> tuple[str, ...]:
    """Return the distinguished name as GnuTLS writes it: in the order of the certificate, or the other way round."""
    parts = []
    for relative in leaf.subject.rdns:
        words = []
        for attribute in relative:
            name = _ATTRIBUTES.get(attribute.oid.dotted_string)
            if name is None or not isinstance(attribute.value, str):
                return ()
            words.append(f"{name}={_escaped(attribute.value)}")
        parts.append("+".join(words))
    return tuple(dict.fromkeys((",".join(parts), ",".join(reversed(parts)))))


def _escaped(value: str) -> str:
    text = "".join(f"\\{letter}" if letter in _ESCAPED else letter for letter in value)
    if text[:1] in (" ", "#"):
        text = f"\\{text}"
    return f"{text[:-1]}\\ " if len(text) > 1 and text.endswith(" ") else text
