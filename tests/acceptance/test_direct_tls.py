"""``migrator direct`` over an encrypted stream: both sides verified, or refused in words, the guest unharmed."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.x509.oid import NameOID

from migrator.pki.authority import Authority
from migrator.testing.lab import GuestMachine, Habit, Lab, Pair, until
from tests.certificates import make_directory, self_made, tls_objects, write_directory
from tests.command import SLOWLY, Ended, direct, direct_doomed, running
from tests.disks import writing_guest
from tests.invariants import witness
from tests.ports import free_port
from tests.socket_options import socket_options
from tests.wire_capture import captured

MIB = 1 << 20
#: Every page that the guest has filled holds this, behind one byte.
PATTERN = b"\x5a" + bytes(255)
WRITING = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=8 * MIB))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "authority", site="test")


@pytest.fixture
def certificates(tmp_path: Path, authority: Authority) -> Path:
    return make_directory(tmp_path / "pki", authority)


def tls(directory: Path, *, use: str = "require", name: str = "this-host") -> tuple[str, ...]:
    return ("--tls", use, "--tls-dir", str(directory), "--tls-name", name)


async def objects(pair: Pair) -> list[str]:
    """Return our objects at both ends that are left."""
    return await tls_objects(pair.source, pair.destination)


async def test_guest_moves_encrypted_and_nothing_of_that_is_left(
    lab: Lab, across: tuple[Path, Path], certificates: Path
) -> None:
    pair = await lab.pair(WRITING, source=across[0], destination=across[1])
    async with witness(lab, pair) as seen:
        ended = await direct(pair, *tls(certificates))
        assert (ended.code, ended.document["tls"], ended.document["error"]) == (0, True, None)
        await seen.verify("completed")
    assert await objects(pair) == []
    parameters = await pair.destination.query("query-migrate-parameters")
    assert not any(parameters[name] for name in ("tls-creds", "tls-authz", "tls-hostname"))


async def test_postcopy_is_encrypted_too(
    lab: Lab, one_crossing: tuple[Path, Path], certificates: Path
) -> None:
    pair = await lab.pair(WRITING, source=one_crossing[0], destination=one_crossing[1])
    async with witness(lab, pair) as seen:
        ended = await direct(pair, *tls(certificates), "--policy", "postcopy-first")
        assert (ended.code, ended.document["mode"], ended.document["tls"]) == (0, "postcopy", True)
        await seen.verify("completed")
    assert await objects(pair) == []


async def test_disks_go_with_the_same_certificates(
    lab: Lab, one_crossing: tuple[Path, Path], certificates: Path
) -> None:
    guest = await writing_guest(lab, source=one_crossing[0], destination=one_crossing[1])
    async with running(guest.pair, *tls(certificates)) as command:
        mirrors: list[str] = []

        async def connected() -> bool:
            nodes = await guest.pair.source.query("query-named-block-nodes", flat=True)
            mirrors.extend(node["file"] for node in nodes if node["drv"] == "nbd")
            return bool(mirrors)

        await until(connected, what="a mirror")
        ended = await command.ended()
    assert (ended.code, ended.document["tls"]) == (0, True), ended.error
    assert mirrors[0].startswith("nbd://")  # a server with certificates takes nobody without
    assert ended.document["disk_bytes"] > 0
    assert await objects(guest.pair) == []
    assert await guest.check(guest.pair.destination) > 0


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
async def test_memory_is_on_the_wire_where_it_is_plain_and_not_where_it_is_encrypted(
    lab: Lab, tmp_path: Path, certificates: Path, encrypted: bool
) -> None:
    pair = await lab.pair(WRITING)
    use = tls(certificates) if encrypted else ("--tls", "off")
    port = free_port()
    async with captured(tmp_path, port=port) as wire:
        ended = await direct(pair, *use, "--listen", f"tcp:127.0.0.1:{port}")
        assert (ended.code, ended.document["tls"]) == (0, encrypted), ended.document
        assert await wire.shows(PATTERN) is not encrypted


async def test_options_of_sockets_are_set_on_an_encrypted_stream(lab: Lab, certificates: Path) -> None:
    pair = await lab.pair(WRITING)
    port = free_port()
    listen = ("--listen", f"tcp:127.0.0.1:{port}")
    async with running(pair, *tls(certificates), *SLOWLY, *listen) as command:

        def shaped() -> bool:
            found = socket_options(pair.source.pid, port)
            return bool(found) and all(unsent < MIB for unsent, _ in found)

        await until(shaped, what="sockets of the stream with their options")
        command.signal(signal.SIGINT)
        ended = await command.ended()
    assert ended.code == 4
    assert await objects(pair) == []


class TestRefusals:
    """Before anything is changed, where it can be known."""

    @staticmethod
    async def _refused(lab: Lab, pair: Pair, options: Sequence[str], code: str) -> Ended:
        async with witness(lab, pair) as seen:
            ended = await direct(pair, *options)
            assert (ended.code, ended.codes.count(code)) == (3, 1), ended.out
            await seen.verify_untouched()
        assert await objects(pair) == []
        return ended

    @pytest.mark.parametrize(("use", "code"), [("require", "tls-required"), ("prefer", "tls-certificate")])
    async def test_certificate_that_has_expired(self, lab: Lab, tmp_path: Path, use: str, code: str) -> None:
        directory = write_directory(tmp_path / "pki", *self_made(days=-1))
        pair = await lab.pair(WRITING)
        ended = await self._refused(lab, pair, tls(directory, use=use), code)
        assert "server-cert.pem has expired" in ended.out
        if use == "prefer":
            accepted = await direct(pair, *tls(directory, use=use), "--accept", code)
            assert (accepted.code, accepted.document["tls"]) == (0, False)

    async def test_certificate_for_another_name(self, lab: Lab, certificates: Path) -> None:
        ended = await self._refused(
            lab, await lab.pair(WRITING), tls(certificates, name="that-host"), "tls-required"
        )
        assert "is for this-host, 127.0.0.1, not for that-host" in ended.out

    async def test_certificate_of_another_authority_than_the_one_beside_it(
        self, lab: Lab, certificates: Path
    ) -> None:
        _, certificate, key = self_made()
        (certificates / "server-cert.pem").write_bytes(certificate)
        (certificates / "server-key.pem").write_bytes(key)
        ended = await self._refused(lab, await lab.pair(WRITING), tls(certificates), "tls-required")
        assert "server-cert.pem is signed by no authority in ca-cert.pem" in ended.out

    async def test_files_that_are_missing_and_required(self, lab: Lab, certificates: Path) -> None:
        (certificates / "client-key.pem").unlink()
        ended = await self._refused(lab, await lab.pair(WRITING), tls(certificates), "tls-required")
        assert f"has no client-key.pem in {certificates}" in ended.out

    async def test_file_that_is_no_certificate(self, lab: Lab, certificates: Path) -> None:
        (certificates / "ca-cert.pem").write_text("rubbish")
        ended = await self._refused(lab, await lab.pair(WRITING), tls(certificates), "tls-required")
        assert "ca-cert.pem has no certificate in PEM in it" in ended.out


async def test_where_no_host_has_certificates_it_goes_plainly_unless_encryption_is_required(
    lab: Lab, tmp_path: Path
) -> None:
    pair = await lab.pair(WRITING)
    assert (await direct(pair, *tls(tmp_path / "none"))).code == 3
    ended = await direct(pair, *tls(tmp_path / "none", use="prefer"))
    assert (ended.code, ended.document["tls"]) == (0, False)


async def test_key_of_another_certificate_is_told_by_qemu_and_the_guest_goes_on(
    lab: Lab, one_version: Path, certificates: Path
) -> None:
    (certificates / "client-key.pem").write_bytes(self_made()[2])
    pair = await lab.pair(WRITING, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        ended = await direct(pair, *tls(certificates))
        assert (ended.code, ended.state) == (1, "failed")
        assert "client-key.pem" in ended.error
        await seen.verify("failed")
    assert await objects(pair) == []


async def test_key_that_the_user_of_qemu_may_not_read_is_told_and_the_guest_goes_on(
    lab: Lab, authority: Authority
) -> None:
    """Below the directory of the test itself nobody else may go."""
    pair = await lab.pair(WRITING, destination_machine=replace(WRITING, extra=("-runas", "nobody")))
    with tempfile.TemporaryDirectory(prefix="pki-") as name:
        directory = make_directory(Path(name), authority)
        directory.chmod(0o755)
        for key in directory.glob("*-key.pem"):
            key.chmod(0o600)
        async with witness(lab, pair) as seen:
            ended = await direct(pair, *tls(directory))
            assert (ended.code, ended.state) == (1, "failed")
            assert f"the keys in {directory} have to be readable for QEMU's user" in ended.error
            await seen.verify("failed")


async def test_names_with_several_parts_are_taken_as_qemu_writes_them(
    lab: Lab, one_version: Path, tmp_path: Path
) -> None:
    subject = (
        (NameOID.COUNTRY_NAME, "DE"),
        (NameOID.ORGANIZATION_NAME, 'Ää, "Büro" + Söhne; <x> #1'),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "#vm "),
        (NameOID.COMMON_NAME, "this-host"),
    )
    directory = write_directory(tmp_path / "pki", *self_made(subject=subject))
    pair = await lab.pair(WRITING, source=one_version, destination=one_version)
    ended = await direct(pair, *tls(directory))
    assert (ended.code, ended.error) == (0, "None")


@pytest.mark.parametrize(
    ("fate", "state"),
    [
        pytest.param("after destination.encrypt", "failed", marks=pytest.mark.matrix),
        ("after destination.listen", "failed"),
        ("after source.migrate", "completed"),
        pytest.param("after destination.cont", "completed", marks=pytest.mark.matrix),
    ],
)
async def test_what_a_killed_controller_left_is_removed_by_the_one_that_takes_it_up(
    lab: Lab, one_version: Path, certificates: Path, fate: str, state: str
) -> None:
    pair = await lab.pair(WRITING, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        killed = await direct_doomed(pair, f"KILL {fate}", *tls(certificates), "--postcopy", "never")
        assert killed.code == -signal.SIGKILL
        assert await objects(pair) != []
        ended = await direct(pair, *tls(certificates))
        assert (ended.state, ended.document["tls"]) == (state, True)
        await seen.verify(state)
    assert await objects(pair) == []
