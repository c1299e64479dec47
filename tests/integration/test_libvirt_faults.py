"""What breaks while a guest of libvirt moves: it runs in one place, or is held; real libvirtd, real cuts and kills."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from migrator.core.model import Mode, State
from migrator.engine.migration.observer import Observer
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.testing.guest import Habit
from migrator.testing.lab import until
from migrator.testing.libvirtd import LibvirtHosts
from tests.libvirt_hosts import guest_name
from tests.libvirt_moves import (
    MIB,
    PLAIN,
    SLOW,
    SLOW_POSTCOPY,
    WRITES,
    Busy,
    Controller,
    Relay,
    definition,
)

BOTH_WAYS = pytest.mark.parametrize("peer_to_peer", [True, False], ids=["peer-to-peer", "managed-by-us"])


@pytest.fixture
async def busy(libvirt_hosts: LibvirtHosts, tmp_path: Path) -> Busy:
    """A guest on alpha that takes its time to beta."""
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=WRITES)
    return Busy(name=name, uuid=uuid, alpha=alpha, beta=beta, state=tmp_path)


@asynccontextmanager
async def in_postcopy(
    busy: Busy, *, peer_to_peer: bool
) -> AsyncIterator[tuple[Controller, asyncio.Task[MigrationOutcome]]]:
    """The guest runs at beta, and most of its memory is at alpha."""
    async with (
        busy.controller(policy=SLOW_POSTCOPY, peer_to_peer=peer_to_peer) as ours,
        busy.moving(ours) as move,
    ):
        await ours.until_copies()
        busy.alpha.host.set_speed(2 * MIB)
        ours.driver.requests.postcopy_reason = "somebody asked for it"
        assert ours.driver.postcopy()
        await until(lambda: busy.beta.beats(busy.name) > 0, what="the guest at its target", within=60)
        yield ours, move


async def recovered(busy: Busy, outcome: MigrationOutcome) -> None:
    assert (outcome.state, outcome.mode) == (State.COMPLETED, Mode.POSTCOPY), outcome.error
    assert outcome.recoveries > 0
    await busy.runs_only_at(busy.beta)


@pytest.mark.parametrize(
    "peer_to_peer",
    [True, pytest.param(False, marks=pytest.mark.matrix)],
    ids=["peer-to-peer", "managed-by-us"],
)
async def test_postcopy_whose_stream_broke_is_resumed(busy: Busy, peer_to_peer: bool) -> None:
    before = await definition(busy.alpha, busy.name)
    async with in_postcopy(busy, peer_to_peer=peer_to_peer) as (ours, move):
        busy.alpha.host.reset_connections(busy.beta.host)
        await until(lambda: ours.state is State.RECOVERING, what="a broken stream", within=60)
        busy.alpha.host.set_speed(None)
        await recovered(busy, await move)
    assert await definition(busy.beta, busy.name) == before


@pytest.mark.matrix
@pytest.mark.timeout(240)
@BOTH_WAYS
async def test_postcopy_goes_on_once_the_network_is_back(busy: Busy, peer_to_peer: bool) -> None:
    async with in_postcopy(busy, peer_to_peer=peer_to_peer) as (ours, move):
        busy.alpha.host.black_hole()
        await until(
            lambda: ours.state is State.RECOVERING, what="a stream that is known to be broken", within=90
        )
        assert await busy.beta.state(busy.name) == "running"
        busy.alpha.host.heal()
        busy.alpha.host.set_speed(None)
        await recovered(busy, await move)


@pytest.mark.matrix
@pytest.mark.timeout(240)
@pytest.mark.parametrize("side", ["source", "target"])
@BOTH_WAYS
async def test_postcopy_outlives_a_libvirtd(busy: Busy, side: str, peer_to_peer: bool) -> None:
    before = await definition(busy.alpha, busy.name)
    async with in_postcopy(busy, peer_to_peer=peer_to_peer) as (_, move):
        daemon = busy.alpha if side == "source" else busy.beta
        daemon.kill_daemon()
        await asyncio.sleep(0.5)
        await daemon.start_daemon()
        busy.alpha.host.set_speed(None)
        outcome = await move
    assert outcome.state is State.COMPLETED, (outcome.state, outcome.error)
    await busy.runs_only_at(busy.beta)
    assert await definition(busy.beta, busy.name) == before


@pytest.mark.matrix
@pytest.mark.timeout(240)
@BOTH_WAYS
async def test_postcopy_that_its_controller_left_is_taken_up(busy: Busy, peer_to_peer: bool) -> None:
    before = await definition(busy.alpha, busy.name)
    async with in_postcopy(busy, peer_to_peer=peer_to_peer) as (_, move):
        move.cancel()
    async with busy.controller(policy=PLAIN, peer_to_peer=peer_to_peer) as next_one:
        taken_up = asyncio.create_task(next_one.take_up(busy.records))
        await asyncio.sleep(1)
        busy.alpha.host.set_speed(None)
        outcome = await taken_up
    assert outcome.state is State.COMPLETED, (outcome.state, outcome.error)
    await busy.runs_only_at(busy.beta)
    assert await definition(busy.beta, busy.name) == before


@pytest.mark.matrix
@pytest.mark.parametrize("side", ["source", "target"])
async def test_guest_that_lost_half_its_memory_in_postcopy_is_held(busy: Busy, side: str) -> None:
    before = await definition(busy.alpha, busy.name)
    async with in_postcopy(busy, peer_to_peer=True) as (_, move):
        (busy.alpha if side == "source" else busy.beta).kill_guest(busy.name)
        outcome = await move
    assert (outcome.state, outcome.held_code) == (State.HELD, f"postcopy-lost-{side}"), outcome.error
    assert await definition(busy.alpha, busy.name) == before


@pytest.mark.matrix
@pytest.mark.timeout(240)
@BOTH_WAYS
async def test_guest_stays_where_the_network_breaks_while_it_is_copied(
    busy: Busy, peer_to_peer: bool
) -> None:
    before = await definition(busy.alpha, busy.name)
    async with busy.controller(peer_to_peer=peer_to_peer) as ours, busy.moving(ours) as move:
        await ours.until_copies()
        busy.alpha.host.black_hole()
        outcome = await move
    assert outcome.state is State.FAILED, (outcome.state, outcome.error)
    busy.alpha.host.heal()
    await until_forgotten(busy)
    await busy.runs_only_at(busy.alpha)
    assert await definition(busy.alpha, busy.name) == before


async def until_runs(busy: Busy) -> None:
    """Wait until alpha answers again and has let the guest go on."""
    async with asyncio.timeout(60):
        while await busy.alpha.state(busy.name) != "running":
            await asyncio.sleep(0.2)


async def until_forgotten(busy: Busy) -> None:
    """Wait until beta has removed what waited for the guest: it hears of a broken connection by its silence."""
    async with asyncio.timeout(60):
        while await busy.beta.state(busy.name):
            await asyncio.sleep(0.2)


@pytest.mark.matrix
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "max_downtime_seconds",
    [0.3, 3.0],
    ids=["little-is-left", "more-is-left-than-a-socket-takes"],
)
@BOTH_WAYS
async def test_guest_whose_network_breaks_at_its_switch_runs_in_one_place(
    busy: Busy, peer_to_peer: bool, max_downtime_seconds: float
) -> None:
    policy = PLAIN.but(max_downtime_seconds=max_downtime_seconds)
    async with busy.controller(policy=policy, peer_to_peer=peer_to_peer) as ours, busy.moving(ours) as move:
        busy.alpha.host.set_speed(16 * MIB)
        await ours.at_stop(busy.alpha.host.black_hole)
        outcome = await move
    at = busy.alpha
    if outcome.state is State.HELD:  # QEMU waits in a send, and libvirt for QEMU
        assert outcome.held_code == "source-silent", outcome.error
        busy.alpha.host.heal()
        async with busy.controller(policy=policy, peer_to_peer=peer_to_peer) as next_one:
            outcome = await next_one.take_up(busy.records)
        at = busy.beta if outcome.state is State.COMPLETED else at  # the rest was sent
    else:
        assert await busy.alpha.state(busy.name) == "running"
        busy.alpha.host.heal()
    assert outcome.state is (State.FAILED if at is busy.alpha else State.COMPLETED), outcome.error
    if at is busy.alpha:
        await until_forgotten(busy)
    await busy.runs_only_at(at)


@pytest.mark.matrix
@pytest.mark.timeout(240)
@BOTH_WAYS
async def test_guest_whose_source_waits_in_a_send_goes_on_once_its_connections_are_ended(
    libvirt_hosts: LibvirtHosts, tmp_path: Path, peer_to_peer: bool
) -> None:
    name, alpha, beta = guest_name(), libvirt_hosts["alpha"], libvirt_hosts["beta"]
    # All of its region is still to be sent when it stops: more than the sockets take.
    habit = Habit(region_bytes=16 * MIB, bytes_per_second=float(64 * MIB))
    uuid = await alpha.start_guest(name, tmp_path / "image", habit=habit)
    busy = Busy(name=name, uuid=uuid, alpha=alpha, beta=beta, state=tmp_path)
    policy = PLAIN.but(max_downtime_seconds=6.0)
    async with busy.controller(policy=policy, peer_to_peer=peer_to_peer) as ours, busy.moving(ours) as move:
        busy.alpha.host.set_speed(8 * MIB)
        await ours.at_stop(busy.alpha.host.black_hole)
        outcome = await move
    assert (outcome.state, outcome.held_code) == (State.HELD, "source-silent"), outcome.error
    assert "ss -K dst" in (outcome.error or "")
    # The network is still gone: beta hears of it by its peer's silence, long after its phase is overdue.
    busy.alpha.host.reset_connections(busy.beta.host)
    await until_runs(busy)  # of a libvirtd that has still to answer, so short a phase is overdue as well
    async with busy.controller(
        policy=policy, peer_to_peer=peer_to_peer, timeouts=PhaseTimeouts(switching=1.0)
    ) as next_one:
        outcome = await next_one.take_up(busy.records)
    assert outcome.state is State.FAILED, (outcome.state, outcome.error)
    busy.alpha.host.heal()
    await until_forgotten(busy)
    await busy.runs_only_at(busy.alpha)


@pytest.mark.matrix
@pytest.mark.timeout(240)
async def test_guest_whose_source_libvirtd_hangs_at_its_switch_is_held_until_it_goes_on(busy: Busy) -> None:
    before = await definition(busy.alpha, busy.name)
    daemon = busy.alpha.daemon_pid
    assert daemon is not None
    try:
        async with busy.controller(policy=PLAIN) as ours, busy.moving(ours) as move:
            busy.alpha.host.set_speed(16 * MIB)
            await ours.at_stop(lambda: os.kill(daemon, signal.SIGSTOP))
            outcome = await move
        assert (outcome.state, outcome.held_code) == (State.HELD, "source-silent"), outcome.error
    finally:
        os.kill(daemon, signal.SIGCONT)
    async with busy.controller(policy=PLAIN) as next_one:
        outcome = await next_one.take_up(busy.records)
    at = busy.beta if outcome.state is State.COMPLETED else busy.alpha
    assert outcome.state in (State.COMPLETED, State.FAILED), (outcome.state, outcome.error)
    await busy.runs_only_at(at)
    assert await definition(at, busy.name) == before


@pytest.mark.matrix
@pytest.mark.timeout(240)
async def test_guest_whose_arrival_its_source_does_not_hear_of_runs_once(busy: Busy) -> None:
    before = await definition(busy.alpha, busy.name)
    async with (
        Relay(busy.beta, busy.state / "relay") as relay,
        busy.controller(policy=PLAIN, there=relay.uri) as ours,
        busy.moving(ours) as move,
    ):
        busy.alpha.host.set_speed(16 * MIB)
        await ours.at_stop(relay.mute)
        outcome = await move
    assert outcome.state is State.COMPLETED, (outcome.state, outcome.error)
    await busy.runs_only_at(busy.beta)
    assert await definition(busy.beta, busy.name) == before


@pytest.mark.matrix
@pytest.mark.timeout(300)
@BOTH_WAYS
async def test_guest_that_may_run_at_a_target_that_cannot_be_asked_is_stopped_and_held(
    busy: Busy, peer_to_peer: bool
) -> None:
    async with (
        Relay(busy.beta, busy.state / "relay") as relay,
        busy.controller(policy=PLAIN, peer_to_peer=peer_to_peer, there=relay.uri, asked=relay.uri) as ours,
        busy.moving(ours) as move,
    ):
        busy.alpha.host.set_speed(16 * MIB)
        await ours.at_stop(relay.mute)
        outcome = await move
    assert outcome.state is State.HELD, (outcome.state, outcome.error)
    assert await busy.alpha.state(busy.name) == "paused"
    assert await busy.beta.state(busy.name) == "running"
    with contextlib.suppress(Exception):
        await busy.alpha.virsh("destroy", busy.name)


async def test_guest_stays_where_an_error_of_ours_ends_its_move(
    busy: Busy, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, failed = Observer.look, 0

    async def broken(self: Observer, intent: Any) -> Any:
        nonlocal failed
        failed += 1
        if failed == 1:
            raise ZeroDivisionError
        return await look(self, intent)

    async with busy.controller(policy=SLOW) as ours, busy.moving(ours) as move:
        await ours.until_copies()
        monkeypatch.setattr(Observer, "look", broken)
        outcome = await move
    assert outcome.state is State.FAILED, (outcome.state, outcome.error)
    assert "ZeroDivisionError" in str(outcome.error)
    await busy.runs_only_at(busy.alpha)


@pytest.mark.matrix
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.timeout(240)
@BOTH_WAYS
async def test_guest_whose_libvirtd_is_killed_while_it_is_copied_stays(
    busy: Busy, side: str, peer_to_peer: bool
) -> None:
    before = await definition(busy.alpha, busy.name)
    async with busy.controller(policy=SLOW, peer_to_peer=peer_to_peer) as ours, busy.moving(ours) as move:
        await ours.until_copies()
        daemon = busy.alpha if side == "source" else busy.beta
        daemon.kill_daemon()
        await asyncio.sleep(3)
        await daemon.start_daemon()
        outcome = await move
    assert outcome.state is State.FAILED, (outcome.state, outcome.error)
    await until_forgotten(busy)
    await busy.runs_only_at(busy.alpha)
    assert await definition(busy.alpha, busy.name) == before
