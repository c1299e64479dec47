"""What speaks against a host: hosts that fit raise nothing, and every lack has its own finding with a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from migrator.core import host_checks, host_disks, host_files, host_network
from migrator.core.command_line import CommandLine, ImageUse, is_path, path_of
from migrator.core.cpu_flags import guest_flags
from migrator.core.facts import Device, Disk, Facts
from migrator.core.files import FileSeen, Kind, Offer, Same, Seen, same_file
from migrator.core.findings import CATALOGUE
from migrator.core.host_case import Case
from migrator.core.host_checks import check
from migrator.core.inventory import Guest, HostFacts
from migrator.core.model import Finding, MigrationStatus, RunState
from migrator.core.policy import builtin

GIB = 1 << 30
QEMU = "/usr/bin/qemu-system-x86_64"
IMAGE = "/images/a.qcow2"
BASE = "/images/base.qcow2"
ARGV = (
    QEMU,
    *("-nodefaults", "-machine", "pc-q35-7.2", "-accel", "kvm", "-cpu", "EPYC,-svm", "-m", "1G"),
    *("-drive", f"file={IMAGE},if=none,id=d0,format=qcow2,cache=none"),
    *("-device", "virtio-blk-pci,drive=d0,id=disk0"),
    *("-netdev", "tap,id=net0,br=br0,helper=/usr/lib/qemu/qemu-bridge-helper"),
    *("-device", "virtio-net-pci,netdev=net0,id=nic0"),
)
HERE = HostFacts(
    memory_total_bytes=8 * GIB,
    memory_free_bytes=4 * GIB,
    cpus=4,
    cpu_model="EPYC 7543",
    cpu_flags=frozenset({"fpu", "sse", "avx2", "svm", "npt", "nrip_save", "vmx"}),
    nested_flags=frozenset({"ept", "vpid"}),
    kvm=True,
    userfaultfd=True,
    vhost_net=True,
    qemus={QEMU: "7.2.22"},
    interfaces=frozenset({"eth0", "br0"}),
    bridges=frozenset({"br0"}),
    boot_id="one",
)
THERE = replace(HERE, boot_id="two")
FILE = FileSeen(
    kind=Kind.REGULAR,
    real=IMAGE,
    size_bytes=4096,
    device="0:50",
    inode=7,
    filesystem="nfs4",
    mount_source="nas:/export",
    inner_path="/a.qcow2",
    readable=True,
    writable=True,
)
HELPER = FileSeen(kind=Kind.REGULAR, readable=True, executable=True, size_bytes=9)
BASE_SEEN = replace(FILE, real=BASE, inode=8, inner_path="/base.qcow2")
FILES = {IMAGE: FILE, BASE: BASE_SEEN, "/usr/lib/qemu/qemu-bridge-helper": HELPER}
OFFER = Offer(
    identity="1:2",
    version="7.2.22",
    machines=frozenset({"pc-q35-7.2"}),
    devices=frozenset({"virtio-blk-pci", "virtio-net-pci"}),
    cpus=frozenset({"EPYC", "host"}),
)
SEEN = Seen(
    files=FILES,
    chains={IMAGE: (IMAGE, BASE)},
    user=0,
    qemu=QEMU,
    offer=OFFER,
)
DISK = Disk(device="disk0", file=IMAGE, format="qcow2", virtual_bytes=GIB)
SOURCE = Facts(
    version="7.2.22",
    run=RunState.RUNNING,
    status=MigrationStatus.NONE,
    machine="pc-q35-7.2",
    accelerator="kvm",
    memory_bytes=GIB,
    cpus=("EPYC-x86_64-cpu core-id=0",),
    cpu_features={"CPUID[0x1].EDX": 1 | 1 << 25, "CPUID[0x7,0x0].EBX": 1 << 5},
    devices=(Device(name="disk0", driver="virtio-blk-pci"), Device(name="nic0", driver="virtio-net-pci")),
    disks=(DISK,),
)
CASE = Case(
    target="beta",
    source=SOURCE,
    command=CommandLine(ARGV),
    here=HERE,
    there=THERE,
    seen_here=SEEN,
    seen_there=SEEN,
    policy=builtin("default"),
)


def codes(case: Case) -> list[str]:
    """The codes that are found, each with a message of one line and a remedy."""
    found = check(case)
    for finding in found:
        assert finding.message
        assert "\n" not in finding.message
        assert finding.remedy
        assert finding.severity is CATALOGUE[finding.code].severity
    return [finding.code for finding in found]


def with_files(case: Case, files: Mapping[str, FileSeen], *, here: bool = False) -> Case:
    """The same with other files at the target, or at the source."""
    seen = case.seen_here if here else case.seen_there
    seen = replace(seen, files={**seen.files, **files})
    return replace(case, seen_here=seen) if here else replace(case, seen_there=seen)


def with_options(*options: str, **changes: Any) -> Case:
    """The same guest, started with more options."""
    return replace(CASE, command=CommandLine([*ARGV, *options]), **changes)


def with_source(**changes: Any) -> Case:
    return replace(CASE, source=replace(SOURCE, **changes))


def with_target(**changes: Any) -> Case:
    return replace(CASE, there=replace(THERE, **changes))


def with_qemu(path: str = QEMU, **changes: Any) -> Case:
    """The same with another QEMU at the target."""
    return replace(CASE, seen_there=replace(SEEN, qemu=path, offer=replace(OFFER, **changes)))


def test_hosts_that_fit_raise_nothing() -> None:
    for policy in ("default", "gentle", "must-finish", "postcopy-first", "offline"):
        assert codes(replace(CASE, policy=builtin(policy))) == []
    assert codes(replace(CASE, policy=None)) == []


def test_hosts_of_which_nothing_could_be_read_are_not_accused() -> None:
    nothing = replace(CASE, here=HostFacts(), there=HostFacts(kvm=True, vhost_net=True, userfaultfd=True))
    assert codes(nothing) == []


def test_source_that_cannot_begin_is_told_without_a_destination() -> None:
    assert codes(with_source(blockers=("a device says no",))) == ["blocked"]
    assert codes(with_source(status=MigrationStatus.ACTIVE)) == ["source-migrating"]


def test_command_line_that_cannot_be_read_is_told() -> None:
    found = codes(replace(CASE, command=CommandLine([])))
    assert found == ["command-line-unknown", "cache-unknown"]


@pytest.mark.parametrize(
    ("code", "text"), [("libvirt", "libvirt manages it"), ("", "movable = false"), ("monitor-held", "held")]
)
def test_obstacle_of_the_inventory_is_a_finding(code: str, text: str) -> None:
    guest = Guest(key="g", host="alpha", name="web", obstacle=text, obstacle_code=code)
    (finding,) = host_checks.obstacle(guest)
    assert finding.code == (code or "not-movable")
    assert text in finding.message
    assert list(host_checks.obstacle(replace(guest, obstacle=""))) == []


class TestCpu:
    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"kvm": False}, ["kvm-missing"]),
            ({"cpu_flags": HERE.cpu_flags - {"avx2"}}, ["cpu-flags"]),
            # the guest does not see these
            ({"cpu_flags": HERE.cpu_flags - {"svm", "npt"}}, []),
            ({"nested_flags": frozenset()}, []),
            ({"cpu_flags": frozenset()}, []),
            ({"cpu_model": "EPYC 9654"}, []),
        ],
    )
    def test_target_lacks_what_the_guest_was_shown(self, changes: dict[str, Any], found: list[str]) -> None:
        assert codes(with_target(**changes)) == found
        if "cpu-flags" in found:
            assert "avx2" in check(with_target(**changes))[0].message

    def test_nothing_of_this_matters_under_tcg(self) -> None:
        there = replace(THERE, kvm=False, cpu_flags=frozenset({"fpu"}), nested_flags=frozenset())
        tcg = replace(SOURCE, accelerator="tcg", version="9.0.0")
        assert codes(replace(with_qemu(version="9.0.0"), source=tcg, there=there)) == []

    def test_what_kvm_makes_up_is_not_asked_of_the_cpu(self) -> None:
        shown = {**SOURCE.cpu_features, "CPUID[0x1].ECX": 1 << 21 | 1 << 24 | 1 << 31}
        here = replace(HERE, cpu_flags=HERE.cpu_flags | {"x2apic", "tsc_deadline_timer", "hypervisor"})
        assert codes(replace(with_source(cpu_features=shown), here=here)) == []

    def test_cpu_of_the_host_without_words_is_every_flag_of_it(self) -> None:
        host = replace(with_options("-cpu", "host"), source=replace(SOURCE, cpu_features={}))
        assert codes(host) == []
        lacking = replace(host, there=replace(THERE, cpu_flags=HERE.cpu_flags - {"sse"}))
        assert codes(lacking) == ["cpu-flags"]

    def test_cpu_of_the_host_on_another_cpu_is_warned_of(self) -> None:
        case = with_options("-cpu", "host,migratable=on", there=replace(THERE, cpu_model="EPYC 9654"))
        assert codes(case) == ["cpu-host-passthrough"]

    @pytest.mark.parametrize(
        ("word", "changes", "found"),
        [
            ({"CPUID[0x1].ECX": 1 << 5}, {}, []),
            ({"CPUID[0x1].ECX": 1 << 5}, {"cpu_flags": HERE.cpu_flags - {"vmx"}}, ["nested-missing"]),
            ({"CPUID[0x1].ECX": 1 << 5}, {"nested_flags": frozenset({"ept"})}, ["nested-abilities"]),
            ({"CPUID[0x80000001].ECX": 1 << 2}, {}, []),
            ({"CPUID[0x80000001].ECX": 1 << 2}, {"cpu_flags": HERE.cpu_flags - {"svm"}}, ["nested-missing"]),
            (
                {"CPUID[0x80000001].ECX": 1 << 2},
                {"cpu_flags": HERE.cpu_flags - {"npt"}},
                ["nested-abilities"],
            ),
            ({"CPUID[0x80000001].ECX": 1 << 2}, {"nested_flags": frozenset()}, []),
        ],
    )
    def test_nested_guests_need_the_same_abilities(
        self, word: dict[str, int], changes: dict[str, Any], found: list[str]
    ) -> None:
        source = replace(SOURCE, cpu_features={**SOURCE.cpu_features, **word})
        assert codes(replace(CASE, source=source, there=replace(THERE, **changes))) == found

    def test_flags_are_named_as_the_kernel_names_them(self) -> None:
        assert guest_flags({}) == frozenset()
        words = {
            "CPUID[0x1].EDX": 1 << 31 | 1,
            "CPUID[0x7,0x0].EDX": 1 << 29,
            "CPUID[0x80000001].EDX": 1 << 29,
        }
        assert guest_flags(words) == {"pbe", "fpu", "arch_capabilities", "lm"}
        assert guest_flags({"CPUID[0x80000001].ECX": 1 << 29 | 1 << 14}) == {"mwaitx"}


class TestMemory:
    def test_less_free_than_the_guest_has(self) -> None:
        assert codes(with_target(memory_free_bytes=GIB - 1)) == ["memory-free"]
        assert codes(with_target(memory_free_bytes=GIB)) == []

    @pytest.mark.parametrize(
        ("backend", "pages", "found"),
        [
            ("memory-backend-memfd,id=m,size=1G,hugetlb=on,hugetlbsize=2M", {2 << 20: 512}, []),
            ("memory-backend-memfd,id=m,size=1G,hugetlb=on,hugetlbsize=2M", {2 << 20: 511}, ["hugepages"]),
            ("memory-backend-memfd,id=m,size=1G,hugetlb=on,hugetlbsize=1G", {2 << 20: 512}, ["hugepages"]),
            ("memory-backend-memfd,id=m,size=1G,hugetlb=on", {2 << 20: 512}, []),
            ("memory-backend-memfd,id=m,size=1G,hugetlb=on", {}, ["hugepages"]),
            ("memory-backend-memfd,id=m,size=1G,share=on", {}, []),
            (
                '{"qom-type":"memory-backend-memfd","id":"m","size":1073741824,"hugetlb":true}',
                {},
                ["hugepages"],
            ),
        ],
    )
    def test_huge_pages(self, backend: str, pages: dict[int, int], found: list[str]) -> None:
        assert codes(with_options("-object", backend, there=replace(THERE, hugepages=pages))) == found

    def test_memory_of_huge_pages_is_not_taken_from_the_rest(self) -> None:
        there = replace(THERE, hugepages={2 << 20: 512}, memory_free_bytes=1 << 20)
        assert (
            codes(with_options("-object", "memory-backend-memfd,id=m,size=1G,hugetlb=on", there=there)) == []
        )

    HUGE = FileSeen(
        kind=Kind.DIRECTORY, filesystem="hugetlbfs", block_bytes=2 << 20, readable=True, size_bytes=0
    )

    @pytest.mark.parametrize(
        ("there", "found"),
        [
            (HUGE, ["hugepages"]),
            (FileSeen(), ["memory-path", "hugepages"]),
            (replace(HUGE, block_bytes=1 << 30), ["memory-path", "hugepages"]),
            (replace(HUGE, filesystem="ext4", block_bytes=4096), ["memory-path", "hugepages"]),
        ],
    )
    @pytest.mark.parametrize(
        "options", [("-mem-path", "/huge"), ("-object", "memory-backend-file,id=m,size=1G,mem-path=/huge")]
    )
    def test_directory_of_huge_pages(
        self, there: FileSeen, found: list[str], options: tuple[str, ...]
    ) -> None:
        case = with_files(with_options(*options), {"/huge": self.HUGE}, here=True)
        assert codes(with_files(case, {"/huge": there})) == found
        enough = replace(case, there=replace(THERE, hugepages={2 << 20: 512}))
        assert codes(with_files(enough, {"/huge": there})) == [c for c in found if c != "hugepages"]
        assert {"/huge", "/"} <= set(host_files.to_read(case.command))

    def test_file_of_memory_that_qemu_makes_itself_needs_only_its_directory(self) -> None:
        case = with_options("-object", "memory-backend-file,id=m,size=1G,mem-path=/dev/shm/m,share=on")
        case = with_files(case, {"/dev/shm/m": replace(FILE, kind=Kind.REGULAR)}, here=True)
        assert codes(case) == ["memory-path"]
        assert codes(with_files(case, {"/dev/shm": FileSeen(kind=Kind.DIRECTORY, readable=True)})) == []


class TestQemu:
    @pytest.mark.parametrize(
        ("version", "found"),
        [
            ("7.2.22", []),
            ("10.0.2", []),
            ("7.1.0", ["qemu-older"]),
            ("3.1.0", ["qemu-too-old"]),
            ("7.2.1", []),
        ],
    )
    def test_versions(self, version: str, found: list[str]) -> None:
        assert codes(with_qemu(version=version)) == found

    def test_no_qemu(self) -> None:
        assert codes(with_qemu("")) == ["qemu-missing"]
        assert "10.0" in check(replace(with_qemu(""), there=replace(THERE, qemus={"/q": "10.0"})))[0].message

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"machines": frozenset({"pc-q35-7.1"})}, "machine-not-offered"),
            ({"devices": frozenset({"virtio-blk-pci"})}, "device-not-offered"),
            ({"cpus": frozenset({"host"})}, "cpu-not-offered"),
        ],
    )
    def test_what_it_does_not_know(self, changes: dict[str, Any], found: str) -> None:
        assert codes(with_qemu(**changes)) == [found]

    def test_devices_that_are_no_options_are_not_asked_for(self) -> None:
        devices = (*SOURCE.devices, Device(name="", driver="pci 8086:29c0"))
        assert codes(with_source(devices=devices)) == []

    def test_machine_without_a_version_needs_the_same_qemu(self) -> None:
        case = with_source(machine="microvm")
        offer = replace(OFFER, machines=frozenset({"microvm"}))
        case = replace(case, seen_there=replace(SEEN, offer=offer))
        assert codes(case) == []
        newer = replace(case, seen_there=replace(SEEN, offer=replace(offer, version="10.0.2")))
        assert codes(newer) == ["machine-unversioned"]

    @pytest.mark.parametrize(
        ("policy", "found"),
        [("postcopy-first", ["userfaultfd"]), ("default", ["no-postcopy"]), ("gentle", [])],
    )
    def test_userfaultfd_is_missed_where_postcopy_is_allowed(self, policy: str, found: list[str]) -> None:
        assert codes(replace(with_target(userfaultfd=False), policy=builtin(policy))) == found


def node(text: str) -> list[str]:
    """A block node in JSON that opens the image, with double quotes for single ones."""
    return [text.replace("'", '"').replace("IMAGE", IMAGE)]


class TestDisks:
    @pytest.mark.parametrize(
        ("there", "found"),
        [
            (FileSeen(), ["disk-file-missing"]),
            (replace(FILE, filesystem="ext4", mount_source="/dev/vda1"), ["disk-not-shared"]),
            (replace(FILE, kind=Kind.BLOCK), ["disk-not-shared"]),
            (replace(FILE, mount_source="10.0.0.1:/export"), ["disk-maybe-not-shared"]),
            (replace(FILE, inode=9), ["disk-maybe-not-shared"]),
            (replace(FILE, writable=False), ["disk-access"]),
            (replace(FILE, readable=False, writable=False), ["disk-access"]),
        ],
    )
    def test_file_at_the_target(self, there: FileSeen, found: list[str]) -> None:
        assert codes(with_files(CASE, {IMAGE: there})) == found

    @pytest.mark.parametrize(("probed", "found"), [(Same.YES, []), (Same.NO, ["disk-not-shared"])])
    def test_what_identities_do_not_tell_a_probe_does(self, probed: Same, found: list[str]) -> None:
        case = with_files(CASE, {IMAGE: replace(FILE, mount_source="10.0.0.1:/export")})
        assert host_disks.to_probe(case) == [IMAGE]
        assert codes(replace(case, probed={IMAGE: probed})) == found
        assert host_disks.to_probe(CASE) == []

    def test_read_only_disk_may_be_a_copy_of_the_same_size(self) -> None:
        case = with_source(disks=(replace(DISK, read_only=True),))
        copy = replace(FILE, filesystem="ext4", mount_source="/dev/vda1", writable=False)
        assert codes(with_files(case, {IMAGE: copy})) == []
        assert codes(with_files(case, {IMAGE: replace(copy, size_bytes=1)})) == ["disk-size"]
        assert codes(with_files(case, {IMAGE: replace(copy, readable=False)})) == ["disk-access"]
        assert host_disks.to_probe(case) == []

    def test_one_kernel_tells_for_certain(self) -> None:
        one = replace(CASE, there=replace(THERE, boot_id="one"))
        local = replace(FILE, filesystem="ext4")
        one = with_files(with_files(one, {IMAGE: local}), {IMAGE: local}, here=True)
        assert codes(one) == []
        assert codes(with_files(one, {IMAGE: replace(local, inode=9)})) == ["disk-not-shared"]
        assert codes(with_files(one, {IMAGE: replace(local, device="0:51")})) == ["disk-not-shared"]

    @pytest.mark.parametrize(
        ("drive", "found"),
        [
            ("cache=none", []),
            ("cache=directsync", []),
            ("cache.direct=on", []),
            ("cache=writeback", ["cache-unsafe"]),
            ("cache=writethrough", ["cache-unsafe"]),
            ("cache=unsafe", ["cache-unsafe"]),
            ("cache=none,cache.direct=off", ["cache-unsafe"]),
            ("", ["cache-unsafe"]),
            ("cache=none,snapshot=on", ["snapshot"]),
            ("cache=none,file.locking=off", ["disk-lock-off"]),
        ],
    )
    def test_how_a_drive_is_opened(self, drive: str, found: list[str]) -> None:
        argv = [word for word in ARGV if not word.startswith("file=")]
        argv[argv.index("-drive") + 1 : argv.index("-drive") + 1] = [
            f"file={IMAGE},if=none,format=qcow2,{drive}"
        ]
        assert codes(replace(CASE, command=CommandLine(argv))) == found

    @pytest.mark.parametrize(
        ("nodes", "found"),
        [
            ([f"driver=file,node-name=f,filename={IMAGE},cache.direct=on", "qcow2,file=f,node-name=d"], []),
            ([f"driver=file,node-name=f,filename={IMAGE}", "qcow2,file=f,cache.direct=on"], ["cache-unsafe"]),
            ([f"driver=qcow2,cache.direct=on,file.driver=file,file.filename={IMAGE}"], []),
            (
                node(
                    "{'driver':'qcow2','file':{'driver':'file','filename':'IMAGE','cache':{'direct':true}}}"
                ),
                [],
            ),
            (
                node(
                    "{'driver':'qcow2','cache':{'direct':true},'file':{'driver':'file','filename':'IMAGE'}}"
                ),
                [],
            ),
            (node("{'driver':'qcow2','file':{'driver':'file','filename':'IMAGE'}}"), ["cache-unsafe"]),
            (
                node(
                    "{'driver':'qcow2','cache':{'direct':true},"
                    "'file':{'driver':'file','filename':'IMAGE','locking':'off'}}"
                ),
                ["disk-lock-off"],
            ),
        ],
    )
    def test_how_a_block_node_is_opened(self, nodes: list[str], found: list[str]) -> None:
        at = ARGV.index("-drive")
        argv = [*ARGV[:at], *(word for node in nodes for word in ("-blockdev", node)), *ARGV[at + 2 :]]
        assert codes(replace(CASE, command=CommandLine(argv))) == found

    def test_page_cache_is_no_matter_on_one_machine_or_where_caches_know_each_other(self) -> None:
        argv = [word.replace(",cache=none", "") for word in ARGV]
        case = replace(CASE, command=CommandLine(argv))
        assert codes(case) == ["cache-unsafe"]
        ceph = replace(FILE, filesystem="ceph")
        assert codes(with_files(with_files(case, {IMAGE: ceph}), {IMAGE: ceph}, here=True)) == []
        assert "cache-unsafe" not in codes(replace(case, there=replace(THERE, boot_id="one")))

    def test_disk_that_was_plugged_in_later_is_not_known_to_be_safe(self) -> None:
        later = replace(DISK, device="disk1", file="/images/b.raw", format="raw")
        case = with_source(disks=(DISK, later))
        case = with_files(with_files(case, {"/images/b.raw": FILE}), {"/images/b.raw": FILE}, here=True)
        assert codes(case) == ["cache-unknown"]
        for direct, found in ((True, []), (False, ["cache-unsafe"])):
            opened = {"/images/b.raw": ImageUse(path="/images/b.raw", direct=direct)}
            assert codes(replace(case, opened=opened)) == found

    def test_what_qemu_has_open_counts_more_than_its_command_line(self) -> None:
        assert codes(replace(CASE, opened={IMAGE: ImageUse(path=IMAGE)})) == ["cache-unsafe"]

    def test_snapshot_of_all_drives(self) -> None:
        temporary = replace(DISK, file="/var/tmp/vl.ABC123")
        assert codes(replace(with_options("-snapshot"), source=replace(SOURCE, disks=(temporary,)))) == [
            "snapshot"
        ]

    def test_disk_that_somebody_writes_to_at_the_target(self) -> None:
        locked = replace(CASE, seen_there=replace(SEEN, written=frozenset({"0:50:7"})))
        assert codes(locked) == ["disk-locked"]
        assert codes(replace(locked, there=replace(THERE, boot_id="one"))) == []  # it is the source itself

    @pytest.mark.parametrize(
        ("file", "found"),
        [("nbd://nas:10809/a", ["disk-remote"]), ("rbd:pool/a", ["disk-remote"]), ("null-co://", [])],
    )
    def test_disk_that_is_no_file(self, file: str, found: list[str]) -> None:
        assert codes(with_source(disks=(DISK, replace(DISK, device="d1", file=file, format="raw")))) == found

    def test_image_that_only_the_command_line_names(self) -> None:
        case = with_options("-drive", "if=pflash,file=/fw/code.fd,format=raw,readonly=on")
        assert codes(case) == ["disk-file-missing"]
        assert codes(with_files(case, {"/fw/code.fd": FILE})) == []


class TestBackingChain:
    LOCAL = replace(BASE_SEEN, filesystem="ext4", mount_source="/dev/vda1")

    @pytest.mark.parametrize(
        ("base", "found"),
        [
            (BASE_SEEN, []),
            (FileSeen(), ["backing-missing"]),
            (LOCAL, ["backing-not-shared"]),
            (replace(LOCAL, size_bytes=1), ["backing-differs"]),
        ],
    )
    def test_file_at_the_target(self, base: FileSeen, found: list[str]) -> None:
        assert codes(with_files(CASE, {BASE: base})) == found

    @pytest.mark.parametrize(
        ("here", "there", "found"),
        [
            ((IMAGE, BASE), (IMAGE, "/other"), ["backing-differs"]),
            ((IMAGE, BASE), (IMAGE,), ["backing-differs"]),
            ((IMAGE, BASE), None, []),
            (None, (IMAGE, BASE), []),
            (None, (IMAGE, "/gone"), ["backing-missing"]),
            (None, None, ["backing-unknown"]),
        ],
    )
    def test_chain(
        self, here: tuple[str, ...] | None, there: tuple[str, ...] | None, found: list[str]
    ) -> None:
        case = replace(
            CASE,
            seen_here=replace(SEEN, chains={IMAGE: here} if here else {}),
            seen_there=replace(SEEN, chains={IMAGE: there} if there else {}),
        )
        assert codes(case) == found

    def test_what_qemu_has_open_counts_more_than_the_image(self) -> None:
        based = replace(CASE, based={IMAGE: (IMAGE, "/other")})
        assert codes(based) == ["backing-missing"]
        assert codes(with_files(based, {"/other": BASE_SEEN, BASE: FileSeen()})) == []

    def test_raw_disks_are_based_on_nothing_and_never_probed(self) -> None:
        raw = with_source(disks=(replace(DISK, format="raw"),))
        raw = replace(raw, seen_here=replace(SEEN, chains={}), seen_there=replace(SEEN, chains={}))
        assert codes(raw) == []
        assert host_disks.images(raw.source) == {}
        assert host_disks.images(SOURCE) == {IMAGE: "qcow2"}


class TestSameFile:
    BLOCK = FileSeen(kind=Kind.BLOCK, device="8:0", serial="wwid=naa.5000")

    @pytest.mark.parametrize(
        ("here", "there", "one_machine", "same"),
        [
            (FILE, FILE, False, Same.YES),
            (FILE, replace(FILE, inner_path="/b"), False, Same.UNKNOWN),
            (FILE, replace(FILE, size_bytes=1), False, Same.UNKNOWN),
            (FILE, replace(FILE, filesystem="tmpfs"), False, Same.NO),
            (
                replace(FILE, mount_source="localhost:/x"),
                replace(FILE, mount_source="localhost:/x"),
                False,
                Same.UNKNOWN,
            ),
            (replace(FILE, filesystem="overlay"), replace(FILE, filesystem="overlay"), False, Same.UNKNOWN),
            (BLOCK, BLOCK, False, Same.YES),
            (BLOCK, replace(BLOCK, device="8:16"), False, Same.YES),
            (BLOCK, replace(BLOCK, device="8:16"), True, Same.NO),
            (BLOCK, replace(BLOCK, serial="wwid=naa.6000"), False, Same.NO),
            (BLOCK, replace(BLOCK, serial="dm=mpath-3600"), False, Same.UNKNOWN),
            (BLOCK, replace(BLOCK, serial=""), False, Same.UNKNOWN),
        ],
    )
    def test_identity(self, here: FileSeen, there: FileSeen, one_machine: bool, same: Same) -> None:
        assert same_file(here, there, one_machine=one_machine) is same
        assert same_file(there, here, one_machine=one_machine) is same


class TestFiles:
    @pytest.mark.parametrize(
        ("options", "path"),
        [
            (("-kernel", "/boot/k"), "/boot/k"),
            (("-initrd", "/boot/i"), "/boot/i"),
            (("-bios", "/fw/b"), "/fw/b"),
            (("-device", "virtio-net-pci,romfile=/fw/rom"), "/fw/rom"),
            (("-device", "loader,file=/fw/l,addr=0"), "/fw/l"),
            (("-object", "secret,id=s,file=/keys/s"), "/keys/s"),
            (("-object", "tls-creds-x509,id=t,dir=/keys/t,endpoint=server"), "/keys/t"),
            (("--object", '{"qom-type":"tls-creds-psk","id":"t","dir":"/keys/t"}'), "/keys/t"),
            (("-fw_cfg", "opt/x,file=/fw/x"), "/fw/x"),
            (("-smbios", "file=/fw/s"), "/fw/s"),
            (("-acpitable", "data=/fw/1:/fw/2"), "/fw/2"),
            (("-device", "vhost-vsock-pci,guest-cid=3"), "/dev/vhost-vsock"),
            (("-fsdev", "local,id=f,path=/share,security_model=none"), "/share"),
            (("-chardev", "socket,id=c,path=/run/log"), "/run/log"),
        ],
    )
    def test_file_that_the_target_lacks(self, options: tuple[str, ...], path: str) -> None:
        case = with_options(*options)
        assert path in host_files.to_read(case.command)
        present = {name: replace(FILE, real=name) for name in host_files.to_read(case.command)}
        case = with_files(with_files(case, present), present, here=True)
        assert "file-missing" not in codes(case)
        assert "file-missing" in codes(with_files(case, {path: FileSeen()}))
        assert "file-access" in codes(with_files(case, {path: replace(FILE, readable=False)}))
        text = next(
            each for each in check(with_files(case, {path: FileSeen()})) if each.code == "file-missing"
        )
        assert path in text.message

    def test_firmware_of_another_size(self) -> None:
        case = with_files(with_options("-bios", "/fw/b"), {"/fw/b": FILE}, here=True)
        assert codes(with_files(case, {"/fw/b": replace(FILE, size_bytes=1)})) == ["file-differs"]

    @pytest.mark.parametrize(
        "options",
        [
            ("-bios", "bios-256k.bin"),
            ("-device", "virtio-net-pci,romfile="),
            ("-chardev", "socket,id=c,path=/run/log,server=on,wait=off"),
            ("-append", "-kernel /boot/k"),
            ("-name", "-bios"),
            ("-object", "rng-builtin,id=r"),
        ],
    )
    def test_what_names_no_file_is_not_asked_for(self, options: tuple[str, ...]) -> None:
        assert codes(with_options(*options)) == []

    def test_processes_that_serve_devices(self) -> None:
        options = (
            *("-chardev", "socket,id=c1,path=/run/vu", "-netdev", "vhost-user,id=n1,chardev=c1"),
            *("-chardev", "socket,id=c2,path=/run/tpm", "-tpmdev", "emulator,id=t0,chardev=c2"),
        )
        case = with_options(*options)
        assert codes(case) == ["vhost-user", "tpm", "vhost-user-socket", "vhost-user-socket"]
        there = {path: FileSeen(kind=Kind.SOCKET) for path in ("/run/vu", "/run/tpm")}
        assert codes(with_files(case, there)) == ["vhost-user", "tpm"]

    def test_connections_over_vsock_are_lost(self) -> None:
        case = with_files(with_options("-device", "vhost-vsock-pci,guest-cid=3"), {"/dev/vhost-vsock": FILE})
        assert codes(case) == ["vsock"]

    def test_usb_device_of_the_host(self) -> None:
        assert codes(with_options("-device", "usb-host,vendorid=1")) == ["host-device"]


class TestVfio:
    PCI = "/sys/bus/pci/devices/0000:3b:00.1"
    BOUND: Mapping[str, FileSeen] = {
        PCI: FileSeen(kind=Kind.DIRECTORY),
        f"{PCI}/driver": FileSeen(kind=Kind.DIRECTORY, real="/sys/bus/pci/drivers/vfio-pci"),
    }

    def found(self, *options: str, **source: Any) -> list[str]:
        case = with_options(*options, source=replace(SOURCE, **source))
        return codes(with_files(case, self.BOUND))

    def test_device_that_qemu_says_blocks(self) -> None:
        device = ("-device", "vfio-pci,host=3b:00.1,id=vf")
        blockers = ("0000:3b:00.1: VFIO device doesn't support migration",)
        assert self.found(*device, blockers=blockers) == ["blocked", "vfio"]
        assert self.found(*device, version="5.2.0") == ["vfio"]
        assert self.found(*device) == ["vfio-state"]

    def test_failover_pair_makes_it_movable(self) -> None:
        pair = (
            "-device",
            "virtio-net-pci,id=n1,failover=on",
            "-device",
            "vfio-pci,host=3b:00.1,failover_pair_id=n1",
        )
        assert self.found(*pair) == ["vfio-failover"]
        half = ("-device", "virtio-net-pci,id=n1", "-device", "vfio-pci,host=3b:00.1,failover_pair_id=n1")
        assert self.found(*half) == ["vfio-state"]

    def test_device_that_the_target_lacks_or_uses_itself(self) -> None:
        case = with_options("-device", "vfio-pci,host=0000:3b:00.1,id=vf")
        assert set(self.BOUND) <= set(host_files.to_read(case.command))
        assert codes(case) == ["vfio-missing", "vfio-state"]
        own = {
            **self.BOUND,
            f"{self.PCI}/driver": FileSeen(kind=Kind.DIRECTORY, real="/sys/bus/pci/drivers/ixgbevf"),
        }
        assert codes(with_files(case, own)) == ["vfio-missing", "vfio-state"]

    def test_device_that_was_plugged_in_later(self) -> None:
        devices = (*SOURCE.devices, Device(name="vf", driver="vfio-pci"))
        found = codes(with_source(devices=devices))
        assert found == ["device-not-offered", "vfio-state"]


class TestNetwork:
    SCRIPT = "/etc/qemu-ifup"

    def found(self, netdev: str, files: Mapping[str, FileSeen] | None = None, **there: Any) -> list[str]:
        at = ARGV.index("-netdev")
        argv = [*ARGV[:at], "-netdev", netdev, *ARGV[at + 2 :]]
        case = replace(CASE, command=CommandLine(argv), there=replace(THERE, **there))
        return codes(with_files(case, files or {}))

    def test_bridge(self) -> None:
        assert self.found("tap,id=n,br=br1") == ["bridge-missing"]
        assert self.found("bridge,id=n,br=br1") == ["bridge-missing"]
        assert self.found("bridge,id=n,br=br0") == []
        assert self.found("bridge,id=n") == []
        assert self.found("bridge,id=n", bridges=frozenset()) == ["bridge-missing"]
        assert self.found("bridge,id=n,br=eth0") == ["bridge-missing"]

    @pytest.mark.parametrize("given", ["", ",script=/etc/qemu-ifup"])
    def test_script(self, given: str) -> None:
        assert self.found(f"tap,id=n{given}") == ["net-script"]
        assert self.found(f"tap,id=n{given}", {self.SCRIPT: HELPER}) == []
        assert self.found(f"tap,id=n{given}", {self.SCRIPT: replace(HELPER, executable=False)}) == [
            "net-script"
        ]

    def test_helper(self) -> None:
        assert self.found("tap,id=n,helper=/usr/bin/no --x") == ["net-script"]
        assert self.found("tap,id=n,helper=/usr/bin/yes --x", {"/usr/bin/yes": HELPER}) == []

    def test_tap_that_nobody_makes(self) -> None:
        tap = "tap,id=n,ifname=tap7,script=no,downscript=no"
        assert self.found(tap) == ["tap-missing"]
        assert self.found(tap, interfaces=THERE.interfaces | {"tap7"}) == []
        assert self.found("tap,id=n,ifname=tap7,script=/s", {"/s": HELPER}) == []
        assert self.found(tap, interfaces=frozenset()) == []  # could not be read

    def test_bridge_that_the_tap_is_on_here(self) -> None:
        case = with_options("-netdev", "tap,id=n,ifname=tap7,script=no")
        case = replace(case, there=replace(THERE, interfaces=THERE.interfaces | {"tap7"}))
        assert codes(replace(case, seen_here=replace(SEEN, masters={"tap7": "br0"}))) == []
        assert codes(replace(case, seen_here=replace(SEEN, masters={"tap7": "br9"}))) == [
            "bridge-maybe-missing"
        ]

    def test_vhost(self) -> None:
        assert self.found("tap,id=n,br=br0,vhost=on") == []
        assert self.found("tap,id=n,br=br0,vhost=on", vhost_net=False) == ["vhost-net-missing"]
        assert self.found("tap,id=n,br=br0,vhostforce=on,vhost=on", vhost_net=False) == ["vhost-net-required"]
        assert self.found("tap,id=n,br=br0", vhost_net=False) == []

    @pytest.mark.parametrize(
        ("netdev", "code"),
        [
            ("user,id=n,hostfwd=tcp::2222-:22", "user-network"),
            ('{"type":"user","id":"n"}', "user-network"),
            ("tap,id=n,fd=9", "passed-descriptor"),
            ("tap,id=n,br=br0,vhost=on,vhostfd=9", "passed-descriptor"),
            ("socket,id=n,connect=h:1", "socket-network"),
            ("stream,id=n,addr.type=unix,addr.path=/s", "socket-network"),
            ("af-xdp,id=n,ifname=eth9", "net-interface"),
            ("vhost-vdpa,id=n,vhostdev=/dev/vhost-vdpa-0", "file-missing"),
        ],
    )
    def test_other_kinds(self, netdev: str, code: str) -> None:
        assert self.found(netdev) == [code]

    def test_network_by_default_is_qemus_own(self) -> None:
        assert codes(replace(CASE, command=CommandLine([QEMU]))) == ["cache-unknown", "user-network"]
        assert codes(replace(CASE, command=CommandLine([QEMU, "-nic", "none"]))) == ["cache-unknown"]
        assert codes(replace(CASE, command=CommandLine([QEMU, "-nic", "user,model=e1000"]))) == [
            "cache-unknown",
            "user-network",
        ]

    def test_what_is_looked_at_is_read(self) -> None:
        line = CommandLine([QEMU, "-netdev", "tap,id=a", "-netdev", "vhost-vdpa,id=b,vhostdev=/dev/v"])
        assert host_network.to_read(line) == [self.SCRIPT, "/dev/v"]


class TestCommandLine:
    @pytest.mark.parametrize(
        ("file", "path"),
        [
            ("/a b,c", "/a b,c"),
            ("file:/a", "/a"),
            ("relative/a", "relative/a"),
            ("nbd:host:1", ""),
            ("https://x/a", ""),
            ("", ""),
            ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/a"}}', "/a"),
            (
                'json:{"driver":"throttle","file":{"driver":"raw","file":{"driver":"file","filename":"/a"}}}',
                "/a",
            ),
            (
                'json:{"backing":{"driver":"file","filename":"/base"},"file":{"driver":"file","filename":"/a"}}',
                "/a",
            ),
            ('json:{"driver":"nbd","server":{"host":"h"}}', ""),
            ("json:{rubbish", ""),
        ],
    )
    def test_path_in_a_file_name(self, file: str, path: str) -> None:
        assert path_of(file) == path

    @pytest.mark.parametrize(
        "path", ["/a,b", "/with space", "/$(touch x)", "/'quote\"", "/new\nline", "/a=b", "/a:b/c", "/-rf"]
    )
    def test_awkward_paths_survive(self, path: str) -> None:
        assert is_path(path)
        doubled = path.replace(",", ",,")
        line = CommandLine([QEMU, "-drive", f"file={doubled},format=raw,cache=none", "-kernel", path])
        (image,) = line.images()
        assert image.path == path
        assert image.direct
        assert [file.path for file in host_files.named(line)] == [path]

    def test_rubbish_is_no_reason_to_fall_over(self) -> None:
        for words in (
            ["-drive"],
            ["-object", "{"],
            ["-device", ",,,="],
            ["--"],
            ["-"],
            ["", ""],
            ["-m", "x,y"],
        ):
            assert isinstance(codes(replace(CASE, command=CommandLine([QEMU, *words]))), list)

    def test_empty(self) -> None:
        assert not CommandLine([])
        assert CommandLine([QEMU])


def test_everything_is_found_at_once_errors_first() -> None:
    case = with_target(kvm=False, memory_free_bytes=0, bridges=frozenset(), vhost_net=False)
    case = with_files(replace(case, seen_there=replace(SEEN, qemu="")), {IMAGE: FileSeen()})
    case = replace(case, command=CommandLine([*ARGV, "-netdev", "user,id=u"]))
    found: list[Finding] = list(check(case))
    assert [each.code for each in found] == [
        "kvm-missing",
        "memory-free",
        "qemu-missing",
        "disk-file-missing",
        "bridge-missing",
        "user-network",
    ]
