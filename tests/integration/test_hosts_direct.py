"""Ends that are reached over SSH, by a controller on a third host: what may be lost is the way, never the guest."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from migrator.core.model import State
from migrator.core.policy import builtin
from migrator.hosts.sockets import RemoteMonitorTransport
from migrator.hosts.ssh import SshAccess
from migrator.qemu.address import Address
from migrator.qemu.process_handle import ProcessHandle
from migrator.store.records import unfinished
from migrator.testing import network
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, Pair, until
from migrator.testing.network import LabHosts, inside
from tests.command import SLOWLY, Ended, started
from tests.conftest import missing
from tests.driven import LONG, MIB, PLAIN, SHORT, SLOW, CaughtEnd, Drive, Phase, catch, hurry, reaches
from tests.guards import WITHOUT_END, comes_to_its_switch, guarded, runs_on
from tests.invariants import records, witness
from tests.sshd import Sshd

BUSY = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=4 * MIB), image_locking="off")


class Site(SimpleNamespace):
    """Hosts alpha and beta with an sshd each, and this process on a third."""

    hosts: LabHosts
    alpha: Sshd
    beta: Sshd
    lab: Lab

    async def pair(self, machine: GuestMachine = BUSY) -> Pair:
        return await self.lab.pair(
            machine,
            source_prefix=self.hosts["alpha"].prefix,
            destination_prefix=self.hosts["beta"].prefix,
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    if reason := network.possible():
        missing(reason)
    home = tmp_path / "home" / ".ssh"
    with LabHosts("alpha", "beta", "control", isolated=True) as hosts, Lab() as lab:
        alpha = Sshd(tmp_path / "alpha", address=hosts["alpha"].address, prefix=hosts["alpha"].prefix)
        beta = Sshd(
            tmp_path / "beta", address=hosts["beta"].address, prefix=hosts["beta"].prefix, key=alpha.key
        )
        home.mkdir(parents=True)
        (home / "known_hosts").write_text(alpha.host_key_line + beta.host_key_line)
        for name in ("", ".pub"):
            (home / f"id_ed25519{name}").write_bytes(Path(f"{alpha.key}{name}").read_bytes())
        (home / "id_ed25519").chmod(0o600)
        monkeypatch.setenv("HOME", str(home.parent))
        with alpha, beta, inside(hosts["control"].namespace):
            yield Site(hosts=hosts, alpha=alpha, beta=beta, lab=lab)
        print(lab.report())  # noqa: T201 - pytest shows it with a failed test


def ends(site: Site, pair: Pair) -> tuple[str, ...]:
    return (
        *("--source", f"ssh:root@{site.alpha.address}:{pair.source.qmp}"),
        *("--destination", f"ssh:{site.beta.address}:{pair.destination.qmp}"),
    )


async def direct(site: Site, pair: Pair, *options: str) -> Ended:
    async with started("direct", *ends(site, pair), "--json", *options) as command:
        return await command.ended()


@pytest.mark.parametrize("postcopy", ["never", "immediate"])
async def test_command_moves_a_guest(site: Site, postcopy: str) -> None:
    pair = await site.pair()
    async with witness(site.lab, pair) as seen:
        ended = await direct(site, pair, "--postcopy", postcopy)
        assert (ended.code, ended.state) == (0, "completed"), ended.err
        await seen.verify("completed")
    assert ended.document["downtime_uncertainty_seconds"] > 0


async def test_guest_of_a_command_that_is_cut_off_does_not_stand_still_at_its_switch(site: Site) -> None:
    busy = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=8 * MIB), image_locking="off")
    pair = await site.pair(busy)
    async with started("direct", *ends(site, pair), "--json", *WITHOUT_END) as command:
        await guarded(under=site.alpha.sessions)
        site.hosts["control"].link_down()
        await comes_to_its_switch(pair.source)
        await runs_on(pair.source)
        assert await site.lab.counting() == [pair.source]
        assert command.runs
        site.hosts["control"].heal()
        ended = await command.ended()
    assert (ended.state, "guard" in ended.actions) == ("cancelled", True), ended


class RemoteEnd(CaughtEnd):
    """An end over SSH that a test catches at the step it wants."""

    def __init__(self, qemu: LabQemu, access: SshAccess, *, role: str) -> None:
        super().__init__(qemu, role=role, address=Address(kind="ssh", host=access.name, path=str(qemu.qmp)))
        self._transport = RemoteMonitorTransport(access, str(qemu.qmp))
        self._handle = ProcessHandle(self.name, pid=None, transport=self._transport)


@asynccontextmanager
async def driven(site: Site, pair: Pair, **how: Any) -> AsyncIterator[Drive]:
    drive = Drive(pair, listen=f"tcp:{site.beta.address}:0", **how)
    quick = {"keepalive_seconds": 0.5, "connect_seconds": 2.0}
    alpha = SshAccess("alpha", site.alpha.config(**quick))
    beta = SshAccess("beta", site.beta.config(**quick, key=site.alpha.key))
    drive.source = RemoteEnd(pair.source, alpha, role="source")
    drive.destination = RemoteEnd(pair.destination, beta, role="destination")
    try:
        yield drive
    finally:
        await drive.close()
        await alpha.close()
        await beta.close()


def broken(site: Site, side: str) -> Callable[[], None]:
    def break_them() -> None:
        for name in ("alpha", "beta"):
            if side in (name, "both"):
                server: Sshd = getattr(site, name)
                assert server.break_connections() == 1

    return break_them


def only(*always: Phase) -> list[Any]:
    """Every phase that can be caught without freezing an end; others than these only in ``make test-all``."""
    return [
        phase if phase in always else pytest.param(phase, marks=pytest.mark.matrix)
        for phase in Phase
        if phase is not Phase.DEVICE
    ]


SIDES = [
    "both",
    pytest.param("alpha", marks=pytest.mark.matrix),
    pytest.param("beta", marks=pytest.mark.matrix),
]


class TestConnectionsThatBreak:
    @pytest.mark.parametrize("phase", only(Phase.ACTIVE, Phase.CONTINUE))
    @pytest.mark.parametrize("side", SIDES)
    async def test_in_precopy_and_come_back(self, site: Site, phase: Phase, side: str) -> None:
        pair = await site.pair()
        async with witness(site.lab, pair) as seen:
            async with driven(
                site, pair, timeouts=LONG, policy=SLOW if phase is Phase.ACTIVE else PLAIN
            ) as drive:

                async def then() -> None:
                    broken(site, side)()
                    await hurry(pair)

                catch(drive, phase, then)
                result = await drive.run()
            # A command that was lost with its connection may end it: the guest is then where it was.
            assert result.state in (State.COMPLETED, State.FAILED), result.error
            await seen.verify(result.state)

    @pytest.mark.parametrize("side", SIDES)
    async def test_in_postcopy_and_come_back(self, site: Site, side: str) -> None:
        pair = await site.pair()
        policy = builtin("postcopy-first").but(max_bandwidth_bytes_per_second=4 * MIB)
        async with witness(site.lab, pair) as seen:
            async with driven(site, pair, timeouts=LONG, policy=policy) as drive:
                drive.destination.after("cont", broken(site, side))
                result = await drive.run()
            assert result.state is State.COMPLETED, result.error
            await seen.verify(State.COMPLETED)

    @pytest.mark.parametrize("phase", only(Phase.CONTINUE))
    @pytest.mark.parametrize("side", SIDES)
    async def test_for_good_and_another_run_ends_it(self, site: Site, phase: Phase, side: str) -> None:
        pair = await site.pair()
        servers = [site.alpha, site.beta] if side == "both" else [getattr(site, side)]
        async with witness(site.lab, pair) as seen:
            async with driven(
                site, pair, timeouts=SHORT, policy=SLOW if phase is Phase.ACTIVE else PLAIN
            ) as drive:

                async def stop() -> None:
                    for server in servers:
                        assert server.sessions()
                        server.stop()
                    await hurry(pair)

                catch(drive, phase, stop)
                result = await drive.run()
            await seen.verify_never_two()
            for server in servers:
                server.start()
            if unfinished():
                async with driven(site, pair, timeouts=LONG) as drive:
                    result = await drive.take_up()
                assert result.state is not State.HELD, result.error
                await seen.verify(result.state)
            else:  # a source that has let go of its guest cannot be ended on a host that is not there
                await seen.verify(result.state, left_over=(pair.source,))
                assert result.state is State.FAILED or side == "alpha"


async def test_host_that_swallows_packets_for_a_while(site: Site) -> None:
    pair = await site.pair()
    async with witness(site.lab, pair) as seen:
        async with driven(site, pair, timeouts=LONG, policy=SLOW) as drive:

            async def swallow() -> None:
                site.hosts["control"].black_hole()
                process = drive.source.process
                assert process is not None
                await until(
                    lambda: process.alive is None, what="a host that is known not to answer", within=8
                )
                site.hosts["control"].heal()
                await until(lambda: process.alive, what="a host that answers again", within=8)
                await hurry(pair)

            catch(drive, Phase.ACTIVE, swallow)
            result = await drive.run()
        assert result.state is State.COMPLETED, result.error
        await seen.verify(State.COMPLETED)


async def test_record_whose_processes_are_gone_on_their_hosts_is_put_away(site: Site) -> None:
    pair = await site.pair()
    async with started("direct", *ends(site, pair), "--json", *SLOWLY) as command:
        await until(lambda: pair.source.alive and records(), what="a record", within=10)
        await reaches(pair.source, "active")
        await command.kill()
    assert len(records()) == 1
    # While one of the two lives, another pair must not take its place.
    other = await site.pair(replace(BUSY, uuid=uuid4()))
    mixed = Pair(pair.source, other.destination)
    ended = await direct(site, mixed)
    assert ended.code == 2
    assert "an unfinished migration" in ended.error
    for qemu in (pair.source, pair.destination):
        qemu.kill()
        qemu.discard()
    ended = await direct(site, mixed)
    assert ended.code == 3  # its source is gone
    assert records() == []


async def test_command_that_was_killed_is_taken_up_by_the_next(site: Site) -> None:
    pair = await site.pair()
    async with witness(site.lab, pair) as seen:
        # The next one keeps to the limit of the first: the guest can be copied with it, and not before the kill.
        limited = ("--postcopy", "never", "--max-bandwidth", "8MiB/s")
        async with started("direct", *ends(site, pair), "--json", *limited) as command:
            await until(lambda: bool(records()), what="a record", within=10)
            await reaches(pair.source, "active")
            await command.kill()
        ended = await direct(site, pair)
        assert ended.code in (0, 1), ended.err
        assert "take-up" in {decision["action"] for decision in ended.document["decisions"]}
        await seen.verify(ended.state)


async def test_host_that_is_not_known_is_refused_with_what_to_do(site: Site) -> None:
    pair = await site.pair()
    Path(os.environ["HOME"], ".ssh", "known_hosts").write_text(site.alpha.host_key_line)
    async with witness(site.lab, pair) as seen:
        ended = await direct(site, pair)
        assert ended.code == 3
        assert f"ssh-keyscan {site.beta.address} >>" in ended.error
        await seen.verify_untouched()
