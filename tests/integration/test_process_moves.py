"""Guests whose QEMU is somebody's, lives somewhere, or was given limits: they arrive so, or it is said before."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from migrator.core.inventory import Guest
from migrator.core.model import Finding, Severity
from migrator.core.preflight.host_process import differences
from migrator.core.process.process_identity import ProcessIdentity
from migrator.errors import HostError
from migrator.hosts.facts import read_facts
from migrator.hosts.local import LocalAccess
from migrator.hosts.process_identity import read_process
from migrator.hosts.thread_scheduling import apply_scheduling, read_scheduling
from migrator.machine import LocalProcess
from migrator.site.host_checks import HostChecks
from migrator.testing.guest import write_image
from migrator.testing.lab import GuestMachine, Habit, Lab
from tests.destinations import MIB, POLICY, Moved, Site, guest_of, site_of
from tests.integration.test_checks_files import OtherMounts
from tests.integration.test_process_identity import NOBODY, SHAPES, bare, shell

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
HABIT = Habit(region_bytes=8 * MIB, bytes_per_second=4 * MIB)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named by a relative path is left in no tree of sources."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def site(lab: Lab) -> AsyncIterator[Site]:
    lab.directory.chmod(0o777)
    async with site_of(lab) as site:
        yield site


async def identity_of(pid: int) -> ProcessIdentity:
    found = await read_process(LocalAccess("alpha"), pid)
    assert found is not None
    return bare(found[0])


def pid_of(guest: Guest) -> int:
    return int((Path(guest.socket).parent / "qemu.pid").read_text())


def open_to_all(lab: Lab, machine: GuestMachine) -> None:
    lab.image(machine).chmod(0o666)


async def findings(site: Site, guest: Guest, target: str = "beta") -> list[Finding]:
    """What is said before anything is started; nothing is left of it."""
    source = await site.source(guest)
    here, there = site.connections.access(guest.host), site.connections.access(target)
    pid = source.identity["pid"]
    facts = await read_facts(here, address="127.0.0.1")
    found = await HostChecks().check(replace(guest, pid=pid), source, here, there, here=facts, there=facts)
    started = await site.destinations.check(guest, source, target, POLICY)
    assert site.left == []
    assert site.processes == []
    await source.close()
    return [each for each in (*started, *found) if each.code != "tcg-loses-writes"]


def told(found: Sequence[Finding]) -> dict[str, str]:
    return {each.code: each.message for each in found}


class TestArrives:
    @pytest.mark.parametrize(
        "shape",
        [
            *("as-we-are", "all-of-it"),
            *(
                pytest.param(shape, marks=pytest.mark.matrix)
                for shape in ("user", "user-without-account", "rights-beside-its-user")
            ),
        ],
    )
    async def test_as_it_was_there_and_back(self, lab: Lab, site: Site, shape: str) -> None:
        machine = GuestMachine(habit=HABIT)
        open_to_all(lab, machine)
        qemu = await lab.boot(machine, prefix=SHAPES[shape])
        wanted = await identity_of(qemu.pid)
        guest = guest_of(qemu)
        assert await findings(site, guest) == []
        for target in ("beta", "alpha"):
            guest = await site.move(guest, target)
            assert await identity_of(pid_of(guest)) == wanted
            assert list(differences(wanted, await identity_of(pid_of(guest)))) == []
            directory = Path(guest.socket).parent.stat()
            assert stat.S_IMODE(directory.st_mode) == 0o700
            assert (directory.st_uid, directory.st_gid) == (wanted.user, wanted.group)
            await Moved(machine, lab, guest.socket).check_memory()
        assert len(site.left) == 1

    async def test_one_that_drops_its_rights_by_itself(self, lab: Lab, site: Site, one_version: Path) -> None:
        option = ("-runas", "nobody") if "10.0" not in str(one_version) else ("-run-with", "user=nobody")
        machine = GuestMachine(habit=HABIT, extra=option)
        open_to_all(lab, machine)
        site.have(one_version, one_version)
        running = await lab.boot(machine, binary=one_version)
        guest = guest_of(running)
        assert (await identity_of(running.pid)).user == NOBODY
        assert await findings(site, guest) == []
        # The destination opens its images again at the switch, when it has no rights any more.
        lab.image(machine).chmod(0o600)
        (found,) = await findings(site, guest)
        assert found.code == "disk-access"
        assert f"uid {NOBODY}" in found.message
        open_to_all(lab, machine)
        for target in ("beta", "alpha"):
            guest = await site.move(guest, target)
            assert (await identity_of(pid_of(guest))).user == NOBODY
            await Moved(machine, lab, guest.socket).check_memory()

    async def test_threads_that_were_pinned_one_by_one(self, lab: Lab, site: Site) -> None:
        extra = ("-object", "iothread,id=io0")
        machine = GuestMachine(habit=HABIT, smp=2, accelerator="tcg,thread=multi,tb-size=32", extra=extra)
        qemu = await lab.boot(machine)
        cpus = await qemu.query("query-cpus-fast")
        (iothread,) = await qemu.query("query-iothreads")
        for thread, command in (
            (cpus[0]["thread-id"], ("taskset", "-pc", "0")),
            (cpus[1]["thread-id"], ("renice", "15", "-p")),
            (iothread["thread-id"], ("chrt", "--batch", "--pid", "0")),
        ):
            subprocess.run([*command, str(thread)], check=True, capture_output=True)
        guest = await site.move(guest_of(qemu), "beta")
        moved = Moved(machine, lab, guest.socket)
        pid, access = pid_of(guest), LocalAccess("beta")
        there = [cpu["thread-id"] for cpu in await moved.query("query-cpus-fast")]
        there += [each["thread-id"] for each in await moved.query("query-iothreads")]
        turns = await read_scheduling(access, pid)
        whole, first, second, third = (turns[thread] for thread in (pid, *there))
        assert first == replace(whole, cpus="0")
        assert second == replace(whole, nice=15)
        assert third == replace(whole, policy="batch")

    async def test_cpu_that_is_not_there_is_told(self, lab: Lab) -> None:
        qemu = await lab.start()
        (cpu,) = await qemu.query("query-cpus-fast")
        subprocess.run(["taskset", "-pc", "0", str(cpu["thread-id"])], check=True, capture_output=True)
        alpha, beta, names = LocalAccess("alpha"), LocalAccess("beta"), {"vCPU 0": cpu["thread-id"]}
        turns = await read_scheduling(alpha, qemu.pid)
        (said,) = await apply_scheduling(turns, qemu.pid, names, beta, qemu.pid, {"vCPU 0": 999_999_999})
        assert said.startswith("vCPU 0 has CPUs 0, nice ")
        assert said.endswith("and nothing known at beta")


class TestMayNot:
    """What QEMU's user may not do at the target is said before anything is started."""

    async def test_image_and_file_to_write_and_firmware(self, lab: Lab, site: Site) -> None:
        said, firmware = lab.directory / "said", lab.directory / "bios.bin"
        firmware.write_bytes(Path("/usr/share/seabios/bios-256k.bin").read_bytes())
        said.mkdir(mode=0o777)
        said.chmod(0o777)
        log = f"file,id=log,path={said}/log"
        extra = ("-chardev", log, "-device", "isa-serial,chardev=log,index=3", "-bios", str(firmware))
        machine = GuestMachine(extra=extra)
        open_to_all(lab, machine)
        guest = guest_of(await lab.start(machine, prefix=SHAPES["user"]))
        assert await findings(site, guest) == []
        for path in (said / "log", lab.image(machine), firmware):
            path.chmod(0o600)
            os.chown(path, 0, 0)
        found = await findings(site, guest)
        assert sorted(each.code for each in found) == ["disk-access", "file-access", "file-access"]
        assert all(f"uid {NOBODY}" in each.message or "firmware" in each.message for each in found)

    async def test_directory_of_images(self, lab: Lab, site: Site) -> None:
        images = lab.directory / "images"
        images.mkdir(mode=0o777)
        images.chmod(0o777)
        machine = GuestMachine(image=images / "disk")
        open_to_all(lab, machine)
        guest = guest_of(await lab.start(machine, prefix=SHAPES["user"]))
        images.chmod(0o700)
        assert [each.code for each in await findings(site, guest)] == ["disk-access"]

    async def test_run_directory(self, lab: Lab, site: Site) -> None:
        machine = GuestMachine()
        open_to_all(lab, machine)
        guest = guest_of(await lab.start(machine, prefix=SHAPES["user"]))
        shut = lab.directory / "shut"
        shut.mkdir(mode=0o700)
        site.configure(run_dir=str(shut / "run"))
        assert "run-directory" in told(await findings(site, guest))

    async def test_become_that_user(self, lab: Lab, site: Site) -> None:
        guest = guest_of(await lab.start())
        weak = LocalAccess("beta", SHAPES["user"])
        site.reached_by(weak)
        found = told(await findings(site, guest))
        assert "it runs as uid 0 (root), and would run as uid 65534 at beta" in found["process-user"]
        assert "disk-access" in found

    async def test_reach_the_accounts_of_the_source(self, lab: Lab, site: Site, tmp_path: Path) -> None:
        machine = GuestMachine()
        open_to_all(lab, machine)
        prefix = ("setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups")
        guest = guest_of(await lab.start(machine, prefix=prefix))
        lines = Path("/etc/passwd").read_text().splitlines()
        own = tmp_path / "passwd"
        for other, code, words in (
            ("daemon:x:77:77::/:/bin/sh", "user-differs", "daemon is uid 1 at the source and 77 at beta"),
            ("", "user-missing", "beta has no account for uid 1 (daemon)"),
        ):
            kept = [line for line in lines if not line.startswith("daemon:")]
            own.write_text("\n".join([*kept, other]).strip() + "\n")
            mounts = OtherMounts(Path("/etc/passwd"), own)
            try:
                site.reached_by(LocalAccess("beta", mounts.prefix))
                found = told(await findings(site, guest))
            finally:
                mounts.close()
            assert words in found[code]

    async def test_reach_the_account_to_become(self, lab: Lab, site: Site, tmp_path: Path) -> None:
        machine = GuestMachine(extra=("-runas", "daemon"))
        open_to_all(lab, machine)
        guest = guest_of(await lab.start(machine))
        own = tmp_path / "passwd"
        kept = [line for line in Path("/etc/passwd").read_text().splitlines() if "daemon" not in line]
        own.write_text("\n".join(kept) + "\n")
        mounts = OtherMounts(Path("/etc/passwd"), own)
        try:
            site.reached_by(LocalAccess("beta", mounts.prefix))
            source = await site.source(guest)
            alpha, beta = site.connections.access("alpha"), site.connections.access("beta")
            facts = await read_facts(alpha, address="127.0.0.1")
            pid = source.identity["pid"]
            found = await HostChecks().check(
                replace(guest, pid=pid), source, alpha, beta, here=facts, there=facts
            )
            assert "beta has no user daemon" in told(found)["runas-missing"]
            await site.close()
            with pytest.raises(HostError, match="daemon"):
                await site.start(guest)
            assert site.left == []
        finally:
            await site.close()
            mounts.close()


@dataclass(frozen=True)
class Daemon:
    """A QEMU that has put itself into the background."""

    qmp: Path
    pid: int
    machine: GuestMachine


async def daemon(lab: Lab, directory: Path, machine: GuestMachine, *words: str) -> Daemon:
    """One that was started in a directory, and has left it."""
    qmp, pid_file = lab.directory / "daemon.qmp", lab.directory / "daemon.pid"
    options = machine.options(Path("disk"))
    monitor = ("-qmp", f"unix:{qmp},server=on,wait=off", "-pidfile", str(pid_file), "-daemonize")
    subprocess.run(["qemu-system-x86_64", *options, *monitor, *words], check=True, cwd=directory, timeout=20)
    return Daemon(qmp, int(pid_file.read_text()), machine)


class TestWhere:
    @pytest.fixture
    def two(self, lab: Lab) -> tuple[Path, Path]:
        """Two directories, each with a disk of the same name."""
        found = []
        for name in ("mine", "other"):
            directory = lab.directory / name
            directory.mkdir()
            write_image(directory / "disk", HABIT)
            found.append(directory)
        return found[0], found[1]

    async def test_relative_path_goes_from_where_the_source_is(
        self, lab: Lab, site: Site, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = GuestMachine(habit=HABIT, image=Path("disk"))
        monkeypatch.chdir(two[1])  # else the lab makes one where the test is
        qemu = await lab.boot(machine, prefix=shell(f"cd {two[0]}"))
        guest = guest_of(qemu)
        assert await findings(site, guest) == []
        for target in ("beta", "alpha"):
            guest = await site.move(guest, target)
            opened = {path.readlink() for path in Path(f"/proc/{pid_of(guest)}/fd").iterdir()}
            assert two[0] / "disk" in opened
            assert two[1] / "disk" not in opened

    async def test_one_in_the_background_has_left_where_it_was_started(
        self, lab: Lab, site: Site, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(two[1])
        running = await daemon(lab, two[0], GuestMachine(habit=HABIT, image=Path("disk")))
        try:
            assert Path(f"/proc/{running.pid}/cwd").readlink() == Path("/")
            guest = Guest(key="k", host="alpha", uuid=str(running.machine.uuid), socket=str(running.qmp))
            assert await findings(site, guest) == []
            started = await site.start(guest)
            (pid,) = site.processes
            assert Path(f"/proc/{pid}/cwd").readlink() == two[0]
            await started.discard()
            await site.close()
            # When nothing that it has open tells it, nobody knows.
            (two[0] / "disk").rename(two[0] / "renamed")
            found = told(await findings(site, guest))
            assert "the process has left that directory" in found["relative-path"]
        finally:
            os.kill(running.pid, signal.SIGKILL)

    async def test_image_that_qemu_could_not_open_again_at_the_switch_is_refused_until_its_path_leads_there(
        self, lab: Lab, site: Site, two: tuple[Path, Path], tmp_path: Path
    ) -> None:
        beside = Path(*tmp_path.parts[1:], "more")
        image = two[0] / beside
        image.parent.mkdir(parents=True)
        write_image(image, HABIT)
        drive = ("-drive", f"file={beside},if=none,id=more,format=raw", "-device", "virtio-blk,drive=more")
        running = await daemon(lab, two[0], GuestMachine(habit=HABIT, image=Path("disk")), *drive)
        try:
            guest = Guest(key="k", host="alpha", uuid=str(running.machine.uuid), socket=str(running.qmp))
            (found,) = await findings(site, guest)
            assert (found.code, found.severity) == ("image-unreachable", "error")
            assert found.remedy.endswith(f"ln -s {image} /{beside}")
            (tmp_path / "more").write_bytes(image.read_bytes())  # another image is no better
            assert "image-unreachable" in told(await findings(site, guest))
            (tmp_path / "more").unlink()
            (tmp_path / "more").symlink_to(image)
            assert await findings(site, guest) == []
            moved = await site.move(guest, "beta")
            (tmp_path / "more").unlink()
            # There it is where its paths go from, and needs no link.
            await site.move(moved, "alpha")
        finally:
            with suppress(ProcessLookupError):  # it ended when the guest had left
                os.kill(running.pid, signal.SIGKILL)

    async def test_directory_that_is_not_at_the_target(
        self,
        lab: Lab,
        site: Site,
        two: tuple[Path, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        machine = GuestMachine(habit=HABIT, image=Path("disk"))
        monkeypatch.chdir(two[1])  # else the lab makes one where the test is
        qemu = await lab.start(machine, prefix=shell(f"cd {two[0]}"), paused=False)
        empty = tmp_path / "empty"
        empty.mkdir()
        mounts = OtherMounts(lab.directory, empty)
        site.reached_by(LocalAccess("beta", mounts.prefix))
        try:
            found = told(await findings(site, guest_of(qemu)))
            assert f"disk goes from {two[0]}, which cannot be entered at beta" in found["relative-path"]
        finally:
            mounts.close()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ("replaced", "was deleted or replaced; its QEMU still has the old one open (/proc/"),
            ("deleted", "was deleted or replaced; its QEMU still has the old one open (/proc/"),
            ("renamed", "leads to no file that its QEMU has open"),
            ("as it is", ""),
            ("linked", ""),
        ],
    )
    async def test_disk_is_the_file_that_is_open_not_the_one_of_that_name(
        self, lab: Lab, site: Site, change: str, words: str
    ) -> None:
        machine = GuestMachine(image=lab.directory / "link" if change == "linked" else None)
        if change == "linked":
            write_image(lab.directory / "real", HABIT)
            (lab.directory / "link").symlink_to("real")
        image = lab.image(machine)
        guest = guest_of(await lab.start(machine))
        if change in ("replaced", "deleted"):
            content = image.read_bytes()
            image.unlink()
            if change == "replaced":
                image.write_bytes(content)
        elif change == "renamed":
            image.rename(lab.directory / "elsewhere")
        found = await findings(site, guest)
        if words:
            assert words in told(found)["disk-replaced"]
        else:
            assert found == []

    async def test_mounts_of_its_own(self, lab: Lab, site: Site, two: tuple[Path, Path]) -> None:
        """A source in a container: what it calls its disk is another file of the host."""
        mounts = OtherMounts(two[0], two[1])
        try:
            qemu = await lab.start(GuestMachine(habit=HABIT, image=two[0] / "disk"), prefix=mounts.prefix)
            found = told(await findings(site, guest_of(qemu)))
            assert str(two[0] / "disk") in found["mount-namespace"]
            assert "is another file to its QEMU" in found["disk-replaced"]
            assert "process-namespace" in found
            # One whose mounts are its own, but lead to the same: it is said, and can move.
            plain = await lab.start(prefix=("unshare", "--mount", "--propagation", "private"))
            assert [each.code for each in await findings(site, guest_of(plain))] == ["process-namespace"]
        finally:
            mounts.close()

    async def test_root_of_its_own(self, lab: Lab, site: Site, one_version: Path) -> None:
        option = ("-chroot", "/usr") if "10.0" not in str(one_version) else ("-run-with", "chroot=/usr")
        running = await lab.start(GuestMachine(extra=option), binary=one_version)
        found = await findings(site, guest_of(running))
        assert "the root directory of its process is /usr" in told(found)["chroot"]
        assert {each.severity for each in found if each.code == "chroot"} == {Severity.ERROR}


class TestProcessOfThisMachine:
    """What `direct` compares."""

    async def test_identity_of_a_disk_is_the_open_file(self, lab: Lab) -> None:
        qemu = await lab.start()
        image = lab.image(qemu.machine)
        opened = image.stat()
        image.rename(lab.directory / "old")
        image.write_bytes(b"")
        process = LocalProcess(qemu.pid)
        try:
            assert process.opened(str(image)) == "other"
            assert process.opened(str(lab.directory / "old")) == f"{opened.st_dev}:{opened.st_ino}"
        finally:
            process.close()
