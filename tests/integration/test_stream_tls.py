"""Encrypted streams whose ends do not take each other, which QEMU alone finds out; and one that breaks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.core.model import Mode, State
from migrator.core.preflight.stream_tls import StreamTls
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.pki.authority import Authority
from migrator.testing.lab import GuestMachine, Habit, Lab
from migrator.testing.network import LabHosts
from tests.certificates import make_directory, self_made, tls_objects, write_directory
from tests.driven import MIB, driven
from tests.invariants import witness
from tests.paths import path_between
from tests.postcopy import FULL
from tests.postcopy import driven as driven_by_postcopy

WRITING = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=4 * MIB))


def usual(tmp_path: Path) -> StreamTls:
    """What would do."""
    authority = Authority.make(tmp_path / "authority", site="test")
    return StreamTls(
        source_directory=str(make_directory(tmp_path / "source", authority, host="host-a", names=["host-a"])),
        destination_directory=str(
            make_directory(tmp_path / "destination", authority, host="host-b", names=["host-b"])
        ),
        hostname="host-b",
        subjects=("CN=host-a",),
    )


def wrong(what: str, tls: StreamTls, tmp_path: Path) -> StreamTls:
    other = Authority.make(tmp_path / "other-authority", site="other")
    foreign = str(make_directory(tmp_path / "foreign", other, host="host-b", names=["host-b"]))
    match what:
        case "name":
            return replace(tls, hostname="host-c")
        case "peer":
            return replace(tls, subjects=("CN=host-x",))
        case "foreign-destination":
            return replace(tls, destination_directory=foreign)
        case _:
            return replace(tls, source_directory=foreign)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("name", "does not match the hostname host-c"),
        ("peer", "authz check for CN=host-a is denied"),
        ("foreign-destination", "hasn't got a known issuer"),
        pytest.param("foreign-source", "hasn't got a known issuer", marks=pytest.mark.matrix),
    ],
)
async def test_end_that_is_not_taken_leaves_the_guest_where_it_is_and_says_why(
    lab: Lab, each_qemu: Path, tmp_path: Path, what: str, words: str
) -> None:
    tls = wrong(what, usual(tmp_path), tmp_path)
    pair = await lab.pair(WRITING, source=each_qemu, destination=each_qemu)
    async with witness(lab, pair) as seen:
        async with driven(pair, tls=tls) as drive:
            result = await drive.run()
        assert (result.state, result.tls) == (State.FAILED, True)
        assert words in str(result.error)
        await seen.verify(State.FAILED)
    assert await tls_objects(pair.source, pair.destination) == []


async def test_encrypted_stream_of_a_postcopy_that_breaks_is_recovered_encrypted(
    hosts: LabHosts, lab: Lab, one_version: Path, tmp_path: Path
) -> None:
    """Certificates that somebody replaces meanwhile are those of the next migration."""
    tls = usual(tmp_path)
    pair = await lab.pair(
        FULL,
        source=one_version,
        destination=one_version,
        source_prefix=hosts["alpha"].prefix,
        destination_prefix=hosts["beta"].prefix,
    )
    for host in hosts:
        host.set_speed(8e6)

    async def heal() -> None:
        await asyncio.sleep(2.0)
        for host in hosts:
            host.heal()

    async with witness(lab, pair) as seen:
        async with driven_by_postcopy(
            pair,
            tls=tls,
            listen=f"tcp:{hosts['beta'].address}:0",
            path=path_between(hosts),
            timeouts=PhaseTimeouts(fetching=1.0, broken=0.5),
        ) as drive:

            async def lose() -> None:
                await pair.destination.wait_beating()
                for directory in (tls.source_directory, tls.destination_directory):
                    write_directory(Path(directory), *self_made())
                hosts["alpha"].reset_connections(hosts["beta"])
                drive.background(heal())

            drive.destination.after("cont", lose)
            result = await drive.run()
        assert (result.state, result.mode, result.tls) == (State.COMPLETED, Mode.POSTCOPY, True)
        assert result.recoveries == 1
        await seen.verify(State.COMPLETED)
    assert await tls_objects(pair.destination) == []
