"""A guest, the host it is on and another that it fits: what tests of the checks of hosts begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from migrator.core.findings import CATALOGUE
from migrator.core.inventory import HostFacts
from migrator.core.model import MigrationStatus, RunState
from migrator.core.policy import builtin
from migrator.core.preflight.facts import Device, Disk, Facts
from migrator.core.preflight.host_checks import check
from migrator.core.preflight.host_pair import HostPair
from migrator.core.process.command_line import CommandLine
from migrator.core.process.files import FileFacts, FileKind, HostFiles, QemuProgramFacts

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
FILE = FileFacts(
    kind=FileKind.REGULAR,
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
HELPER = FileFacts(kind=FileKind.REGULAR, readable=True, executable=True, size_bytes=9)
BASE_SEEN = replace(FILE, real=BASE, inode=8, inner_path="/base.qcow2")
FILES = {IMAGE: FILE, BASE: BASE_SEEN, "/usr/lib/qemu/qemu-bridge-helper": HELPER}
OFFER = QemuProgramFacts(
    identity="1:2",
    version="7.2.22",
    machines=frozenset({"pc-q35-7.2"}),
    devices=frozenset({"virtio-blk-pci", "virtio-net-pci"}),
    cpus=frozenset({"EPYC", "host"}),
)
SEEN = HostFiles(
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
CASE = HostPair(
    target="beta",
    source=SOURCE,
    command=CommandLine(ARGV),
    here=HERE,
    there=THERE,
    files_here=SEEN,
    files_there=SEEN,
    policy=builtin("default"),
)


def codes(case: HostPair) -> list[str]:
    """The codes that are found, each with a message of one line and a remedy."""
    found = check(case)
    for finding in found:
        assert finding.message
        assert "\n" not in finding.message
        assert finding.remedy
        assert finding.severity is CATALOGUE[finding.code].severity
    return [finding.code for finding in found]


def with_files(case: HostPair, files: Mapping[str, FileFacts], *, here: bool = False) -> HostPair:
    """The same with other files at the target, or at the source."""
    seen = case.files_here if here else case.files_there
    seen = replace(seen, files={**seen.files, **files})
    return replace(case, files_here=seen) if here else replace(case, files_there=seen)


def with_options(*options: str, **changes: Any) -> HostPair:
    """The same guest, started with more options."""
    return replace(CASE, command=CommandLine([*ARGV, *options]), **changes)


def with_source(**changes: Any) -> HostPair:
    return replace(CASE, source=replace(SOURCE, **changes))


def with_target(**changes: Any) -> HostPair:
    return replace(CASE, there=replace(THERE, **changes))


def with_qemu(path: str = QEMU, **changes: Any) -> HostPair:
    """The same with another QEMU at the target."""
    return replace(CASE, files_there=replace(SEEN, qemu=path, offer=replace(OFFER, **changes)))
