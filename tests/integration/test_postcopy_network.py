"""The network is lost in postcopy: the migration is held, nothing is ended, and after it heals nothing is missing."""

from __future__ import annotations

import pytest

from migrator.core.model import Mode, State
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.testing.lab import Lab, Pair
from migrator.testing.network import LabHosts
from tests.command import running
from tests.driven import SHORT
from tests.invariants import witness
from tests.paths import path_between
from tests.postcopy import FULL, driven, quickly, shows


@pytest.fixture
async def apart(hosts: LabHosts, lab: Lab) -> Pair:
    """A guest on alpha, a QEMU that waits on beta, and between them what carries the guest in a few seconds."""
    pair = await lab.pair(FULL, source_prefix=hosts["alpha"].prefix, destination_prefix=hosts["beta"].prefix)
    for host in hosts:
        host.set_speed(12e6)
    return pair


def across(hosts: LabHosts) -> str:
    return f"tcp:{hosts['beta'].address}:0"


def nobody_ended_anything(pair: Pair) -> bool:
    return pair.source.alive and pair.destination.alive


@pytest.mark.parametrize("side", ["alpha", pytest.param("beta", marks=pytest.mark.matrix)])
async def test_lost_while_the_guest_fetches_it_is_held_and_after_it_heals_all_is_there(
    hosts: LabHosts, lab: Lab, apart: Pair, side: str
) -> None:
    async def lose() -> None:
        await apart.destination.wait_beating()
        hosts[side].black_hole()

    async with witness(lab, apart) as seen:
        nobody_waits = PhaseTimeouts(fetching=0.5, broken=0.5, recovery=2.0)
        async with driven(
            apart, listen=across(hosts), path=path_between(hosts), timeouts=nobody_waits
        ) as drive:
            drive.destination.after("cont", lose)
            result = await drive.run()
        assert (result.state, result.mode) == (State.HELD, Mode.POSTCOPY)
        assert result.held_code == "postcopy-broken"
        assert nobody_ended_anything(apart)
        assert not drive.was_cancelled
        await seen.verify(State.HELD)
        hosts[side].heal()
        async with driven(apart, path=path_between(hosts)) as again:
            ended = await again.take_up()
            assert (ended.state, ended.recoveries) == (State.COMPLETED, 1)
        await seen.verify(State.COMPLETED)
    assert seen.watch.course == [apart.source, apart.destination]


async def test_lost_at_the_switch_it_is_held_and_after_it_heals_the_guest_runs(
    hosts: LabHosts, lab: Lab, apart: Pair
) -> None:
    async with witness(lab, apart) as seen:
        async with driven(apart, listen=across(hosts), timeouts=SHORT) as drive:
            # What is to be said at the switch takes a second so.
            drive.source.before("switch", lambda: hosts["alpha"].set_speed(1e6))
            drive.source.after("switch", hosts["beta"].black_hole)
            result = await drive.run()
        assert result.state is State.HELD
        assert result.held_code in ("postcopy-stalled", "postcopy-broken", "postcopy-broken-source")
        assert nobody_ended_anything(apart)
        assert not drive.was_cancelled
        await seen.verify(State.HELD)
        hosts["alpha"].set_speed(None)
        hosts["beta"].heal()
        await quickly(apart)
        async with driven(apart) as again:
            assert (await again.take_up()).state is State.COMPLETED
        await seen.verify(State.COMPLETED)
    assert seen.watch.course == [apart.source, apart.destination]


async def test_lost_for_a_moment_it_goes_on(hosts: LabHosts, lab: Lab, apart: Pair) -> None:
    async def blink() -> None:
        hosts["beta"].black_hole()
        looks = drive.destination.looks

        async def heal() -> None:
            await drive.until_looked(looks + 3)
            hosts["beta"].heal()

        drive.background(heal())

    async with witness(lab, apart) as seen:
        async with driven(apart, listen=across(hosts)) as drive:
            drive.destination.after("cont", blink)
            result = await drive.run()
        assert (result.state, result.mode) == (State.COMPLETED, Mode.POSTCOPY)
        await seen.verify(State.COMPLETED)


async def test_the_command_recovers_the_stream_by_itself(hosts: LabHosts, lab: Lab, apart: Pair) -> None:
    async with witness(lab, apart) as seen:
        async with running(apart, "--policy", "postcopy-first", "--listen", across(hosts)) as command:
            await apart.destination.wait_beating()
            hosts["beta"].black_hole()
            await shows(apart.source, run="finish-migrate", status="postcopy-paused")
            hosts["beta"].heal()
            ended = await command.ended(within=60)
        assert (ended.code, ended.state, ended.document["recoveries"]) == (0, "completed", 1)
        assert {"stream-broken", "stream-recovered"} <= set(ended.actions)
        await seen.verify("completed")
