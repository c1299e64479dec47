"""A person's word on a migration that is held because the way between the hosts was cut, on real QEMUs.

What could be saved is not ended by any word, and what the word leaves alone goes on by itself once the way is back.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from migrator.core.migration.answer_review import OperatorAction
from migrator.core.migration.lifecycle import Step
from migrator.core.migration.situation import OperatorAnswer
from migrator.core.model import MigrationStatus, State
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.testing.lab import Lab, Pair
from migrator.testing.network import LabHosts
from tests.driven import PLAIN, SHORT
from tests.driven import driven as by_precopy
from tests.invariants import witness
from tests.paths import path_between
from tests.postcopy import BUSY, FULL, GIVEN_UP, PostcopyDrive, driven, quickly


@pytest.fixture
async def apart(hosts: LabHosts, lab: Lab, one_version: Path) -> Pair:
    """A guest on alpha, a QEMU that waits on beta."""
    return await lab.pair(
        FULL,
        source=one_version,
        destination=one_version,
        source_prefix=hosts["alpha"].prefix,
        destination_prefix=hosts["beta"].prefix,
    )


def across(hosts: LabHosts) -> str:
    return f"tcp:{hosts['beta'].address}:0"


async def refused(
    pair: Pair, hosts: LabHosts, held: MigrationOutcome, word: OperatorAnswer
) -> tuple[OperatorAnswer, ...]:
    """It is, and both processes live on as they were; the words that would be taken."""
    before = await pair.source.run_state(), pair.source.alive, pair.destination.alive
    async with driven(pair, timeouts=SHORT, listen=across(hosts)) as drive:
        answer, result = await drive.say(word, held)
    assert result is None, answer
    assert (await pair.source.run_state(), pair.source.alive, pair.destination.alive) == before
    return answer.instead


async def told(
    pair: Pair,
    hosts: LabHosts,
    held: MigrationOutcome,
    word: OperatorAnswer,
    *,
    timeouts: PhaseTimeouts = SHORT,
) -> MigrationOutcome:
    """It is taken, and this comes of it."""
    async with driven(pair, timeouts=timeouts, listen=across(hosts)) as drive:
        answer, result = await drive.say(word, held)
    assert result is not None, answer
    return result


def fell_silent(drive: PostcopyDrive) -> None:
    assert not any(end.given[name] for end in (drive.source, drive.destination) for name in ("quit", "fence"))


async def test_cut_at_the_switch_no_word_ends_either_end_and_once_healed_the_guest_arrives(
    hosts: LabHosts, lab: Lab, apart: Pair
) -> None:
    async with witness(lab, apart) as seen:
        async with driven(apart, timeouts=SHORT, listen=across(hosts)) as drive:
            drive.source.when_seen(MigrationStatus.PRE_SWITCHOVER, hosts["beta"].black_hole)
            held = await drive.run()
            fell_silent(drive)
        assert (held.state, held.held_code) == (State.HELD, "postcopy-stalled")
        assert held.held_until is not None
        assert "a person's word that the guest is at the destination" in held.held_until
        # Not healed yet: the one word that is refused names the one that is taken, and that one ends nothing.
        assert OperatorAnswer.DESTINATION in await refused(apart, hosts, held, OperatorAnswer.SOURCE)
        await refused(apart, hosts, held, OperatorAnswer.LOST)
        again = await told(apart, hosts, held, OperatorAnswer.DESTINATION)
        assert again.state is State.HELD
        assert (apart.source.alive, apart.destination.alive) == (True, True)
        hosts["beta"].heal()
        await quickly(apart)
        async with driven(apart, listen=across(hosts)) as drive:
            answer, result = await drive.say(OperatorAnswer.DESTINATION, again)
        assert result is not None, answer
        assert not {Step.FENCE_SOURCE, Step.FENCE_DESTINATION} & {each.step for each in answer.steps}
        assert result.state is State.COMPLETED
        await seen.verify(State.COMPLETED)


async def test_cut_while_it_fetches_it_is_neither_ended_nor_said_to_be_complete(
    hosts: LabHosts, lab: Lab, apart: Pair
) -> None:
    async with witness(lab, apart) as seen:
        async with driven(apart, timeouts=GIVEN_UP, listen=across(hosts)) as drive:
            drive.make_it_last()
            drive.destination.after("cont", hosts["beta"].black_hole)
            held = await drive.run()
            fell_silent(drive)
        assert held.state is State.HELD
        assert OperatorAnswer.DESTINATION in await refused(apart, hosts, held, OperatorAnswer.SOURCE)
        await refused(apart, hosts, held, OperatorAnswer.LOST)
        again = await told(apart, hosts, held, OperatorAnswer.DESTINATION, timeouts=GIVEN_UP)
        assert again.state is State.HELD
        assert (apart.source.alive, apart.destination.alive) == (True, True)
        hosts["beta"].heal()
        await quickly(apart)
        async with driven(apart, path=path_between(hosts)) as drive:
            result = await drive.take_up()
        assert result.state is State.COMPLETED
        await seen.verify(State.COMPLETED)


async def test_frozen_destination_that_runs_the_guest_is_not_killed(lab: Lab, one_version: Path) -> None:
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with by_precopy(pair, policy=PLAIN, timeouts=SHORT) as drive:
            drive.destination.after("cont", pair.destination.sigstop)
            held = await drive.run()
        assert held.state is State.HELD
        for word in (OperatorAnswer.SOURCE, OperatorAnswer.LOST):
            async with by_precopy(pair, timeouts=SHORT) as drive:
                answer, result = await drive.say(word, held)
            assert result is None
            assert answer.acts[0] is OperatorAction.REACH_DESTINATION
        assert pair.destination.alive
        pair.destination.sigcont()
        async with by_precopy(pair) as drive:
            assert (await drive.take_up()).state is State.COMPLETED
        await seen.verify(State.COMPLETED)


@pytest.mark.parametrize("noted", ["before the answer", "after it"])
async def test_pause_after_the_hand_over_stays_whoever_takes_it_up(
    lab: Lab, one_version: Path, noted: str
) -> None:
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with by_precopy(pair, policy=PLAIN) as drive:
            gone = asyncio.Event()

            async def die() -> None:
                gone.set()
                await asyncio.Event().wait()  # as a controller that is killed

            if noted == "after it":
                drive.source.before("quit", die)
            else:
                drive.destination.after("cont", die)
            driving = asyncio.create_task(drive.run(), name="a controller that dies")
            await gone.wait()
            driving.cancel()
            await asyncio.wait({driving})
        await pair.destination.wait_beating()
        await pair.destination.query("stop")
        async with by_precopy(pair) as drive:
            result = await drive.take_up()
        assert result.state is State.COMPLETED
        assert "run-state" in [each.action for each in result.decisions] or noted == "after it"
        await seen.verify(State.COMPLETED, run_state="paused")


async def test_record_at_the_hand_over_whose_cont_was_never_sent_still_runs_the_guest(
    lab: Lab, one_version: Path
) -> None:
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    async with witness(lab, pair) as seen:
        async with by_precopy(pair, policy=PLAIN) as drive:
            gone = asyncio.Event()

            async def die() -> None:
                gone.set()
                await asyncio.Event().wait()

            drive.destination.before("cont", die)
            driving = asyncio.create_task(drive.run(), name="a controller that dies")
            await gone.wait()
            driving.cancel()
            await asyncio.wait({driving})
        async with by_precopy(pair) as drive:
            assert (await drive.take_up()).state is State.COMPLETED
        await seen.verify(State.COMPLETED)
