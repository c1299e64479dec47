"""``migrator direct`` moves a guest: every good path, as a user types it."""

from __future__ import annotations

import asyncio
import os
import pty
import re
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.core.migration.traffic_shaping import LIMIT_ABOVE_PACING
from migrator.testing.guest import BEAT_SECONDS
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, Pair, until
from tests.command import ACCEPTED, MIGRATOR, addresses, direct, run, running
from tests.invariants import witness

MIB = 1 << 20
IDLE = GuestMachine()
DIRTYING = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=40 * MIB))
#: Of ``--json``, and the only one beside them.
FIELDS = {
    "id",
    "state",
    "mode",
    "preflight_seconds",
    "duration_seconds",
    "downtime_seconds",
    "downtime_uncertainty_seconds",
    "max_downtime_seconds",
    "queued_at_stop_bytes",
    "postcopy_stall_seconds",
    "postcopy_vcpu_stall_seconds",
    "postcopy_stall_forecast_seconds",
    "max_postcopy_stall_seconds",
    "transferred_bytes",
    "disk_bytes",
    "rounds",
    "recoveries",
    "tls",
    "streams",
    "compression",
    "max_throttle_ratio",
    "forecast_error_ratio",
    "findings",
    "decisions",
    "error",
}
MORE_FIELDS = {
    *("network_state", "network_problem"),
    *("held_code", "held_until"),
    *("standstill_seconds", "standstill_uncertainty_seconds"),
}


class TestMoves:
    @pytest.mark.parametrize(
        "machine", [pytest.param(IDLE, marks=pytest.mark.matrix), DIRTYING], ids=["idle", "dirtying"]
    )
    @pytest.mark.parametrize("paused", [False, pytest.param(True, marks=pytest.mark.matrix)])
    async def test_by_precopy(
        self, lab: Lab, each_crossing: tuple[Path, Path], machine: GuestMachine, paused: bool
    ) -> None:
        pair = await lab.pair(machine, source=each_crossing[0], destination=each_crossing[1])
        if paused:
            await pair.source.query("stop")
        async with witness(lab, pair) as seen:
            ended = await direct(pair, "--postcopy", "never")
            assert (ended.code, ended.state, ended.document["mode"]) == (0, "completed", "precopy")
            counted = await seen.verify("completed")
        assert counted is not None
        assert counted.boots == 1
        assert seen.watch.course == ([] if paused else [pair.source, pair.destination])

    async def test_with_the_options_of_its_policy(self, lab: Lab, one_crossing: tuple[Path, Path]) -> None:
        pair = await lab.pair(DIRTYING, source=one_crossing[0], destination=one_crossing[1])
        async with witness(lab, pair) as seen:
            ended = await direct(pair)
            assert ended.code == 0
            assert ended.document["max_downtime_seconds"] == 0.3
            await seen.verify("completed")

    async def test_by_policy_offline(self, lab: Lab, one_crossing: tuple[Path, Path]) -> None:
        pair = await lab.pair(DIRTYING, source=one_crossing[0], destination=one_crossing[1])
        async with witness(lab, pair) as seen:
            ended = await direct(pair, "--policy", "offline")
            assert (ended.code, ended.document["mode"]) == (0, "offline")
            assert "pause" in ended.actions
            await seen.verify("completed")
        # It stood still from before its memory was copied.
        assert ended.document["downtime_seconds"] > 0.5 * ended.document["duration_seconds"]

    async def test_paused_guest_stays_paused_through_policy_offline(self, lab: Lab) -> None:
        pair = await lab.pair(DIRTYING)
        await pair.source.query("stop")
        async with witness(lab, pair) as seen:
            ended = await direct(pair, "--policy", "offline")
            assert ended.code == 0
            await seen.verify("completed", run_state="paused")

    async def test_source_ends_even_if_it_was_told_to_stay(self, lab: Lab) -> None:
        pair = await lab.pair(GuestMachine(extra=("-no-shutdown",)))
        async with witness(lab, pair) as seen:
            assert (await direct(pair)).code == 0
            await seen.verify("completed")

    async def test_guest_never_started_arrives_and_can_be_started(
        self, lab: Lab, one_crossing: tuple[Path, Path]
    ) -> None:
        pair = Pair(
            await lab.start(IDLE, binary=one_crossing[0], paused=True),
            await lab.start(IDLE, binary=one_crossing[1], incoming=True),
        )
        assert (await direct(pair)).code == 0
        assert not pair.source.alive
        assert await pair.destination.run_state() in ("paused", "prelaunch")
        await pair.destination.query("cont")
        await pair.destination.wait_beating()

    async def test_destination_that_would_run_by_itself_is_disarmed(
        self, lab: Lab, one_version: Path
    ) -> None:
        # Started without -S: at the end of the stream it would run whether or not the source had let go.
        source = await lab.boot(DIRTYING, binary=one_version)
        pair = Pair(source, await lab.start(DIRTYING, binary=one_version, incoming=True, paused=False))
        async with witness(lab, pair) as seen:
            ended = await direct(pair, "--postcopy", "never")
            assert ended.code == 0
            assert "hand-over" in ended.actions
            await seen.verify("completed")

    async def test_paused_guest_stays_paused_where_the_destination_would_run(
        self, lab: Lab, one_version: Path
    ) -> None:
        source = await lab.boot(DIRTYING, binary=one_version)
        pair = Pair(source, await lab.start(DIRTYING, binary=one_version, incoming=True, paused=False))
        await source.query("stop")
        async with witness(lab, pair) as seen:
            assert (await direct(pair)).code == 0
            await seen.verify("completed", run_state="paused")
        assert seen.watch.course == []

    async def test_its_network_addresses_are_announced(
        self, lab: Lab, one_crossing: tuple[Path, Path]
    ) -> None:
        mac = "52:54:00:12:34:56"
        pair = await lab.pair(GuestMachine(mac=mac), source=one_crossing[0], destination=one_crossing[1])
        assert (await direct(pair)).code == 0
        # QEMU announces once by itself while it loads; we do several times once the guest runs.
        heard: list[str] = []

        def announced() -> bool:
            heard.extend(pair.destination.announcements())
            return len(heard) >= 3

        await until(announced, what="announcements")
        assert set(heard) == {mac}

    async def test_options_reach_qemu(self, lab: Lab) -> None:
        # Copied in two seconds, and written slowly enough for an end at that speed.
        pair = await lab.pair(GuestMachine(habit=Habit(region_bytes=4 * MIB, bytes_per_second=MIB // 4)))
        options = ("--postcopy", "never", "--max-bandwidth", "2MiB/s", "--max-downtime", "123ms")
        async with witness(lab, pair) as seen, running(pair, *options) as command:

            async def active() -> bool:
                return await pair.source.migration_status() == "active"

            await until(active, what="a migration that is active")
            parameters = await pair.source.query("query-migrate-parameters")
            # A little more as soon as its sockets are paced, which keeps it to what was asked for.
            assert 2 * MIB <= parameters["max-bandwidth"] <= 2 * MIB * LIMIT_ABOVE_PACING
            assert 0 < parameters["downtime-limit"] <= 123
            ended = await command.ended()
            assert ended.document["max_downtime_seconds"] == 0.123
            await seen.verify("completed")

    async def test_left_over_capabilities_do_not_lose_it(self, lab: Lab, one_version: Path) -> None:
        # On 7.2 late-block-activate aborts a QEMU whose guest was never continued there.
        pair = await lab.pair(DIRTYING, source=one_version, destination=one_version)
        for qemu in (pair.source, pair.destination):
            wanted = [{"capability": name, "state": True} for name in ("late-block-activate", "multifd")]
            await qemu.query("migrate-set-capabilities", capabilities=wanted)
        await pair.source.query("stop")
        async with witness(lab, pair) as seen:
            assert (await direct(pair)).code == 0
            await seen.verify("completed", run_state="paused")
        onward = Pair(pair.destination, await lab.start(DIRTYING, binary=one_version, incoming=True))
        async with witness(lab, onward) as seen:
            assert (await direct(onward)).code == 0
            await seen.verify("completed", run_state="paused")


async def chain(lab: Lab, first: LabQemu, *binaries: Path) -> None:
    """Move a paused guest on and on, then run it."""
    for binary in binaries:
        pair = Pair(first, await lab.start(first.machine, binary=binary, incoming=True))
        async with witness(lab, pair) as seen:
            ended = await direct(pair)
            assert (ended.code, ended.error) == (0, "None")
            await seen.verify("completed", run_state="paused")
        first = pair.destination
    await first.query("cont")
    await first.wait_beating()
    assert (await first.check_memory()).boots == 1


class TestPausedGuest:
    async def test_moves_three_times_in_a_row(self, lab: Lab, one_version: Path) -> None:
        first = await lab.boot(DIRTYING, binary=one_version)
        await first.query("stop")
        await chain(lab, first, one_version, one_version, one_version)

    @pytest.mark.matrix
    async def test_moves_to_and_fro_between_versions(
        self, lab: Lab, each_crossing: tuple[Path, Path]
    ) -> None:
        here, there = each_crossing
        first = await lab.boot(DIRTYING, binary=here)
        await first.query("stop")
        await chain(lab, first, there, here, there)


async def test_running_guest_moves_three_times_in_a_row(lab: Lab, one_version: Path) -> None:
    here = await lab.boot(DIRTYING, binary=one_version)
    for _ in range(3):
        pair = Pair(here, await lab.start(DIRTYING, binary=one_version, incoming=True))
        async with witness(lab, pair) as seen:
            assert (await direct(pair)).code == 0
            await seen.verify("completed")
        here = pair.destination


class TestDocument:
    async def test_has_the_fields_of_the_interface_and_sane_values(self, lab: Lab) -> None:
        pair = await lab.pair(DIRTYING)
        async with witness(lab, pair) as seen:
            ended = await direct(pair, "--postcopy", "never", "--max-downtime", "1s")
            await seen.verify("completed")
        document = ended.document
        assert set(document) - MORE_FIELDS == FIELDS
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", document["id"])
        assert (document["state"], document["mode"], document["error"]) == ("completed", "precopy", None)
        assert 0 < document["preflight_seconds"] < 20
        assert 0 < document["downtime_seconds"] < document["duration_seconds"] < 20
        assert 0 <= document["downtime_uncertainty_seconds"] < 0.01
        assert document["max_downtime_seconds"] == 1
        assert document["transferred_bytes"] >= DIRTYING.habit.region_bytes
        assert document["rounds"] >= 2
        assert document["max_throttle_ratio"] == 0
        assert document["forecast_error_ratio"] is None or document["forecast_error_ratio"] >= 0
        assert {finding["severity"] for finding in document["findings"]} <= {"warning"}
        times = [decision["at_seconds"] for decision in document["decisions"]]
        assert times == sorted(times)
        # On a busy machine the guest may stand still for longer than it may, which is said once it is over.
        before_end = [each for each in document["decisions"] if each["action"] != "ceiling-exceeded"]
        assert all(0 <= each["at_seconds"] <= document["duration_seconds"] for each in before_end), document
        for decision in document["decisions"]:
            assert decision["action"]
            assert decision["reason"]

    async def test_downtime_is_what_a_watcher_sees(self, lab: Lab) -> None:
        pair = await lab.pair(DIRTYING)
        async with witness(lab, pair) as seen:
            ended = await direct(pair, "--policy", "offline")
            await seen.verify("completed")
        downtime, silence = ended.document["downtime_seconds"], seen.watch.longest_silence_seconds
        # A watcher's resolution is a beat, and it looks late on a busy machine.
        assert downtime - 2 * BEAT_SECONDS < silence < downtime + 1

    async def test_after_a_failure_has_the_same_fields(self, lab: Lab) -> None:
        pair = await lab.pair(DIRTYING)
        async with witness(lab, pair) as seen:
            ended = await direct(pair, "--listen", "tcp:192.0.2.1:0")
            assert (ended.code, ended.state) == (1, "failed")
            assert ended.error
            await seen.verify("failed")
        assert set(ended.document) - MORE_FIELDS == FIELDS

    async def test_after_wrong_use_has_the_same_fields_and_the_message_is_on_stderr(self) -> None:
        ended = await run("direct", "--source", "unix:/a", "--destination", "nonsense", "--json")
        assert ended.code == 2
        assert set(ended.document) - MORE_FIELDS == FIELDS
        assert ended.error in ended.err

    def test_every_field_is_in_its_manual(self) -> None:
        manual = (Path(__file__).parents[2] / "docs" / "direct.md").read_text(encoding="utf-8")
        assert {field for field in FIELDS | MORE_FIELDS if f"`{field}`" not in manual} == set()


class TestForPeople:
    async def test_piped_output_is_plain_lines_and_progress_never_falls(self, lab: Lab) -> None:
        # Slow enough for several lines, dirtying so fast that there is always more to send.
        machine = replace(DIRTYING, habit=Habit(region_bytes=16 * MIB, bytes_per_second=8 * MIB))
        pair = await lab.pair(machine)
        arguments = ("--policy", "gentle", "--max-bandwidth", "3MiB/s", "--max-duration", "5s")
        async with witness(lab, pair) as seen:
            ended = await run("direct", *addresses(pair), *arguments)
            assert ended.code == 1
            await seen.verify("failed")
        assert "\x1b" not in ended.out
        assert "\r" not in ended.out
        shown = [int(number) for number in re.findall(r"^precopy +(\d+)%", ended.out, flags=re.MULTILINE)]
        assert len(shown) >= 2
        assert shown == sorted(shown)
        assert shown[-1] < 100
        assert re.search("^failed: ", ended.out, flags=re.MULTILINE)

    async def test_ends_with_what_it_took(self, lab: Lab) -> None:
        pair = await lab.pair(DIRTYING)
        ended = await run("direct", *addresses(pair), "--postcopy", "never")
        assert ended.code == 0
        assert ended.err == ""
        first, second = ended.out.splitlines()[-2:]
        assert first == "completed"
        assert re.search(r"precopy, .* downtime .*ceiling 300 ?ms.* rounds, .* sent", second)

    async def test_terminal_gets_a_bar(self, lab: Lab) -> None:
        pair = await lab.pair(GuestMachine(habit=Habit(region_bytes=16 * MIB, passes=1)))
        controller, terminal = pty.openpty()
        try:
            process = await asyncio.create_subprocess_exec(
                *MIGRATOR,
                *("direct", *addresses(pair), "--postcopy", "never", "--max-bandwidth", "20MiB/s", *ACCEPTED),
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
            )
            os.close(terminal)
            said = await asyncio.to_thread(read_all, controller)
            assert await process.wait() == 0
        finally:
            os.close(controller)
        assert "\x1b" in said
        assert "%" in said
        assert "completed" in said


def read_all(terminal: int) -> str:
    said = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # the other side has closed it
            chunk = b""
        if not chunk:
            return said.decode(errors="replace")
        said += chunk
