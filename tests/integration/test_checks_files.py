"""What is read of files on real hosts, and the probe of sharing: nothing of it is left, no path breaks the shell."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.core.process.files import FileFacts, FileKind, SameFile, same_file
from migrator.errors import HostError
from migrator.hosts.access import Output
from migrator.hosts.host_files import FileQuery, read_host_files
from migrator.hosts.local import LocalAccess
from migrator.hosts.sharing_probe import probe_sharing
from migrator.testing.lab import until

HERE = LocalAccess("alpha")
AWKWARD = [
    "a b",
    "$(touch x)",
    "'quote\"",
    "new\nline",
    "-rf",
    "comma,",
    "back\\slash",
    "*",
    "ü",
    "`x`",
    "json:{}",
]


class OtherMounts:
    """Mounts of its own, for a host on this machine: where others see `path` it sees what is mounted there.

    :param mount: arguments of mount(8) but for the last; by default `own` is bound there.
    """

    def __init__(self, path: Path, own: Path, *mount: str) -> None:
        script = 'mount "$@" && echo ready && exec sleep 600'
        words = [*(mount or ("--bind", str(own))), str(path)]
        self._holder = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *words],
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.prefix = ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--")

    def close(self) -> None:
        """End it; its mounts go with the last process in it."""
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[tuple[Path, Path, LocalAccess]]:
    """A directory, what another host sees in its place, and that host."""
    if os.geteuid() != 0:
        pytest.skip("mount namespaces need root")
    shared, own = tmp_path / "images", tmp_path / "own"
    shared.mkdir()
    own.mkdir()
    other = OtherMounts(shared, own)
    yield shared, own, LocalAccess("beta", other.prefix)
    other.close()


def image(*words: str, at: Path | None = None) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True, cwd=at)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def see(path: Path | str, access: LocalAccess = HERE) -> FileFacts:
    return (await read_host_files(access, FileQuery(paths=[str(path)]))).file(str(path))


class TestLook:
    @pytest.mark.parametrize("name", AWKWARD)
    async def test_any_name_is_read_as_it_is(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / name
        path.write_bytes(b"12345")
        path.chmod(0o640)
        real = path.stat()
        before = sorted(tmp_path.iterdir())
        seen = await see(path)
        assert seen.kind is FileKind.REGULAR
        assert seen.real == str(path)
        assert (seen.size_bytes, seen.inode) == (5, real.st_ino)
        assert seen.device == f"{os.major(real.st_dev)}:{os.minor(real.st_dev)}"
        assert (seen.owner, seen.group, seen.permissions) == (real.st_uid, real.st_gid, 0o640)
        assert seen.readable
        assert sorted(tmp_path.iterdir()) == before

    async def test_name_that_is_no_text_is_read_too(self, tmp_path: Path) -> None:
        path = tmp_path / os.fsdecode(b"\xff\xfe")
        path.write_bytes(b"12")
        seen = await see(path)
        assert (seen.real, seen.size_bytes) == (str(path), 2)

    async def test_kinds_and_what_is_missing(self, tmp_path: Path) -> None:
        (tmp_path / "dangling").symlink_to(tmp_path / "gone")
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "link").symlink_to(tmp_path / "file")
        names = [
            str(tmp_path),
            str(tmp_path / "dangling"),
            str(tmp_path / "gone"),
            "/dev/null",
            str(tmp_path / "link"),
        ]
        seen = await read_host_files(HERE, FileQuery(paths=names))
        kinds = [seen.file(name).kind for name in names]
        assert kinds == [
            FileKind.DIRECTORY,
            FileKind.MISSING,
            FileKind.MISSING,
            FileKind.CHARACTER,
            FileKind.REGULAR,
        ]
        assert seen.file(names[-1]).real == str(tmp_path / "file")
        assert not seen.file("/never/asked").exists
        assert seen.user == os.geteuid()

    async def test_file_system_is_the_one_it_lies_in(self, tmp_path: Path) -> None:
        seen = await see("/proc/self/status")
        assert seen.filesystem == "proc"
        assert (await see("/dev/shm")).filesystem == "tmpfs"
        found = subprocess.run(
            ["findmnt", "-no", "FSTYPE", "-T", str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert (await see(tmp_path)).filesystem == found.stdout.strip()

    async def test_many_files_in_one_command(self, tmp_path: Path) -> None:
        names = [str(tmp_path / str(number)) for number in range(100)]
        for name in names[::2]:
            Path(name).write_bytes(b"x")
        counting = Counting(HERE)
        seen = await read_host_files(counting, FileQuery(paths=names))
        assert [seen.file(name).exists for name in names] == [True, False] * 50
        assert counting.commands == 1

    async def test_whether_kvm_nests_is_what_its_module_says(self) -> None:
        said = [path.read_text().strip() for path in Path("/sys/module").glob("kvm_*/parameters/nested")]
        seen = await read_host_files(HERE, FileQuery())
        assert seen.nested == (said[0] in ("Y", "1") if said else None)

    async def test_nothing_asked_is_nothing_read(self) -> None:
        seen = await read_host_files(HERE, FileQuery())
        assert (seen.files, seen.chains, seen.qemu) == ({}, {}, "")

    async def test_relative_paths_go_from_the_process_or_the_directory(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"x")
        sleeper = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
        try:
            seen = await read_host_files(HERE, FileQuery(paths=["a"], pid=sleeper.pid))
        finally:
            sleeper.kill()
            sleeper.wait()
        assert seen.file("a").real == str(tmp_path / "a")
        assert seen.directory == str(tmp_path)
        assert Path(seen.program).name in ("sleep", "coreutils")
        seen = await read_host_files(HERE, FileQuery(paths=["a"], directory=str(tmp_path)))
        assert seen.file("a").real == str(tmp_path / "a")
        assert not (await read_host_files(HERE, FileQuery(paths=["a"]))).file("a").exists

    async def test_host_whose_answer_is_rubbish_is_an_error(self) -> None:
        with pytest.raises(HostError, match=r"beta.*cannot be read"):
            await read_host_files(LocalAccess("beta", ("echo", "hello")), FileQuery())

    async def test_what_a_real_qemu_offers(self) -> None:
        if shutil.which("qemu-system-x86_64") is None:
            pytest.skip("there is no qemu-system-x86_64")
        seen = await read_host_files(HERE, FileQuery(qemus=["/no/such", "qemu-system-x86_64"]))
        assert seen.qemu == shutil.which("qemu-system-x86_64")
        offer = seen.offer
        assert offer.version.startswith(("7.", "8.", "9.", "10."))
        assert {"pc-q35-7.2", "microvm"} <= offer.machines
        assert {"virtio-blk-pci", "virtio-net-pci", "vfio-pci"} <= offer.devices
        assert {"qemu64", "host", "EPYC", "max"} <= offer.cpus
        # What is known is not asked again; another program is.
        known = replace(offer, cpus=frozenset({"only here"}))
        again = await read_host_files(HERE, FileQuery(qemus=["qemu-system-x86_64"], known=known))
        assert again.offer == known
        assert again.qemu == seen.qemu
        stale = await read_host_files(
            HERE, FileQuery(qemus=["qemu-system-x86_64"], known=replace(known, identity="1:1:1:1"))
        )
        assert stale.offer == offer

    async def test_disk_of_this_machine_has_a_number_of_its_own(self) -> None:
        disks = [path for path in Path("/dev").glob("vd?") if path.is_block_device()]
        if not disks:
            pytest.skip("there is no block device")
        seen = await see(disks[0])
        number = disks[0].stat().st_rdev
        assert seen.kind is FileKind.BLOCK
        assert seen.device == f"{os.major(number)}:{os.minor(number)}"
        assert seen.size_bytes == int(Path(f"/sys/class/block/{disks[0].name}/size").read_text()) * 512


class TestChains:
    async def test_whole_chain_is_read_with_awkward_names(self, tmp_path: Path) -> None:
        image("create", "-f", "raw", "base $(x)", "1M", at=tmp_path)
        image("create", "-f", "qcow2", "-b", "base $(x)", "-F", "raw", "mid 'dle", at=tmp_path)
        image("create", "-f", "qcow2", "-b", "mid 'dle", "-F", "qcow2", "top", at=tmp_path)
        top = str(tmp_path / "top")
        seen = await read_host_files(HERE, FileQuery(images={top: "qcow2"}))
        assert seen.chains == {top: (top, str(tmp_path / "mid 'dle"), str(tmp_path / "base $(x)"))}
        relative = await read_host_files(HERE, FileQuery(images={"top": "qcow2"}, directory=str(tmp_path)))
        assert relative.chains == {"top": ("top", *seen.chains[top][1:])}

    async def test_chain_that_is_broken_says_why(self, tmp_path: Path) -> None:
        image("create", "-f", "raw", "base", "1M", at=tmp_path)
        image("create", "-f", "qcow2", "-b", "base", "-F", "raw", "top", at=tmp_path)
        (tmp_path / "base").unlink()
        top = str(tmp_path / "top")
        seen = await read_host_files(HERE, FileQuery(images={top: "qcow2"}))
        assert seen.chains == {}
        assert "base" in seen.complaints[top]
        assert "\n" not in seen.complaints[top]

    async def test_image_of_another_format_is_not_believed(self, tmp_path: Path) -> None:
        """A guest that writes a header into its disk must not have us open what that names."""
        image("create", "-f", "raw", "secret", "1M", at=tmp_path)
        image("create", "-f", "qcow2", "-b", "secret", "-F", "raw", "disk", at=tmp_path)
        disk = str(tmp_path / "disk")
        seen = await read_host_files(HERE, FileQuery(images={disk: "vmdk"}))
        assert seen.chains == {}

    async def test_host_without_qemu_img_says_nothing(self, tmp_path: Path) -> None:
        programs = tmp_path / "bin"
        programs.mkdir()
        for name in ("sh", "id", "cat", "readlink", "stat", "timeout"):
            (programs / name).symlink_to(shutil.which(name) or "")
        bare = LocalAccess("beta", ("env", f"PATH={programs}"))
        seen = await read_host_files(bare, FileQuery(paths=["/dev/null"], images={"/x": "qcow2"}))
        assert seen.file("/dev/null").exists
        assert (seen.chains, seen.complaints) == ({}, {})

    async def test_image_that_a_qemu_writes_to_is_seen_and_left_alone(self, tmp_path: Path) -> None:
        image("create", "-f", "qcow2", "disk", "1M", at=tmp_path)
        disk = tmp_path / "disk"
        before = disk.read_bytes()
        writer = subprocess.Popen(
            ["qemu-io", "-f", "qcow2", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        try:
            stat = disk.stat()
            key = f"{os.major(stat.st_dev)}:{os.minor(stat.st_dev)}:{stat.st_ino}"

            async def held() -> bool:
                seen = await read_host_files(HERE, FileQuery(images={str(disk): "qcow2"}))
                assert seen.chains == {str(disk): (str(disk),)}  # in spite of the lock
                return key in seen.written

            await until(held, what="the lock of a writer")
        finally:
            writer.communicate(b"quit\n", timeout=10)
        assert disk.read_bytes() == before
        assert key not in (await read_host_files(HERE, FileQuery())).written


class Counting:
    """Counts the commands that go to a host; may break what a script does."""

    def __init__(self, inner: LocalAccess, breaks: Sequence[bytes] = ()) -> None:
        self._inner = inner
        self.name = inner.name
        self.process_script = inner.process_script
        self.commands = 0
        self.breaks = breaks
        self.hangs = False

    async def run(self, argv: Sequence[str], *, timeout: float = 30.0, stdin: bytes = b"") -> Output:
        self.commands += 1
        if any(word in stdin for word in self.breaks):
            raise HostError(self.name, "the connection is lost")
        if self.hangs and b"tenths" in stdin:
            await asyncio.sleep(3600)
        return await self._inner.run(argv, timeout=timeout, stdin=stdin)

    forward = property(lambda self: self._inner.forward)
    process = property(lambda self: self._inner.process)
    coprocess = property(lambda self: self._inner.coprocess)
    client_identity = property(lambda self: self._inner.client_identity)
    ask_sockets = property(lambda self: self._inner.ask_sockets)
    close = property(lambda self: self._inner.close)


class TestOneMachine:
    async def test_identity_tells_what_a_path_does_not(self, mounts: tuple[Path, Path, LocalAccess]) -> None:
        shared, own, beta = mounts
        (shared / "disk").write_bytes(b"one")
        (own / "disk").write_bytes(b"two")
        (shared.parent / "disk").write_bytes(b"three")
        here, there = await see(shared / "disk"), await see(shared / "disk", beta)
        assert there.exists
        assert same_file(here, there, one_machine=True) is SameFile.NO
        shared_by_both = shared.parent / "disk"
        here, there = await see(shared_by_both), await see(shared_by_both, beta)
        assert same_file(here, there, one_machine=True) is SameFile.YES


class TestProbe:
    async def both(self, path: Path, beta: LocalAccess) -> tuple[FileFacts, FileFacts]:
        return await see(path), await see(path, beta)

    async def test_tells_shared_from_not_and_leaves_nothing(
        self, mounts: tuple[Path, Path, LocalAccess]
    ) -> None:
        shared, own, beta = mounts
        both_see = shared.parent / "both $(x)\n'"
        both_see.mkdir()
        for directory in (shared, own, both_see):
            (directory / "disk").write_bytes(b"contents")
        before = {path: path.stat().st_mtime_ns for path in shared.parent.rglob("disk")}
        files = {
            "own": await self.both(shared / "disk", beta),
            "both": await self.both(both_see / "disk", beta),
        }
        counting, other = Counting(HERE), Counting(beta)
        assert await probe_sharing(counting, other, files) == {"own": SameFile.NO, "both": SameFile.YES}
        assert (counting.commands, other.commands) == (2, 1)
        left = [path.name for path in shared.parent.rglob("*") if path.is_file()]
        assert left == ["disk"] * 3
        assert {path: path.stat().st_mtime_ns for path in before} == before

    async def test_asks_from_the_other_side_where_it_may_not_write(self, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(b"")
        files = {"disk": (await see(tmp_path / "disk"), await see(tmp_path / "disk"))}
        reads = LocalAccess("alpha", ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"))
        tmp_path.chmod(0o755)
        for parent in list(tmp_path.parents)[:-2]:
            parent.chmod(parent.stat().st_mode | 0o111)
        assert await probe_sharing(reads, HERE, files) == {"disk": SameFile.YES}
        assert await probe_sharing(HERE, reads, files) == {"disk": SameFile.YES}
        assert await probe_sharing(reads, reads, files) == {}
        assert names(tmp_path) == ["disk"]

    @pytest.mark.parametrize("what", [b"tenths", b"set -C"], ids=["looking", "making"])
    async def test_marker_is_removed_when_a_host_is_lost(self, what: bytes, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(b"")
        seen = await see(tmp_path / "disk")
        broken = Counting(LocalAccess("beta"), [what])
        writer, reader = (HERE, broken) if what == b"tenths" else (broken, HERE)
        with pytest.raises(HostError, match="connection is lost"):
            await probe_sharing(writer, reader, {"disk": (seen, seen)})
        assert names(tmp_path) == ["disk"]

    async def test_marker_is_removed_when_cancelled(self, tmp_path: Path) -> None:
        (tmp_path / "disk").write_bytes(b"")
        seen = await see(tmp_path / "disk")
        other = Counting(LocalAccess("beta"))
        other.hangs = True
        task = asyncio.create_task(probe_sharing(HERE, other, {"disk": (seen, seen)}), name="probe_sharing")
        await until(lambda: len(names(tmp_path)) == 2, what="a marker")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert names(tmp_path) == ["disk"]

    async def test_marker_goes_by_itself_when_nobody_comes_back(self, tmp_path: Path) -> None:
        images, programs = tmp_path / "images", tmp_path / "bin"
        images.mkdir()
        programs.mkdir()
        (images / "disk").write_bytes(b"")
        # Its minute passes in a moment.
        (programs / "sleep").write_text("#!/bin/sh\nexec /bin/sleep 0.01\n")
        (programs / "sleep").chmod(0o755)
        seen = await see(images / "disk")
        hasty = LocalAccess("alpha", ("env", f"PATH={programs}:{os.environ['PATH']}"))
        forgetful = Counting(hasty, [b"shift\nfor d; do rm"])
        with pytest.raises(HostError, match="connection is lost"):
            await probe_sharing(forgetful, HERE, {"disk": (seen, seen)})
        await until(lambda: names(images) == ["disk"], what="the end of the marker")
