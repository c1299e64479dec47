"""``migrator direct`` with several channels, and with memory that is compressed."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.pki.authority import Authority
from migrator.testing.lab import GuestMachine, Habit, Lab, until
from tests.certificates import make_directory
from tests.command import SLOWLY, direct, running
from tests.invariants import witness

MIB = 1 << 20
WRITING = GuestMachine(habit=Habit(region_bytes=32 * MIB, bytes_per_second=16 * MIB))
PRECOPY = ("--postcopy", "never")


@pytest.mark.parametrize(
    ("options", "streams", "compression"),
    [
        (("--streams", "4"), 4, "none"),
        (("--compress", "zstd"), 2, "zstd"),
        (("--compress", "xbzrle"), 1, "xbzrle"),
        pytest.param(("--streams", "1", "--compress", "zstd"), 1, "zstd", marks=pytest.mark.matrix),
    ],
)
async def test_guest_moves_through_several_channels(
    lab: Lab,
    across: tuple[Path, Path],
    options: tuple[str, ...],
    streams: int,
    compression: str,
) -> None:
    pair = await lab.pair(WRITING, source=across[0], destination=across[1])
    async with witness(lab, pair) as seen:
        ended = await direct(pair, *PRECOPY, *options)
        assert (ended.code, ended.document["streams"], ended.document["compression"]) == (
            0,
            streams,
            compression,
        )
        await seen.verify("completed")
    capabilities = await pair.destination.query("query-migrate-capabilities")
    assert not any(each["state"] for each in capabilities if each["capability"] in ("multifd", "xbzrle"))


async def test_channels_are_encrypted_too(lab: Lab, each_qemu: Path, tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "pki", Authority.make(tmp_path / "authority", site="test"))
    tls = ("--tls", "require", "--tls-dir", str(directory), "--tls-name", "this-host")
    pair = await lab.pair(WRITING, source=each_qemu, destination=each_qemu)
    async with witness(lab, pair) as seen:
        ended = await direct(pair, *PRECOPY, "--streams", "3", *tls)
        assert (ended.code, ended.document["streams"], ended.document["tls"]) == (0, 3, True), ended.document
        await seen.verify("completed")


async def test_policy_that_allows_postcopy_has_one_channel_and_says_why(lab: Lab, one_version: Path) -> None:
    pair = await lab.pair(WRITING, source=one_version, destination=one_version)
    ended = await direct(pair, "--streams", "4", "--compress", "zstd")
    assert (ended.code, ended.document["streams"], ended.document["compression"]) == (0, 1, "none")
    assert "plain-stream" in ended.actions


async def test_cancelled_one_leaves_the_source_as_it_was(lab: Lab, one_version: Path) -> None:
    pair = await lab.pair(WRITING, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with running(pair, *SLOWLY, "--streams", "4") as command:

            async def copies() -> bool:
                ram = (await pair.source.query("query-migrate")).get("ram", {})
                return bool(ram.get("transferred", 0) > MIB)

            await until(copies, what="a migration that has sent something")
            command.signal(signal.SIGINT)
            ended = await command.ended()
        assert ended.code == 4
        await seen.verify("cancelled")


async def test_cancelled_while_its_destination_stands_still_the_source_goes_on_at_once(
    lab: Lab, one_version: Path
) -> None:
    # A channel that cannot send would have QEMU wait for as long as the connection lasts.
    pair = await lab.pair(
        replace(WRITING, memory_bytes=256 * MIB), source=one_version, destination=one_version
    )
    async with witness(lab, pair) as seen:
        async with running(pair, *PRECOPY, "--streams", "4") as command:

            async def copies() -> bool:
                ram = (await pair.source.query("query-migrate")).get("ram", {})
                return bool(ram.get("transferred", 0) > MIB)

            await until(copies, what="a migration that has sent something")
            pair.destination.sigstop()
            command.signal(signal.SIGINT)
            ended = await command.ended()
        assert ended.code == 4
        await seen.verify("cancelled")
