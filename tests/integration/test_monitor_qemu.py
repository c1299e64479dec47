"""The QMP adapter on real QEMU: every kind of address, a QEMU that does not answer, and which process it is."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from migrator.core.model import MigrationStatus, ProcessState, RunState
from migrator.errors import MigratorError, Occupied, TimedOut, Unreachable
from migrator.ports import Tuning
from migrator.qemu import features
from migrator.qemu.address import Address, parse
from migrator.qemu.endpoint import Endpoint
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, Pair, RawMonitor, until


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    yield
    assert asyncio.all_tasks() - {asyncio.current_task()} == set()


@pytest.fixture
async def ends() -> AsyncIterator[list[Endpoint]]:
    """Those made with :func:`end_at`, closed in the end."""
    made: list[Endpoint] = []
    yield made
    for end in made:
        await end.close()


EndAt = Callable[..., Endpoint]


@pytest.fixture
def end_at(ends: list[Endpoint]) -> EndAt:
    """``end_at(qemu)`` or ``end_at("tcp:127.0.0.1:4444", tls=…)``."""

    def make(where: LabQemu | str, **how: object) -> Endpoint:
        address = parse(where) if isinstance(where, str) else Address(kind="unix", path=str(where.qmp))
        ends.append(Endpoint(address, role="source", **how))  # type: ignore[arg-type]
        return ends[-1]

    return make


def listening_at(qemu: LabQemu, chardev: str) -> int:
    """The port of a monitor that was given port 0."""
    for line in Path(f"/proc/{qemu.pid}/net/tcp").read_text().splitlines() + _tcp6(qemu):
        fields = line.split()
        if fields[3] == "0A" and _owns(qemu, fields[9]):
            return int(fields[1].rpartition(":")[2], 16)
    raise AssertionError(f"{chardev} of {qemu!r} does not listen")


def _tcp6(qemu: LabQemu) -> list[str]:
    path = Path(f"/proc/{qemu.pid}/net/tcp6")
    return path.read_text().splitlines() if path.exists() else []


def _owns(qemu: LabQemu, inode: str) -> bool:
    links = (path.readlink() for path in Path(f"/proc/{qemu.pid}/fd").iterdir())
    return Path(f"socket:[{inode}]") in links


def monitor_at(host: str, *more: str) -> tuple[str, ...]:
    """Options for one more monitor, at any port of an address."""
    listen = ",".join(["socket,id=extra", f"host={host}", "port=0", "server=on", "wait=off", *more])
    return ("-chardev", listen, "-mon", "chardev=extra,mode=control")


def has_ipv6() -> bool:
    try:
        with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)):
            return True
    except OSError:
        return False


class TestAddress:
    async def test_unix_tells_the_process(self, lab: Lab, each_qemu: Path, end_at: EndAt) -> None:
        qemu = await lab.start(binary=each_qemu)
        end = end_at(qemu)
        await end.connect()
        assert end.identity["pid"] == qemu.pid
        assert end.shares_clock
        view = await end.observe()
        assert (view.answers, view.process, view.can_fence) == (True, ProcessState.ALIVE, True)
        assert (await end.facts()).version.startswith(qemu.binary.parent.name.partition("-")[2] or "7.2")

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    async def test_tcp_answers_and_tells_no_process(self, lab: Lab, end_at: EndAt, host: str) -> None:
        if host == "::1" and not has_ipv6():
            pytest.skip("there is no IPv6 on loopback here")
        qemu = await lab.start(extra=monitor_at(host))
        port = listening_at(qemu, "extra")
        end = end_at(f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}")
        await end.connect()
        view = await end.observe()
        assert (view.answers, view.run) == (True, RunState.RUNNING)
        assert (view.process, view.can_fence, end.shares_clock) == (ProcessState.UNKNOWN, False, False)

    async def test_tcp_with_a_pid_can_fence(self, lab: Lab, end_at: EndAt) -> None:
        qemu = await lab.start(extra=monitor_at("127.0.0.1"))
        end = end_at(f"tcp:127.0.0.1:{listening_at(qemu, 'extra')}", pid=qemu.pid)
        await end.connect()
        assert (await end.observe()).can_fence
        assert await end.fence()
        assert (await end.observe()).process is ProcessState.DEAD
        assert await qemu.wait_dead() == -signal.SIGKILL

    async def test_of_a_monitor_that_another_holds_is_occupied_and_free_again_later(
        self, lab: Lab, one_version: Path, end_at: EndAt
    ) -> None:
        qemu = await lab.start(binary=one_version)
        end = end_at(qemu)
        async with RawMonitor(qemu.qmp):
            with pytest.raises(Occupied, match="another client holds this monitor"):
                await end.connect(timeout=0.2)
            view = await end.observe(timeout=0.1)
            # The process behind the socket is known even so, and can be killed.
            assert (view.answers, view.process, view.can_fence) == (False, ProcessState.ALIVE, True)

        async def answers() -> bool:
            return (await end.observe()).answers

        await until(answers, what="an answer")

    async def test_of_a_monitor_with_a_full_queue_of_clients_is_unreachable(
        self, lab: Lab, end_at: EndAt
    ) -> None:
        qemu = await lab.start()
        waiting = []
        try:
            for _ in range(8):
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(str(qemu.qmp))
            with pytest.raises(Unreachable):
                await end_at(qemu).connect(timeout=0.2)
        finally:
            for each in waiting:
                each.close()


@contextmanager
def daemonized(binary: Path, directory: Path) -> Iterator[int]:
    """A QEMU that put itself into the background: its pid."""
    qmp, pidfile = directory / "daemon.qmp", directory / "daemon.pid"
    options = ["-daemonize", "-pidfile", str(pidfile), "-qmp", f"unix:{qmp},server=on,wait=off"]
    options += ["-nodefaults", "-display", "none", "-machine", "none", "-S"]
    subprocess.run([binary, *options], check=True, timeout=30, stdin=subprocess.DEVNULL)
    pid = int(pidfile.read_text())
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)


class TestProcess:
    async def test_that_daemonized_is_known_by_its_socket(
        self, lab: Lab, one_version: Path, end_at: EndAt
    ) -> None:
        with daemonized(one_version, lab.directory) as pid:
            end = end_at(f"unix:{lab.directory / 'daemon.qmp'}")
            await end.connect()
            assert end.identity["pid"] == pid

    async def test_killed_is_dead_at_once(self, lab: Lab, end_at: EndAt) -> None:
        qemu = await lab.start()
        end = end_at(qemu)
        await end.connect()
        qemu.kill()
        await qemu.wait_dead()
        view = await end.observe()
        assert (view.process, view.ended) == (ProcessState.DEAD, False)

    async def test_whose_guest_powered_off_has_ended(
        self, lab: Lab, one_version: Path, end_at: EndAt
    ) -> None:
        qemu = await lab.boot(binary=one_version)
        end = end_at(qemu)
        await end.connect()
        await qemu.query("system_powerdown")
        await qemu.wait_dead()

        async def ended() -> bool:
            return (await end.observe()).ended

        await until(ended, what="word of its end")
        assert (await end.observe()).process is ProcessState.DEAD

    async def test_that_quits_is_seen_dead_and_a_frozen_one_is_killed(self, lab: Lab, end_at: EndAt) -> None:
        quits, frozen = await lab.start(), await lab.start()
        for qemu, status, patience in ((quits, 0, 20.0), (frozen, -signal.SIGKILL, 0.6)):
            end = end_at(qemu)
            await end.connect()
            if qemu is frozen:
                qemu.sigstop()
            assert await end.quit(timeout=patience)
            assert await qemu.wait_dead() == status
            assert not (await end.observe()).ended

    async def test_in_the_place_of_the_one_on_record_is_not_taken_for_it(
        self, lab: Lab, end_at: EndAt
    ) -> None:
        first, second = await lab.start(), await lab.start()
        one, other = end_at(first), end_at(second)
        await one.connect()
        identity = dict(one.identity)
        first.kill()
        await first.wait_dead()
        await other.connect()
        with pytest.raises(MigratorError, match=r"another process .* answers there than the one"):
            other.expect_process(identity)

    async def test_has_its_last_words_heard(self, lab: Lab, end_at: EndAt) -> None:
        qemu = await lab.start(incoming=True)
        end = end_at(qemu)
        await end.connect()
        before = end.stderr_tail()
        with qemu.log.open("a") as log:
            log.write("qemu-system-x86_64: something is wrong\n")
        assert (before, end.stderr_tail()) == ("", "qemu-system-x86_64: something is wrong")


class TestSilence:
    async def test_of_a_frozen_qemu_is_told_quickly_and_ends_with_it(
        self, lab: Lab, one_version: Path, end_at: EndAt
    ) -> None:
        qemu = await lab.start(binary=one_version)
        end = end_at(qemu)
        await end.connect()
        qemu.sigstop()
        began = time.monotonic()
        for _ in range(5):
            view = await end.observe(timeout=0.05)
            assert (view.answers, view.process) == (False, ProcessState.ALIVE)
        assert time.monotonic() - began < 4
        qemu.sigcont()
        view = await end.observe(timeout=5)
        assert (view.answers, view.run) == (True, RunState.RUNNING)

    async def test_of_one_frozen_before_it_greets_ends_too(self, lab: Lab, end_at: EndAt) -> None:
        qemu = await lab.start()
        end = end_at(qemu)
        qemu.sigstop()
        view = await end.observe(timeout=0.1)
        assert (view.answers, view.process) == (False, ProcessState.ALIVE)
        qemu.sigcont()

        async def answers() -> bool:
            return (await end.observe()).answers

        await until(answers, what="an answer")

    async def test_does_not_withdraw_a_command_and_the_next_look_shows_it(
        self, lab: Lab, one_version: Path, end_at: EndAt
    ) -> None:
        qemu = await lab.start(binary=one_version)
        end = end_at(qemu)
        await end.connect()
        qemu.sigstop()
        with pytest.raises(
            TimedOut, match=r"stop was not answered within 0.1 s and may still be carried out"
        ):
            await end._monitor.execute("stop", timeout=0.1)
        assert not (await end.observe(timeout=0.05)).answers
        qemu.sigcont()
        assert (await end.observe(timeout=5)).run is RunState.PAUSED

    async def test_of_a_blocked_main_loop_is_broken_by_a_yank(
        self, lab: Lab, one_version: Path, end_at: EndAt
    ) -> None:
        # In the switch the source has more to send than the network holds, to a destination that does not take it: its
        # main loop waits with it, and only out of band it hears.
        busy = GuestMachine(habit=Habit(region_bytes=48 << 20))
        pair = await lab.pair(busy, source=one_version, destination=one_version)
        end = end_at(pair.source)
        await end.connect()
        await in_the_switch_with_a_frozen_destination(pair, end)

        async def blocked() -> bool:
            return not (await end.observe(timeout=0.2)).answers

        await until(blocked, what="a blocked main loop")
        await end.cancel()

        async def runs() -> bool:
            return (await end.observe()).run is RunState.RUNNING

        await until(runs, what="the guest at the source")
        assert (await end.observe()).status in (MigrationStatus.FAILED, MigrationStatus.CANCELLED)
        await pair.source.wait_beating()


async def in_the_switch_with_a_frozen_destination(pair: Pair, source: Endpoint) -> None:
    wanted = {"return-path": True, "pause-before-switchover": True, "events": True}
    async with RawMonitor(pair.destination.qmp) as monitor:
        capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
        await monitor.execute("migrate-set-capabilities", capabilities=capabilities)
        await monitor.execute("migrate-incoming", uri="tcp:127.0.0.1:0")
        (listening,) = (await monitor.execute("query-migrate"))["socket-address"]
    await source.enable(wanted)
    await source.tune(Tuning(max_bandwidth_bytes_per_second=1 << 40, downtime_limit_seconds=1000))
    await source.migrate(f"tcp:127.0.0.1:{listening['port']}")

    async def reaches(status: MigrationStatus) -> None:
        async def shows() -> bool:
            return (await source.observe()).status is status

        await until(shows, what=str(status))

    await reaches(MigrationStatus.PRE_SWITCHOVER)
    pair.destination.sigstop()
    await source.switch()


class TestFeatures:
    async def test_are_found_by_introspection(
        self, lab: Lab, qemu_binary: Callable[[str], Path], end_at: EndAt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(lab.directory / "cache"))
        for version, known in (("7.2", False), ("10.0", True)):
            end = end_at(await lab.start(binary=qemu_binary(version)))
            await end.connect()
            for _ in range(2):
                found = await features.read(end._monitor, version)
                assert found.takes("migrate-incoming", "exit-on-error") is known
                assert found.takes("migrate", "uri")

    async def test_of_the_same_binary_are_asked_for_once(
        self, lab: Lab, end_at: EndAt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(lab.directory / "cache"))
        kept = []
        for _ in range(2):
            end = end_at(await lab.start(incoming=True))
            await end.connect()
            assert (await end.listen("tcp:127.0.0.1:0")).startswith("tcp:127.0.0.1:")
            kept += [path.stat().st_ino for path in (lab.directory / "cache" / "migrator").iterdir()]
        # Were it written again, it would be another file.
        assert len(kept) == 2
        assert len(set(kept)) == 1


class TestTls:
    @pytest.fixture
    def keys(self, lab: Lab) -> Path:
        """A directory of keys as QEMU reads it, with a client's pair too; and one of a stranger."""
        for name in ("ours", "stranger"):
            make_keys(lab.directory / name)
        return lab.directory / "ours"

    async def serve(self, lab: Lab, keys: Path, binary: Path | None = None) -> str:
        credentials = f"tls-creds-x509,id=tls0,dir={keys},endpoint=server,verify-peer=on"
        extra = ("-object", credentials, *monitor_at("127.0.0.1", "tls-creds=tls0"))
        qemu = await lab.start(extra=extra, binary=binary)
        return f"tls:127.0.0.1:{listening_at(qemu, 'extra')}"

    def context(self, keys: Path, *, client: Path | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=keys / "ca-cert.pem")
        if client is not None:
            context.load_cert_chain(client / "client-cert.pem", client / "client-key.pem")
        return context

    async def test_answers_with_our_key(self, lab: Lab, one_version: Path, keys: Path, end_at: EndAt) -> None:
        where = await self.serve(lab, keys, one_version)
        end = end_at(where, tls=self.context(keys, client=keys))
        await end.connect()
        for _ in range(5):
            assert (await end.observe()).answers
        assert (await end.facts()).disks
        assert (await features.read(end._monitor, "")).takes("migrate", "uri")
        await end.stop()
        assert (await end.observe()).run is RunState.PAUSED

    async def test_refuses_who_has_no_key(self, lab: Lab, keys: Path, end_at: EndAt) -> None:
        where = await self.serve(lab, keys)
        with pytest.raises(Unreachable, match="--tls-cert, --tls-key"):
            await end_at(where, tls=self.context(keys, client=None)).connect(timeout=2)

    async def test_is_refused_by_whom_it_is_unknown_to(self, lab: Lab, keys: Path, end_at: EndAt) -> None:
        where = await self.serve(lab, keys)
        stranger = keys.with_name("stranger")
        with pytest.raises(Unreachable, match=r"certificate verify failed.*--tls-ca"):
            await end_at(where, tls=self.context(stranger, client=keys)).connect(timeout=2)

    async def test_is_not_spoken_by_a_plain_monitor(self, lab: Lab, keys: Path, end_at: EndAt) -> None:
        qemu = await lab.start(extra=monitor_at("127.0.0.1"))
        end = end_at(f"tls:127.0.0.1:{listening_at(qemu, 'extra')}", tls=self.context(keys, client=keys))
        with pytest.raises(Unreachable):
            await end.connect(timeout=2)


def make_keys(directory: Path) -> None:
    """An authority, and keys of a server at 127.0.0.1 and of a client that it has signed."""
    directory.mkdir()

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True, timeout=60)

    new = (
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    )
    openssl(*new, "-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-subj", "/CN=authority of a test")
    for name, use in (("server", "serverAuth"), ("client", "clientAuth")):
        (directory / "extensions").write_text(f"subjectAltName=IP:127.0.0.1\nextendedKeyUsage={use}\n")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl(
            "req", *key, "-keyout", f"{name}-key.pem", "-out", "request", "-subj", f"/CN={name} of a test"
        )
        authority = ("-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2")
        openssl(
            "x509", "-req", "-in", "request", *authority, "-extfile", "extensions", "-out", f"{name}-cert.pem"
        )
