"""``migrator direct`` fails or is cancelled: the guest is where it was, as it was, and the reason is said."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.testing.lab import GuestMachine, Habit, Lab, Pair, until
from tests.command import SLOWLY, Command, direct, direct_doomed, running
from tests.invariants import records, witness

MIB = 1 << 20
BUSY = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=8 * MIB), image_locking="off")
PLAIN = ("--postcopy", "never")
#: Preflight cannot see it, and QEMU rejects it when the device's state arrives.
OTHER_INSIDE = ("-global", "virtio-blk-pci.vectors=1")


async def active(pair: Pair) -> None:
    async def shows() -> bool:
        return await pair.source.migration_status() == "active"

    await until(shows, what="a migration that is active")


class TestReason:
    @pytest.mark.parametrize("run_state", ["running", "paused"])
    async def test_of_a_destination_that_rejects_the_guest_is_in_its_own_words(
        self, lab: Lab, each_qemu: Path, run_state: str
    ) -> None:
        # A paused guest is what 7.2 leaves in postmigrate here.
        pair = await lab.pair(
            BUSY,
            source=each_qemu,
            destination=each_qemu,
            destination_machine=replace(BUSY, extra=OTHER_INSIDE),
        )
        if run_state == "paused":
            await pair.source.query("stop")
        async with witness(lab, pair) as seen:
            ended = await direct(pair, *PLAIN)
            assert (ended.code, ended.state) == (1, "failed")
            assert "get_pci_config_device: Bad config data" in ended.error
            assert "\n" not in ended.error
            await seen.verify("failed", run_state=run_state)
        # And the guest can be moved to where it fits.
        again = Pair(pair.source, await lab.start(BUSY, binary=each_qemu, incoming=True))
        async with witness(lab, again) as seen:
            assert (await direct(again, *PLAIN)).code == 0
            await seen.verify("completed", run_state=run_state)

    async def test_of_an_address_that_is_not_the_destinations_is_in_its_own_words(
        self, lab: Lab, one_version: Path
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            ended = await direct(pair, "--listen", "tcp:192.0.2.1:0")
            assert ended.code == 1
            assert "192.0.2.1" in ended.error
            assert "Cannot assign requested address" in ended.error
            await seen.verify("failed")

    async def test_of_a_destination_that_was_killed_says_which(self, lab: Lab, one_version: Path) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen, running(pair, *SLOWLY) as command:
            await active(pair)
            pair.destination.kill()
            ended = await command.ended()
            assert ended.code == 1
            assert "destination" in ended.error
            await seen.verify("failed")

    async def test_of_giving_up_is_a_decision_with_its_numbers(self, lab: Lab) -> None:
        pair = await lab.pair(BUSY)
        options = ("--policy", "gentle", "--max-bandwidth", "1MiB/s", "--max-duration", "500ms")
        async with witness(lab, pair) as seen:
            ended = await direct(pair, *options)
            assert ended.code == 1
            assert "max_duration" in ended.error
            assert 0.5 <= ended.document["duration_seconds"] < 15
            assert any(decision["numbers"] for decision in ended.document["decisions"])
            await seen.verify("failed")

    async def test_of_a_guest_that_was_lost_is_plain(self, lab: Lab, one_version: Path) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen, running(pair, *SLOWLY) as command:
            await active(pair)
            pair.source.kill()
            ended = await command.ended()
            assert (ended.code, ended.state) == (5, "held")
            assert "the guest is lost" in ended.error
            assert ended.document["held_code"] == "source-died"
            await pair.destination.wait_dead()
            await seen.verify("held", lost=True)

    async def test_of_what_qemu_cannot_migrate_is_found_before(self, lab: Lab, one_version: Path) -> None:
        machine = GuestMachine(extra=("-device", "nvme,id=nvme0,serial=1,addr=0x7"))
        pair = await lab.pair(machine, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            ended = await direct(pair)
            assert (ended.code, "blocked" in ended.codes) == (3, True)
            assert any("nvme" in finding["message"] for finding in ended.document["findings"])
            await seen.verify_untouched()

    async def test_of_a_disk_that_cannot_go_along_names_it(
        self, lab: Lab, one_version: Path, tmp_path: Path
    ) -> None:
        machine = GuestMachine(extra=("-drive", f"file=fat:rw:{tmp_path},format=raw,if=none,id=files"))
        pair = await lab.pair(machine, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            ended = await direct(pair)
            assert (ended.code, "blocked" in ended.codes) == (3, True)
            said = [each["message"] for each in ended.document["findings"] if each["code"] == "blocked"]
            # QEMU itself says '#block123', which is another at each start.
            assert said
            assert all("a part of 'files'" in each for each in said), said
            assert not any("#block" in each for each in said), said
            await seen.verify_untouched()


class TestGuestThatEnds:
    async def test_while_it_is_copied_is_no_failure(self, lab: Lab, one_version: Path) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen, running(pair, *SLOWLY) as command:
            await active(pair)
            await pair.source.query("system_powerdown")
            ended = await command.ended()
            assert (ended.code, ended.state) == (6, "guest-ended")
            await seen.verify("guest-ended")

    async def test_while_the_command_gets_no_processor_is_no_failure(
        self, lab: Lab, one_version: Path
    ) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen, running(pair, *SLOWLY) as command:
            await active(pair)
            command.signal(signal.SIGSTOP)
            await pair.source.query("system_powerdown")
            await pair.source.wait_dead()
            command.signal(signal.SIGCONT)
            ended = await command.ended()
            assert (ended.code, ended.state) == (6, "guest-ended")
            await seen.verify("guest-ended")

    @pytest.mark.matrix
    async def test_by_its_own_clock_while_it_is_copied_is_no_failure(self, lab: Lab, each_qemu: Path) -> None:
        machine = replace(BUSY, habit=replace(BUSY.habit, power_off_after_seconds=5))
        pair = await lab.pair(machine, source=each_qemu, destination=each_qemu)
        async with witness(lab, pair) as seen:
            ended = await direct(pair, *SLOWLY)
            assert (ended.code, ended.state) == (6, "guest-ended")
            await seen.verify("guest-ended")

    async def test_by_itself_and_stays_is_moved_as_it_is(self, lab: Lab, one_version: Path) -> None:
        machine = GuestMachine(habit=Habit(power_off_after_seconds=0.1), extra=("-no-shutdown",))
        source = await lab.start(machine, binary=one_version)

        async def off() -> bool:
            return await source.run_state() == "shutdown"

        await until(off, what="a guest that is off")
        pair = Pair(source, await lab.start(machine, binary=one_version, incoming=True))
        async with witness(lab, pair) as seen:
            assert (await direct(pair)).code == 0
            await seen.verify("completed", run_state="shutdown")


class TestCancelled:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    async def test_while_memory_is_copied(
        self, lab: Lab, one_crossing: tuple[Path, Path], number: signal.Signals
    ) -> None:
        pair = await lab.pair(BUSY, source=one_crossing[0], destination=one_crossing[1])
        async with witness(lab, pair) as seen, running(pair, *SLOWLY) as command:
            await active(pair)
            command.signal(number)
            await cancelled(command)
            await seen.verify("cancelled")

    async def test_guest_can_be_moved_afterwards(self, lab: Lab, one_version: Path) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen, running(pair, *SLOWLY) as command:
            await active(pair)
            command.signal(signal.SIGINT)
            await cancelled(command)
            await seen.verify("cancelled")
        again = Pair(pair.source, await lab.start(BUSY, binary=one_version, incoming=True))
        async with witness(lab, again) as seen:
            assert (await direct(again, *PLAIN)).code == 0
            await seen.verify("completed")

    async def test_again_and_again(self, lab: Lab, one_version: Path) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen, running(pair, *SLOWLY) as command:
            await active(pair)
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                command.signal(number)
            await cancelled(command)
            await seen.verify("cancelled")

    async def test_again_while_the_source_is_put_back(self, lab: Lab) -> None:
        pair = await lab.pair(BUSY)
        async with witness(lab, pair) as seen:
            options = ("--policy", "gentle", "--max-bandwidth", "1MiB/s", "--max-duration", "300ms")
            ended = await direct_doomed(pair, "INT before source.restore", *options)
            assert ended.code == 1
            await seen.verify("failed")

    async def test_paused_guest(self, lab: Lab, one_version: Path) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        await pair.source.query("stop")
        async with witness(lab, pair) as seen, running(pair, *SLOWLY) as command:
            await active(pair)
            command.signal(signal.SIGINT)
            await cancelled(command)
            await seen.verify("cancelled", run_state="paused")

    async def test_guest_that_was_stopped_for_it_runs_again(self, lab: Lab, each_qemu: Path) -> None:
        pair = await lab.pair(BUSY, source=each_qemu, destination=each_qemu)
        offline = ("--policy", "offline", "--max-bandwidth", "1MiB/s")
        async with witness(lab, pair) as seen, running(pair, *offline) as command:
            await active(pair)
            command.signal(signal.SIGINT)
            await cancelled(command)
            await seen.verify("cancelled", run_state="running")

    @pytest.mark.parametrize(
        "step",
        [
            "before record.begin",
            "after record.begin",
            "after destination.enable",
            "after destination.listen",
            "after source.enable",
            "before source.migrate",
            "after source.migrate",
        ],
    )
    async def test_at_each_step_before_the_switch(self, lab: Lab, step: str) -> None:
        pair = await lab.pair(BUSY)
        async with witness(lab, pair) as seen:
            ended = await direct_doomed(pair, f"INT {step}", *SLOWLY)
            assert (ended.code, ended.state) == (4, "cancelled")
            await seen.verify("cancelled")

    @pytest.mark.parametrize(
        "step",
        [
            "before source.switch",
            "after source.switch",
            "after record.note:handed_over",
            "after destination.cont",
            "before destination.announce",
            "before source.quit",
            "after source.quit",
            "before record.end",
        ],
    )
    async def test_too_late_it_is_said_so_and_finished(self, lab: Lab, one_version: Path, step: str) -> None:
        pair = await lab.pair(BUSY, source=one_version, destination=one_version)
        async with witness(lab, pair) as seen:
            ended = await direct_doomed(pair, f"INT {step}", *PLAIN)
            assert (ended.code, ended.state) == (0, "completed")
            assert "too late" in ended.err
            await seen.verify("completed")

    @pytest.mark.parametrize("milliseconds", [1, 20, 40, 80])
    async def test_at_any_time_leaves_one(self, lab: Lab, milliseconds: int) -> None:
        pair = await lab.pair(BUSY)
        async with witness(lab, pair) as seen, running(pair, *PLAIN) as command:
            await until(records, what="a migration that has begun")
            try:
                ended = await command.ended(within=milliseconds / 1000)
            except TimeoutError:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                    command.signal(number)
                ended = await command.ended()
            assert ended.state in ("completed", "cancelled")
            await seen.verify(ended.state)


async def cancelled(command: Command) -> None:
    ended = await command.ended()
    assert (ended.code, ended.state) == (4, "cancelled")
    assert "cancel" in ended.actions
    assert "cancelling" in ended.err
