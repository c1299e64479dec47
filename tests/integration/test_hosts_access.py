"""What every way to a host promises: on this machine, in a network namespace, over SSH."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.errors import HostError
from migrator.hosts import process_watch, remote_process
from migrator.hosts.access import HostAccess
from migrator.hosts.host_config import HostConfig, access
from migrator.hosts.local import MAX_OUTPUT_BYTES, LocalAccess
from migrator.hosts.private_directory import PrivateDirectory
from migrator.hosts.ssh import SshAccess
from migrator.machine import LocalProcess, boot_id
from migrator.testing import network
from migrator.testing.lab import Lab, until
from migrator.testing.network import LabHosts, inside
from tests.conftest import missing
from tests.sshd import Sshd, ended

AWKWARD = [
    "plain",
    "",
    "a b",
    "a'b",
    'a"b',
    "$(touch EVIL)",
    "`touch EVIL`",
    "; touch EVIL",
    "two\nlines\n",
    "~",
    "*",
    "-n",
    "!x",
    "\\",
    "ünïcode",
    "\udcff\udc80",
]


#: Of the distribution.
SYSTEM_QEMU = Path("/usr/bin/qemu-system-x86_64")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A host ``alpha`` with an sshd, seen from another."""
    if reason := network.possible():
        missing(reason)
    with LabHosts("alpha", "control", isolated=True) as hosts:
        alpha = hosts["alpha"]
        sshd = Sshd(tmp_path / "sshd", address=alpha.address, prefix=alpha.prefix)
        with sshd, inside(hosts["control"].namespace):
            yield SimpleNamespace(hosts=hosts, sshd=sshd)


@pytest.fixture
async def remote(site: SimpleNamespace) -> AsyncIterator[SshAccess]:
    made = SshAccess("alpha", site.sshd.config(connect_seconds=1.0, keepalive_seconds=0.3))
    yield made
    await made.close()
    assert asyncio.all_tasks() - {asyncio.current_task()} == set()


@pytest.fixture(params=["local", pytest.param("namespace", marks=pytest.mark.matrix), "ssh"])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[HostAccess]:
    if request.param == "local":
        made = access(HostConfig(name="here"))
    elif request.param == "namespace":
        site = request.getfixturevalue("site")
        made = access(HostConfig(name="there", prefix=site.hosts["alpha"].prefix))
    else:
        site = request.getfixturevalue("site")
        made = access(HostConfig(name="there", ssh=site.sshd.config(keepalive_seconds=0.3)))
    yield made
    await made.close()
    assert asyncio.all_tasks() - {asyncio.current_task()} == set()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "3600"])
    yield process
    process.kill()
    process.wait(timeout=10)


def mark() -> str:
    """An argument by which a process of this test is found."""
    return f"3600.{os.getpid()}{os.urandom(4).hex().translate(str.maketrans('abcdef', '012345'))}"


def running(word: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[:2] == [b"sleep", word.encode()]:
                found.append(int(path.parent.name))
        except OSError:
            pass  # it has ended
    return [pid for pid in found if not ended(pid)]


class TestCommand:
    async def test_gives_back_all_that_it_said(self, host: HostAccess) -> None:
        output = await host.run(["sh", "-c", "cat; echo no >&2; exit 3"], stdin=b"\0\xff\n")
        assert (output.status, output.stdout, output.stderr) == (3, b"\0\xff\n", b"no\n")
        assert output.complaint == "no"

    async def test_is_never_read_by_a_shell(self, host: HostAccess, tmp_path: Path) -> None:
        output = await host.run(["sh", "-c", 'cd "$0" && printf "%s\\0" "$@"', str(tmp_path), *AWKWARD])
        assert os.fsdecode(output.stdout).split("\0")[:-1] == AWKWARD
        for word in AWKWARD:
            output = await host.run(["printf", "%s|", word])
            assert output.text == word + "|"
        assert not list(Path.cwd().glob("EVIL"))
        assert not list(Path.home().glob("EVIL"))

    async def test_is_told_no_secret_of_ours(self, host: HostAccess, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("MIGRATOR_MQTT_PASSWORD", "MIGRATOR_TOKEN", "NOTIFY_SOCKET", "WHATEVER"):
            monkeypatch.setenv(name, "hush")
        monkeypatch.setenv("LC_TIME", "C")
        said = (await host.run(["env"])).text.splitlines()
        assert not [line for line in said if "hush" in line]
        assert any(line.startswith("PATH=") for line in said)

    async def test_that_is_not_there(self, host: HostAccess) -> None:
        output = await host.run(["no such program"])
        assert output.status == 127
        assert "no such program" in output.complaint

    async def test_that_a_signal_ended(self, host: HostAccess) -> None:
        assert (await host.run(["sh", "-c", "kill -9 $$"])).status == -signal.SIGKILL

    async def test_takes_much_input_and_gives_much_output(self, host: HostAccess) -> None:
        much = os.urandom(1 << 20) * 3
        assert (await host.run(["cat"], stdin=much)).stdout == much

    async def test_that_does_not_read_its_input(self, host: HostAccess) -> None:
        assert (await host.run(["true"], stdin=bytes(3 << 20))).status == 0

    async def test_that_does_not_end_is_killed_with_its_children(self, host: HostAccess) -> None:
        word = mark()
        with pytest.raises(HostError, match=rf"host {host.name}: sh did not end within 0\.5 s"):
            await host.run(["sh", "-c", f"sleep {word} & sleep {word}"], timeout=0.5)
        await until(lambda: not running(word), what="the end of both", within=20)

    async def test_whose_caller_went_away_is_killed(self, host: HostAccess) -> None:
        word = mark()
        task = asyncio.create_task(host.run(["sleep", word]))
        await until(lambda: running(word), what="its start", within=20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not running(word), what="its end", within=20)

    async def test_whose_caller_went_away_while_it_began_is_killed(self, remote: SshAccess) -> None:
        """Its server may have begun it before that is known here."""
        assert (await remote.run(["true"])).status == 0
        words = []
        for pause in range(12):
            words.append(mark())
            task = asyncio.create_task(remote.run(["sleep", words[-1]]))
            await asyncio.sleep(pause / 500)  # somewhere between the request and the answer to it
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
        await until(lambda: not remote._killing, what="the end of the killing", within=20)
        # A signal was sent to each; that it is obeyed takes the kernel a moment.
        await until(lambda: not any(running(word) for word in words), what="the end of all", within=20)

    async def test_that_leaves_a_daemon_has_ended(self, host: HostAccess) -> None:
        word = mark()
        try:
            output = await host.run(["sh", "-c", f"setsid sleep {word} & echo started"])
            assert output.stdout == b"started\n"
            await until(lambda: running(word), what="the daemon", within=20)
        finally:
            for pid in running(word):
                os.kill(pid, signal.SIGKILL)

    async def test_that_never_stops_talking_is_killed(self, host: HostAccess) -> None:
        with pytest.raises(HostError, match=f"wrote more than {MAX_OUTPUT_BYTES >> 20} MiB"):
            await host.run(["cat", "/dev/zero"], timeout=20)

    async def test_with_a_nul_is_refused(self, host: HostAccess) -> None:
        with pytest.raises(HostError, match="cannot be started"):
            await host.run(["echo", "a\0b"])

    async def test_many_at_a_time(self, host: HostAccess) -> None:
        outputs = await asyncio.gather(*(host.run(["sh", "-c", f"sleep 0.01; echo {n}"]) for n in range(30)))
        assert [int(output.stdout) for output in outputs] == list(range(30))


class TestProcess:
    async def test_that_is_not_there(self, host: HostAccess, sleeper: subprocess.Popen[bytes]) -> None:
        sleeper.kill()
        sleeper.wait(timeout=10)
        assert await host.process(sleeper.pid) is None

    async def test_is_what_it_is_on_its_machine(
        self, host: HostAccess, sleeper: subprocess.Popen[bytes]
    ) -> None:
        process = await host.process(sleeper.pid)
        assert process is not None
        local = LocalProcess(sleeper.pid)
        assert process.identity == local.identity == {**process.identity, "boot_id": boot_id()}
        assert process.arguments() == ["sleep", "3600"]
        assert (process.alive, process.is_qemu) == (True, False)
        assert process.binary_identity()
        local.close()
        process.close()

    async def test_qemu_is_known_as_one(self, host: HostAccess, lab: Lab) -> None:
        qemu = await lab.start()
        process = await host.process(qemu.pid)
        assert process is not None
        assert process.is_qemu
        assert process.arguments()[0] == str(qemu.binary)
        process.close()

    async def test_qemu_by_another_name_is_known_as_one(
        self, host: HostAccess, lab: Lab, tmp_path: Path
    ) -> None:
        program = tmp_path / "hypervisor"
        shutil.copy(SYSTEM_QEMU, program)
        modules = "QEMU_MODULE_DIR=/usr/lib/x86_64-linux-gnu/qemu"
        qemu = await lab.start(binary=program, prefix=("env", modules), extra=("-L", "/usr/share/seabios"))
        process = await host.process(qemu.pid)
        assert process is not None
        assert process.is_qemu
        process.close()

    async def test_whose_name_would_lead_astray(self, host: HostAccess, tmp_path: Path) -> None:
        program = tmp_path / ") S 1 1\n) Z 1"
        program.symlink_to("/bin/sleep")
        child = subprocess.Popen([program, "3600"])
        try:
            process = await host.process(child.pid)
            assert process is not None
            assert process.identity["pid"] == child.pid
            assert not await process.wait_dead(0.3)
            assert process.alive
            assert await process.kill(5)
        finally:
            child.kill()
            child.wait(timeout=10)

    async def test_end_is_noticed(self, host: HostAccess, sleeper: subprocess.Popen[bytes]) -> None:
        process = await host.process(sleeper.pid)
        assert process is not None
        assert not await process.wait_dead(0.3)
        sleeper.kill()  # and nobody reaps it: a zombie is dead
        assert await process.wait_dead(5)
        assert process.alive is False
        assert await process.kill(1)
        process.close()

    async def test_is_killed_and_seen_dead(self, host: HostAccess, sleeper: subprocess.Popen[bytes]) -> None:
        process = await host.process(sleeper.pid)
        assert process is not None
        os.kill(sleeper.pid, signal.SIGSTOP)
        assert await process.kill(5)
        assert process.alive is False
        assert ended(sleeper.pid)
        process.close()

    async def test_last_words(self, host: HostAccess, tmp_path: Path) -> None:
        log = tmp_path / "log $(touch EVIL)"
        log.write_text("before\n")
        with log.open("ab") as file:
            child = subprocess.Popen(
                ["sh", "-c", "read x; echo 'device  a: b' >&2; echo \"it's over\" >&2"],
                stdin=subprocess.PIPE,
                stderr=file,
            )
        process = await host.process(child.pid)
        assert process is not None
        child.communicate(b"\n", timeout=10)
        assert await process.wait_dead(5)
        assert process.stderr_tail() == "device  a: b; it's over"
        process.close()

    async def test_several_are_watched_at_once(self, host: HostAccess) -> None:
        children = [subprocess.Popen(["sleep", "3600"]) for _ in range(12)]
        try:
            held = [await host.process(child.pid) for child in children]
            processes = [process for process in held if process is not None]
            assert len(processes) == 12
            for number, (child, process) in enumerate(zip(children, processes, strict=True)):
                if number % 2:
                    child.kill()
                    assert await process.wait_dead(5)
            assert [process.alive for process in processes] == [True, False] * 6
            # The watch holds one session, however many it watches.
            assert (await host.run(["true"])).status == 0
        finally:
            for child in children:
                child.kill()
                child.wait(timeout=10)
        for process in processes:
            assert await process.wait_dead(5)
            process.close()


class TestSocket:
    @pytest.mark.parametrize("name", ["plain", "a b'$(touch EVIL)\n\udcff"])
    async def test_leads_there(self, host: HostAccess, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fsencode(path))
            listener.listen()
            listener.setblocking(False)
            local = await host.forward(str(path))
            reader, writer = await asyncio.open_unix_connection(local)
            there, _ = await asyncio.get_running_loop().sock_accept(listener)
            with there:
                there.sendall(b"hello")
                assert await reader.readexactly(5) == b"hello"
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        assert await host.forward(str(path)) == local

    async def test_may_only_be_reached_by_us(self, remote: SshAccess, tmp_path: Path) -> None:
        local = Path(await remote.forward(str(tmp_path / "x")))
        assert local.parent.stat().st_mode & 0o777 == 0o700
        await remote.close()
        assert not local.parent.exists()

    async def test_of_a_controller_that_was_killed_is_removed_by_the_next(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        code = "from migrator.hosts.private_directory import PrivateDirectory as P; P(); print(flush=True); input()"
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        with child:
            assert child.stdout is not None
            child.stdout.readline()
            (theirs,) = tmp_path.iterdir()
            ours = PrivateDirectory()
            assert set(tmp_path.iterdir()) == {theirs, ours.path}
            child.kill()
            child.wait(timeout=10)
        ours.remove()
        last = PrivateDirectory()
        assert list(tmp_path.iterdir()) == [last.path]
        last.remove()
        assert list(tmp_path.iterdir()) == []

    async def test_many_are_forwarded_one_after_the_other(self, remote: SshAccess, tmp_path: Path) -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        locals_ = [await remote.forward(str(tmp_path / str(n))) for n in range(200)]
        assert len(set(locals_)) == 200
        assert len(list(Path("/proc/self/fd").iterdir())) < before + 80
        assert await remote.forward(str(tmp_path / "199")) == locals_[-1]


class TestSshConnection:
    async def test_is_opened_once(self, remote: SshAccess, site: SimpleNamespace) -> None:
        await asyncio.gather(*(remote.run(["true"]) for _ in range(10)))
        assert len(site.sshd.sessions()) == 1

    async def test_is_opened_again_after_it_was_lost(
        self, remote: SshAccess, site: SimpleNamespace, sleeper: subprocess.Popen[bytes]
    ) -> None:
        process = await remote.process(sleeper.pid)
        assert process is not None
        await until(lambda: process.alive, what="its watch")
        for _ in range(3):
            assert site.sshd.break_connections() == 1
            assert (await remote.run(["echo", "again"])).stdout == b"again\n"
        await until(lambda: process.alive, what="its watch to come back", within=8)
        sleeper.kill()
        assert await process.wait_dead(5)

    async def test_lost_while_a_command_runs(self, remote: SshAccess, site: SimpleNamespace) -> None:
        word = mark()
        task = asyncio.create_task(remote.run(["sleep", word]))
        await until(lambda: running(word), what="its start", within=20)
        assert site.sshd.break_connections() == 1
        with pytest.raises(HostError, match="lost"):
            await task
        for pid in running(word):
            os.kill(pid, signal.SIGKILL)

    async def test_what_is_watched_is_unknown_while_it_is_lost(
        self, remote: SshAccess, site: SimpleNamespace, sleeper: subprocess.Popen[bytes]
    ) -> None:
        process = await remote.process(sleeper.pid)
        assert process is not None
        site.sshd.stop()
        await until(lambda: process.alive is None, what="a process that nobody knows about", within=20)
        assert not await process.wait_dead(0.1)
        assert not await process.kill(0.5)
        assert not ended(sleeper.pid)
        sleeper.kill()
        sleeper.wait(timeout=10)
        assert process.alive is None, "no proof"
        site.sshd.start()
        assert await process.wait_dead(15)

    @pytest.mark.parametrize("trouble", ["exit 0", "exit 1", "exit 2", "exit 4", "exit 127"])
    async def test_process_of_which_nothing_is_known_is_not_taken_for_absent(
        self, remote: SshAccess, monkeypatch: pytest.MonkeyPatch, trouble: str
    ) -> None:
        monkeypatch.setattr(process_watch, "READ_PROCESS", trouble)
        with pytest.raises(HostError, match="cannot be looked at"):
            await remote.process(os.getpid())

    async def test_host_on_which_nothing_can_be_read_proves_nothing(
        self,
        remote: SshAccess,
        site: SimpleNamespace,
        sleeper: subprocess.Popen[bytes],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        process = await remote.process(sleeper.pid)
        assert process is not None
        # From now on no file can be opened in any command there, as when the host's table of files is full.
        for module, name in (
            (process_watch, "_WATCH"),
            (remote_process, "_KILL"),
            (process_watch, "READ_PROCESS"),
        ):
            monkeypatch.setattr(module, name, "ulimit -n 3; " + getattr(module, name))
        site.sshd.break_connections()
        with pytest.raises(HostError, match="cannot be looked at"):
            await remote.process(sleeper.pid)
        assert not await process.kill(0.5)
        assert not await process.wait_dead(1.0)
        assert process.alive is not False
        assert not ended(sleeper.pid)

    @pytest.mark.parametrize("watch", ["exit 2", "cat >/dev/null; : $@"], ids=["ends", "hangs"])
    async def test_watch_that_was_killed_is_begun_again(
        self,
        site: SimpleNamespace,
        sleeper: subprocess.Popen[bytes],
        monkeypatch: pytest.MonkeyPatch,
        watch: str,
    ) -> None:
        monkeypatch.setattr(process_watch, "_WATCH", watch)
        config = site.sshd.config(connect_seconds=1.0, keepalive_seconds=0.3)
        # One that ends is noticed at once; one that hangs by its silence.
        silence = {"watch_silence_seconds": 0.4} if watch != "exit 2" else {}
        remote = SshAccess("alpha", config, **silence)
        process = await remote.process(sleeper.pid)
        assert process is not None
        await until(lambda: process.alive is None, what="a watch that is missed", within=20)
        monkeypatch.undo()
        sleeper.kill()
        assert await process.wait_dead(10)
        await remote.close()

    async def test_leaves_no_watch_behind(
        self, remote: SshAccess, site: SimpleNamespace, sleeper: subprocess.Popen[bytes]
    ) -> None:
        def watches() -> list[str]:
            wanted = str(sleeper.pid).encode()
            lines = []
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    words = path.read_bytes().split(b"\0")
                except OSError:
                    continue
                if words[0].endswith(b"sh") and wanted in words and not ended(int(path.parent.name)):
                    lines.append(path.parent.name)
            return lines

        process = await remote.process(sleeper.pid)
        assert process is not None
        await until(watches, what="the watch", within=20)
        site.sshd.break_connections()
        await remote.close()
        await until(lambda: not watches(), what="the end of the watch", within=20)

    async def test_swallowed_by_the_network(
        self, remote: SshAccess, site: SimpleNamespace, sleeper: subprocess.Popen[bytes]
    ) -> None:
        process = await remote.process(sleeper.pid)
        assert process is not None
        site.hosts["alpha"].black_hole()
        with pytest.raises(HostError, match="did not end within"):
            await remote.run(["true"], timeout=0.5)
        await until(lambda: process.alive is None, what="keep-alive to give up", within=20)
        with pytest.raises(HostError):
            await remote.run(["true"], timeout=3)
        site.hosts["alpha"].heal()
        assert (await remote.run(["true"], timeout=20)).status == 0

    async def test_shell_that_talks_when_it_starts(
        self, tmp_path: Path, sleeper: subprocess.Popen[bytes]
    ) -> None:
        # $ENV and ~/.bashrc are read by some shells before a command: here somebody else's words come first.
        talk = tmp_path / "talk"
        talk.write_text('#!/bin/sh\nprintf "Welcome! 12"; echo hm >&2; exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
        talk.chmod(0o755)
        with Sshd(tmp_path / "talking", options=[f"ForceCommand {talk}"]) as sshd:
            made = SshAccess("talker", sshd.config())
            output = await made.run(["echo", "x"])
            assert (output.stdout, output.complaint) == (b"x\n", "hm")
            process = await made.process(sleeper.pid)
            assert process is not None
            assert process.identity["boot_id"] == boot_id()
            assert not await process.wait_dead(0.5)
            assert process.alive
            sleeper.kill()
            assert await process.wait_dead(5)
            await made.close()

    async def test_account_that_runs_nothing(self, tmp_path: Path) -> None:
        with Sshd(
            tmp_path / "closed", options=["ForceCommand echo 'This account is currently not available.'"]
        ) as sshd:
            made = SshAccess("closed", sshd.config())
            with pytest.raises(HostError, match="does not run our commands: This account is"):
                await made.run(["true"])
            with pytest.raises(HostError, match="does not run"):
                await made.process(os.getpid())
            await made.close()

    async def test_refused_port(self, site: SimpleNamespace) -> None:
        await self._fails(site, "refused", port=1)

    async def test_unknown_key(self, site: SimpleNamespace, tmp_path: Path) -> None:
        await self._fails(site, "ssh-keyscan", known_hosts=tmp_path / "nothing")

    async def test_other_key_than_the_known_one(self, site: SimpleNamespace) -> None:
        key, comment = site.sshd.host_key_line.split()[2], " ".join(site.sshd.host_key_line.split()[:2])
        other = (site.sshd.directory / "client.pub").read_text().split()[1]
        assert other != key
        site.sshd.known_hosts.write_text(f"{comment} {other}\n")
        await self._fails(site, f"ssh-keyscan {site.sshd.address} >> {site.sshd.known_hosts}")

    async def test_user_that_is_not_let_in(self, site: SimpleNamespace) -> None:
        await self._fails(site, "does not let user 'nobody' in", user="nobody")

    async def test_key_that_is_not_let_in(self, site: SimpleNamespace, tmp_path: Path) -> None:
        other = tmp_path / "other"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
        await self._fails(site, f"does not let user .* in with the key {other}", key=other)

    async def test_key_with_a_passphrase(self, site: SimpleNamespace, tmp_path: Path) -> None:
        other = tmp_path / "other"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", other], check=True)
        await self._fails(site, "passphrase", key=other)

    async def test_key_that_is_not_there(self, site: SimpleNamespace, tmp_path: Path) -> None:
        await self._fails(site, "nothing", key=tmp_path / "nothing")

    async def _fails(self, site: SimpleNamespace, match: str, **different: Any) -> None:
        made = SshAccess("alpha", site.sshd.config(connect_seconds=3.0, **different))
        with pytest.raises(HostError, match=match) as caught:
            await made.run(["true"])
        assert str(caught.value).startswith("host alpha: ")
        assert "\n" not in str(caught.value)
        await made.close()

    async def test_key_from_an_agent(self, site: SimpleNamespace, tmp_path: Path) -> None:
        path = tmp_path / "agent"
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
        try:
            variables = {**os.environ, "SSH_AUTH_SOCK": str(path)}

            def answers() -> bool:
                return (
                    subprocess.run(
                        ["ssh-add", "-l"], env=variables, capture_output=True, check=False
                    ).returncode
                    != 2
                )

            await until(answers, what="the agent", within=20)
            subprocess.run(["ssh-add", "-q", site.sshd.key], env=variables, check=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SSH_AUTH_SOCK", str(path))
                patch.setenv("HOME", str(tmp_path))
                made = SshAccess("alpha", site.sshd.config(key=None))
                assert (await made.run(["true"])).status == 0
                await made.close()
        finally:
            agent.kill()
            agent.wait(timeout=10)


async def test_local_host_needs_no_library_for_ssh() -> None:
    code = (
        "import sys, migrator.hosts.local, migrator.hosts.facts, migrator.hosts.sockets, migrator.cli.direct"
    )
    done = await LocalAccess("here").run(
        [sys.executable, "-c", f"{code}; sys.exit('asyncssh' in sys.modules)"]
    )
    assert (done.status, done.complaint) == (0, "")
