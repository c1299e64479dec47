"""QEMUs started on a host: they outlive their starter, and whatever fails says why and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.core.inventory import Guest
from migrator.core.policy import builtin
from migrator.errors import HostError, MigratorError, QemuError, Refused, UsageError
from migrator.hosts import launch_scripts
from migrator.hosts.access import Output
from migrator.hosts.launch import Launcher, LaunchProfile, unit_command
from migrator.hosts.local import LocalAccess
from migrator.hosts.run_directories import RunDirectory
from migrator.hosts.stale_directories import remove_stale
from migrator.settings.host_sections import HostDefaults
from migrator.testing.lab import GuestMachine, Lab, RawMonitor, until
from tests.destinations import Moved, Site, arguments_of, guest_of, site_of

QEMU = "qemu-system-x86_64"
EMPTY = (QEMU, "-nodefaults", "-display", "none", "-machine", "pc-q35-7.2", "-accel", "tcg", "-S")
WAITING = (
    *EMPTY,
    "-incoming",
    "defer",
    "-qmp",
    "unix:{qmp},server=on,wait=off",
    "-pidfile",
    "{run_dir}/qemu.pid",
)


@pytest.fixture
async def site(lab: Lab) -> AsyncIterator[Site]:
    async with site_of(lab) as site:
        yield site


@pytest.fixture
async def guest(lab: Lab) -> Guest:
    """One that runs at alpha."""
    return guest_of(await lab.start())


def by_template(site: Site, *words: str, seconds: float = 20.0) -> None:
    site.configure(launch="template", template=words, start_timeout=seconds)


def open_files(pid: int) -> set[Path]:
    """All but what every process may share: devices and kinds of nameless files that have no number."""
    links = {path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    return {link for link in links if not str(link).startswith("anon_inode:")}


async def failure(site: Site, guest: Guest) -> str:
    """What is said when its destination cannot be started; nothing is left then."""
    with pytest.raises(MigratorError) as caught:
        await site.start(guest)
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    assert len(text) < 1500
    assert site.left == []
    assert site.processes == []
    return text


class TestFailures:
    async def test_missing_disk(self, lab: Lab, site: Site) -> None:
        qemu = await lab.start()
        lab.image(qemu.machine).unlink()
        text = await failure(site, guest_of(qemu))
        assert "No such file or directory" in text
        assert str(qemu.machine.uuid) in text

    async def test_missing_bridge(self, site: Site, guest: Guest) -> None:
        by_template(site, *EMPTY, "-daemonize", "-netdev", "bridge,id=n,br=nobridge0")
        assert "bridge" in await failure(site, guest)
        assert "bridge" in site.logs

    async def test_missing_interface_script(self, site: Site, guest: Guest) -> None:
        by_template(site, *EMPTY, "-daemonize", "-netdev", "tap,id=n,ifname=tapx0,script=/no/such/script")
        assert "/no/such/script" in await failure(site, guest)

    @pytest.mark.parametrize("binary", ["/no/such/qemu", "/", "/etc/passwd", "no-such-qemu"])
    async def test_missing_binary(self, site: Site, guest: Guest, binary: str) -> None:
        site.configure(qemu=binary)
        assert f"there is no QEMU: no {binary}" in await failure(site, guest)

    async def test_old_qemu(self, lab: Lab, site: Site, qemu_binary) -> None:
        qemu = await lab.start(GuestMachine(type="pc-q35-10.0"), binary=qemu_binary("10.0"))
        site.have(qemu_binary("10.0"), qemu_binary("7.2"))
        assert "unsupported machine type" in await failure(site, guest_of(qemu))

    async def test_command_that_prints_rubbish(self, site: Site, guest: Guest) -> None:
        by_template(site, "sh", "-c", "head -c 200000 /dev/urandom; head -c 9000 /dev/urandom >&2; exit 3")
        assert "ended with status 3" in await failure(site, guest)

    async def test_command_that_is_not_there(self, site: Site, guest: Guest) -> None:
        by_template(site, "/no/such/starter", "{uuid}")
        assert "/no/such/starter" in await failure(site, guest)

    async def test_command_that_succeeds_and_starts_nothing(self, site: Site, guest: Guest) -> None:
        by_template(site, "true", seconds=0.5)
        text = await failure(site, guest)
        assert "true was started, but" in text
        assert "control.qmp" in text

    async def test_command_that_hangs(self, site: Site, guest: Guest) -> None:
        by_template(site, "sh", "-c", "echo waiting for Godot; exec sleep 60", seconds=0.4)
        text = await failure(site, guest)
        assert "did not come up within 0.4 s" in text
        assert "waiting for Godot" in text

    async def test_qemu_that_hangs(self, site: Site, guest: Guest) -> None:
        wait = "socket,id=c,path={run_dir}/c.sock,server=on,wait=on"
        by_template(site, *EMPTY, "-daemonize", "-chardev", wait, seconds=1.0)
        assert "did not come up within 1 s" in await failure(site, guest)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    async def test_replica_that_dies_right_after_it_daemonised(
        self, site: Site, guest: Guest, number: signal.Signals
    ) -> None:
        class Murderous(LocalAccess):
            async def greets(self) -> bool:
                for path in site.directory.glob("run/*/control.qmp"):
                    with contextlib.suppress(OSError):
                        async with RawMonitor(path):
                            return True
                return False

            async def run(self, argv: Sequence[str], *, timeout: float = 30.0, stdin: bytes = b"") -> Output:
                done = await super().run(argv, timeout=timeout, stdin=stdin)
                if any("setsid" in word for word in argv):
                    await until(self.greets, what="its start")
                    for pid in site.processes:
                        os.kill(pid, number)
                    await until(lambda: not site.processes, what="its end")
                return done

        site.reached_by(Murderous("beta"))
        text = await failure(site, guest)
        assert "ended right after its start" in text
        if number is signal.SIGTERM:
            assert "terminating on signal 15" in text

    async def test_one_that_a_command_has_started_and_dies(self, site: Site, guest: Guest) -> None:
        script = '"$@" -daemonize -D "$0" && kill "$(cat "$(dirname "$0")/qemu.pid")" && sleep 0.2; cat "$0"'
        by_template(site, "sh", "-c", script, "{run_dir}/log", *WAITING, seconds=1.0)
        text = await failure(site, guest)
        assert "terminating on signal 15" in text

    async def test_qemu_that_does_not_wait(self, site: Site, guest: Guest) -> None:
        by_template(site, *EMPTY, "-daemonize", "-qmp", "unix:{qmp},server=on,wait=off")
        assert "it does not wait for a guest (run state prelaunch)" in await failure(site, guest)

    @pytest.mark.parametrize("room", [0, 1, 2])
    async def test_full_disk(self, lab: Lab, site: Site, guest: Guest, room: int) -> None:
        """Room for no file, for the one that tells whose it is, and for that and the shell's pid."""
        full, page = lab.directory / "full", os.sysconf("SC_PAGE_SIZE")
        full.mkdir()
        how = ["-t", "tmpfs", "-o", f"size={max(1, room) * page}", "none", str(full)]
        if subprocess.run(["mount", *how], check=False).returncode:
            pytest.skip("a small file system cannot be mounted here")
        try:
            if not room:
                (full / "ballast").write_bytes(bytes(page))
            site.configure(run_dir=str(full / "run"))
            began = time.monotonic()
            with pytest.raises(HostError, match=r"No space left on device|Failed to write pid file"):
                await site.start(guest)
            assert time.monotonic() - began < site.config.section.start_timeout / 2
            assert not list((full / "run").glob("*"))
        finally:
            subprocess.run(["umount", full], check=True)

    async def test_log_that_cannot_be_made(self, site: Site, guest: Guest) -> None:
        """Its path is said, and nothing of our own scripts."""
        log_directory = Path(site.config.section.log_dir)
        log_directory.mkdir(parents=True, exist_ok=True)
        plain = Launcher.make

        async def made(launcher: Launcher, run_dir: RunDirectory, *words: Any, **how: Any) -> Any:
            missing = await plain(launcher, run_dir, *words, **how)
            Path(run_dir.log).mkdir()
            return missing

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Launcher, "make", made)
            text = await failure(site, guest)
        assert str(log_directory) in text
        assert "Is a directory" in text
        assert "setsid" not in text

    async def test_run_directory_that_is_full(self, site: Site, guest: Guest) -> None:
        plain = Launcher.make

        async def made(launcher: Launcher, run_dir: RunDirectory, *words: Any, **how: Any) -> Any:
            missing = await plain(launcher, run_dir, *words, **how)
            Path(run_dir.path, "starting").symlink_to("/dev/full")
            return missing

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Launcher, "make", made)
            text = await failure(site, guest)
        assert re.search(r"No space left on device \(writing /[^ ]+/starting\)", text)

    async def test_directory_too_deep_for_a_socket(self, site: Site, guest: Guest) -> None:
        deep = site.directory / ("d" * 60)
        site.configure(run_dir=str(deep))
        with pytest.raises(HostError, match="too long for the path of a socket"):
            await site.start(guest)
        assert not list(deep.glob("*"))

    async def test_ports_of_the_source_are_not_fought_over(self, lab: Lab, site: Site) -> None:
        qemu = await lab.start(GuestMachine(extra=("-netdev", "user,id=n0,hostfwd=tcp:127.0.0.1:50922-:22")))
        with pytest.raises(Refused, match=r"listens at port 50922.*on one machine"):
            await site.start(guest_of(qemu))
        assert site.left == []
        findings = await site.destinations.check(guest_of(qemu), site.opened[-1], "beta", builtin("default"))
        assert [finding.code for finding in findings] == ["port-in-use"]

    async def test_being_cancelled(self, lab: Lab, site: Site) -> None:
        guest = guest_of(await lab.start())
        seen = 0
        for pause in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
            task = asyncio.create_task(site.start(guest), name="start")
            await asyncio.wait({task}, timeout=pause)
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await task
                seen += 1
                assert site.left == []
                assert site.processes == []
            else:
                await (await task).discard()
            await site.close()
        assert seen >= 2

    async def test_being_cancelled_while_a_process_is_not_a_qemu_yet(self, lab: Lab) -> None:
        launcher = Launcher(
            LocalAccess("beta"),
            HostDefaults(run_dir=str(lab.directory / "run"), log_dir=str(lab.directory / "log")),
        )
        run_dir, there = await launcher.make_run_directory("a-migration"), lab.directory / "there"
        become = ("sh", "-c", 'touch -- "$0"; while :; do sleep 0.05; done', str(there))
        argv = [word.format(qmp=there, run_dir=run_dir.path) for word in WAITING]
        starting = asyncio.create_task(
            launcher.start(run_dir, argv, like=LaunchProfile(become=become)), name="start"
        )
        await until(there.exists, what="its process")
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not Path(run_dir.path).exists()
        assert naming(str(there)) == []

    async def test_one_that_is_given_up_before_it_is_begun_is_not_begun(self, lab: Lab) -> None:
        launcher = Launcher(
            LocalAccess("beta"),
            HostDefaults(run_dir=str(lab.directory / "run"), log_dir=str(lab.directory / "log")),
        )
        run_dir, begun = await launcher.make_run_directory("a-migration"), lab.directory / "begun"
        starting = Path(run_dir.path, "starting")
        starting.touch()
        assert not await launcher.is_running(run_dir)
        assert starting.exists()
        detached = ("sh", "-c", launch_scripts.DETACHED, run_dir.log, run_dir.path, "touch", str(begun))
        subprocess.run(detached, check=True, timeout=60)
        assert begun.exists()
        begun.unlink()
        starting.touch()
        await launcher.discard(run_dir)
        subprocess.run(detached, check=False, timeout=60)
        assert not begun.exists()


def naming(text: str) -> list[int]:
    """Every process whose command line names it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


class TestOutliving:
    async def test_a_controller_that_is_killed(self, lab: Lab, site: Site) -> None:
        script = f"""
import asyncio
from migrator.hosts import launch_scripts
from migrator.hosts.access import Output
from migrator.hosts.launch import Launcher
from migrator.hosts.local import LocalAccess
from migrator.settings.host_sections import HostDefaults

async def main():
    section = HostDefaults(run_dir={str(lab.directory / "run")!r}, log_dir={str(lab.directory)!r})
    launcher = Launcher(LocalAccess("a"), section)
    run_dir = await launcher.make_run_directory("m1")
    argv = [*{EMPTY!r}, "-pidfile", run_dir.pid_file]
    await launcher.start(run_dir, argv)
    print("up", run_dir.pid_file, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
        controller = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert controller.stdout is not None
        with controller:
            line = await asyncio.to_thread(controller.stdout.readline)
            its_own = open_files(controller.pid)
            os.killpg(controller.pid, signal.SIGKILL)
        (pid,) = site.processes
        assert int(Path(line.split()[1]).read_text()) == pid
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert int(fields[3]) not in (os.getsid(0), controller.pid)  # a session of its own
        assert open_files(pid) & (its_own | open_files(os.getpid())) <= {Path("/dev/null")}

    async def test_modes_of_what_is_made(self, site: Site, guest: Guest) -> None:
        started = await site.start(guest)
        directory = Path(started.socket).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert (directory / "migration").read_text() == "move-1"
        await started.discard()


class TestDiscard:
    async def test_ends_what_waits_and_keeps_a_log_with_something_in_it(
        self, site: Site, guest: Guest
    ) -> None:
        started = await site.start(guest)
        assert len(site.processes) == 1
        await started.discard()
        assert (site.left, site.processes) == ([], [])

    async def test_leaves_a_guest_that_has_arrived(self, lab: Lab, site: Site) -> None:
        qemu = await lab.start()
        started = await site.start(guest_of(qemu))
        address = await started.qemu.listen(started.listen)
        await qemu.query("migrate", uri=address)
        await until(lambda: _arrived(started.socket, qemu.machine, lab), what="the arrival")
        await started.discard()
        assert len(site.processes) == 1
        assert len(site.left) == 1

    async def test_does_not_touch_what_does_not_answer(self, site: Site, guest: Guest) -> None:
        started = await site.start(guest)
        (pid,) = site.processes
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(HostError, match="does not answer"):
            await started.discard()
        assert site.processes == [pid]
        assert len(site.left) == 1

    async def test_whose_monitor_somebody_holds_is_seen_by_the_other(self, site: Site, guest: Guest) -> None:
        started = await site.start(guest)
        await site.close()
        async with RawMonitor(Path(started.socket)):
            await site.destinations.abandon("beta", migration="move-1")
        assert (site.left, site.processes) == ([], [])

    async def test_of_one_that_died_removes_its_directory(self, site: Site, guest: Guest) -> None:
        started = await site.start(guest)
        site.kill()
        await until(lambda: not site.processes, what="its end")
        await started.discard()
        assert site.left == []

    async def test_abandon_removes_what_a_dead_controller_left(self, site: Site, guest: Guest) -> None:
        for _ in range(2):
            await site.start(guest)
            await site.close()
        await site.destinations.abandon("beta", migration="move")
        assert len(site.processes) == 2
        await site.destinations.abandon("beta", migration="move-1")
        assert [name[:6] for name in site.left] == ["move-2"]
        assert len(site.processes) == 1
        site.kill()
        await site.destinations.abandon("beta", migration="move-2")
        assert site.left == []

    async def test_what_guests_leave_that_end_by_themselves_is_swept(
        self, lab: Lab, site: Site, guest: Guest
    ) -> None:
        """Not what lives, nor what a migration that is under way has made, nor what has just changed."""
        made = []
        for _ in range(3):
            made.append(Path((await site.start(guest)).socket))
            await site.close()
        first, second, third = (socket.parent for socket in made)

        async def swept(under_way: str = "", idle_seconds: float = 0.0) -> list[str]:
            launcher = site.destinations._launcher("beta", site.config)
            return await remove_stale(launcher, under_way=under_way.__eq__, idle_seconds=idle_seconds)

        assert await swept() == []
        for directory in (first, second):
            pid = int((directory / "qemu.pid").read_text())
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), what="its end")  # type: ignore[misc]
        assert await swept(idle_seconds=300) == []
        await asyncio.sleep(1.1)  # a directory that changed within this second is not looked at
        assert await swept("move-2") == [str(first)]
        assert await swept() == [str(second)]
        assert site.left == [third.name]
        await site.destinations.abandon("beta", migration="move-3")

    async def test_clear_refuses_while_the_process_lives_and_leaves_alone_what_is_not_ours(
        self, site: Site, guest: Guest
    ) -> None:
        started = await site.start(guest)
        with pytest.raises(HostError, match="still runs"):
            await site.destinations.clear(replace(guest, host="beta", socket=started.socket))
        assert len(site.left) == 1
        await site.destinations.clear(guest)
        assert Path(guest.socket).exists()


async def _arrived(socket: str, machine: GuestMachine, lab: Lab) -> bool:
    return await Moved(machine, lab, socket).run_state() == "paused"


class TestTemplate:
    async def test_starts_one_that_the_guest_moves_into(self, lab: Lab, site: Site) -> None:
        qemu = await lab.boot(GuestMachine(name="web, 1"))
        image = str(lab.image(qemu.machine))
        by_template(site, QEMU, *qemu.machine.options(Path(image)), "-S", "-incoming", "defer", "-daemonize")
        site.configure(
            template=(
                *site.config.section.template,
                *("-qmp", "unix:{qmp},server=on,wait=off", "-qmp", "unix:{rescue},server=on,wait=off"),
                *("-serial", "null"),
            ),
        )
        guest = await site.move(guest_of(qemu), "beta")
        moved = Moved(qemu.machine, lab, guest.socket)
        assert (await moved.query("query-name"))["name"] == "web, 1"

    async def test_a_name_is_one_argument_whatever_stands_in_it(self, site: Site, guest: Guest) -> None:
        strange = "a b'c\"d$(touch pwned)\n{uuid}`x`"
        out = site.directory / "said"
        by_template(site, "sh", "-c", 'printf %s "$1" >"$2"; exit 1', "sh", "{name}", str(out))
        await failure(site, replace(guest, name=strange))
        assert out.read_text() == strange

    async def test_what_is_unknown_is_refused(self, site: Site, guest: Guest) -> None:
        by_template(site, "start-it", "{guest}")
        with pytest.raises(UsageError, match=r"there is no \{guest\}; there are \{name\}, \{qmp\}"):
            await site.start(guest)
        assert site.left == []


class TestAttached:
    async def test_takes_the_one_that_waits(self, lab: Lab, site: Site) -> None:
        machine = GuestMachine()
        source = await lab.boot(machine)
        waiting = await lab.start(machine, incoming=True, label=str(machine.uuid))
        pattern = str(waiting.qmp).replace(str(machine.uuid), "{uuid}")
        site.configure(launch="attached", attached=pattern)
        guest = await site.move(guest_of(source), "beta")
        assert guest.socket == str(waiting.qmp)
        assert await lab.counting() == [waiting]

    async def test_one_that_runs_a_guest_is_refused_and_left(
        self, lab: Lab, site: Site, guest: Guest
    ) -> None:
        other = await lab.boot()
        site.configure(launch="attached", attached=str(other.qmp))
        with pytest.raises(QemuError, match="does not wait for a guest"):
            await site.start(guest)
        assert other in await lab.counting()

    async def test_discard_ends_what_waits(self, lab: Lab, site: Site, guest: Guest) -> None:
        waiting = await lab.start(incoming=True)
        site.configure(launch="attached", attached=str(waiting.qmp))
        await (await site.start(guest)).discard()
        await waiting.wait_dead()

    @pytest.mark.parametrize("name", ["", "../../etc", "a/b", ".."])
    async def test_a_name_that_would_be_a_path_is_refused(self, site: Site, guest: Guest, name: str) -> None:
        site.configure(launch="attached", attached="/run/{name}/qmp")
        with pytest.raises(UsageError, match="has no place in"):
            await site.start(replace(guest, name=name))


#: Stands for systemd: starts what it is told as a child of nobody, and knows it by the name of its unit.
SYSTEMD = """#!{python}
import os, signal, subprocess, sys
state = {state!r}
program, words = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(state + "/calls", "a") as calls:
    print(program, words[:3], file=calls)
def pid_of(unit):
    try:
        return int(open(state + "/" + unit).read())
    except OSError:
        return 0
if program == "systemd-run":
    at = words.index("--")
    options = dict(word.split("=", 1) for word in words[:at] if word.count("=") == 1)
    log = [word.split("append:")[1] for word in words[:at] if "StandardError=append:" in word][0]
    argv = [word.replace("$$", "$") for word in words[at + 1:]]
    said = open(log, "ab")
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    open(state + "/" + options["--unit"], "w").write(str(child.pid))
    sys.exit(0)
pid = pid_of(words[-1])
alive = pid and os.path.exists("/proc/%d/fd/0" % pid)
if words[0] == "is-active":
    sys.exit(0 if alive else 3)
if words[0] == "kill" and alive:
    os.kill(pid, signal.SIGKILL)
"""


class TestUnit:
    def test_dollars_are_doubled_and_nothing_else_is_touched(self) -> None:
        run_dir = RunDirectory(path="/run/m/x-123456", log="/var/log/x.log", unit="migrator-guest-x.service")
        command = unit_command(run_dir, ["/usr/bin/qemu", "-name", "a $HOME %n\n${B} \"'\\"])
        at = command.index("--")
        assert command[at + 1 :] == ["/usr/bin/qemu", "-name", "a $$HOME %n\n$${B} \"'\\"]
        assert "--description=Guest a $HOME %n\ufffd${B} \"'\\" in command[:at], "on one line"
        assert {"--unit=migrator-guest-x.service", "--slice=machine.slice", "--collect"} < set(command[:at])
        assert "--property=Before=migrator-drain.service" in command[:at]

    @pytest.fixture
    def systemd(self, lab: Lab, site: Site) -> Path:
        directory = lab.directory / "systemd"
        directory.mkdir()
        for name in ("systemd-run", "systemctl"):
            (directory / name).write_text(SYSTEMD.format(python=sys.executable, state=str(directory)))
            (directory / name).chmod(0o755)
        site.reached_by(LocalAccess("beta", ("env", f"PATH={directory}:{os.environ['PATH']}")))
        site.configure(systemd=True)
        return directory

    async def test_a_guest_moves_into_a_unit_of_its_own(self, lab: Lab, site: Site, systemd: Path) -> None:
        qemu = await lab.boot(GuestMachine(name="cost $5 $HOME"))
        guest = await site.move(guest_of(qemu), "beta")
        (pid,) = site.processes
        assert "-daemonize" not in arguments_of(pid)
        assert (systemd / f"migrator-guest-{site.left[0]}.service").read_text() == str(pid)
        assert (await Moved(qemu.machine, lab, guest.socket).query("query-name"))["name"] == "cost $5 $HOME"

    async def test_one_that_does_not_start_says_why_and_is_gone(
        self, lab: Lab, site: Site, systemd: Path
    ) -> None:
        qemu = await lab.start()
        lab.image(qemu.machine).unlink()
        text = await failure(site, guest_of(qemu))
        assert "No such file or directory" in text
        assert "reset-failed" in (systemd / "calls").read_text()

    async def test_discard_ends_the_unit(self, site: Site, guest: Guest, systemd: Path) -> None:
        started = await site.start(guest)
        assert len(site.processes) == 1
        await started.discard()
        assert (site.left, site.processes) == ([], [])
