"""The way between the hosts is refused, swallows packets or comes back, in every phase."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from migrator.core.model import MigrationStatus, State
from migrator.testing.lab import GuestMachine, Habit, Lab, Pair, until
from migrator.testing.network import LabHost, LabHosts
from tests.driven import LONG, MIB, SHORT, Drive, Phase, catch, driven, reaches
from tests.invariants import witness
from tests.postcopy import IMMEDIATE

BUSY = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=4 * MIB), image_locking="off")
#: Writes its memory once: of that nothing is left to send at the switch.
QUIET = GuestMachine(habit=Habit(region_bytes=16 * MIB, passes=1), image_locking="off")


@pytest.fixture
async def apart(hosts: LabHosts, lab: Lab) -> Pair:
    """A guest on alpha, a QEMU that waits on beta."""
    return await lab.pair(BUSY, source_prefix=hosts["alpha"].prefix, destination_prefix=hosts["beta"].prefix)


def across(hosts: LabHosts) -> str:
    return f"tcp:{hosts['beta'].address}:0"


def mute(host: LabHost, other: LabHost) -> None:
    """What `host` sends to `other` disappears; the other way stays open."""
    nowhere = "02:6d:69:67:ff:ff"
    host.run("ip", "neigh", "replace", other.address, "lladdr", nowhere, "dev", "uplink", "nud", "permanent")


def unreachable(hosts: LabHosts) -> None:
    """Swallow everything between the hosts; whoever connects gives up after 3 s, where the default is 127 s."""
    hosts["alpha"].run("sysctl", "-qw", "net.ipv4.tcp_syn_retries=1")
    hosts["beta"].black_hole()


async def test_guest_moves_over_a_slow_link(hosts: LabHosts, lab: Lab, apart: Pair) -> None:
    for host in hosts:
        host.set_speed(40e6)
    async with witness(lab, apart) as seen:
        async with driven(apart, listen=across(hosts)) as drive:
            result = await drive.run()
        assert result.state is State.COMPLETED
        await seen.verify(State.COMPLETED)


async def test_connection_refused(hosts: LabHosts, lab: Lab, apart: Pair) -> None:
    # 127.0.0.1 is another host for each of them.
    async with witness(lab, apart) as seen:
        async with driven(apart, listen="tcp:127.0.0.1:0") as drive:
            result = await drive.run()
        assert result.state is State.FAILED
        assert result.error is not None
        assert "Connection refused" in result.error
        await seen.verify(State.FAILED)


async def test_nobody_there(hosts: LabHosts, lab: Lab, apart: Pair) -> None:
    # The source waits for an answer to its first packet: it stays in setup for as long as the kernel tries. When it is
    # cancelled 7.2 stays in cancelling for as long; the guest runs meanwhile, so there is nothing to do but to wait.
    unreachable(hosts)
    async with witness(lab, apart) as seen:
        async with driven(apart, listen=across(hosts), timeouts=SHORT) as drive:
            result = await drive.run()
        assert result.state is State.FAILED
        await seen.verify(State.FAILED)


@pytest.mark.parametrize("side", ["source", "destination"])
async def test_end_that_is_killed_in_setup_of_a_connection(
    hosts: LabHosts, lab: Lab, apart: Pair, side: str
) -> None:
    unreachable(hosts)

    async def kill() -> None:
        await reaches(apart.source, "setup")
        getattr(apart, side).kill()
        await getattr(apart, side).wait_dead()

    async with witness(lab, apart) as seen:
        async with driven(apart, listen=across(hosts), timeouts=SHORT) as drive:
            drive.source.after("migrate", kill)
            result = await drive.run()
        assert result.state is (State.FAILED if side == "destination" else State.HELD)
        await seen.verify(result.state, lost=side == "source")


def broken(hosts: LabHosts, drive: Drive, phase: Phase) -> None:
    """Break the link for good in this phase."""

    async def active() -> None:
        async def under_way() -> bool:
            answer = await drive.pair.source.query("query-migrate")
            return bool(answer.get("ram", {}).get("transferred", 0) > 4 * MIB)

        await until(under_way, what="a migration that is under way")
        hosts["beta"].black_hole()

    if phase is Phase.ACTIVE:
        for host in hosts:
            host.set_speed(10e6)
        drive.source.after("migrate", active)
    else:
        catch(drive, phase, hosts["beta"].black_hole)


@pytest.mark.parametrize("phase", [Phase.ACTIVE, Phase.PRE_SWITCHOVER, Phase.CONTINUE])
async def test_black_hole_for_good_leaves_the_source_as_it_was(
    hosts: LabHosts, lab: Lab, apart: Pair, phase: Phase
) -> None:
    # Nobody is told: neither end notices anything by itself, for hours.
    async with witness(lab, apart) as seen:
        async with driven(apart, listen=across(hosts), timeouts=SHORT) as drive:
            broken(hosts, drive, phase)
            result = await drive.run()
        assert result.state is State.FAILED
        await seen.verify(State.FAILED)


async def test_source_that_stands_still_writing_into_a_black_hole_goes_on_once_its_destination_is_dead(
    hosts: LabHosts, lab: Lab, one_version: Path
) -> None:
    # What the devices hold does not fit into the socket: QEMU waits for it, and answers out of band alone. It cannot
    # hear that the destination has ended.
    hosts["alpha"].run("sysctl", "-qw", "net.ipv4.tcp_wmem=4096 4096 8192")
    pair = await lab.pair(
        BUSY,
        source=one_version,
        destination=one_version,
        source_prefix=hosts["alpha"].prefix,
        destination_prefix=hosts["beta"].prefix,
    )
    async with witness(lab, pair) as seen:
        async with driven(pair, listen=across(hosts), timeouts=SHORT) as drive:
            broken(hosts, drive, Phase.CONTINUE)
            result = await drive.run()
        assert result.state is State.FAILED
        assert (drive.destination.given["fence"], bool(drive.source.given["cancel"])) == (1, True)
        await seen.verify(State.FAILED)


@pytest.mark.parametrize("phase", [Phase.ACTIVE, Phase.PRE_SWITCHOVER, Phase.CONTINUE])
async def test_black_hole_that_heals_in_time_is_survived(
    hosts: LabHosts, lab: Lab, apart: Pair, phase: Phase
) -> None:
    async with witness(lab, apart) as seen:
        async with driven(apart, listen=across(hosts), timeouts=LONG) as drive:
            broken(hosts, drive, phase)
            healing = asyncio.create_task(heal_after_looks(hosts, drive), name="heal")
            result = await drive.run()
            await healing
        assert result.state is State.COMPLETED
        await seen.verify(State.COMPLETED)


async def heal_after_looks(hosts: LabHosts, drive: Drive) -> None:
    """Once the controller has seen for a while that nothing comes through."""
    source = drive.pair.source

    async def sent() -> tuple[object, ...]:
        answer = await source.query("query-migrate")
        return answer.get("status"), answer.get("ram", {}).get("transferred")

    async def stands_still() -> bool:
        before, looks = await sent(), drive.source.looks
        if before[0] in (None, "setup"):
            return False
        await until(lambda: drive.source.looks > looks + 4, what="some looks")
        return bool(await sent() == before)

    await until(stands_still, what="a migration that stands still")
    hosts["beta"].heal()


async def test_way_back_lost_at_the_switch_runs_the_guest_in_one_place(hosts: LabHosts, lab: Lab) -> None:
    # The destination gets all of it and is complete; the source is never told and stays in device. Nobody may run the
    # guest at the source before the destination was seen dead. What is sent after the switch has to fit into what TCP
    # sends without being answered: a source that cannot write the rest does not answer either, as long as that lasts.
    pair = await lab.pair(QUIET, source_prefix=hosts["alpha"].prefix, destination_prefix=hosts["beta"].prefix)
    async with witness(lab, pair) as seen:
        async with driven(pair, listen=across(hosts), timeouts=SHORT) as drive:
            drive.source.before("switch", lambda: mute(hosts["beta"], hosts["alpha"]))
            drive.source.when_seen(MigrationStatus.DEVICE, lambda: reaches(pair.destination, "completed"))
            result = await drive.run()
        assert result.state is State.FAILED
        assert drive.destination.given["fence"] == 1
        await seen.verify(State.FAILED)


async def test_black_hole_after_the_hand_over_concerns_nobody(hosts: LabHosts, lab: Lab, apart: Pair) -> None:
    async with witness(lab, apart) as seen:
        async with driven(apart, listen=across(hosts), timeouts=SHORT) as drive:
            catch(drive, Phase.LOADED, hosts["beta"].black_hole)
            result = await drive.run()
        assert result.state is State.COMPLETED
        await seen.verify(State.COMPLETED)


async def test_nobody_there_costs_a_guest_that_is_stopped_for_postcopy_next_to_nothing(
    hosts: LabHosts, lab: Lab, one_version: Path
) -> None:
    # 7.2 stays in cancelling for as long as the kernel tries to connect: here 7 s, where the default is 127 s.
    pair = await lab.pair(
        BUSY,
        source=one_version,
        destination=one_version,
        source_prefix=hosts["alpha"].prefix,
        destination_prefix=hosts["beta"].prefix,
    )
    hosts["alpha"].run("sysctl", "-qw", "net.ipv4.tcp_syn_retries=2")
    hosts["beta"].black_hole()
    async with witness(lab, pair) as seen:
        async with driven(pair, policy=IMMEDIATE, listen=across(hosts), timeouts=SHORT) as drive:
            result = await drive.run()
        assert result.state is State.FAILED
        await seen.verify(State.FAILED)
    assert seen.watch.longest_silence_seconds < 5
