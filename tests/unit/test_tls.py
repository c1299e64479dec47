"""Each file that cannot be used is told by its name and with its reason, in one line."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from migrator.errors import UsageError
from migrator.tls import File, client_context, server_context


def _pair(directory: Path, name: str) -> None:
    """A certificate that it gave to itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_key(directory / f"{name}.key", key, serialization.NoEncryption())


def _write_key(path: Path, key: Any, encryption: serialization.KeySerializationEncryption) -> None:
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))


class Files:
    """A pair that fits, one that does not, and what is wrong in other ways."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("own", "other", "ca"):
            _pair(directory, name)
        key = serialization.load_pem_private_key((directory / "own.key").read_bytes(), None)
        _write_key(directory / "locked.key", key, serialization.BestAvailableEncryption(b"secret"))
        (directory / "both.pem").write_bytes(
            (directory / "own.pem").read_bytes() + (directory / "own.key").read_bytes()
        )
        (directory / "words.pem").write_text("no certificate")
        (directory / "empty.pem").write_text("")
        (directory / "folder.pem").mkdir()

    def __call__(self, kind: str, name: str) -> File:
        return File(name=f"[http] tls_{kind}", path=self.directory / name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


CERTIFICATE = [
    ("none.pem", "cannot be read: No such file or directory"),
    ("folder.pem", "cannot be read: Is a directory"),
    ("words.pem", "cannot be used: there is no certificate in PEM in it"),
    ("empty.pem", "cannot be used: there is no certificate in PEM in it"),
    ("own.key", "cannot be used: there is no certificate in PEM in it"),
]
KEY = [
    ("none.key", "cannot be read: No such file or directory"),
    ("folder.pem", "cannot be read: Is a directory"),
    ("words.pem", "cannot be used: there is no private key in PEM in it, or one with a passphrase"),
    ("empty.pem", "cannot be used: there is no private key in PEM in it, or one with a passphrase"),
    ("own.pem", "cannot be used: there is no private key in PEM in it, or one with a passphrase"),
    ("locked.key", "cannot be used: there is no private key in PEM in it, or one with a passphrase"),
    ("other.key", "cannot be used: it is not the key of the certificate in {directory}/own.pem"),
]


def expected(files: Files, kind: str, name: str, why: str) -> str:
    path = files.directory / name
    return f"^{re.escape(f'[http] tls_{kind} {path} {why.format(directory=files.directory)}')}$"


@pytest.mark.parametrize(("name", "why"), CERTIFICATE)
def test_wrong_certificate(files: Files, name: str, why: str) -> None:
    with pytest.raises(UsageError, match=expected(files, "certificate", name, why)):
        server_context(certificate=files("certificate", name), key=files("key", "own.key"))
    with pytest.raises(UsageError, match=expected(files, "ca", name, why)):
        client_context(ca=files("ca", name))


@pytest.mark.parametrize(("name", "why"), KEY)
def test_wrong_key(files: Files, name: str, why: str) -> None:
    for make in (server_context, client_context):
        with pytest.raises(UsageError, match=expected(files, "key", name, why)):
            make(certificate=files("certificate", "own.pem"), key=files("key", name))


def test_those_that_fit(files: Files) -> None:
    pair = {"certificate": files("certificate", "own.pem"), "key": files("key", "own.key")}
    assert server_context(**pair).verify_mode is ssl.CERT_NONE
    for context in (client_context(ca=files("ca", "ca.pem"), **pair), client_context()):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
    assert len(client_context(ca=files("ca", "ca.pem")).get_ca_certs()) == 1
    client_context(certificate=files("certificate", "both.pem"))
