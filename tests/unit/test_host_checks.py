"""What speaks against a host: hosts that fit raise nothing, and every lack has its own finding with a remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from migrator.core.inventory import Guest, HostFacts
from migrator.core.model import Finding, MigrationStatus
from migrator.core.policy import builtin
from migrator.core.preflight import host_checks, host_files
from migrator.core.preflight.cpu_flags import guest_flags
from migrator.core.preflight.facts import Device
from migrator.core.preflight.host_checks import check
from migrator.core.process.command_line import CommandLine
from migrator.core.process.files import FileFacts, FileKind
from tests.host_case import (
    ARGV,
    CASE,
    FILE,
    GIB,
    HERE,
    IMAGE,
    OFFER,
    SEEN,
    SOURCE,
    THERE,
    codes,
    with_files,
    with_options,
    with_qemu,
    with_source,
    with_target,
)


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


def test_dirty_ring_is_warned_of() -> None:
    assert codes(with_options("-accel", "kvm,dirty-ring-size=4096")) == ["dirty-ring"]


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

    @pytest.mark.parametrize(("nested", "found"), [(None, []), (True, []), (False, ["nested-missing"])])
    def test_kernel_that_does_not_offer_virtualisation(self, nested: bool | None, found: list[str]) -> None:
        source = replace(SOURCE, cpu_features={**SOURCE.cpu_features, "CPUID[0x1].ECX": 1 << 5})
        there = replace(SEEN, nested=nested)
        assert codes(replace(CASE, source=source, files_there=there)) == found
        assert codes(replace(CASE, files_there=there)) == []

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

    HUGE = FileFacts(
        kind=FileKind.DIRECTORY, filesystem="hugetlbfs", block_bytes=2 << 20, readable=True, size_bytes=0
    )

    @pytest.mark.parametrize(
        ("there", "found"),
        [
            (HUGE, ["hugepages"]),
            (FileFacts(), ["memory-path", "hugepages"]),
            (replace(HUGE, block_bytes=1 << 30), ["memory-path", "hugepages"]),
            (replace(HUGE, filesystem="ext4", block_bytes=4096), ["memory-path", "hugepages"]),
        ],
    )
    @pytest.mark.parametrize(
        "options", [("-mem-path", "/huge"), ("-object", "memory-backend-file,id=m,size=1G,mem-path=/huge")]
    )
    def test_directory_of_huge_pages(
        self, there: FileFacts, found: list[str], options: tuple[str, ...]
    ) -> None:
        case = with_files(with_options(*options), {"/huge": self.HUGE}, here=True)
        assert codes(with_files(case, {"/huge": there})) == found
        enough = replace(case, there=replace(THERE, hugepages={2 << 20: 512}))
        assert codes(with_files(enough, {"/huge": there})) == [c for c in found if c != "hugepages"]
        assert {"/huge", "/"} <= set(host_files.paths_to_read(case.command))

    def test_file_of_memory_that_qemu_makes_itself_needs_only_its_directory(self) -> None:
        case = with_options("-object", "memory-backend-file,id=m,size=1G,mem-path=/dev/shm/m,share=on")
        case = with_files(case, {"/dev/shm/m": replace(FILE, kind=FileKind.REGULAR)}, here=True)
        assert codes(case) == ["memory-path"]
        assert codes(with_files(case, {"/dev/shm": FileFacts(kind=FileKind.DIRECTORY, readable=True)})) == []


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
        case = replace(case, files_there=replace(SEEN, offer=offer))
        assert codes(case) == []
        newer = replace(case, files_there=replace(SEEN, offer=replace(offer, version="10.0.2")))
        assert codes(newer) == ["machine-unversioned"]

    @pytest.mark.parametrize(
        ("here", "there", "found"),
        [
            (HostFacts(ping=False), HostFacts(), []),
            (HostFacts(python3=False), HostFacts(), []),
            (HostFacts(ping=False), HostFacts(python3=False), ["path-not-probed"]),
            (HostFacts(ping=False, python3=False), HostFacts(), ["path-not-probed"]),
        ],
    )
    def test_a_network_that_cannot_be_probed_is_told_where_postcopy_is_allowed(
        self, here: HostFacts, there: HostFacts, found: list[str]
    ) -> None:
        pair = replace(
            CASE,
            here=replace(CASE.here, ping=here.ping, python3=here.python3),
            there=replace(CASE.there, ping=there.ping, python3=there.python3),
        )
        assert codes(replace(pair, policy=builtin("default"))) == found
        assert codes(replace(pair, policy=builtin("gentle"))) == []

    @pytest.mark.parametrize(
        ("policy", "found"),
        [("postcopy-first", ["userfaultfd"]), ("default", ["no-postcopy"]), ("gentle", [])],
    )
    def test_userfaultfd_is_missed_where_postcopy_is_allowed(self, policy: str, found: list[str]) -> None:
        assert codes(replace(with_target(userfaultfd=False), policy=builtin(policy))) == found


def test_everything_is_found_at_once_errors_first() -> None:
    case = with_target(kvm=False, memory_free_bytes=0, bridges=frozenset(), vhost_net=False)
    case = with_files(replace(case, files_there=replace(SEEN, qemu="")), {IMAGE: FileFacts()})
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
