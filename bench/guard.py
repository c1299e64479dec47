"""``python -m bench.guard [--runs N] [--minutes M] [--add FILE] [--write]``: how long guests stand still alone.

A guest begins to move, idle or writing; at a random moment its controller is killed with ``kill -9``, or its SSH
connection to the source's host is frozen, as by a link that is cut. From outside, by the events of the source's QEMU,
it is seen how long the guest stood still until it ran again. What was past ``migrate-continue`` at that moment is
counted apart: a guard touches nothing there. One run takes some four seconds; after so many minutes none is begun any
more, and with ``--add`` those of several times are put together. With ``--write`` the figures go into
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from migrator.core.policy import builtin
from migrator.engine.migration.driver import MigrationDriver
from migrator.hosts.access import HostAccess
from migrator.hosts.guard import HostGuard
from migrator.hosts.local import LocalAccess
from migrator.hosts.sockets import RemoteMonitorTransport
from migrator.hosts.ssh import SshAccess
from migrator.hosts.ssh_config import SshConfig
from migrator.machine import this_driver
from migrator.qemu import guard as guard_program
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.store.records import FileRecord
from migrator.testing.lab import IDLE, GuestMachine, Habit, Lab, LabQemu, RawMonitor, binaries
from tests.sshd import Sshd

MIB = 1 << 20
WRITES = Habit(region_bytes=24 * MIB, bytes_per_second=6 * MIB)
_BANDWIDTH = 48 * MIB
#: Seconds that a guest is watched at the most after its controller is gone, and that a controller may take to begin.
_WATCH_SECONDS, _BEGIN_SECONDS = 12.0, 60.0
#: Seconds for which one whose stream is held back is watched.
_PARKED_SECONDS = 1.0
#: How often a guest is begun anew that had arrived before its moment came.
_TRIES = 20
#: Seconds between two lines on how far it is.
_SAID_EVERY_SECONDS = 15.0
_DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- guard -->", "<!-- end of guard -->"


@dataclass(frozen=True, kw_only=True)
class Run:
    """Outcome of one run for its guest.

    :ivar stood_seconds: in all, from the loss of its controller on; 0 where it ran all along.
    :ivar past: it was past ``migrate-continue``.
    :ivar runs: it ran at its source in the end.
    :ivar status: of the migration in the end.
    """

    stood_seconds: float
    past: bool
    runs: bool
    status: str


async def run_controller(source: str, destination: str, ssh: str) -> None:
    """Be a controller: migrate from one monitor to the other; says ``ready`` before it begins.

    :param ssh: how the source's host is reached, as JSON; empty: it is this machine.
    """
    access: HostAccess = (
        SshAccess("source", SshConfig(**_paths(json.loads(ssh)))) if ssh else LocalAccess("source")
    )
    guard = HostGuard.of(access, program=guard_program.PROGRAM, module=guard_program)
    await guard.start()
    driver = this_driver("bench.guard", controller="bench")
    here = Endpoint(
        Address(kind="ssh", host="source", path=source) if ssh else Address(kind="unix", path=source),
        role="source",
        transport=RemoteMonitorTransport(access, source) if ssh else None,
        driver=driver,
        guard_process=guard,
    )
    there = Endpoint(Address(kind="unix", path=destination), role="destination", driver=driver)
    await asyncio.gather(here.connect(), there.connect())
    migration = MigrationDriver(
        name="guarded",
        source=here,
        destination=there,
        policy=builtin("gentle").but(max_bandwidth_bytes_per_second=_BANDWIDTH),
        listen="tcp:127.0.0.1:0",
        record=FileRecord("guarded"),
    )
    await migration.check()
    print("ready", flush=True)
    await migration.run()
    print("over", flush=True)


def _paths(given: dict[str, Any]) -> dict[str, Any]:
    return {**given, "key": Path(given["key"]), "known_hosts": Path(given["known_hosts"])}


class Scene:
    """Guests that move, one after the other, and the controllers that are taken from them."""

    def __init__(self, lab: Lab, directory: Path, *, binary: Path, chance: random.Random) -> None:
        self._lab, self._directory, self._binary, self._chance = lab, directory, binary, chance
        #: Seconds that a migration takes which nobody disturbs, by how its guest behaves.
        self._spans: dict[Habit, float] = {}

    async def run(self, habit: Habit, *, sshd: Sshd | None) -> Run:
        """Take the controller from one guest; one that had arrived already is not counted, and another is begun."""
        if habit not in self._spans:
            self._spans[habit] = await self._undisturbed(habit, sshd)
        for _ in range(_TRIES):
            moment = self._chance.uniform(0.0, self._spans[habit])
            if (found := await self._disturbed(habit, sshd, moment)) is not None:
                return found
        raise SystemExit(f"{_TRIES} guests had arrived before their moment came: is this machine busy?")

    async def _undisturbed(self, habit: Habit, sshd: Sshd | None) -> float:
        pair = await self._pair(habit)
        controller = await self._begin(*pair, sshd)
        try:
            began = time.monotonic()
            await asyncio.wait_for(_line(controller), _BEGIN_SECONDS)
            return time.monotonic() - began
        finally:
            await _finish(controller, *pair)

    async def _pair(self, habit: Habit) -> tuple[LabQemu, LabQemu]:
        made = await self._lab.pair(GuestMachine(habit=habit), source=self._binary, destination=self._binary)
        return made.source, made.destination

    async def _begin(
        self, source: LabQemu, destination: LabQemu, sshd: Sshd | None
    ) -> asyncio.subprocess.Process:
        ssh = ""
        if sshd is not None:
            config = sshd.config()
            ssh = json.dumps(
                {name: getattr(config, name) for name in SshConfig.__dataclass_fields__}, default=str
            )
        controller = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "bench.guard"),
            *("--controller", source.qmp, destination.qmp, ssh),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # what it says once its QEMUs are taken from it
            cwd=Path(__file__).parents[1],
            env={**os.environ, "XDG_STATE_HOME": str(self._directory / f"state-{source.label}")},
        )
        await asyncio.wait_for(_line(controller), _BEGIN_SECONDS)
        return controller

    async def _disturbed(self, habit: Habit, sshd: Sshd | None, moment: float) -> Run | None:
        source, destination = await self._pair(habit)
        controller = await self._begin(source, destination, sshd)
        try:
            async with source.monitor() as monitor:
                await asyncio.sleep(moment)  # the instant is what is tested
                if controller.returncode is not None:
                    return None
                lost_at = time.time()
                if sshd is None:
                    controller.kill()
                else:
                    for pid in sshd.sessions():
                        os.kill(pid, signal.SIGSTOP)
                return await _watch(monitor, lost_at)
        except OSError:
            return None  # the source had ended: the guest had arrived
        finally:
            await _finish(controller, source, destination)
            if sshd is not None:
                sshd.break_connections()


async def _watch(monitor: RawMonitor, lost_at: float) -> Run | None:
    deadline = time.time() + _WATCH_SECONDS
    status = run = ""
    parked_at: float | None = None
    while time.time() < deadline:
        status = str((await monitor.execute("query-migrate")).get("status", ""))
        run = str((await monitor.execute("query-status"))["status"])
        if status in ("cancelled", "completed", "failed") and run in ("running", "postmigrate"):
            break
        if status in ("", "active") and parked_at is None:
            parameters = await monitor.execute("query-migrate-parameters")
            held_back = parameters["max-bandwidth"] == guard_program.PARKED["max-bandwidth"]
            parked_at = time.time() if held_back or not status else None
        if parked_at is not None and time.time() > parked_at + _PARKED_SECONDS and status in ("", "active"):
            break
        await asyncio.sleep(0.02)
    stood, stopped = 0.0, None
    for event in monitor.events:
        at = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
        if event["event"] == "STOP":
            stopped = at
        elif event["event"] == "RESUME" and stopped is not None:
            stood, stopped = stood + max(0.0, at - max(stopped, lost_at)), None
    past = status in ("completed", "device")
    if stopped is not None and not past:
        stood += time.time() - max(stopped, lost_at)
    if status == "completed" and stopped is not None and stopped < lost_at - 1.0:
        return None
    return Run(stood_seconds=stood, past=past, runs=run == "running", status=status)


async def _line(controller: asyncio.subprocess.Process) -> None:
    assert controller.stdout is not None
    await controller.stdout.readline()


async def _finish(controller: asyncio.subprocess.Process, *qemus: LabQemu) -> None:
    if controller.returncode is None:
        controller.kill()
    await controller.wait()
    for qemu in qemus:
        qemu.discard()


Kind = tuple[str, str, str]
Found = dict[Kind, list[Run]]


async def measure(
    runs: int,
    *,
    versions: Sequence[str],
    ways: Sequence[str] = ("killed", "cut off"),
    seed: int = 0,
    minutes: float = 60.0,
) -> Found:
    """Take so many controllers away from each kind of guest, in turns; by version, way and guest.

    :param minutes: after which none is taken away any more.
    """
    chance, began = random.Random(seed), time.monotonic()
    said_at, found = began, Found()
    with (
        tempfile.TemporaryDirectory(prefix="bench-guard-") as directory,
        Lab() as lab,
        ExitStack() as servers,
    ):
        scenes: dict[Kind, tuple[Scene, Habit, Sshd | None]] = {}
        for version in versions:
            for way in ways:
                sshd = Sshd(Path(directory) / f"sshd-{version}") if way == "cut off" else None
                if sshd is not None:
                    servers.callback(sshd.stop)
                scene = Scene(lab, Path(directory), binary=binaries()[version], chance=chance)
                for name, habit in (("idle", IDLE), ("writing", WRITES)):
                    scenes[version, way, name] = scene, habit, sshd
        for _ in range(runs):
            for kind, (scene, habit, sshd) in scenes.items():
                now = time.monotonic()
                if now > began + 60 * minutes:
                    return found
                if now > said_at + _SAID_EVERY_SECONDS:
                    said_at = now
                    done = sum(map(len, found.values()))
                    print(
                        f"{done} of {runs * len(scenes)} after {now - began:.0f} s",
                        file=sys.stderr,
                        flush=True,
                    )
                found.setdefault(kind, []).append(await scene.run(habit, sshd=sshd))
    return found


def kept(path: Path) -> Found:
    """Return what was measured earlier."""
    found = Found()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        *kind, run = json.loads(line)
        found.setdefault((kind[0], kind[1], kind[2]), []).append(Run(**run))
    return found


def keep(path: Path, found: Found) -> None:
    """Add what was measured to what was earlier."""
    with path.open("a", encoding="utf-8") as file:
        for kind, runs in found.items():
            file.writelines(json.dumps([*kind, asdict(each)]) + "\n" for each in runs)


def distribution(runs: Iterable[Run]) -> str:
    """Return in words for how long those stood still that did."""
    stood = sorted(each.stood_seconds for each in runs if not each.past and each.stood_seconds > 0)
    if not stood:
        return "None stood still."
    tenths = ", ".join(f"{stood[min(len(stood) - 1, int(share * len(stood)))]:.2f}" for share in _SHARES)
    shares = ", ".join(f"{share:.0%}" for share in _SHARES)
    return (
        f"Of all, {len(stood)} stood still before `migrate-continue`: median {statistics.median(stood):.2f} s, longest "
        f"{stood[-1]:.2f} s; {shares} of them for up to {tenths} s."
    )


#: Shares of those that stood still.
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def table(found: Found) -> str:
    """Return the figures as a table."""
    lines = [
        "| QEMU | controller | guest | taken away | stood still | longest | median | parked | begins anew | past |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (version, way, name), runs in found.items():
        before = [each for each in runs if not each.past]
        stood = [each.stood_seconds for each in before if each.stood_seconds > 0]
        longest, median = (f"{how(stood):.2f} s" if stood else "–" for how in (max, statistics.median))
        parked = sum(each.status == "active" for each in before)
        ended = sum(each.status == "cancelled" for each in before)
        lines.append(
            f"| {version} | {way} | {name} | {len(runs)} | {len(stood)} | {longest} | {median} | {parked} | {ended} | "
            f"{len(runs) - len(before)} |"
        )
    return "\n".join([*lines, "", distribution(each for runs in found.values() for each in runs)])


def main() -> None:
    """Measure, print, and write where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.guard", description=__doc__)
    parser.add_argument("--runs", type=int, default=50, help="of each kind (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="begin none after these (default: %(default)s)"
    )
    parser.add_argument(
        "--add", type=Path, metavar="FILE", help="add to what was measured earlier, and keep all there"
    )
    parser.add_argument("--qemu", action="append", choices=list(binaries()), help="default: every version")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/reliability.md")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser.add_argument("--controller", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.controller:
        asyncio.run(run_controller(*options.controller))
        return
    seed = random.randrange(1 << 30)
    versions = options.qemu or list(binaries())
    try:
        found = asyncio.run(measure(options.runs, versions=versions, seed=seed, minutes=options.minutes))
    except KeyboardInterrupt:
        raise SystemExit("interrupted: nothing was kept") from None
    if options.add is not None:
        keep(options.add, found)
        found = kept(options.add)
    text = f"{time.strftime('%Y-%m-%d', time.gmtime())}, load {os.getloadavg()[1]:.0f} on {os.cpu_count()} cores:\n\n"
    text += table(found)
    print(text)
    if options.write:
        before, _, rest = _DOCUMENT.read_text(encoding="utf-8").partition(_BEGIN)
        after = rest.partition(_END)[2]
        _DOCUMENT.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
