"""``migrator direct`` through an SSH tunnel: real servers, in a network of their own each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrator.pki.authority import Authority
from migrator.testing.lab import GuestMachine, Habit, Lab, until
from tests.certificates import make_directory
from tests.command import SLOWLY
from tests.disks import MIB, writing_guest
from tests.invariants import witness
from tests.tunnel_site import Site, site
from tests.wire_capture import captured

__all__ = ["site"]  # a fixture

WRITING = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=8 * MIB))
#: The guest's disk is full of it; and a stream of memory begins so.
DISK, STREAM = b"full" * 64, b"QEVM"

SSH = ("--stream", "ssh")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--postcopy", "never", "--streams", "3"), id="channels", marks=pytest.mark.matrix),
        pytest.param(("--policy", "postcopy-first"), id="postcopy"),
    ],
)
async def test_guest_moves_through_a_tunnel_of_which_nothing_is_left(
    lab: Lab, one_crossing: tuple[Path, Path], site: Site, options: tuple[str, ...]
) -> None:
    pair = await lab.pair(WRITING, source=one_crossing[0], destination=one_crossing[1], **site.prefixes)
    async with witness(lab, pair) as seen:
        ended = await site.direct(pair, *SSH, *options)
        assert (ended.code, ended.document["tls"]) == (0, False), ended.err
        assert "tunnel" in ended.actions
        await seen.verify("completed")
    await site.nothing_left()


async def test_little_waits_in_a_tunnel_over_a_narrow_link_when_the_guest_is_stopped(
    lab: Lab, site: Site
) -> None:
    site.alpha.set_speed(8 * MIB)
    filled = lab.directory / "filled"
    filled.write_bytes(os.urandom(24 * MIB))
    loader = ("-device", f"loader,file={filled},addr={64 * MIB:#x},force-raw=on")
    pair = await lab.pair(GuestMachine(extra=loader), **site.prefixes)
    ended = await site.direct(pair, *SSH, "--postcopy", "never", "--compress", "never")
    assert ended.code == 0, ended.err
    # OpenSSH's client alone would keep 2 MiB, and the sockets on both sides of it as much again.
    assert ended.document["queued_at_stop_bytes"] < MIB


@pytest.mark.parametrize("secret", ["plain", pytest.param("tls", marks=pytest.mark.matrix), "ssh"])
async def test_neither_memory_nor_disks_are_on_the_wire_but_where_it_is_plain(
    lab: Lab, tmp_path: Path, site: Site, secret: str
) -> None:
    directory = make_directory(tmp_path / "pki", Authority.make(tmp_path / "authority", site="test"))
    use = {
        "plain": ("--tls", "off"),
        "tls": ("--tls", "require", "--tls-dir", str(directory), "--tls-name", "this-host"),
        "ssh": SSH,
    }[secret]
    guest = await writing_guest(lab, size_bytes=4 * MIB, filled=True, **site.prefixes)
    async with captured(tmp_path, interface="uplink", prefix=site.alpha.prefix) as wire:
        ended = await site.direct(guest.pair, *use)
        assert (ended.code, ended.document["tls"]) == (0, secret == "tls"), ended.err
        shown = await wire.content()
    assert len(shown) > 2 * MIB  # what goes by while the capture is busy is not in it
    assert (DISK in shown) is (secret == "plain")
    assert (STREAM in shown) is (secret == "plain")
    assert await guest.check(guest.pair.destination) > 0
    await site.nothing_left()


async def test_tunnel_outlives_a_controller_that_is_killed_and_ends_with_the_stream(
    lab: Lab, site: Site
) -> None:
    pair = await lab.pair(GuestMachine(habit=Habit(region_bytes=8 * MIB, passes=1)), **site.prefixes)
    async with witness(lab, pair) as seen:
        slowly = ("--postcopy", "never", "--max-bandwidth", "4MiB/s")
        async with site.running(pair, *SSH, *slowly) as command:

            async def active() -> bool:
                return await pair.source.migration_status() == "active"

            await until(active, what="a migration that is active")
            await command.kill()
        assert site.processes()
        ended = await site.direct(pair)  # it takes it up, as it was begun
        assert (ended.code, ended.state) == (0, "completed"), ended.err
        assert "take-up" in ended.actions
        await seen.verify("completed")
    await site.nothing_left()


async def test_tunnel_that_is_cut_leaves_the_guest_where_it_was(lab: Lab, site: Site) -> None:
    pair = await lab.pair(WRITING, **site.prefixes)
    async with witness(lab, pair) as seen:
        async with site.running(pair, *SSH, *SLOWLY) as command:

            async def active() -> bool:
                return await pair.source.migration_status() == "active"

            await until(active, what="a migration that is active")
            assert site.server.break_connections()
            ended = await command.ended()
        assert (ended.code, ended.state) == (1, "failed")
        await seen.verify("failed")
    await site.nothing_left()


async def test_tunnel_that_is_cut_in_postcopy_is_made_anew(lab: Lab, site: Site) -> None:
    machine = GuestMachine(habit=Habit(region_bytes=64 * MIB, bytes_per_second=MIB))
    pair = await lab.pair(machine, **site.prefixes)
    site.alpha.set_speed(8 * MIB)
    async with witness(lab, pair) as seen:
        async with site.running(pair, *SSH, "--policy", "postcopy-first") as command:
            await until(lambda: pair.destination.beats > 1, what="a guest that runs at the destination")
            assert site.server.break_connections()
            site.alpha.set_speed(None)
            ended = await command.ended()
        assert (ended.code, ended.document["recoveries"]) == (0, 1), ended.err
        await seen.verify("completed")
    await site.nothing_left()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("key", "Permission denied"),
        pytest.param("host", "Host key verification failed", marks=pytest.mark.matrix),
        ("forwarding", "AllowTcpForwarding"),
    ],
)
async def test_tunnel_that_cannot_be_made_is_refused_before_anything_is_changed(
    lab: Lab, site: Site, spoil: str, words: str
) -> None:
    pair = await lab.pair(GuestMachine(), **site.prefixes)
    match spoil:
        case "key":
            (site.server.directory / "authorized_keys").write_text("")
        case "host":
            site.server.known_hosts.write_text("")
        case _:
            site.server.stop()
            with (site.server.directory / "config").open("a") as config:
                config.write("AllowTcpForwarding no\n")
            site.server.start()
    async with witness(lab, pair) as seen:
        ended = await site.direct(pair, *SSH)
        assert (ended.code, ended.codes[0]) == (3, "stream-route"), ended.err
        assert words in ended.err + ended.out
        await seen.verify_untouched()
    await site.nothing_left()
