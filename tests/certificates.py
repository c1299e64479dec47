"""Certificates for QEMU's streams, made for one test."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from migrator.pki.authority import Authority
from migrator.testing.lab import LabQemu

#: Under which a test's hosts, all on this machine, are known.
NAMES = ("this-host", "127.0.0.1")


def make_directory(
    directory: Path, authority: Authority, *, host: str = "this-host", names: Sequence[str] = NAMES
) -> Path:
    """Make a directory of certificates as QEMU wants it."""
    issued = authority.issue(host, names)
    return write_directory(directory, authority.pem, issued.certificate, issued.key)


def write_directory(directory: Path, ca: bytes, certificate: bytes, key: bytes) -> Path:
    """Write the files of a directory of certificates."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ca-cert.pem").write_bytes(ca)
    for end in ("server", "client"):
        (directory / f"{end}-cert.pem").write_bytes(certificate)
        (directory / f"{end}-key.pem").write_bytes(key)
    return directory


async def tls_objects(*qemus: LabQemu) -> list[str]:
    """Return our objects for encryption that are left in those that live."""
    left = []
    for qemu in qemus:
        if qemu.alive:
            found = await qemu.query("qom-list", path="/objects")
            names = [str(each["name"]) for each in found]
            left += [name for name in names if name.startswith(("migrator-tls", "migrator-peers"))]
    return left


def self_made(
    *,
    subject: Sequence[tuple[x509.ObjectIdentifier, str]] = ((NameOID.COMMON_NAME, "this-host"),),
    days: float = 1,
) -> tuple[bytes, bytes, bytes]:
    """Return the certificate of an authority, and a certificate of it with its key, without our own ways of making one.

    :param days: until it expires; negative: it has expired.
    """
    now = dt.datetime.now(dt.UTC)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "another authority")])
    begins = now - dt.timedelta(days=10)

    def builder(
        name: x509.Name, key: ec.EllipticCurvePrivateKey, end: dt.datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(root_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(end)
        )

    root = (
        builder(root_name, root_key, now + dt.timedelta(days=10))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    name = x509.Name([x509.NameAttribute(kind, value) for kind, value in subject])
    leaf = (
        builder(name, key, now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("this-host")]), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return (
        root.public_bytes(pem),
        leaf.public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
