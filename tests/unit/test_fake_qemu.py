"""The fake QEMU by itself: its sockets, its faults, many at once; that it is like the real one is tested elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from migrator.core.model import MigrationStatus, ProcessState, RunState
from migrator.errors import Occupied, TimedOut, Unreachable
from migrator.ports import Tuning
from migrator.qemu import address
from migrator.qemu.endpoint import Endpoint
from migrator.testing import recorded
from migrator.testing.fake_qemu import FakeQemu
from migrator.testing.process import until
from migrator.testing.raw_qmp import RawMonitor
from migrator.testing.simulator import Link
from migrator.testing.workload import MIB, idle, steady

VERSIONS = ("7.2", "10.0")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@contextlib.asynccontextmanager
async def two(**how: Any) -> AsyncIterator[tuple[FakeQemu, FakeQemu]]:
    """A guest and where it may go."""
    both = {name: how.pop(name) for name in ("version", "memory_bytes", "time_factor") if name in how}
    async with FakeQemu(**both, **how) as source, FakeQemu(**both, incoming=True) as destination:
        yield source, destination


async def begin(source: RawMonitor, destination: RawMonitor, *more: str) -> None:
    names = ("events", "return-path", "pause-before-switchover", *more)
    wanted = [{"capability": name, "state": True} for name in names]
    for monitor in (source, destination):
        await monitor.execute("migrate-set-capabilities", capabilities=wanted)
    await source.execute("migrate-set-parameters", max_bandwidth=1 << 40)
    await destination.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
    where = (await destination.execute("query-migrate"))["socket-address"][0]
    await source.execute("migrate", uri=f"tcp:{where['host']}:{where['port']}")


async def status(monitor: RawMonitor, *wanted: str) -> str:
    async with asyncio.timeout(10):
        while (found := (await monitor.execute("query-migrate")).get("status")) not in wanted:
            await asyncio.sleep(0.002)
    return str(found)


async def move(source: FakeQemu, destination: FakeQemu) -> None:
    async with RawMonitor(source.qmp) as here, RawMonitor(destination.qmp) as there:
        await begin(here, there)
        await status(here, "pre-switchover")
        await here.execute("migrate-continue", state="pre-switchover")
        await status(here, "completed")
        await there.execute("cont")


# --- the protocol --------------------------------------------------------------------------------------------------


async def exchange(path: Path, text: str) -> list[dict[str, Any]]:
    """What comes back until nothing more does."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(text.encode())
    lines = []
    with contextlib.suppress(TimeoutError):
        while True:
            async with asyncio.timeout(0.1):
                lines.append(json.loads(await reader.readline()))
    writer.close()
    return lines


async def test_commands_need_neither_line_ends_nor_a_packet_each() -> None:
    async with FakeQemu() as qemu:
        greeting, *answers = await exchange(
            qemu.qmp,
            '{"execute":"qmp_capabilities"}{"execute":"query-name","id":7} {"execute": "query-uuid"}',
        )
    assert greeting["QMP"]["capabilities"] == ["oob"]
    assert answers == [
        {"return": {}},
        {"return": {"name": "guest"}, "id": 7},
        {"return": {"UUID": str(qemu.uuid)}},
    ]


async def test_nothing_is_done_before_the_negotiation() -> None:
    async with FakeQemu() as qemu:
        _, answer = await exchange(qemu.qmp, '{"execute":"stop"}')
        assert answer["error"]["class"] == "CommandNotFound"
        assert qemu.running


@pytest.mark.parametrize("text", ["hello", "[1]", '{"execute":5}', '{"run":"stop"}'])
async def test_nonsense_is_answered_with_an_error(text: str) -> None:
    async with FakeQemu() as qemu:
        _, answer = await exchange(qemu.qmp, text)
    assert "error" in answer


async def test_out_of_band_has_to_be_asked_for() -> None:
    yank = '{"exec-oob":"yank","arguments":{"instances":[]},"id":1}'
    async with FakeQemu() as qemu:
        *_, refused = await exchange(qemu.qmp, '{"execute":"qmp_capabilities"}' + yank)
        enable = '{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}'
        *_, done = await exchange(qemu.qmp, enable + yank)
        *_, not_allowed = await exchange(qemu.qmp, enable + '{"exec-oob":"stop","id":2}')
    assert "unexpected" in refused["error"]["desc"]
    assert done == {"return": {}, "id": 1}
    assert not_allowed["error"]["desc"] == "The command stop does not support OOB"


async def test_second_client_waits_without_a_word_for_the_first_to_leave() -> None:
    async with FakeQemu() as qemu:
        async with RawMonitor(qemu.qmp):
            assert await exchange(qemu.qmp, '{"execute":"qmp_capabilities"}') == []
            later = asyncio.create_task(RawMonitor(qemu.qmp).__aenter__())
            await asyncio.sleep(0.05)
            assert not later.done()
            async with RawMonitor(qemu.rescue) as rescue:
                assert await rescue.execute("query-name") == {"name": "guest"}
        monitor = await later
        assert await monitor.execute("query-name") == {"name": "guest"}
        await monitor.__aexit__(None, None, None)


async def test_tcp_too() -> None:
    qemu = await FakeQemu().start(tcp=True)
    endpoint = Endpoint(address.parse(f"tcp:127.0.0.1:{qemu.tcp_port}"), role="source")
    await endpoint.connect()
    assert (await endpoint.observe()).run is RunState.RUNNING
    await endpoint.close()
    await qemu.close()


# --- with our own adapter ------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def endpoint(qemu: FakeQemu, role: str, **how: Any) -> AsyncIterator[Endpoint]:
    found = Endpoint(address.parse(f"unix:{qemu.qmp}"), role=role, **how)
    await found.connect()
    try:
        yield found
    finally:
        await found.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_facts_are_those_of_the_version_with_this_guest(version: str) -> None:
    async with (
        FakeQemu(version=version, memory_bytes=256 * MIB, name="web") as qemu,
        endpoint(qemu, "source") as end,
    ):
        facts = await end.facts()
    assert facts.version.startswith(version)
    assert (facts.memory_bytes, facts.guest_name, facts.uuid) == (256 * MIB, "web", str(qemu.uuid))
    assert facts.machine == "pc-q35-7.2"
    assert facts.cpu_features
    assert "postcopy-ram" in facts.capabilities


@pytest.mark.parametrize("version", VERSIONS)
async def test_guest_is_moved_by_the_adapter(version: str) -> None:
    async with (
        two(version=version, workload=steady(32 * MIB, 10 * MIB)) as (source, destination),
        endpoint(source, "source") as here,
        endpoint(destination, "destination") as there,
    ):
        await here.enable({"events": True, "return-path": True})
        await here.tune(Tuning(max_bandwidth_bytes_per_second=1 << 40, downtime_limit_seconds=0.2))
        await here.migrate(await there.listen("tcp:127.0.0.1:0"))
        async with asyncio.timeout(5):
            while (view := await here.observe()).status is not MigrationStatus.COMPLETED:
                await asyncio.sleep(0.01)
        assert view.process is ProcessState.UNKNOWN  # a fake has no process
        assert view.sample is not None
        assert view.sample.transferred_bytes > 32 * MIB
        await there.cont()
        assert destination.running
        assert not source.running
        assert await here.quit()
        assert source.exit_status == 0


async def test_fence_command_kills_what_is_no_process() -> None:
    async with FakeQemu() as qemu, endpoint(qemu, "destination", fence_command=qemu.fence_command) as end:
        assert await end.fence()
        assert (qemu.alive, qemu.exit_status) == (False, -9)
        assert (await end.observe()).process is ProcessState.DEAD
        assert await end.fence()


# --- faults --------------------------------------------------------------------------------------------------------


async def test_frozen_greets_nobody_and_answers_once_it_thaws() -> None:
    async with FakeQemu() as qemu, endpoint(qemu, "source") as end:
        qemu.freeze()
        assert not (await end.observe(timeout=0.05)).answers
        other = Endpoint(address.parse(f"unix:{qemu.rescue}"), role="source")
        with pytest.raises(Occupied):
            await other.connect(timeout=0.05)
        qemu.thaw()
        assert (await end.observe()).answers


async def test_stalled_answers_only_out_of_band() -> None:
    async with FakeQemu() as qemu, endpoint(qemu, "source") as end:
        qemu.stall()
        with pytest.raises(TimedOut):
            await end._monitor.execute("stop", timeout=0.05)
        await end._monitor.execute("yank", {"instances": []}, oob=True, timeout=20)
        assert qemu.running
        qemu.thaw()
        await until(lambda: qemu.run_state == "paused", what="a command that was given up to be carried out")


async def test_late_answer_is_to_a_command_that_was_carried_out() -> None:
    async with FakeQemu() as qemu, endpoint(qemu, "source") as end:
        qemu.answer_late(0.2)
        with pytest.raises(TimedOut):
            await end._monitor.execute("stop", timeout=0.05)
        await until(lambda: qemu.run_state == "paused", what="it is carried out")


async def test_answer_that_breaks_off_ends_the_session() -> None:
    async with FakeQemu() as qemu, endpoint(qemu, "source") as end:
        qemu.cut_answer("stop")
        with pytest.raises(Unreachable):
            await end.stop()
        assert (await end.observe()).run is RunState.PAUSED


@pytest.mark.parametrize("at", ["setup", "active", "pre-switchover", "device"])
async def test_source_dies_where_it_shall(at: str) -> None:
    async with two() as (source, destination):
        source.die_at(at)
        with contextlib.suppress(ConnectionError):
            await move(source, destination)
        assert source.exit_status == -9
        if at != "setup":
            assert await destination.wait_dead(5) == 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_rejected_guest_goes_on_at_the_source(version: str) -> None:
    async with two(version=version) as (source, destination):
        destination.reject_stream()
        async with RawMonitor(source.qmp) as here, RawMonitor(destination.qmp) as there:
            await begin(here, there)
            await status(here, "pre-switchover")
            await here.execute("migrate-continue", state="pre-switchover")
            await status(here, "failed")
        assert source.running
        assert await destination.wait_dead(5) == 1


async def test_without_a_return_path_the_source_is_stuck() -> None:
    async with two() as (source, destination):
        destination.lose_return_path()
        async with RawMonitor(source.qmp) as here, RawMonitor(destination.qmp) as there:
            await begin(here, there)
            await status(here, "pre-switchover")
            await here.execute("migrate-continue", state="pre-switchover")
            await status(there, "completed")
            await asyncio.sleep(0.1)
            assert (source.migration_status, source.run_state) == ("device", "finish-migrate")
            await there.execute("cont")
            await here.execute("migrate_cancel")
            await status(here, "cancelled")
            assert source.running, "what a blind cancel does"
            assert destination.running


async def test_cut_off_migration_makes_no_progress_and_can_be_cancelled() -> None:
    link = Link(50 * MIB)
    async with two(workload=steady(64 * MIB, MIB), link=link) as (source, destination):
        async with RawMonitor(source.qmp) as here, RawMonitor(destination.qmp) as there:
            await begin(here, there)
            await asyncio.sleep(0.3)
            destination.cut_off()
            await asyncio.sleep(0.05)
            before = (await here.execute("query-migrate"))["ram"]
            await asyncio.sleep(0.2)
            assert (await here.execute("query-migrate"))["ram"] == before
            destination.cut_off(healed=True)
            await asyncio.sleep(0.1)
            assert (await here.execute("query-migrate"))["ram"] != before
            await here.execute("migrate_cancel")
            await status(here, "cancelled")
        assert source.running


async def test_guest_that_powers_off_takes_both_with_it() -> None:
    async with two(workload=steady(64 * MIB, MIB), link=Link(20 * MIB)) as (source, destination):
        async with RawMonitor(source.qmp) as here, RawMonitor(destination.qmp) as there:
            await begin(here, there)
            await status(here, "active")
            source.power_off()
            assert (await here.event("SHUTDOWN"))["data"] == {"guest": True, "reason": "guest-shutdown"}
        assert (await source.wait_dead(5), await destination.wait_dead(5)) == (0, 1)


async def test_stopping_a_destination_whose_postcopy_is_paused_hangs_its_monitor() -> None:
    async with (
        two(workload=steady(64 * MIB, MIB), link=Link(20 * MIB)) as (source, destination),
        RawMonitor(source.qmp) as here,
        RawMonitor(destination.qmp) as there,
    ):
        await begin(here, there, "postcopy-ram")
        await here.execute("migrate-start-postcopy")
        await status(here, "pre-switchover")
        await here.execute("migrate-continue", state="pre-switchover")
        while destination.run_state != "paused":
            await asyncio.sleep(0.002)
        await there.execute("cont")
        await here.execute("migrate-pause")
        there._timeout = 0.2
        with pytest.raises(TimeoutError):
            await there.execute("stop")


# --- guests, time, numbers -----------------------------------------------------------------------------------------


async def test_guest_moves_on_and_on_and_keeps_its_memory() -> None:
    async with contextlib.AsyncExitStack() as stack:
        here = await stack.enter_async_context(FakeQemu(workload=steady(32 * MIB, 10 * MIB)))
        for _ in range(3):
            before = here.guest
            there = await stack.enter_async_context(FakeQemu(incoming=True))
            await move(here, there)
            assert there.guest is before
            assert here.guest is None
            assert (there.running, here.running) == (True, False)
            here = there
        assert here.guest is not None
        assert here.guest.work_bytes > 0


async def test_dirty_rate_probe_sees_what_the_guest_dirties() -> None:
    async with (
        FakeQemu(workload=steady(512 * MIB, 30 * MIB), memory_bytes=1024 * MIB, time_factor=20) as qemu,
        RawMonitor(qemu.qmp) as monitor,
    ):
        await monitor.execute("calc-dirty-rate", calc_time=1)
        assert (await monitor.execute("query-dirty-rate"))["status"] == "measuring"
        await asyncio.sleep(0.1)
        assert (await monitor.execute("query-dirty-rate"))["dirty-rate"] == pytest.approx(30, abs=3)


async def test_its_world_goes_faster_if_asked_to() -> None:
    async with two(
        workload=steady(400 * MIB, MIB), memory_bytes=512 * MIB, link=Link(100 * MIB), time_factor=100
    ) as (
        source,
        destination,
    ):
        began = asyncio.get_running_loop().time()
        await move(source, destination)
        assert asyncio.get_running_loop().time() - began < 4
        assert destination.guest is not None
        assert destination.guest.duration_seconds > 4


async def test_two_hundred_migrations_at_once() -> None:
    pairs = 200
    async with contextlib.AsyncExitStack() as stack:
        sources = [await stack.enter_async_context(FakeQemu(workload=idle())) for _ in range(pairs)]
        destinations = [await stack.enter_async_context(FakeQemu(incoming=True)) for _ in range(pairs)]
        await asyncio.gather(*map(move, sources, destinations))
        assert all(qemu.running for qemu in destinations)
        assert not any(qemu.running for qemu in sources)


async def test_nothing_is_left_of_it() -> None:
    async with FakeQemu() as qemu:
        folder = qemu.directory
        assert folder.is_dir()
    assert not folder.exists()
    assert len(asyncio.all_tasks()) == 1


def test_recordings_are_of_the_promised_versions_and_tell_nothing_of_where_they_were_made() -> None:
    assert recorded.versions() == sorted(VERSIONS)
    for version in VERSIONS:
        text = json.dumps(recorded.read(version))
        assert "/tmp" not in text
        assert "/home" not in text
