"""The network breaks while a guest fetches its memory: the stream is recovered by itself, and nothing is missing."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from migrator.core.model import Mode, State
from migrator.engine import clock
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.store.records import FileRecord
from migrator.testing.lab import Lab, Pair, until
from migrator.testing.network import LabHosts
from tests.invariants import witness
from tests.paths import path_between
from tests.postcopy import FULL, PostcopyDrive, driven

Break = Callable[[LabHosts], object]

#: What may happen to a network, each until both hosts are healed.
BREAKS: dict[str, Break] = {
    "one-way": lambda hosts: hosts["alpha"].mute(hosts["beta"]),
    "other-way": lambda hosts: hosts["beta"].mute(hosts["alpha"]),
    "both-ways": lambda hosts: hosts["beta"].black_hole(),
    "large-packets": lambda hosts: hosts["beta"].small_packets_only(),
    "large-packets-back": lambda hosts: hosts["alpha"].small_packets_only(),
    "reset": lambda hosts: hosts["alpha"].reset_connections(hosts["beta"]),
    "link-down": lambda hosts: hosts["beta"].link_down(),
}


async def apart(hosts: LabHosts, lab: Lab, binary: Path) -> Pair:
    """A guest on alpha, a QEMU that waits on beta, and between them what carries the guest in a few seconds."""
    pair = await lab.pair(
        FULL,
        source=binary,
        destination=binary,
        source_prefix=hosts["alpha"].prefix,
        destination_prefix=hosts["beta"].prefix,
    )
    for host in hosts:
        host.set_speed(8e6)
    return pair


def across(hosts: LabHosts) -> str:
    return f"tcp:{hosts['beta'].address}:0"


SOON = PhaseTimeouts(fetching=1.0, broken=0.5)


def breaks(drive: PostcopyDrive, pair: Pair, hosts: LabHosts, how: Break, seconds: float) -> None:
    """Break the network once the guest runs at the destination, and heal it so many seconds later."""

    async def heal() -> None:
        await asyncio.sleep(seconds)
        for host in hosts:
            host.heal()

    async def lose() -> None:
        await pair.destination.wait_beating()
        how(hosts)
        drive.background(heal())

    drive.destination.after("cont", lose)


@pytest.mark.parametrize(
    "how",
    [
        name
        if name == "both-ways"  # a stream that is reset is recovered below, twice
        else pytest.param(name, marks=pytest.mark.matrix)
        for name in BREAKS
    ],
)
async def test_stream_that_breaks_is_recovered(
    hosts: LabHosts, lab: Lab, one_version: Path, how: str
) -> None:
    pair = await apart(hosts, lab, one_version)
    async with witness(lab, pair) as seen:
        async with driven(pair, listen=across(hosts), path=path_between(hosts), timeouts=SOON) as drive:
            breaks(drive, pair, hosts, BREAKS[how], 3.0)
            result = await drive.run()
        assert (result.state, result.mode) == (State.COMPLETED, Mode.POSTCOPY)
        # What the destination says is small: where that alone comes through the stream does not even break.
        assert result.recoveries == (how != "large-packets-back")
        assert not drive.was_cancelled
        await seen.verify(State.COMPLETED)
    assert seen.watch.course == [pair.source, pair.destination]


@pytest.mark.matrix
async def test_another_controller_recovers_what_broke_under_the_one_that_died(
    hosts: LabHosts, lab: Lab, one_version: Path
) -> None:
    pair = await apart(hosts, lab, one_version)
    async with witness(lab, pair) as seen:
        async with driven(pair, listen=across(hosts), path=path_between(hosts), timeouts=SOON) as drive:
            drive.destination.after("cont", hosts["beta"].black_hole)
            running = asyncio.create_task(drive.run(), name="a controller that dies")
            await until(
                lambda: drive.shown and drive.shown[-1].waiting_for.startswith("the network"),
                what="a probe that finds it broken",
            )
            running.cancel()
            await asyncio.wait({running})
            hosts["beta"].heal()
        async with driven(pair, path=path_between(hosts), timeouts=SOON) as again:
            result = await again.take_up()
        assert (result.state, result.recoveries) == (State.COMPLETED, 1)
        await seen.verify(State.COMPLETED)
    assert seen.watch.course == [pair.source, pair.destination]


async def test_stream_goes_on_over_another_address(hosts: LabHosts, lab: Lab, one_version: Path) -> None:
    pair = await apart(hosts, lab, one_version)
    spare = "10.219.78.2"
    hosts["beta"].run("ip", "addr", "add", f"{spare}/32", "dev", "uplink")
    hosts["alpha"].run("ip", "route", "add", spare, "dev", "uplink")

    def lose_address(hosts: LabHosts) -> None:
        hosts["beta"].run("ip", "addr", "del", f"{hosts['beta'].address}/24", "dev", "uplink")
        hosts["beta"].run("ip", "route", "add", hosts["alpha"].address, "dev", "uplink", "src", spare)

    async with witness(lab, pair) as seen:
        async with driven(
            pair, listen=across(hosts), path=path_between(hosts, spare), timeouts=SOON
        ) as drive:
            breaks(drive, pair, hosts, lose_address, 0.0)
            result = await drive.run()
        assert (result.state, result.recoveries) == (State.COMPLETED, 1)
        # Nobody waits for what comes of the address that is gone, which takes a probe twenty seconds to find out.
        took = next(each for each in result.decisions if each.action == "stream-recovered")
        assert float(took.numbers["seconds"]) < 15
        await seen.verify(State.COMPLETED)


async def test_destination_that_waits_for_a_page_with_its_monitor_is_recovered(
    hosts: LabHosts, lab: Lab, one_version: Path
) -> None:
    # As it does where a device of the guest needs the page: only commands out of band are heard.
    pair = await apart(hosts, lab, one_version)

    async def wait_for_page() -> None:
        await pair.destination.query("human-monitor-command", command_line="xp /1xb 0x7f00000")

    async with witness(lab, pair) as seen:
        async with driven(pair, listen=across(hosts), path=path_between(hosts), timeouts=SOON) as drive:

            async def heal() -> None:
                await until(
                    lambda: (
                        drive.shown[-1].waiting_for.startswith("the network") and drive.destination.unanswered
                    ),
                    what="a destination that is not answering, and a probe",
                    within=40,
                )
                hosts["beta"].heal()

            async def lose() -> None:
                hosts["beta"].black_hole()
                drive.background(wait_for_page())
                drive.background(heal())

            drive.destination.after("cont", lose)
            result = await drive.run()
        assert (result.state, result.recoveries) == (State.COMPLETED, 1)
        await seen.verify(State.COMPLETED)


async def test_stream_that_breaks_twice_is_recovered_twice(
    hosts: LabHosts, lab: Lab, one_version: Path
) -> None:
    pair = await apart(hosts, lab, one_version)
    for host in hosts:
        host.set_speed(4e6)
    async with witness(lab, pair) as seen:
        async with driven(pair, listen=across(hosts), path=path_between(hosts), timeouts=SOON) as drive:

            async def again() -> None:
                await until(lambda: drive.migration.result.recoveries == 1, what="the first recovery")
                hosts["alpha"].reset_connections(hosts["beta"])

            async def lose() -> None:
                hosts["alpha"].reset_connections(hosts["beta"])
                drive.background(again())

            drive.destination.after("cont", lose)
            result = await drive.run()
        assert (result.state, result.recoveries) == (State.COMPLETED, 2)
        await seen.verify(State.COMPLETED)


async def test_postcopy_is_not_begun_where_large_packets_do_not_come_through(
    hosts: LabHosts, lab: Lab, one_version: Path
) -> None:
    pair = await apart(hosts, lab, one_version)
    hosts["beta"].small_packets_only()
    async with witness(lab, pair) as seen:
        async with driven(pair, listen=across(hosts), path=path_between(hosts), timeouts=SOON) as drive:
            running = asyncio.create_task(drive.run(), name="a migration by postcopy")
            await until(
                lambda: (
                    "no-postcopy" in [each.action for each in drive.migration.result.decisions]
                    if drive.source.looks
                    else False
                ),
                what="a probe that finds it broken",
            )
            assert not drive.was_postcopy
            hosts["beta"].heal()
            result = await running
        assert result.state is State.COMPLETED, "by either, as it comes"
        await seen.verify(State.COMPLETED)


@dataclass(frozen=True)
class Course:
    """How one break went."""

    kind: str
    broken_seconds: float
    #: From the moment at which the network carried everything again until the stream went on; 0: it went on before.
    late_seconds: float
    recoveries: int
    state: State
    wrong: str = ""


async def broken_at_random(number: int, binary: Path, chance: random.Random) -> Course:
    """One guest, on hosts of its own, whose network breaks in one way at one moment for one to thirty seconds."""
    kind, seconds = chance.choice(sorted(BREAKS)), chance.uniform(1.0, 30.0)
    healed_at = [0.0]
    with LabHosts("alpha", "beta", isolated=True) as hosts:
        async with Lab() as lab, lab.watch() as watch:
            pair = await apart(hosts, lab, binary)
            path = path_between(hosts)
            async with driven(pair, listen=across(hosts), path=path, timeouts=PhaseTimeouts()) as drive:

                async def heal() -> None:
                    await asyncio.sleep(seconds)
                    for host in hosts:
                        host.heal()
                    healed_at[0] = clock.now()

                async def lose() -> None:
                    await asyncio.sleep(chance.uniform(0.0, 1.5))
                    BREAKS[kind](hosts)
                    await heal()

                drive.destination.after("cont", lambda: drive.background(lose()))
                result = await drive.run(record=FileRecord(f"under-test-{number}"))
                late = max(0.0, clock.now() - healed_at[0]) if healed_at[0] else 0.0
            wrong = ""
            try:
                await pair.destination.check_memory()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told with the others
                wrong = f"memory: {error!r}"
            if watch.course not in ([pair.source, pair.destination], [pair.destination]):
                wrong = f"ran at {watch.course}"
    return Course(kind, seconds, late, result.recoveries, result.state, wrong or result.error or "")


@pytest.mark.soak
async def test_streams_that_break_at_random_all_go_on(hosts: LabHosts, each_qemu: Path) -> None:
    chance, turns = random.Random(os.environ.get("MIGRATOR_SEED", "1")), asyncio.Semaphore(4)
    times = int(os.environ.get("MIGRATOR_TIMES", "100"))

    async def one(number: int) -> Course:
        async with turns:
            return await broken_at_random(number, each_qemu, random.Random(chance.random()))

    courses = await asyncio.gather(*(one(number) for number in range(times)))
    for kind in sorted(BREAKS):
        of_it = [each for each in courses if each.kind == kind]
        recovered = sorted(each.late_seconds for each in of_it if each.recoveries)
        middle = f"{statistics.median(recovered):.1f} s, at most {recovered[-1]:.1f} s" if recovered else "–"
        done = sum(each.state is State.COMPLETED and not each.wrong for each in of_it)
        line = (
            f"{kind}: {len(of_it)}, whole in the end {done}, recovered {len(recovered)}, done after {middle}"
        )
        print(line)  # noqa: T201 - a report
    for each in courses:
        if each.state is not State.COMPLETED or each.wrong:
            print(each)  # noqa: T201 - likewise
    assert all(each.state is State.COMPLETED and not each.wrong for each in courses)
