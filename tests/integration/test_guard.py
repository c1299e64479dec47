"""The guard at a host, by itself: what it does to a guest whose controller is gone, and what it leaves alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from migrator.core.migration.drivers import Driver
from migrator.core.model import Mode, State
from migrator.core.policy import PostcopyMode, builtin
from migrator.engine.migration.driver import MigrationDriver
from migrator.hosts.access import CoprocessRunner
from migrator.hosts.guard import GuardPace, HostGuard
from migrator.hosts.local import LocalAccess
from migrator.hosts.ssh import SshAccess
from migrator.qemu import guard
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.store.records import FileRecord
from migrator.testing import network
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, Pair, RawMonitor, until
from migrator.testing.network import LabHosts, inside
from tests.conftest import MakePair, missing
from tests.sshd import Sshd

DRIVER = {"qom-type": "authz-simple", "id": "migrator-driver", "identity": json.dumps({"token": "ours"})}
#: The source was not told to switch yet.
BEFORE_SWITCH = {"qom-type": "authz-simple", "id": "migrator-before-switch", "identity": "m1"}
#: It writes faster than the stream carries.
BUSY = Habit(region_bytes=16 << 20, bytes_per_second=64 << 20)
#: Has more memory than what the sockets take of a stream that nobody reads.
LARGE = GuestMachine(habit=Habit(region_bytes=96 << 20, passes=1), memory_bytes=192 << 20)


def host_guard(
    host: CoprocessRunner, *, silence: float | None = None, pace: GuardPace | None = None
) -> HostGuard:
    return HostGuard(
        host,
        python=(sys.executable, "-I"),
        program=guard.PROGRAM,
        text=Path(guard.__file__).read_text(),
        silence_seconds=silence,
        pace=pace,
    )


@pytest.fixture
async def local() -> AsyncIterator[HostGuard]:
    made = host_guard(LocalAccess("here"))
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def begun(
    pair: Pair,
    parameters: Mapping[str, Any] = MappingProxyType({}),
    *,
    channels: int = 0,
    stopped: bool = False,
) -> AsyncIterator[RawMonitor]:
    """The source's control monitor, with a migration under way that stops before its switch.

    :param channels: through which memory goes; 0: through the main one.
    :param stopped: the controller has stopped the guest.
    """
    names = ("return-path", "pause-before-switchover", *(["multifd"] if channels else []))
    capabilities = {"capabilities": [{"capability": name, "state": True} for name in names]}
    through = {"multifd-channels": channels} if channels else {}
    async with RawMonitor(pair.destination.qmp) as there:
        await there.execute("migrate-set-capabilities", capabilities)
        await there.execute("migrate-set-parameters", through)
        await there.execute("migrate-incoming", {"uri": "tcp:127.0.0.1:0"})
        (address,) = (await there.execute("query-migrate"))["socket-address"]
    async with RawMonitor(pair.source.qmp) as here:
        await here.execute("object-add", DRIVER)
        await here.execute("object-add", BEFORE_SWITCH)
        await here.execute("migrate-set-capabilities", capabilities)
        await here.execute("migrate-set-parameters", {"max-bandwidth": 1 << 30, **through, **parameters})
        if stopped:
            await here.execute("stop")
        await here.execute("migrate", {"uri": f"tcp:{address['host']}:{address['port']}"})
        yield here


async def at_switch(source: LabQemu) -> None:
    async def there() -> bool:
        return await source.migration_status() == "pre-switchover"

    await until(there, what="the switch")


async def past_switch(source: LabQemu) -> None:
    async def there() -> bool:
        return await source.migration_status() in ("device", "completed")

    await until(there, what="what comes after the switch")


async def copies(source: LabQemu) -> None:
    async def there() -> bool:
        return await source.migration_status() == "active"

    await until(there, what="copying")


async def no_more_is_sent(source: LabQemu) -> None:
    sent = -1

    async def same() -> bool:
        nonlocal sent
        before, sent = sent, (await source.query("query-migrate"))["ram"]["transferred"]
        await asyncio.sleep(0.1)
        return bool(before == sent)

    await until(same, what="the sockets are full")


async def runs_again(lab: Lab, source: LabQemu) -> None:
    async def cancelled() -> bool:
        return await source.migration_status() == "cancelled" and await source.run_state() == "running"

    await until(cancelled, what="the guest goes on at the source")
    assert await lab.counting() == [source]
    mark = {"path": "/objects/migrator-guard", "property": "identity"}
    assert json.loads(await source.query("qom-get", mark))["migration"] == "m1"


def request(pair: Pair, **more: Any) -> dict[str, Any]:
    return {"socket": str(pair.source.qmp), "token": "ours", "migration": "m1", **more}


async def test_guest_that_is_left_at_its_switch_goes_on_at_the_source(
    pair: MakePair, lab: Lab, each_qemu: Path, local: HostGuard
) -> None:
    made = await pair((each_qemu, each_qemu))
    async with begun(made):
        local.guard("a", request(made))
        assert await local.start() == ""
        await at_switch(made.source)
        assert await local.leave("a")
    await runs_again(lab, made.source)


async def test_guest_that_comes_to_its_switch_later_goes_on_too(
    pair: MakePair, lab: Lab, one_version: Path, local: HostGuard
) -> None:
    made = await pair((one_version, one_version))
    async with begun(made, {"max-bandwidth": 64 << 10}):  # it still copies once the guard has started
        local.guard("a", request(made))
        assert await local.start() == ""
        await copies(made.source)
        assert await local.leave("a")

    async def parked() -> bool:
        found = await made.source.query("query-migrate-parameters")
        return int(found["max-bandwidth"]) == 4096

    await until(parked, what="the stream is held back")
    assert await made.source.migration_status() == "active"
    await made.source.query("migrate-set-parameters", {"max-bandwidth": 1 << 30})
    await runs_again(lab, made.source)


@pytest.mark.parametrize(
    "stream", ["flows", "stands-still", pytest.param("never-begins", marks=pytest.mark.matrix)]
)
@pytest.mark.parametrize("channels", [pytest.param(0, marks=pytest.mark.matrix), 4], ids=["one", "channels"])
async def test_guest_that_its_controller_had_stopped_goes_on_whatever_its_stream_does(
    pair: MakePair, lab: Lab, each_qemu: Path, local: HostGuard, channels: int, stream: str
) -> None:
    made = await pair((each_qemu, each_qemu), machine=replace(LARGE, uuid=uuid4()))
    async with begun(made, {"max-bandwidth": 16 << 20}, channels=channels, stopped=True) as monitor:
        if stream == "never-begins":
            made.destination.sigstop()
        local.guard("a", request(made, stopped=True))
        assert await local.start() == ""
        if stream != "never-begins":
            await copies(made.source)
        if stream == "stands-still":
            # A channel that cannot send has QEMU wait for as long as the connection lasts.
            made.destination.sigstop()
            await monitor.execute("migrate-set-parameters", {"max-bandwidth": 1 << 30})
            await no_more_is_sent(made.source)
        assert await local.leave("a")
    await runs_again(lab, made.source)


@pytest.mark.parametrize("why", ["released", "driven by another", "past the switch"])
async def test_it_touches_nothing_that_is_not_its_to_touch(
    pair: MakePair, lab: Lab, one_version: Path, local: HostGuard, why: str
) -> None:
    made = await pair((one_version, one_version))
    async with begun(made) as monitor:
        local.guard("a", request(made))
        await local.start()
        await at_switch(made.source)
        if why == "released":
            assert await local.release("a")
        elif why == "driven by another":
            other = {"path": "/objects/migrator-driver", "property": "identity"}
            await monitor.execute("qom-set", {**other, "value": json.dumps({"token": "another"})})
        else:
            await monitor.execute("migrate-continue", {"state": "pre-switchover"})
            await past_switch(made.source)
        await local.leave("a")
    before = "completed" if why == "past the switch" else "pre-switchover"

    async def as_it_was() -> bool:
        return await made.source.migration_status() == before

    await until(as_it_was, what=before)
    if why != "released":
        await until(lambda: not threads(local), what="the guard has looked")
    assert await as_it_was()
    assert await lab.counting(0.2, at_least=0) == []


def threads(local: HostGuard) -> bool:
    """Whether it still looks after a guest."""
    process: Any = local._process
    return len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 1


@pytest.mark.parametrize("postcopy", [False, True], ids=["precopy", "postcopy"])
async def test_controller_that_is_there_finishes_with_a_guard_beside_it(
    pair: MakePair, lab: Lab, one_version: Path, local: HostGuard, postcopy: bool
) -> None:
    made = await pair((one_version, one_version), habit=BUSY)
    driver = Driver(token="ours", controller="under-test", who="a test")
    source, destination = (
        Endpoint(Address(kind="unix", path=str(end.qmp)), role=role, driver=driver, guard_process=local)
        for end, role in ((made.source, "source"), (made.destination, "destination"))
    )
    await asyncio.gather(source.connect(), destination.connect(), local.start())
    states: list[State] = []
    policy = builtin("gentle").but(
        postcopy=PostcopyMode.ALLOW if postcopy else PostcopyMode.NEVER,
        max_bandwidth_bytes_per_second=(48 if postcopy else 400) << 20,
        max_downtime_seconds=2.0,
    )
    migration = MigrationDriver(
        name="m1",
        source=source,
        destination=destination,
        policy=policy,
        listen="tcp:127.0.0.1:0",
        record=FileRecord("m1"),
        on_status=lambda status: states.append(status.state),
    )
    await migration.check()
    running = asyncio.create_task(migration.run())
    if postcopy:
        await until(lambda: State.PRECOPY in states, what="it copies")
        assert migration.postcopy()
    result = await asyncio.wait_for(running, 60)
    assert (result.state, result.mode) == (State.COMPLETED, Mode.POSTCOPY if postcopy else Mode.PRECOPY)
    assert await lab.counting() == [made.destination]
    await asyncio.gather(source.close(), destination.close())


@pytest.mark.parametrize(
    "sent", [b"", b"1", b"100\n", b"100\nimport os"], ids=["none", "length", "line", "part"]
)
def test_guard_that_was_not_told_all_of_its_program_ends_with_its_controller(sent: bytes) -> None:
    command = [sys.executable, "-I", "-S", "-c", guard.PROGRAM]
    assert subprocess.run(command, input=sent, timeout=20, check=False).returncode == 0


KILLED = """
import asyncio, sys
from pathlib import Path
from migrator.hosts.guard import HostGuard
from migrator.hosts.local import LocalAccess
from migrator.qemu import guard
from migrator.testing.raw_qmp import RawMonitor

async def main():
    text = Path(guard.__file__).read_text()
    mine = HostGuard(
        LocalAccess("here"), python=(sys.executable, "-I"), program=guard.PROGRAM, text=text, silence_seconds=None
    )
    async with RawMonitor(Path(sys.argv[1])):
        mine.guard("a", {"socket": sys.argv[1], "token": "ours", "migration": "m1"})
        await mine.start()
        print("guarded", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_controller_that_is_killed_leaves_no_guest_standing(
    pair: MakePair, lab: Lab, each_qemu: Path
) -> None:
    made = await pair((each_qemu, each_qemu))
    async with begun(made, {"max-bandwidth": 64 << 20}):
        pass
    controller = subprocess.Popen(
        [sys.executable, "-c", KILLED, made.source.qmp], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    with controller:
        assert controller.stdout is not None
        assert await asyncio.to_thread(controller.stdout.readline) == b"guarded\n"
        await at_switch(made.source)
        controller.kill()
        await runs_again(lab, made.source)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A host alpha with an sshd, and the controller on a host of its own."""
    if reason := network.possible():
        missing(reason)
    with (
        LabHosts("alpha", "control", isolated=True) as hosts,
        Sshd(tmp_path / "alpha", address=hosts["alpha"].address, prefix=hosts["alpha"].prefix) as sshd,
        inside(hosts["control"].namespace),
    ):
        yield SimpleNamespace(hosts=hosts, sshd=sshd)


@pytest.mark.parametrize("rescue", [False, True], ids=["freed", "rescue"])
@pytest.mark.parametrize("how", ["link", "connection"])
async def test_controller_that_is_cut_off_leaves_no_guest_standing(
    world: SimpleNamespace, lab: Lab, pair: MakePair, one_version: Path, how: str, rescue: bool
) -> None:
    prefix = world.hosts["alpha"].prefix
    made = await pair((one_version, one_version), source_prefix=prefix, destination_prefix=prefix)
    access = SshAccess("alpha", world.sshd.config(keepalive_seconds=0.4))
    guarding = host_guard(access, silence=0.5)
    try:
        more = {"rescue": str(made.source.rescue)} if rescue else {}
        guarding.guard("a", request(made, **more))
        assert await guarding.start() == ""
        async with begun(made):
            pass
        # The way of the controller's own session, which nobody frees but the guard.
        async with RawMonitor(Path(await access.forward(str(made.source.qmp)))):
            await at_switch(made.source)
            if how == "link":
                world.hosts["control"].link_down()
            else:
                for pid in world.sshd.sessions():
                    kill(pid)
            await runs_again(lab, made.source)
            world.hosts["control"].heal()
    finally:
        await guarding.close()
        await access.close()


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def test_host_without_python3_has_no_guard(world: SimpleNamespace) -> None:
    access = SshAccess("alpha", world.sshd.config())
    without = HostGuard(access, python=("no-python3-there",), program="", text="", silence_seconds=0.5)
    try:
        assert await without.start() == "install python3 there"
    finally:
        await without.close()
        await access.close()


class Heard:
    """A coprocess that hears what a guard is told, with when."""

    pid = 0

    def __init__(self) -> None:
        self.told: list[tuple[float, bytes]] = []
        self._over = asyncio.Event()

    @property
    async def lines(self) -> AsyncIterator[bytes]:
        await self._over.wait()
        yield b""

    def write(self, data: bytes) -> None:
        self.told.append((asyncio.get_running_loop().time(), data))

    async def exit_status(self) -> int:
        return 0

    def close(self) -> None:
        self._over.set()


class HeardHost:
    name = "heard"

    def __init__(self, heard: Heard) -> None:
        self._heard = heard

    async def coprocess(self, command: object) -> Heard:
        return self._heard


async def test_controller_gives_more_signs_of_life_while_a_guest_is_near_its_switch() -> None:
    heard = Heard()
    host: Any = HeardHost(heard)
    guarding = host_guard(host, silence=0.65)
    guarding.guard("a", {})
    try:

        async def beats(within: float) -> bool:
            at = [when for when, data in heard.told if data == b"\n"][-4:]
            return len(at) == 4 and at[-1] - at[0] < 3 * within

        await until(lambda: len(heard.told) > 6, what="signs of life")
        assert not await beats(0.1)
        guarding.near("a", True)
        assert heard.told[-1][1] == b'{"do": "silence", "seconds": 0.4}\n'
        await until(lambda: beats(0.1), what="more signs of life")
        guarding.release_soon("a")
        assert heard.told[-2][1] == b'{"do": "silence", "seconds": 0.65}\n'
    finally:
        await guarding.close()


async def test_many_hosts_get_signs_of_life_more_seldom_and_are_told_so_before() -> None:
    pace, heard = GuardPace(), Heard()
    host: Any = HeardHost(heard)
    guarding = host_guard(host, silence=0.65, pace=pace)
    guarding.guard("a", {})
    try:
        await until(lambda: len(heard.told) > 4, what="signs of life")
        pace.guards += 599
        silence = b'{"do": "silence", "seconds": 1.3}\n'
        await until(lambda: heard.told[-2][1] == silence, what="a longer silence, and a sign of life")
        assert heard.told[-1][0] - heard.told[-2][0] > 0.25
        guarding.near("a", True)
        assert heard.told[-1][1] == b'{"do": "silence", "seconds": 0.4}\n'
    finally:
        await guarding.close()
