"""Preflight: two QEMUs that fit raise nothing, and every way in which they do not has its own finding with a remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from migrator.core.model import MigrationStatus, RunState, Severity
from migrator.core.policy import builtin
from migrator.core.preflight.compare import compare
from migrator.core.preflight.facts import Device, Disk, Facts

DEFAULT = builtin("default")
DISK = Disk(device="disk0", file="/images/a.img", format="raw", virtual_bytes=1 << 30, identity="1:2")
SOURCE = Facts(
    version="10.0.2",
    run=RunState.RUNNING,
    status=MigrationStatus.NONE,
    uuid="3fa4",
    guest_name="web",
    machine="pc-q35-7.2",
    accelerator="kvm",
    memory_bytes=1 << 30,
    memory_backends=(("ram0", 1 << 30),),
    cpus=("qemu64-x86_64-cpu core-id=0", "qemu64-x86_64-cpu core-id=1"),
    cpu_features={"CPUID[0x1].EDX": 0b1011, "family": 15},
    devices=(
        Device(name="net0", driver="virtio-net-pci", slot="bus 0 slot 3.0"),
        Device(name="", driver="pci 1:2"),
    ),
    disks=(DISK,),
    capabilities=frozenset(
        {"return-path", "pause-before-switchover", "events", "postcopy-ram", "auto-converge"}
    ),
    incoming="",
    pid=1,
)
DESTINATION = replace(SOURCE, run=RunState.INMIGRATE, incoming="defer", pid=2)


def codes(
    source: Facts = SOURCE, destination: Facts = DESTINATION, policy: str = "default"
) -> dict[str, Severity]:
    findings = compare(source, destination, builtin(policy))
    for finding in findings:
        assert finding.message
        assert finding.remedy
    return {finding.code: finding.severity for finding in findings}


def test_ends_that_fit_raise_nothing() -> None:
    for policy in ("default", "gentle", "must-finish", "postcopy-first", "offline"):
        assert codes(policy=policy) == {}


@pytest.mark.parametrize(("run", "policy"), [(RunState.PAUSED, "default"), (RunState.RUNNING, "offline")])
def test_guest_that_stands_still_cannot_let_go_of_a_card(run: RunState, policy: str) -> None:
    standby = Device(name="standby", driver="virtio-net-pci")
    fast = Device(name="fast", driver="vfio-pci", standby="standby")
    here = replace(SOURCE, run=run, devices=(*SOURCE.devices, standby, fast))
    there = replace(DESTINATION, devices=(*DESTINATION.devices, standby))
    (said,) = compare(here, there, builtin(policy))
    assert (said.code, said.severity) == ("card-stays", Severity.ERROR)
    assert "fast" in said.message
    running = replace(here, run=RunState.RUNNING)
    assert not compare(running, there, DEFAULT)
    # Unplugged, or never asked for by the guest's system: there is nothing to let go of.
    assert not compare(replace(here, devices=(*SOURCE.devices, standby)), there, builtin(policy))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run": RunState.INMIGRATE}, "source-is-waiting"),
        ({"run": RunState.POSTMIGRATE}, "source-not-running"),
        ({"run": RunState.FINISH_MIGRATE}, "source-migrating"),
        ({"status": MigrationStatus.ACTIVE}, "source-migrating"),
        ({"status": MigrationStatus.CANCELLING}, "source-migrating"),
        ({"status": MigrationStatus.POSTCOPY_PAUSED}, "source-migrating"),
        ({"blockers": ("a device says no",)}, "blocked"),
    ],
)
def test_source_that_cannot_begin_is_refused(changes: dict[str, Any], code: str) -> None:
    assert codes(source=replace(SOURCE, **changes)).get(code) is Severity.ERROR


@pytest.mark.parametrize(
    "status", [MigrationStatus.COMPLETED, MigrationStatus.FAILED, MigrationStatus.CANCELLED]
)
def test_source_that_has_migrated_before_may_again(status: MigrationStatus) -> None:
    assert codes(source=replace(SOURCE, status=status)) == {}
    assert codes(source=replace(SOURCE, status=status, run=RunState.PAUSED)) == {}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run": RunState.RUNNING}, "destination-not-waiting"),
        ({"run": RunState.PRELAUNCH}, "destination-not-waiting"),
        ({"status": MigrationStatus.ACTIVE}, "destination-used"),
        ({"status": MigrationStatus.FAILED}, "destination-used"),
        ({"listening": True}, "destination-not-deferred"),
        ({"incoming": "tcp:0:4444"}, "destination-not-deferred"),
    ],
)
def test_destination_that_is_not_waiting_is_refused(changes: dict[str, Any], code: str) -> None:
    assert codes(destination=replace(DESTINATION, **changes)) == {code: Severity.ERROR}


def test_destination_whose_command_line_cannot_be_read_is_taken_at_its_word() -> None:
    assert codes(destination=replace(DESTINATION, incoming=None)) == {}


@pytest.mark.parametrize(
    ("changes", "code", "severity"),
    [
        ({"uuid": "other"}, "uuid", Severity.ERROR),
        ({"uuid": ""}, "uuid", Severity.ERROR),
        ({"guest_name": "db"}, "name", Severity.WARNING),
        ({"machine": "pc-q35-8.0"}, "machine-type", Severity.ERROR),
        ({"accelerator": "tcg"}, "accelerator", Severity.ERROR),
        ({"memory_bytes": 1 << 31}, "memory-size", Severity.ERROR),
        ({"memory_backends": (("ram1", 1 << 30),)}, "memory-backend", Severity.ERROR),
        ({"cpus": SOURCE.cpus[:1]}, "cpu-count", Severity.ERROR),
        ({"cpus": ("max-x86_64-cpu core-id=0", "max-x86_64-cpu core-id=1")}, "cpu-model", Severity.ERROR),
        (
            {"cpus": ("qemu64-x86_64-cpu socket-id=0", "qemu64-x86_64-cpu socket-id=1")},
            "cpu-topology",
            Severity.ERROR,
        ),
        ({"cpu_features": {"CPUID[0x1].EDX": 0b1010, "family": 15}}, "cpu-features", Severity.ERROR),
        ({"cpu_features": {"CPUID[0x1].EDX": 0b1011, "family": 6}}, "cpu-features", Severity.ERROR),
        ({"cpu_features": {"CPUID[0x1].EDX": 0b1111, "family": 15}}, "cpu-features-extra", Severity.WARNING),
        ({"devices": SOURCE.devices[1:]}, "device-missing", Severity.ERROR),
        ({"devices": SOURCE.devices[:1]}, "device-missing", Severity.ERROR),
        (
            {"devices": (*SOURCE.devices, Device(name="rng0", driver="virtio-rng-pci"))},
            "device-extra",
            Severity.ERROR,
        ),
        ({"devices": (*SOURCE.devices, Device(name="", driver="pci 1:2"))}, "device-extra", Severity.ERROR),
        (
            {"devices": (replace(SOURCE.devices[0], slot="bus 0 slot 4.0"), SOURCE.devices[1])},
            "device-differs",
            Severity.ERROR,
        ),
        (
            {"devices": (replace(SOURCE.devices[0], driver="e1000"), SOURCE.devices[1])},
            "device-differs",
            Severity.ERROR,
        ),
        ({"disks": ()}, "disk-missing", Severity.ERROR),
        ({"disks": (replace(DISK, virtual_bytes=1 << 29),)}, "disk-size", Severity.ERROR),
        ({"disks": (replace(DISK, read_only=True),)}, "disk-read-only", Severity.ERROR),
        ({"disks": (replace(DISK, format="qcow2"),)}, "disk-format", Severity.ERROR),
        ({"disks": (replace(DISK, identity="1:3"),)}, "disk-not-shared", Severity.ERROR),
        ({"disks": (replace(DISK, identity="", file="/b.img"),)}, "disk-maybe-not-shared", Severity.WARNING),
        ({"capabilities": SOURCE.capabilities - {"return-path"}}, "capability-missing", Severity.ERROR),
        ({"capabilities": SOURCE.capabilities - {"events"}}, "capability-missing", Severity.ERROR),
    ],
    ids=lambda value: value if isinstance(value, str) and not isinstance(value, Severity) else "",
)
def test_one_difference_is_one_finding(changes: dict[str, Any], code: str, severity: Severity) -> None:
    assert codes(destination=replace(DESTINATION, **changes)) == {code: severity}


def test_card_that_is_unplugged_for_the_migration_is_missed_only_without_the_one_that_takes_over() -> None:
    standby = Device(name="standby", driver="virtio-net-pci")
    here = replace(
        SOURCE, devices=(*SOURCE.devices, standby, Device(name="fast", driver="e1000e", standby="standby"))
    )
    assert codes(here, replace(DESTINATION, devices=(*DESTINATION.devices, standby))) == {}
    assert codes(here, DESTINATION) == {"device-missing": Severity.ERROR}


def test_read_only_disk_may_be_another_file() -> None:
    here, there = replace(DISK, read_only=True), replace(DISK, read_only=True, identity="1:3", file="/b.iso")
    assert codes(replace(SOURCE, disks=(here,)), replace(DESTINATION, disks=(there,))) == {}


def test_same_file_by_another_name_is_the_same() -> None:
    assert codes(destination=replace(DESTINATION, disks=(replace(DISK, file="/mnt/images/a.img"),))) == {}


class TestWhatAPolicyNeeds:
    @pytest.mark.parametrize(
        ("policy", "found"), [("postcopy-first", ["capability-missing"]), ("default", [])]
    )
    def test_postcopy_is_refused_only_where_it_is_asked_for(self, policy: str, found: list[str]) -> None:
        without = SOURCE.capabilities - {"postcopy-ram"}
        assert list(codes(destination=replace(DESTINATION, capabilities=without), policy=policy)) == found

    @pytest.mark.parametrize(("policy", "found"), [("default", ["no-throttle"]), ("gentle", [])])
    def test_throttling_is_missed_only_where_it_is_allowed(self, policy: str, found: list[str]) -> None:
        without = SOURCE.capabilities - {"auto-converge"}
        assert list(codes(source=replace(SOURCE, capabilities=without), policy=policy)) == found


def test_everything_is_found_at_once_errors_first() -> None:
    other = replace(
        DESTINATION, uuid="x", guest_name="y", machine="z", disks=(replace(DISK, format="qcow2"),)
    )
    findings = compare(SOURCE, other, DEFAULT)
    assert [finding.code for finding in findings] == ["uuid", "machine-type", "disk-format", "name"]


@pytest.mark.parametrize(
    ("version", "warned"), [("7.2.22", True), ("8.2.0", True), ("9.0.0", False), ("10.0.2", False)]
)
def test_tcg_that_loses_writes_takes_a_word(version: str, warned: bool) -> None:
    source, destination = (replace(end, accelerator="tcg") for end in (SOURCE, DESTINATION))
    found = codes(replace(source, version=version), destination)
    assert found == ({"tcg-loses-writes": Severity.ERROR} if warned else {})
    assert codes(replace(source, version=version), destination, policy="offline") == {}
    assert codes(replace(SOURCE, version=version)) == {}


@pytest.mark.parametrize(("register", "bit"), [("CPUID[0x1].EDX", 28), ("CPUID[0x80000001].ECX", 1)])
def test_bits_that_the_number_of_vcpus_tells_are_no_features(register: str, bit: int) -> None:
    with_bit: dict[str, Any] = {
        "cpu_features": {**SOURCE.cpu_features, register: SOURCE.cpu_features.get(register, 0) | 1 << bit}
    }
    assert codes(source=replace(SOURCE, **with_bit)) == {}
    assert codes(destination=replace(DESTINATION, **with_bit)) == {}
