"""The lab keeps its promises, on real QEMU: other tests build on them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.testing import guest_watch
from migrator.testing.guest import BEAT_SECONDS, TICK_SECONDS, MemoryDamaged
from migrator.testing.guest_watch import GuestWatch
from migrator.testing.lab import GuestMachine, Habit, Lab, LabError, LabQemu, Pair, RawMonitor, until
from migrator.testing.raw_qmp import WrongProcess
from migrator.testing.site import LabSite

MIB = 1 << 20


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def move(pair: Pair, address: str = "127.0.0.1", *, max_bandwidth: int = 1 << 30) -> None:
    """A bare precopy, for guests and networks that are known to allow it."""
    async with RawMonitor(pair.source.qmp) as source, RawMonitor(pair.destination.qmp) as destination:
        for monitor in (source, destination):
            wanted = [{"capability": name, "state": True} for name in ("events", "return-path")]
            await monitor.execute("migrate-set-capabilities", capabilities=wanted)
        await source.execute("migrate-set-parameters", max_bandwidth=max_bandwidth, downtime_limit=300)
        await destination.execute("migrate-incoming", uri=f"tcp:{address}:0")
        (listening,) = (await destination.execute("query-migrate"))["socket-address"]
        await source.execute("migrate", uri=f"tcp:{address}:{listening['port']}")

        async def arrived() -> bool:
            there = await destination.execute("query-migrate"), await destination.execute("query-status")
            here = await source.execute("query-migrate"), await source.execute("query-status")
            said = [answer.get("status") for answer in (*there, *here)]
            return said == ["completed", "paused", "completed", "postmigrate"]

        await until(arrived, what="the guest's arrival")
        await destination.execute("cont")


class TestGuest:
    async def test_boots_and_beats_within_a_second(self, lab: Lab, one_version: Path) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        guest = await lab.boot(binary=one_version)
        # 0.15 s on an idle machine.
        assert loop.time() - began < 15
        assert guest.boots == 1
        assert (await guest.counters()).boots == 1

    async def test_idle_one_takes_next_to_no_cpu(self, lab: Lab, one_version: Path) -> None:
        guest = await lab.boot(binary=one_version)
        ticks, used = (await guest.counters()).ticks, cpu_seconds(guest.pid)
        await until(lambda: guest.beats > 50, what="a second of beats")
        seconds = ((await guest.counters()).ticks - ticks) * TICK_SECONDS
        # About 0.01 of a core.
        assert cpu_seconds(guest.pid) - used < 0.2 * seconds

    async def test_dirties_at_the_pace_it_was_given(self, lab: Lab, one_version: Path) -> None:
        pace = GuestMachine(habit=Habit(region_bytes=4 * MIB, bytes_per_second=40 * MIB))
        guest = await lab.boot(pace, binary=one_version)
        before = await guest.counters()

        async def later() -> bool:
            return (await guest.counters()).ticks >= before.ticks + 100

        await until(later, what="a second of the guest's time")
        after = await guest.counters()
        # 100 ticks are a second, in which it passes over its 4 MiB 10 times: never faster, and slower only when the
        # host cannot keep up.
        passes, ticks = after.passes - before.passes, after.ticks - before.ticks
        assert 0.5 * ticks / 10 < passes <= ticks / 10 + 1

    async def test_bursts(self, lab: Lab) -> None:
        guest = await lab.boot(GuestMachine(habit=Habit(region_bytes=MIB, on_seconds=0.1, off_seconds=0.1)))
        quiet, busy = False, False
        passes = (await guest.counters()).passes
        async with asyncio.timeout(20):
            while not (quiet and busy):
                await until(lambda beats=guest.beats: guest.beats > beats + 1, what="a beat")  # type: ignore[misc]
                now = (await guest.counters()).passes
                quiet, busy = quiet or now == passes, busy or now > passes
                passes = now

    async def test_rests_after_the_passes_it_was_given(self, lab: Lab) -> None:
        guest = await lab.boot(GuestMachine(habit=Habit(region_bytes=MIB, passes=3)))
        await guest.wait_beating()
        assert (await guest.check_memory()).passes == 3

    async def test_powers_off_by_itself(self, lab: Lab) -> None:
        guest = await lab.start(GuestMachine(habit=Habit(power_off_after_seconds=0.1)))
        assert await guest.wait_dead() == 0
        assert guest.beats == 0.1 / BEAT_SECONDS

    async def test_suspends_by_itself(self, lab: Lab, one_version: Path) -> None:
        guest = await lab.start(GuestMachine(habit=Habit(suspend_after_seconds=0.1)), binary=one_version)

        async def suspended() -> bool:
            return await guest.run_state() == "suspended"

        await until(suspended, what="a suspended guest")

    async def test_obeys_the_power_button(self, lab: Lab, one_version: Path) -> None:
        guest = await lab.boot(binary=one_version)
        await guest.query("system_powerdown")
        assert await guest.wait_dead() == 0

    async def test_starts_afresh_after_a_reset(self, lab: Lab, one_version: Path) -> None:
        guest = await lab.boot(GuestMachine(habit=Habit(region_bytes=MIB)), binary=one_version)
        await guest.query("system_reset")
        await until(lambda: guest.boots == 2, what="the second start")
        await guest.wait_beating()
        assert (await guest.check_memory()).boots == 2


class TestMigration:
    async def test_guest_arrives_intact_and_runs_in_one_place(
        self, lab: Lab, one_crossing: tuple[Path, Path]
    ) -> None:
        machine = GuestMachine(
            habit=Habit(region_bytes=32 * MIB, bytes_per_second=200 * MIB), mac="52:54:00:12:34:56"
        )
        pair = await lab.pair(machine, source=one_crossing[0], destination=one_crossing[1])
        assert await lab.counting() == [pair.source]
        before = await pair.source.check_memory()
        async with lab.watch() as watch:
            await pair.source.wait_beating()
            await move(pair)
            await pair.destination.wait_beating()
        assert watch.course == [pair.source, pair.destination]
        assert await lab.counting() == [pair.destination]
        after = await pair.destination.check_memory()
        assert after.boots == 1
        assert after.ticks > before.ticks
        assert set(pair.destination.announcements()) == {"52:54:00:12:34:56"}

    async def test_memory_that_changed_on_the_way_is_noticed(self, lab: Lab) -> None:
        guest = await lab.boot(GuestMachine(habit=Habit(region_bytes=MIB, bytes_per_second=MIB)))
        await guest.query("stop")
        await guest.check_memory()
        # The other half of a guest that was torn in two: another one's pages.
        other = await lab.boot(GuestMachine(habit=Habit(region_bytes=2 * MIB, passes=1)))
        await other.query("stop")
        guest.machine = replace(guest.machine, habit=Habit(region_bytes=2 * MIB))
        with pytest.raises(MemoryDamaged, match="page 256 of 512"):
            await guest.check_memory()

    async def test_two_that_run_are_noticed(self, lab: Lab) -> None:
        pair = await lab.pair(GuestMachine(image_locking="off"))
        async with lab.watch() as watch:
            await pair.source.wait_beating()
            await move(pair)
            await pair.destination.wait_beating()
            await pair.source.query("cont")
            await pair.source.wait_beating()
        assert set(await lab.counting(at_least=2)) == {pair.source, pair.destination}
        assert watch.course[:3] == [pair.source, pair.destination, pair.source]


class TestWhoseAnswer:
    """A process's path may lead to another by now: the guest's next process has the sockets that its operator knows."""

    async def test_another_that_listens_at_its_path_is_not_asked_in_its_place(self, lab: Lab) -> None:
        left, here = await lab.boot(), await lab.boot()
        await left.pause()
        left.rescue.unlink()  # as a QEMU does at its end
        left.rescue.symlink_to(here.rescue)  # as its operator finds the guest again
        async with RawMonitor(left.rescue) as monitor:
            assert (await monitor.execute("query-status"))["status"] == "running"
        seen = LabQemu.attach(left.machine, left.pid, left.rescue)
        with pytest.raises(WrongProcess, match=f"pid {here.pid} answers at .*, not pid {left.pid}"):
            await seen.run_state()
        assert [await seen.runs(), await here.runs()] == [False, True]
        # One that runs is seen to run all the same.
        async with RawMonitor(left.qmp) as monitor:
            await monitor.execute("cont")
        assert await seen.runs()

    async def test_one_that_has_ended_does_not_run(self, lab: Lab) -> None:
        left, here = await lab.boot(), await lab.boot()
        seen = LabQemu.attach(left.machine, left.pid, left.rescue)
        left.kill()
        await left.wait_dead()
        left.rescue.unlink()
        left.rescue.symlink_to(here.rescue)
        assert not await seen.runs()

    async def test_one_that_stands_still_takes_no_time_of_its_vcpus(
        self, lab: Lab, one_version: Path
    ) -> None:
        guest = await lab.boot(binary=one_version)
        assert await guest.vcpu_time.grows()
        await guest.pause()
        assert not await guest.vcpu_time.grows()


class TestGuestWatch:
    async def test_a_guest_that_runs_in_two_processes_is_noticed_and_one_that_has_left_its_first_is_not(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = GuestMachine(image_locking="off")
        with LabSite("a", "b", isolated=False) as site:
            left, here = await site.boot(machine, "a"), await site.boot(machine, "b")
            # However long they have run before they are watched.
            monkeypatch.setattr(guest_watch, "_SETTLED_SECONDS", 0.0)
            watch = GuestWatch(site, [machine])

            async def ran(*processes: LabQemu) -> bool:
                found = watch.look()[machine.uuid]
                return {qemu.pid for qemu in found} == {qemu.pid for qemu in processes}

            await until(lambda: ran(left, here), what="both are seen to run")
            assert await watch.runs_twice(machine, watch.instances(machine))
            await left.pause()
            await until(lambda: ran(here), what="one is seen to run")
            left.rescue.unlink()
            left.rescue.symlink_to(here.rescue)
            assert not await watch.runs_twice(machine, watch.instances(machine))
            left.kill()
            await left.wait_dead()
            watch.look()
            assert [qemu.pid for qemu in watch.instances(machine)] == [here.pid]


class TestProcess:
    async def test_that_cannot_start_says_why(self, lab: Lab) -> None:
        with pytest.raises(LabError, match="unsupported machine type"):
            await lab.start(GuestMachine(type="abacus"))

    async def test_frozen_one_lives_but_does_not_beat(self, lab: Lab) -> None:
        guest = await lab.boot()
        guest.sigstop()
        await until(lambda: " T " in Path(f"/proc/{guest.pid}/stat").read_text(), what="a stopped process")
        assert guest.alive
        assert await lab.counting(within=0.2) == []
        guest.sigcont()
        await guest.wait_beating()

    async def test_killed_one_is_seen_dead(self, lab: Lab) -> None:
        guest = await lab.boot()
        guest.kill()
        assert await guest.wait_dead() == -signal.SIGKILL
        assert not guest.alive

    async def test_pid_is_that_of_qemu_itself(self, lab: Lab, one_version: Path) -> None:
        guest = await lab.start(binary=one_version, prefix=["env", "SOME=THING"])
        assert Path(f"/proc/{guest.pid}/exe").resolve().name == "qemu-system-x86_64"

    async def test_none_survives_the_lab(self) -> None:
        with Lab() as lab:
            guest = await lab.start()
            guest.sigstop()
            directory = lab.directory
        assert not guest.alive
        assert not directory.exists()

    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    async def test_none_survives_the_process_that_had_the_lab(self, end: signal.Signals) -> None:
        script = (
            "import asyncio; from migrator.testing.lab import Lab\n"
            "async def main():\n"
            "    async with Lab() as lab:\n"
            "        print((await lab.start()).pid, lab.directory, flush=True)\n"
            "        await asyncio.sleep(60)\n"
            "asyncio.run(main())\n"
        )
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            pid, directory = process.stdout.readline().split()
            pidfd = os.pidfd_open(int(pid))
            process.send_signal(end)
        os.set_blocking(pidfd, False)
        loop = asyncio.get_running_loop()
        dead = asyncio.Event()
        loop.add_reader(pidfd, dead.set)
        try:
            async with asyncio.timeout(10):
                await dead.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        with Lab():
            assert not Path(directory).exists()
