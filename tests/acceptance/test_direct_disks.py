"""``migrator direct`` moves a guest with the disks that both ends do not share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from migrator.testing.lab import Lab, LabQemu, until
from tests.command import Ended, direct, running
from tests.disks import MIB, WritingGuest, make_image, same_contents, second_disk, writing_guest
from tests.invariants import records, witness

#: The disk takes seconds.
SLOWLY = ("--max-bandwidth", "4MiB/s")


async def left_alone(guest: WritingGuest) -> None:
    """Assert that the source has its disk for itself, and no write was lost."""
    source = guest.pair.source
    await guest.goes_on(source)
    assert await source.query("query-jobs") == []
    nodes = await source.query("query-named-block-nodes", flat=True)
    assert [node["node-name"] for node in nodes if node["drv"] == "nbd"] == []
    assert records() == []
    assert await guest.check(source) > 0


async def mirrors(source: LabQemu) -> bool:
    return any(job["current-progress"] for job in await source.query("query-jobs"))


class TestDisksThatAreNotShared:
    async def test_are_the_same_after_the_move(self, lab: Lab, across: tuple[Path, Path]) -> None:
        guest = await writing_guest(lab, source=across[0], destination=across[1])
        await guest.goes_on(guest.pair.source)
        async with witness(lab, guest.pair) as seen:
            ended = await direct(guest.pair)
            assert (ended.code, ended.state) == (0, "completed"), ended.error
            assert ended.document["disk_bytes"] >= MIB
            assert "copy-disk" in ended.actions
            await guest.goes_on(guest.pair.destination)
            assert seen.watch.course == [guest.pair.source, guest.pair.destination]
        assert await guest.pair.destination.query("query-block-exports") == []
        assert await guest.check(guest.pair.destination) > 0

    async def test_stay_thin_and_may_be_several(self, lab: Lab, one_crossing: tuple[Path, Path]) -> None:
        written = "write -P 7 4M 3M"
        here = make_image(lab.directory / "one.qcow2", written=written)
        there = make_image(lab.directory / "two.qcow2")
        guest = await writing_guest(
            lab,
            size_bytes=256 * MIB,
            source=one_crossing[0],
            destination=one_crossing[1],
            here_disk=second_disk(here),
            there_disk=second_disk(there),
        )
        ended = await direct(guest.pair)
        assert (ended.code, ended.actions.count("copy-disk")) == (0, 2), ended.error
        await guest.check(guest.pair.destination)
        assert same_contents(here, there, form="qcow2")
        assert guest.there.stat().st_blocks * 512 < 4 * MIB
        assert there.stat().st_blocks * 512 < 8 * MIB

    async def test_travel_with_a_guest_that_stands_still(self, lab: Lab) -> None:
        guest = await writing_guest(lab)
        await guest.goes_on(guest.pair.source)
        await guest.pair.source.query("stop")
        ended = await direct(guest.pair)
        assert (ended.code, ended.state) == (0, "completed"), ended.error
        assert await guest.pair.destination.run_state() == "paused"
        assert await guest.check(guest.pair.destination) > 0

    async def test_travel_with_a_guest_that_is_stopped_for_its_move(
        self, lab: Lab, one_crossing: tuple[Path, Path]
    ) -> None:
        guest = await writing_guest(lab, source=one_crossing[0], destination=one_crossing[1])
        await guest.goes_on(guest.pair.source)
        ended = await direct(guest.pair, "--policy", "offline")
        assert (ended.code, ended.document["mode"]) == (0, "offline"), ended.error
        await guest.goes_on(guest.pair.destination)
        assert await guest.check(guest.pair.destination) > 0

    async def test_travel_in_postcopy_too(self, lab: Lab, one_crossing: tuple[Path, Path]) -> None:
        guest = await writing_guest(lab, source=one_crossing[0], destination=one_crossing[1])
        ended = await direct(guest.pair, "--policy", "postcopy-first")
        assert ended.code == 0, ended.error
        assert "start-postcopy" in ended.actions
        await guest.goes_on(guest.pair.destination)
        assert await guest.check(guest.pair.destination) > 0

    async def test_are_refused_where_the_policy_says_so(self, lab: Lab) -> None:
        guest = await writing_guest(lab)
        async with witness(lab, guest.pair) as seen:
            ended = await direct(guest.pair, "--disks", "none")
            assert (ended.code, ended.codes) == (3, ["disk-not-shared", *ended.codes[1:]])
            await seen.verify_untouched()


class TestWhatEndsAMoveWithDisks:
    """The guest goes on at the source, and nothing of the move is left there."""

    async def until_copying(self, guest: WritingGuest) -> None:
        await until(lambda: mirrors(guest.pair.source), what="a disk that is copied")

    async def verify_failed(self, guest: WritingGuest, ended: Ended, code: int = 1) -> None:
        assert (ended.code, ended.document["downtime_seconds"]) == (code, None), ended.error
        await left_alone(guest)

    async def test_a_cancel_while_disks_are_copied(self, lab: Lab, one_crossing: tuple[Path, Path]) -> None:
        guest = await writing_guest(
            lab, size_bytes=64 * MIB, filled=True, source=one_crossing[0], destination=one_crossing[1]
        )
        async with running(guest.pair, *SLOWLY) as command:
            await self.until_copying(guest)
            command.signal(signal.SIGINT)
            ended = await command.ended()
        assert ended.state == "cancelled"
        await self.verify_failed(guest, ended, 4)

    @pytest.mark.parametrize(
        "frozen", [False, pytest.param(True, marks=pytest.mark.matrix)], ids=["dead", "frozen"]
    )
    async def test_a_destination_that_ends_while_disks_are_copied(
        self, lab: Lab, one_crossing: tuple[Path, Path], frozen: bool
    ) -> None:
        guest = await writing_guest(
            lab, size_bytes=64 * MIB, filled=True, source=one_crossing[0], destination=one_crossing[1]
        )
        async with running(guest.pair, *SLOWLY) as command:
            await self.until_copying(guest)
            if frozen:
                guest.pair.destination.sigstop()
                await guest.goes_on(guest.pair.source)
                command.signal(signal.SIGINT)
            else:
                guest.pair.destination.kill()
            ended = await command.ended(within=40)
        assert ended.state == ("cancelled" if frozen else "failed")
        await self.verify_failed(guest, ended, 4 if frozen else 1)

    async def test_a_target_that_is_full(self, lab: Lab, one_crossing: tuple[Path, Path]) -> None:
        here = make_image(lab.directory / "one.img", form="raw", written="write -P 7 4M 8M")
        there = make_image(lab.directory / "two.img", form="raw")
        full = (
            *("-blockdev", f"driver=file,node-name=disk1-file,filename={there}"),
            *(
                "-blockdev",
                (
                    "driver=blkdebug,node-name=disk1-full,image=disk1-file,inject-error.0.event=none,"
                    "inject-error.0.errno=28,inject-error.0.iotype=write"
                ),
            ),
            *("-blockdev", "driver=raw,node-name=disk1,file=disk1-full"),
            *("-device", "virtio-blk-pci,id=disk1-device,drive=disk1,addr=0x6"),
        )
        guest = await writing_guest(
            lab,
            source=one_crossing[0],
            destination=one_crossing[1],
            here_disk=second_disk(here, form="raw"),
            there_disk=full,
        )
        ended = await direct(guest.pair, "--disks", "all")
        assert "No space left" in ended.error
        await self.verify_failed(guest, ended)

    async def test_a_destination_that_hangs_does_not_hold_up_what_the_guest_writes(
        self, lab: Lab, one_crossing: tuple[Path, Path]
    ) -> None:
        # Most of its memory was never written, and would be copied in half a second.
        written = lab.directory / "memory"
        written.write_bytes(bytes(range(1, 256)) * 65_536)
        memory = ("-device", f"loader,file={written},addr=0x2000000,force-raw=on")
        guest = await writing_guest(
            lab, here_disk=memory, there_disk=memory, source=one_crossing[0], destination=one_crossing[1]
        )

        async def copies() -> bool:
            return bool((await guest.pair.source.query("query-migrate")).get("status") == "active")

        async with running(guest.pair, "--max-bandwidth", "1MiB/s") as command:
            await until(copies, what="memory that is copied, its disks being the same")
            guest.pair.destination.sigstop()
            for _ in range(3):
                await guest.goes_on(guest.pair.source)
            command.signal(signal.SIGINT)
            guest.pair.destination.sigcont()
            ended = await command.ended(within=40)
        assert ended.state == "cancelled"
        await self.verify_failed(guest, ended, 4)

    @pytest.mark.parametrize("at", ["disks", "memory"])
    async def test_a_controller_that_is_killed_and_run_again(
        self, lab: Lab, one_crossing: tuple[Path, Path], at: str
    ) -> None:
        guest = await writing_guest(
            lab,
            size_bytes=64 * MIB,
            filled=at == "disks",
            source=one_crossing[0],
            destination=one_crossing[1],
        )
        async with running(guest.pair, *SLOWLY) as command:
            if at == "disks":
                await self.until_copying(guest)
            else:

                async def copies() -> bool:
                    return bool((await guest.pair.source.query("query-migrate")).get("status") == "active")

                await until(copies, what="memory that is copied")
            await command.kill()
        ended = await direct(
            guest.pair
        )  # in memory it may have come to its switch alone, and stand still there
        if at == "disks":
            await self.verify_failed(guest, ended)
        else:
            assert ended.state == "completed", ended.error
            await guest.goes_on(guest.pair.destination)
            assert await guest.check(guest.pair.destination) > 0
