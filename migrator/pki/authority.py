"""The site's certificate authority: its own certificate and key in a directory, and certificates for hosts."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from migrator.core.process.certificates import CA_FILE
from migrator.errors import UsageError
from migrator.tls import File, read_certificates

KEY_FILE = "ca-key.pem"
#: How long the authority, and what it issues, are valid.
AUTHORITY_DAYS, HOST_DAYS = 3650, 365
#: The group ffdhe3072 of RFC 7919, as QEMU reads it: as strong as the keys that are made here, and no secret.
DH_PARAMS = b"""\
-----BEGIN DH PARAMETERS-----
MIIBiAKCAYEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEfz9zeNVs7ZRkDW7w09N75nAI4YbRvydbmyQd62R0mkff3
7lmMsPrBhtkcrv4TCYUTknC0EwyTvEN5RPT9RFLi103TZPLiHnH1S/9croKrnJ32
nuhtK8UiNjoNq8Uhl5sN6todv5pC1cRITgq80Gv6U93vPBsg7j/VnXwl5B0rZsYu
N///////////AgEC
-----END DH PARAMETERS-----
"""
#: A certificate is valid this much earlier than it was made: clocks of hosts differ.
_BACKDATED = dt.timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes
    expires: dt.datetime


class Authority:
    """A certificate authority that was made, or read from its directory."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate, self._key = certificate, key

    @property
    def pem(self) -> bytes:
        """Return its certificate, for whoever shall trust it."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @classmethod
    def make(cls, directory: Path, *, site: str, days: int = AUTHORITY_DAYS) -> Authority:
        """Make one, in a directory of mode 0700.

        :raise UsageError: there is one already, or the directory cannot be written to; nothing was changed then.
        """
        for file in (CA_FILE, KEY_FILE):
            if (directory / file).exists():
                raise UsageError(
                    f"there is an authority in {directory} already: {file}; every host would have to be given "
                    "certificates of another one"
                )
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"migrator site {site}"[:64])])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        made = cls(certificate, key)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(directory / KEY_FILE, _private(key))
            _write(directory / CA_FILE, made.pem)
        except OSError as error:
            raise UsageError(f"{directory} cannot be written to: {error.strerror}") from error
        return made

    @classmethod
    def read(cls, directory: Path) -> Authority:
        """Read one.

        :raise UsageError: there is none, or it cannot be used.
        """
        if not (directory / CA_FILE).exists():
            raise UsageError(f"there is no authority in {directory}; make one: migrator pki init")
        certificate = read_certificates(File(name="the authority's certificate", path=directory / CA_FILE))[0]
        path = directory / KEY_FILE
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise UsageError(f"the authority's key {path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"the authority's key {path} cannot be used: there is no private key in PEM in it, or one with a "
                "passphrase"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise UsageError(f"the authority's key {path} is not the key of the certificate beside it")
        return cls(certificate, key)

    def issue(self, host: str, names: Sequence[str], *, days: int = HOST_DAYS) -> Issued:
        """Make a key and a certificate for a host, for both ends of a stream.

        :param names: DNS names and IP addresses that it is for.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        expires = min(now + dt.timedelta(days=days), self.certificate.not_valid_after_utc)
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(expires)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        return Issued(
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=_private(key),
            expires=expires,
        )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    # QEMU wants keyEncipherment of a host's certificate, whatever the kind of its key.
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_encipherment=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> None:
    """Write a new file of mode 0600."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
