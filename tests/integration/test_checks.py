"""Preflight across hosts, on real guests between namespaces: each lack of a target is found, nothing is changed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migrator.core.inventory import Guest
from migrator.core.model import Finding, Severity
from migrator.core.policy import Policy, builtin
from migrator.errors import HostError
from migrator.hosts.access import Output
from migrator.hosts.facts import read_facts
from migrator.hosts.host_config import HostConfig
from migrator.hosts.local import LocalAccess
from migrator.qemu.address import Address
from migrator.qemu.source import SourceEndpoint
from migrator.site.host_checks import HostChecks, SiteChecks
from migrator.testing.lab import GuestMachine, Lab, LabQemu, binaries
from migrator.testing.network import LabHost, LabHosts, possible
from tests.integration.test_checks_files import OtherMounts, image

pytestmark = pytest.mark.skipif(possible() is not None, reason=f"needs hosts of their own: {possible()}")
#: What every guest of these tests raises: it runs under TCG in the oldest QEMU that is tested.
ALWAYS = {"tcg-loses-writes"} if next(iter(binaries()), "") < "9" else set()


@pytest.fixture(scope="module")
def hosts() -> Iterator[LabHosts]:
    with LabHosts("alpha", "beta") as made:
        yield made


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with Lab() as made:
        yield made


class Counting:
    """A host that counts the commands it is sent."""

    def __init__(self, inner: LocalAccess) -> None:
        self._inner = inner
        self.name = inner.name
        self.process_script = inner.process_script
        self.commands: list[Sequence[str]] = []

    async def run(self, argv: Sequence[str], *, timeout: float = 30.0, stdin: bytes = b"") -> Output:
        self.commands.append(argv)
        return await self._inner.run(argv, timeout=timeout, stdin=stdin)

    forward = property(lambda self: self._inner.forward)
    process = property(lambda self: self._inner.process)
    coprocess = property(lambda self: self._inner.coprocess)
    client_identity = property(lambda self: self._inner.client_identity)
    ask_sockets = property(lambda self: self._inner.ask_sockets)
    close = property(lambda self: self._inner.close)


class Nameless(Counting):
    """Shows a QEMU as started from a path that is nowhere else."""

    def __init__(self, inner: Counting, qemu: LabQemu) -> None:
        super().__init__(inner._inner)
        self._qemu = qemu

    async def process(self, pid: int, read: Output | None = None) -> Any:
        """The process, by another name."""
        process = await self._inner.process(pid, read)
        assert process is not None
        arguments = ["/nowhere/qemu-system-none", *process.arguments()[1:]]
        process.arguments = lambda: arguments  # type: ignore[method-assign]
        return process


def way(host: LabHost, prefix: Sequence[str] = ()) -> Counting:
    return Counting(LocalAccess(host.name, (*prefix, *host.prefix)))


def guest_of(qemu: LabQemu) -> Guest:
    return Guest(key=str(qemu.machine.uuid), host="alpha", name=qemu.machine.name, pid=qemu.pid)


@contextlib.asynccontextmanager
async def connected(qemu: LabQemu) -> AsyncIterator[SourceEndpoint]:
    end = SourceEndpoint(Address(kind="unix", path=str(qemu.qmp)), role="source")
    try:
        await end.connect()
        yield end
    finally:
        await end.close()


async def check(
    qemu: LabQemu,
    hosts: LabHosts,
    *,
    prefix: Sequence[str] = (),
    there: dict[str, Any] | None = None,
    bare: bool = False,
    policy: Policy | None = None,
) -> list[Finding]:
    """The findings of a guest on alpha against beta, but for what is found always.

    :param bare: alpha has only the programs that beta has.
    """
    alpha = way(hosts["alpha"], prefix[-2:] if bare else ())
    beta = way(hosts["beta"], prefix)
    here = await read_facts(alpha, address=hosts["alpha"].address)
    target = replace(await read_facts(beta, address=hosts["beta"].address), **(there or {}))
    async with connected(qemu) as source:
        before = await source.settings(), await source.facts()
        found = await HostChecks().check(
            guest_of(qemu), source, alpha, beta, here=here, there=target, policy=policy
        )
        assert (await source.settings(), await source.facts()) == before
    return [finding for finding in found if finding.code not in ALWAYS]


def codes(findings: list[Finding]) -> list[str]:
    for finding in findings:
        assert "\n" not in finding.message
    return [finding.code for finding in findings]


async def start(lab: Lab, hosts: LabHosts, *extra: str, **machine: Any) -> LabQemu:
    return await lab.start(GuestMachine(extra=extra, **machine), prefix=hosts["alpha"].prefix)


class Directory:
    """The hosts of the tests by name, and one that answers nothing."""

    def __init__(self, hosts: LabHosts) -> None:
        self._hosts = hosts

    def access(self, host: str) -> Counting:
        """The connection to it."""
        if host == "gamma":
            return Counting(LocalAccess("gamma", ("false",)))
        return way(self._hosts[host])

    def config(self, host: str) -> HostConfig:
        """Only its name is configured."""
        return HostConfig(name=host)


class TestFits:
    async def test_hosts_that_fit_raise_nothing_and_are_asked_little(self, lab: Lab, hosts: LabHosts) -> None:
        qemu = await start(lab, hosts)
        assert await check(qemu, hosts, policy=builtin("default")) == []
        alpha, beta = way(hosts["alpha"]), way(hosts["beta"])
        facts = await read_facts(alpha, address=hosts["alpha"].address)
        began = asyncio.get_running_loop().time()
        async with connected(qemu) as source:
            alpha.commands.clear()
            await HostChecks().check(guest_of(qemu), source, alpha, beta, here=facts, there=facts)
        assert asyncio.get_running_loop().time() - began < 5
        assert (len(alpha.commands), len(beta.commands)) == (1, 2)
        assert await qemu.run_state() == "running"

    async def test_obstacle_of_the_guest_is_told_first(self, lab: Lab, hosts: LabHosts) -> None:
        qemu = await start(lab, hosts)
        alpha, beta = way(hosts["alpha"]), way(hosts["beta"])
        guest = replace(guest_of(qemu), obstacle="libvirt manages it", obstacle_code="libvirt")
        async with connected(qemu) as source:
            facts = await read_facts(alpha, address="127.0.0.1")
            found = await HostChecks().check(guest, source, alpha, beta, here=facts, there=facts)
        assert [each.code for each in found if each.severity is Severity.ERROR] == ["libvirt", *ALWAYS]

    async def test_hosts_by_their_names(self, lab: Lab, hosts: LabHosts) -> None:
        qemu = await start(lab, hosts)
        async with connected(qemu) as source:
            found = await SiteChecks(Directory(hosts)).check(
                guest_of(qemu), source, "beta", builtin("default")
            )
            assert {each.code for each in found} == ALWAYS
            with pytest.raises(HostError, match="gamma"):
                await SiteChecks(Directory(hosts)).check(guest_of(qemu), source, "gamma", builtin("default"))


class TestTarget:
    async def test_without_memory_kvm_and_userfaultfd(self, lab: Lab, hosts: LabHosts) -> None:
        qemu = await start(lab, hosts)
        there = {"memory_free_bytes": 100 << 20, "userfaultfd": False, "kvm": False}
        found = await check(qemu, hosts, there=there, policy=builtin("postcopy-first"))
        assert codes(found) == ["memory-free", "userfaultfd"]

    async def test_hugepages_that_are_not_reserved(self, lab: Lab, hosts: LabHosts) -> None:
        # The guest gets pages that the kernel makes on demand; none is reserved for another.
        demand = Path("/proc/sys/vm/nr_overcommit_hugepages")
        before = demand.read_text()
        try:
            demand.write_text("80")
        except OSError as error:
            pytest.skip(f"no huge pages here: {error}")
        try:
            memory = "memory-backend-memfd,id=pc.ram,size=128M,hugetlb=on,hugetlbsize=2M"
            qemu = await start(lab, hosts, "-object", memory, "-machine", "memory-backend=pc.ram")
            assert await check(qemu, hosts, there={"hugepages": {2 << 20: 64}}) == []
            (finding,) = await check(qemu, hosts, there={"hugepages": {2 << 20: 63, 1 << 30: 9}})
        finally:
            demand.write_text(before)
        assert finding.code == "hugepages"
        assert "64 pages of 2.0 MiB; beta has 63 free" in finding.message

    async def test_bridge_tap_script_and_vhost(self, lab: Lab, hosts: LabHosts) -> None:
        alpha, beta = hosts["alpha"], hosts["beta"]
        for command in (
            "ip link add vmbr type bridge",
            "ip tuntap add dev vm7 mode tap",
            "ip link set vm7 master vmbr",
        ):
            alpha.run(*command.split())
        tap = "tap,id=n0,ifname=vm7,script=no,downscript=no"
        try:
            card = "virtio-net-pci,netdev=n0,id=nic0,romfile="
            qemu = await start(lab, hosts, "-netdev", tap, "-device", card)
            found = await check(qemu, hosts)
            assert codes(found) == ["tap-missing", "bridge-maybe-missing"]
            assert "vm7" in found[0].message
            assert "vmbr" in found[1].message
            beta.run("ip", "link", "add", "vmbr", "type", "bridge")
            beta.run("ip", "tuntap", "add", "dev", "vm7", "mode", "tap")
            assert codes(await check(qemu, hosts)) == ["tap-bridge"]
            beta.run("ip", "link", "set", "vm7", "master", "vmbr")
            assert await check(qemu, hosts) == []
        finally:
            with contextlib.suppress(Exception):
                beta.run("ip", "link", "del", "vm7")
            with contextlib.suppress(Exception):
                beta.run("ip", "link", "del", "vmbr")

    async def test_what_is_mended_a_moment_after_a_refusal_is_not_refused_again(
        self, lab: Lab, hosts: LabHosts
    ) -> None:
        beta = hosts["beta"]
        beta.run("ip", "tuntap", "add", "dev", "vm8", "mode", "tap")
        hosts["alpha"].run("ip", "tuntap", "add", "dev", "vm8", "mode", "tap")
        hosts["alpha"].run("ip", "link", "set", "vm8", "up")
        try:
            tap = "tap,id=n0,ifname=vm8,script=no,downscript=no"
            qemu = await start(lab, hosts, "-netdev", tap, "-device", "virtio-net-pci,netdev=n0,romfile=")
            checks = SiteChecks(Directory(hosts))
            async with connected(qemu) as source:
                asked = guest_of(qemu), source, "beta", builtin("default")
                assert "tap-down" in codes(list(await checks.check(*asked)))
                beta.run("ip", "link", "set", "vm8", "up")
                assert {*codes(list(await checks.check(*asked)))} == ALWAYS
        finally:
            with contextlib.suppress(Exception):
                beta.run("ip", "link", "del", "vm8")

    async def test_user_network_is_lost(self, lab: Lab, hosts: LabHosts) -> None:
        qemu = await start(
            lab, hosts, "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="
        )
        (finding,) = await check(qemu, hosts)
        assert (finding.code, finding.severity) == ("user-network", Severity.WARNING)

    async def test_old_qemu_and_one_that_lacks_what_the_guest_has(
        self, lab: Lab, hosts: LabHosts, tmp_path: Path
    ) -> None:
        qemu = await start(lab, hosts)
        # A QEMU that is known by the same path over there: what it says of itself is what counts.
        script = tmp_path / "old"
        script.write_text(
            "#!/bin/sh\ncase $1 in\n--version) echo 'QEMU emulator version 2.12.0';;\n"
            "-machine) printf 'Supported machines are:\\npc-i440fx-2.12 old\\n';;\n"
            "-device) echo 'name \"e1000\", bus PCI';;\n-cpu) echo 'x86 host  host';;\nesac\n"
        )
        script.chmod(0o755)
        other = OtherMounts(qemu.binary.resolve(), script)
        try:
            found = await check(qemu, hosts, prefix=other.prefix)
        finally:
            other.close()
        assert codes(found) == [
            "qemu-too-old",
            "machine-not-offered",
            "device-not-offered",
            "cpu-not-offered",
        ]
        assert "2.12.0" in found[0].message

    async def test_what_a_qemu_knows_is_remembered_but_never_held_against_it(
        self, lab: Lab, hosts: LabHosts, tmp_path: Path
    ) -> None:
        qemu = await start(lab, hosts)
        # Only where the source's own program is not there is the configured one taken.
        alpha, beta, script = Nameless(way(hosts["alpha"]), qemu), way(hosts["beta"]), tmp_path / "qemu"
        asked = tmp_path / "asked"
        # Knows what a file beside it says: a program that finds a module which was installed later.
        (tmp_path / "devices").write_text('name "e1000", bus PCI\n')
        script.write_text(
            f'#!/bin/sh\necho "$@" >>{asked}\n[ "$1" = -device ] && exec cat {tmp_path}/devices\n'
            f'exec {qemu.binary.resolve()} "$@"\n'
        )
        script.chmod(0o755)
        guest = guest_of(qemu)
        facts = await read_facts(alpha, address="127.0.0.1")
        checks = HostChecks()
        async with connected(qemu) as source:

            async def found() -> set[str]:
                return {
                    each.code
                    for each in await checks.check(
                        guest, source, alpha, beta, here=facts, there=facts, qemu=str(script)
                    )
                } - ALWAYS

            assert await found() == {"device-not-offered"}
            (tmp_path / "devices").write_text('name "virtio-blk-pci", bus PCI\n')
            assert await found() == set()
            before = asked.read_text()
            assert await found() == set()
            assert asked.read_text() == before

    async def test_no_qemu(self, lab: Lab, hosts: LabHosts, tmp_path: Path) -> None:
        qemu = await start(lab, hosts)
        (tmp_path / "nothing").write_text("")
        other = OtherMounts(qemu.binary.resolve(), tmp_path / "nothing")
        try:
            found = await check(qemu, hosts, prefix=other.prefix)
        finally:
            other.close()
        assert codes(found) == ["qemu-missing"]

    async def test_newer_and_older_qemu(self, lab: Lab, hosts: LabHosts) -> None:
        found = binaries()
        if not {"7.2", "10.0"} <= found.keys():
            pytest.skip("there is only one QEMU")
        new = await lab.start(GuestMachine(), binary=found["10.0"], prefix=hosts["alpha"].prefix)
        assert codes(await check(new, hosts)) == []
        # Beta has no 10.0 under that path.
        other = OtherMounts(found["10.0"].parent.resolve(), lab.directory)
        try:
            assert codes(await check(new, hosts, prefix=other.prefix)) == ["qemu-older"]
        finally:
            other.close()

    async def test_firmware_and_keys_that_are_only_here(
        self, lab: Lab, hosts: LabHosts, tmp_path: Path
    ) -> None:
        files, other = tmp_path / "files", tmp_path / "other"
        files.mkdir()
        other.mkdir()
        (files / "key, $(x)").write_bytes(b"secret")
        (files / "table").write_bytes(b"12345678")
        (other / "table").write_bytes(b"123")
        key = str(files / "key, $(x)").replace(",", ",,")
        qemu = await start(
            lab,
            hosts,
            *("-object", f"secret,id=s0,file={key}", "-fw_cfg", f"name=opt/x,file={files / 'table'}"),
        )
        assert await check(qemu, hosts) == []
        beta = OtherMounts(files, other)
        try:
            found = await check(qemu, hosts, prefix=beta.prefix)
        finally:
            beta.close()
        assert codes(found) == ["file-missing", "file-differs"]
        assert "key, $(x)" in found[0].message


class TestDisks:
    """Beta sees another directory where alpha has the images."""

    @pytest.fixture
    def images(self, tmp_path: Path) -> Iterator[tuple[Path, Path, Sequence[str]]]:
        mine, theirs = tmp_path / "im ages", tmp_path / "theirs"
        mine.mkdir()
        theirs.mkdir()
        other = OtherMounts(mine, theirs)
        yield mine, theirs, other.prefix
        other.close()

    async def qcow2(self, lab: Lab, hosts: LabHosts, directory: Path, options: str = "") -> LabQemu:
        image("create", "-f", "raw", "base", "1M", at=directory)
        image("create", "-f", "qcow2", "-b", "base", "-F", "raw", "top", at=directory)
        drive = f"file={directory / 'top'},if=none,id=d1,format=qcow2{options}"
        return await start(lab, hosts, "-drive", drive, "-device", "virtio-blk-pci,drive=d1,id=disk1")

    async def test_missing(self, lab: Lab, hosts: LabHosts, images: tuple[Path, Path, Sequence[str]]) -> None:
        mine, _, prefix = images
        qemu = await self.qcow2(lab, hosts, mine)
        assert await check(qemu, hosts) == []
        (finding,) = await check(qemu, hosts, prefix=prefix)
        assert finding.code == "disk-copied"
        assert str(mine / "top") in finding.message

    async def test_copy(self, lab: Lab, hosts: LabHosts, images: tuple[Path, Path, Sequence[str]]) -> None:
        mine, theirs, prefix = images
        qemu = await self.qcow2(lab, hosts, mine)
        for name in ("top", "base"):
            (theirs / name).write_bytes((mine / name).read_bytes())
        found = await check(qemu, hosts, prefix=prefix)
        assert codes(found) == ["disk-not-shared", "backing-not-shared"]

    async def test_backing_file_that_is_missing_or_another(
        self, lab: Lab, hosts: LabHosts, images: tuple[Path, Path, Sequence[str]]
    ) -> None:
        mine, theirs, prefix = images
        qemu = await self.qcow2(lab, hosts, mine)
        os.link(mine / "top", theirs / "top")
        found = await check(qemu, hosts, prefix=prefix)
        assert codes(found) == ["backing-missing"]
        assert str(mine / "base") in found[0].message
        (theirs / "base").write_bytes(b"short")
        assert codes(await check(qemu, hosts, prefix=prefix)) == ["backing-differs"]

    async def test_chain_is_known_from_qemu_where_no_host_has_qemu_img(
        self, lab: Lab, hosts: LabHosts, images: tuple[Path, Path, Sequence[str]], tmp_path: Path
    ) -> None:
        mine, theirs, prefix = images
        programs = tmp_path / "bin"
        programs.mkdir()
        names = [
            "sh",
            "cat",
            "grep",
            "sed",
            "id",
            "uname",
            "readlink",
            "stat",
            "base64",
            "timeout",
            "ip",
            "getent",
            "head",
            *("find", "ls", "tr", "cut", "setpriv", "prlimit", "taskset", "renice", "chrt", "ionice"),
        ]
        for name in [*names, "nsenter", "qemu-system-x86_64"]:
            (programs / name).symlink_to(shutil.which(name) or "/nowhere")
        qemu = await self.qcow2(lab, hosts, mine)
        os.link(mine / "top", theirs / "top")
        bare = (*prefix, "env", f"PATH={programs}")
        assert shutil.which("qemu-img", path=str(programs)) is None
        found = await check(qemu, hosts, prefix=bare, bare=True)
        assert codes(found) == ["backing-missing"]
        os.link(mine / "base", theirs / "base")
        assert await check(qemu, hosts, prefix=bare, bare=True) == []

    async def test_snapshot(self, lab: Lab, hosts: LabHosts, tmp_path: Path) -> None:
        qemu = await self.qcow2(lab, hosts, tmp_path, ",snapshot=on")
        found = await check(qemu, hosts)
        assert codes(found) == ["snapshot"]
        assert str(tmp_path / "top") in found[0].message

    async def test_lock_that_is_off(self, lab: Lab, hosts: LabHosts) -> None:
        qemu = await start(lab, hosts, image_locking="off")
        assert codes(await check(qemu, hosts)) == ["disk-lock-off"]

    async def test_disk_that_was_plugged_in_later(
        self, lab: Lab, hosts: LabHosts, images: tuple[Path, Path, Sequence[str]]
    ) -> None:
        mine, _, prefix = images
        image("create", "-f", "raw", "later", "1M", at=mine)
        qemu = await start(lab, hosts, "-device", "pcie-root-port,id=port1,chassis=1")
        path = str(mine / "later")
        await qemu.query("blockdev-add", {"driver": "file", "node-name": "later", "filename": path})
        await qemu.query(
            "device_add", {"driver": "virtio-blk-pci", "id": "late", "drive": "later", "bus": "port1"}
        )
        (finding,) = await check(qemu, hosts, prefix=prefix)
        assert finding.code == "disk-not-copied"
        assert path in finding.message
        assert "late" in finding.message


class TestTwoMachines:
    """Alpha and beta say that they are different machines, and their images lie where identities tell nothing."""

    @pytest.fixture
    def overlays(self, tmp_path: Path) -> Iterator[tuple[Path, list[OtherMounts]]]:
        path, made = tmp_path / "images", []
        path.mkdir()
        try:
            for name in ("one", "two"):
                parts = {part: tmp_path / f"{name}-{part}" for part in ("lowerdir", "upperdir", "workdir")}
                for each in parts.values():
                    each.mkdir()
                image("create", "-f", "qcow2", "top", "1M", at=parts["lowerdir"])
                options = ",".join(f"{part}={each}" for part, each in parts.items())
                made.append(OtherMounts(path, path, "-t", "overlay", "none", "-o", options))
            yield path, made
        finally:
            for mounts in made:
                mounts.close()

    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("cache", ["none", "writeback"])
    async def test_probe_tells(
        self,
        lab: Lab,
        hosts: LabHosts,
        overlays: tuple[Path, list[OtherMounts]],
        tmp_path: Path,
        shared: bool,
        cache: str,
    ) -> None:
        path, (one, two) = overlays
        drive = f"file={path / 'top'},if=none,id=d1,format=qcow2,cache={cache},read-only=off"
        extra = ("-drive", drive, "-device", "virtio-blk-pci,drive=d1,id=disk1")
        qemu = await lab.start(GuestMachine(extra=extra), prefix=(*one.prefix, *hosts["alpha"].prefix))
        alpha, beta = way(hosts["alpha"], one.prefix), way(hosts["beta"], (one if shared else two).prefix)
        here = await read_facts(alpha, address=hosts["alpha"].address)
        there = replace(await read_facts(beta, address=hosts["beta"].address), boot_id="another")
        before = sorted(tmp_path.rglob("*"))
        async with connected(qemu) as source:
            found = await HostChecks().check(guest_of(qemu), source, alpha, beta, here=here, there=there)
        assert sorted(tmp_path.rglob("*")) == before
        top = {each.code: each for each in found if str(path / "top") in each.message}
        if not shared:
            assert list(top) == ["disk-not-shared"]
            assert top["disk-not-shared"].severity is Severity.ERROR
        else:
            # One kernel has one table of locks: the source's own is seen at the target.
            assert set(top) - {"disk-locked"} == ({"cache-unsafe"} if cache == "writeback" else set())

    @pytest.mark.parametrize("direct", [True, False])
    async def test_cache_of_a_disk_that_was_plugged_in_later_is_known_from_qemu(
        self, lab: Lab, hosts: LabHosts, overlays: tuple[Path, list[OtherMounts]], direct: bool
    ) -> None:
        path, (one, _) = overlays
        port = ("-device", "pcie-root-port,id=port1,chassis=1")
        qemu = await lab.start(GuestMachine(extra=port), prefix=(*one.prefix, *hosts["alpha"].prefix))
        file = {"driver": "file", "filename": str(path / "top"), "cache": {"direct": direct}}
        await qemu.query("blockdev-add", {"driver": "qcow2", "node-name": "later", "file": file})
        await qemu.query(
            "device_add", {"driver": "virtio-blk-pci", "id": "late", "drive": "later", "bus": "port1"}
        )
        alpha, beta = way(hosts["alpha"], one.prefix), way(hosts["beta"], one.prefix)
        here = await read_facts(alpha, address=hosts["alpha"].address)
        async with connected(qemu) as source:
            found = await HostChecks().check(
                guest_of(qemu), source, alpha, beta, here=here, there=replace(here, boot_id="another")
            )
        top = {each.code for each in found if str(path / "top") in each.message}
        assert top - {"disk-locked"} == (set() if direct else {"cache-unsafe"})


class TestUnreachable:
    async def test_target_that_does_not_answer_is_an_error_in_time(self, lab: Lab, hosts: LabHosts) -> None:
        qemu = await start(lab, hosts)
        alpha, dead = way(hosts["alpha"]), LocalAccess("beta", ("sh", "-c", "sleep 60", "sh"))
        facts = await read_facts(alpha, address="127.0.0.1")
        async with connected(qemu) as source:
            with pytest.raises(HostError, match=r"host beta: .*within 1 s"):
                await HostChecks(seconds=1).check(
                    guest_of(qemu), source, alpha, dead, here=facts, there=facts
                )

    async def test_command_line_that_nobody_may_read(self, lab: Lab, hosts: LabHosts) -> None:
        qemu = await start(lab, hosts)
        alpha, beta = way(hosts["alpha"]), way(hosts["beta"])
        facts = await read_facts(alpha, address="127.0.0.1")
        async with connected(qemu) as source:
            guest = replace(guest_of(qemu), pid=None)
            found = await HostChecks().check(guest, source, alpha, beta, here=facts, there=facts)
        assert "command-line-unknown" in [each.code for each in found]
