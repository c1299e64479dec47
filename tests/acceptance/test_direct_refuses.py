"""``migrator direct`` refuses what cannot go well, says every reason, and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from migrator.testing.guest import write_image
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, Pair, RawMonitor, until
from tests.command import Ended, addresses, direct, run, started
from tests.invariants import settings, witness

BALLOON = ("-device", "virtio-balloon-pci,id=balloon0,addr=0x6")


def refused(ended: Ended, *codes: str) -> None:
    """With exit code 3, at least these findings, and what to do about each."""
    assert ended.code == 3
    assert ended.state == "failed"
    errors = [finding for finding in ended.document["findings"] if finding["severity"] == "error"]
    assert set(codes) <= {finding["code"] for finding in errors}
    assert all(finding["message"] and finding["remedy"] for finding in errors)
    assert "refused" in ended.error
    assert ended.document["duration_seconds"] is None


class TestMachinesThatDiffer:
    @pytest.mark.parametrize(
        ("code", "here", "there"),
        [
            ("machine-type", {}, {"type": "pc-q35-7.1"}),
            ("memory-size", {}, {"memory_bytes": 160 << 20}),
            ("cpu-model", {}, {"cpu": "Nehalem"}),
            ("cpu-features", {}, {"cpu": "qemu64,-x2apic,-lahf-lm"}),
            ("cpu-count", {}, {"smp": 2}),
            ("uuid", {}, {"uuid": uuid4()}),
            ("device-missing", {"extra": BALLOON}, {}),
            ("device-extra", {}, {"extra": BALLOON}),
            (
                "device-differs",
                {"extra": BALLOON},
                {"extra": ("-device", "virtio-balloon-pci,id=balloon0,addr=0x7")},
            ),
            ("device-missing", {"mac": "52:54:00:12:34:56"}, {}),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    async def test_are_refused_with_a_finding(
        self,
        lab: Lab,
        one_crossing: tuple[Path, Path],
        code: str,
        here: dict[str, Any],
        there: dict[str, Any],
    ) -> None:
        machine = GuestMachine()
        image = lab.image(machine)  # the same, whatever the uuid
        pair = await lab.pair(
            replace(machine, image=image, **here),
            destination_machine=replace(machine, image=image, **there),
            source=one_crossing[0],
            destination=one_crossing[1],
        )
        async with witness(lab, pair) as seen:
            refused(await direct(pair), code)
            await seen.verify_untouched()

    @pytest.mark.parametrize(("code", "size"), [("disk-not-shared", 1 << 20), ("disk-size", 2 << 20)])
    async def test_in_their_disk_are_refused(self, lab: Lab, tmp_path: Path, code: str, size: int) -> None:
        machine = GuestMachine()
        other = write_image(tmp_path / "other.img", size_bytes=size)
        pair = await lab.pair(machine, destination_machine=replace(machine, image=other))
        async with witness(lab, pair) as seen:
            refused(await direct(pair, "--disks", "none"), code)
            await seen.verify_untouched()

    async def test_in_their_memory_backend_are_refused(self, lab: Lab) -> None:
        def backed(name: str) -> dict[str, Any]:
            backend = (
                "-object",
                f"memory-backend-ram,id={name},size=128M",
                "-machine",
                f"memory-backend={name}",
            )
            return {"extra": backend}

        machine = GuestMachine()
        pair = await lab.pair(
            replace(machine, **backed("one")), destination_machine=replace(machine, **backed("other"))
        )
        async with witness(lab, pair) as seen:
            refused(await direct(pair), "memory-backend")
            await seen.verify_untouched()

    async def test_in_several_ways_are_refused_with_every_finding_at_once(self, lab: Lab) -> None:
        machine = GuestMachine()
        other = replace(machine, cpu="Nehalem", memory_bytes=160 << 20, extra=BALLOON, name="other")
        pair = await lab.pair(machine, destination_machine=other)
        async with witness(lab, pair) as seen:
            ended = await direct(pair)
            refused(ended, "cpu-model", "memory-size", "device-extra")
            assert "name" in ended.codes
            await seen.verify_untouched()

    async def test_are_refused_until_their_code_is_accepted(self, lab: Lab) -> None:
        pair = await lab.pair(GuestMachine())
        nbd = {"type": "unix", "data": {"path": str(lab.directory / "nbd")}}
        await pair.source.query("nbd-server-start", addr=nbd)
        await pair.source.query("block-export-add", id="e", type="nbd", **{"node-name": "disk0"})
        loses_writes = (await pair.source.query("query-version"))["qemu"]["major"] < 9
        async with witness(lab, pair) as seen:
            arguments = ("direct", *addresses(pair), "--json", "--block-jobs", "refuse")
            async with started(*arguments, accepting=False) as command:
                ended = await command.ended()
            refused(ended, "block-export", *["tcg-loses-writes"] * loses_writes)
            await seen.verify_untouched()
            # Each --accept counts, not only the last.
            mistyped = await run(*arguments, "--accept", "uuid", "--accept", "tcg-loses-writes")
            assert (mistyped.code, mistyped.err.count("\n")) == (2, 1)
            assert "finding uuid cannot be accepted" in mistyped.err
            await pair.source.query("block-export-del", id="e", mode="hard")
            accepted = await direct(pair, "--block-jobs", "refuse")
            assert accepted.code == 0, accepted.err
            found = {each["code"]: each for each in accepted.document["findings"]}
            assert ("tcg-loses-writes" in found) == loses_writes
            assert all(each["message"].startswith("accepted: ") for each in found.values())

    async def test_are_refused_in_words_for_people_too(self, lab: Lab) -> None:
        machine = GuestMachine()
        pair = await lab.pair(machine, destination_machine=replace(machine, memory_bytes=160 << 20))
        ended = await run("direct", *addresses(pair))
        assert ended.code == 3
        assert "memory-size" in ended.out
        assert "what to do" in ended.out

    async def test_leave_a_destination_that_its_own_guest_can_use(self, lab: Lab) -> None:
        mine, other = GuestMachine(), GuestMachine()
        pair = await lab.pair(mine)
        stranger = Pair(await lab.boot(other), pair.destination)
        async with witness(lab, stranger) as seen:
            refused(await direct(stranger), "uuid")
            refused(await direct(stranger, "--disks", "none"), "uuid", "disk-not-shared")
            assert await settings(stranger.source) == seen.source
            assert await settings(stranger.destination) == seen.destination
        async with witness(lab, pair) as seen:
            assert (await direct(pair)).code == 0
            assert await pair.destination.run_state() == "running"
            assert not pair.source.alive
            await until(lambda: pair.destination in seen.watch.course, what="a guest that counts on")


class TestDestination:
    async def test_that_runs_a_guest_of_its_own_is_refused(self, lab: Lab) -> None:
        pair = Pair(await lab.boot(), await lab.boot())
        refused(await direct(pair), "destination-not-waiting")
        assert set(await lab.counting(at_least=2)) == {pair.source, pair.destination}

    async def test_that_is_only_paused_is_refused(self, lab: Lab, one_version: Path) -> None:
        machine = GuestMachine(image_locking="off")
        pair = Pair(
            await lab.boot(machine, binary=one_version),
            await lab.start(machine, binary=one_version, paused=True),
        )
        async with witness(lab, pair) as seen:
            refused(await direct(pair), "destination-not-waiting")
            await seen.verify_untouched()

    async def test_that_a_migration_failed_in_is_refused(self, lab: Lab, qemu_binary) -> None:
        # Only 9.1 and later stay alive to tell.
        binary = qemu_binary("10.0")
        pair = await lab.pair(source=binary, destination=binary)
        arguments = {"uri": "tcp:127.0.0.1:0", "exit-on-error": False}
        await pair.destination.query("migrate-incoming", arguments)
        (listening,) = (await pair.destination.query("query-migrate"))["socket-address"]
        _, writer = await asyncio.open_connection("127.0.0.1", int(listening["port"]))
        writer.write(bytes(4096))
        writer.close()

        async def failed() -> bool:
            return await pair.destination.migration_status() == "failed"

        await until(failed, what="a destination that failed")
        async with witness(lab, pair) as seen:
            refused(await direct(pair), "destination-used")
            await seen.verify_untouched()

    @pytest.mark.parametrize("how", ["told-to", "started-so"])
    async def test_that_listens_already_is_refused(self, lab: Lab, one_version: Path, how: str) -> None:
        machine = GuestMachine()
        source = await lab.boot(machine, binary=one_version)
        if how == "told-to":
            destination = await lab.start(machine, binary=one_version, incoming=True)
            await destination.query("migrate-incoming", uri="tcp:127.0.0.1:0")
        else:
            destination = await lab.start(
                machine, binary=one_version, paused=True, extra=("-incoming", "tcp:127.0.0.1:0")
            )
        pair = Pair(source, destination)
        async with witness(lab, pair) as seen:
            refused(await direct(pair), "destination-not-deferred")
            await seen.verify_untouched()


class TestSource:
    async def test_that_itself_waits_is_refused(self, lab: Lab) -> None:
        pair = await lab.pair()
        async with witness(lab, pair) as seen:
            swapped = Pair(pair.destination, pair.source)
            refused(await direct(swapped), "source-is-waiting", "destination-not-waiting")
            await seen.verify_untouched()

    async def test_that_is_migrating_already_is_refused(self, lab: Lab, one_version: Path) -> None:
        machine = GuestMachine(habit=Habit(region_bytes=16 << 20))
        pair = await lab.pair(machine, source=one_version, destination=one_version)
        other = await lab.start(machine, binary=one_version, incoming=True)
        await other.query("migrate-incoming", uri="tcp:127.0.0.1:0")
        (listening,) = (await other.query("query-migrate"))["socket-address"]
        await pair.source.query("migrate-set-parameters", max_bandwidth=4096)
        await pair.source.query("migrate", uri=f"tcp:127.0.0.1:{listening['port']}")

        async def active() -> bool:
            return await pair.source.migration_status() == "active"

        await until(active, what="another migration")
        async with witness(lab, pair) as seen:
            refused(await direct(pair), "source-migrating")
            assert await pair.source.migration_status() == "active"
            await seen.verify_untouched()

    async def test_that_has_given_its_guest_away_is_refused(self, lab: Lab) -> None:
        machine = GuestMachine()
        pair = await lab.pair(machine)
        await gone(pair)
        waiting = await lab.start(machine, incoming=True)
        again = Pair(pair.source, waiting)
        before = await settings(pair.source), await settings(waiting)
        refused(await direct(again), "source-not-running")
        assert (await settings(pair.source), await settings(waiting)) == before

    async def test_that_is_its_own_destination_is_wrong_use(self, lab: Lab) -> None:
        guest = await lab.boot()
        ended = await direct(Pair(guest, guest))
        assert ended.code == 2
        assert "same" in ended.error
        two = ("--source", f"unix:{guest.qmp}", "--destination", f"unix:{guest.rescue}")
        ended = await run("direct", *two)
        assert ended.code == 2
        assert "same QEMU" in ended.err
        assert await lab.counting() == [guest]


async def gone(pair: Pair) -> None:
    """Move the guest by hand, and leave the source where QEMU leaves it."""
    await pair.destination.query("migrate-incoming", uri="tcp:127.0.0.1:0")
    (listening,) = (await pair.destination.query("query-migrate"))["socket-address"]
    await pair.source.query("migrate", uri=f"tcp:127.0.0.1:{listening['port']}")

    async def arrived() -> bool:
        states = await pair.source.run_state(), await pair.destination.run_state()
        return states == ("postmigrate", "paused")

    await until(arrived, what="a guest that was moved by hand")
    await pair.destination.query("cont")


class TestMonitor:
    @pytest.mark.parametrize("held", ["destination", pytest.param("source", marks=pytest.mark.matrix)])
    async def test_that_somebody_else_holds_is_said_and_works_once_it_is_free(
        self, lab: Lab, held: str
    ) -> None:
        pair = await lab.pair()
        holder: LabQemu = getattr(pair, held)
        async with witness(lab, pair) as seen:
            async with RawMonitor(holder.qmp):
                ended = await direct(pair)
                refused_in_a_line(ended)
                assert str(holder.qmp) in ended.error
                assert "client" in ended.error
                await seen.verify_untouched()
            assert (await direct(pair)).code == 0
            await seen.verify("completed")

    @pytest.mark.parametrize("side", ["source", "destination"])
    @pytest.mark.parametrize("how", ["no file", "nobody listens", "no QMP", "hangs up", "port"])
    async def test_behind_which_there_is_no_qemu_is_said(
        self, lab: Lab, tmp_path: Path, side: str, how: str
    ) -> None:
        qemu = await lab.start(incoming=side == "source", paused=True)
        path = qemu.directory / "other"
        server = None
        address = f"unix:{path}"
        if how == "port":
            server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
            address = f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
            server.close()
        elif how != "no file":
            server = await asyncio.start_unix_server(answer(how), path)
        if how == "nobody listens" and server is not None:
            server.close()
        other = f"unix:{qemu.qmp}"
        here, there = (address, other) if side == "source" else (other, address)
        before = await settings(qemu)
        ended = await run("direct", "--source", here, "--destination", there, "--json")
        refused_in_a_line(ended)
        assert address in ended.error
        assert await settings(qemu) == before
        if server is not None:
            server.close()


def answer(how: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2p1\r\n" if how == "no QMP" else b'{"QMP": {"ver')
        writer.close()

    return respond


def refused_in_a_line(ended: Ended) -> None:
    assert ended.code in (2, 3)
    assert ended.state == "failed"
    assert "Traceback" not in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert ended.err.startswith("migrator: ")


async def test_again_after_it_moved_the_guest_it_says_where_that_is(lab: Lab) -> None:
    pair = await lab.pair(GuestMachine())
    assert (await direct(pair)).code == 0
    again = await run("direct", *addresses(pair), "--json")
    refused_in_a_line(again)
    assert again.code == 3
    assert f"was moved from unix:{pair.source.qmp} to unix:{pair.destination.qmp} already" in again.error
    assert f"look for it there (process {pair.destination.pid})" in again.error
    assert (await pair.destination.query("query-status"))["status"] == "running"
    pair.destination.kill()
    await pair.destination.wait_dead()
    later = await run("direct", *addresses(pair), "--json")
    assert later.code == 3
    assert "has ended since" in later.error
    # Another guest that is to go the same way goes.
    other = await direct(await lab.pair(GuestMachine()))
    assert other.code == 0


async def test_refusal_before_it_begins_shows_the_ceilings_that_were_asked_for() -> None:
    asked = ("--max-downtime", "200ms", "--max-postcopy-stall", "1s")
    ended = await run("direct", *PAIR, *asked, "--json")
    refused_in_a_line(ended)
    assert ended.document["max_downtime_seconds"] == 0.2
    assert ended.document["max_postcopy_stall_seconds"] == 1.0


async def test_ceiling_that_no_speed_could_keep_is_refused_until_it_is_accepted(lab: Lab) -> None:
    pair = await lab.pair(GuestMachine())
    async with witness(lab, pair) as seen:
        refused(await direct(pair, "--max-downtime", "20us"), "ceiling-infeasible")
        await seen.verify_untouched()
    assert (await direct(pair, "--max-downtime", "20us", "--accept", "ceiling-infeasible")).code == 0


PAIR = ("--source", "unix:/nowhere/a.qmp", "--destination", "unix:/nowhere/b.qmp")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        PAIR[:2],
        (*PAIR, "--nonsense"),
        (*PAIR, "argument"),
        (*PAIR, "--policy", "fast"),
        (*PAIR, "--max-downtime", "soon"),
        (*PAIR, "--max-downtime", "0ms"),
        (*PAIR, "--max-downtime", "-1s"),
        (*PAIR, "--max-downtime", "1h"),
        (*PAIR, "--max-bandwidth", "fast"),
        (*PAIR, "--max-bandwidth", "1KiB/s"),
        (*PAIR, "--max-throttle", "100%"),
        (*PAIR, "--max-throttle", "lots"),
        (*PAIR, "--postcopy", "sometimes"),
        (*PAIR, "--max-duration", "0s"),
        (*PAIR, "--last-resort", "pray"),
        (*PAIR, "--policy", "offline", "--postcopy", "immediate"),
        (*PAIR, "--postcopy", "immediate", "--max-throttle", "50%"),
        (*PAIR, "--listen", "127.0.0.1"),
        (*PAIR, "--listen", "tcp:127.0.0.1:99999"),
        (*PAIR, "--listen", "exec:rm"),
        (*PAIR, "--destination-pid", "many"),
        (*PAIR, "--destination-pid", "-1"),
        (*PAIR, "--destination-pid", "999999999"),
        (*PAIR, "--tls-ca", "/nowhere/ca.pem"),
        ("--source", "unix:", "--destination", "unix:/nowhere/b.qmp"),
        ("--source", "/nowhere/a.qmp", "--destination", "unix:/nowhere/b.qmp"),
        ("--source", "tcp:localhost", "--destination", "unix:/nowhere/b.qmp"),
        ("--source", "tcp:localhost:0", "--destination", "unix:/nowhere/b.qmp"),
        ("--source", "tcp:::1:4444", "--destination", "unix:/nowhere/b.qmp"),
        ("--source", "ssh:host", "--destination", "unix:/nowhere/b.qmp"),
        ("--source", "unix:" + "/very-long" * 20, "--destination", "unix:/nowhere/b.qmp"),
    ],
    ids=lambda arguments: " ".join(word for word in arguments if "/nowhere" not in word)[:40],
)
async def test_wrong_use_is_said_in_a_line(arguments: tuple[str, ...]) -> None:
    ended = await run("direct", *arguments)
    assert ended.code == 2
    assert ended.out == ""
    # What is wrong is one line; the parser of options may add how it is used.
    assert [line for line in ended.err.splitlines() if line.startswith(("migrator: ", "Error: "))]
    assert len(ended.err.strip().splitlines()) <= 4
