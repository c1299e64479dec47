"""Comparison of two QEMU processes: everything QEMU rejects late, and what it silently accepts. Pure.

QEMU itself rejects a different machine type, RAM size, memory backend, PCI slot or topology, but only in the middle
of the stream; it silently accepts another CPU model, disk size or an extra device. All of it is found here instead,
before anything is changed. Every finding has a stable code and says what to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from migrator.core.findings import errors_first, finding
from migrator.core.model import RUNNING_STATES, Finding, MigrationStatus, RunState
from migrator.core.policy import BlockJobs, Policy, PostcopyMode
from migrator.core.preflight import non_migrated_state
from migrator.core.preflight.facts import Disk, Facts
from migrator.units import show_bytes

#: Capabilities that every migration needs from either side, and what goes wrong without them.
_NEEDED = {
    "return-path": "without it the source cannot know whether the destination took the guest",
    "pause-before-switchover": "without it nothing can be checked at the last safe point",
    "events": "without it the switch is noticed late",
}
#: From this major version on, a dirty sync also resets the translations that TCG caches ("physmem: Fix migration dirty
#: bitmap coherency with TCG memory access"). A repaired fault shows in no introspection, so this goes by the version.
_TCG_SEES_WRITES_SINCE = 9
#: Bits that follow from the number of vCPUs alone (HTT, CmpLegacy): the guest is shown them by every version, but only
#: since 10.0 ("Set up CPUID_HT in x86_cpu_expand_features") do they stand among the features.
_TOLD_BY_TOPOLOGY = {"CPUID[0x1].EDX": 1 << 28, "CPUID[0x80000001].ECX": 1 << 1}
_MIGRATING = {
    MigrationStatus.SETUP,
    MigrationStatus.WAIT_UNPLUG,
    MigrationStatus.ACTIVE,
    MigrationStatus.PRE_SWITCHOVER,
    MigrationStatus.DEVICE,
    MigrationStatus.POSTCOPY_ACTIVE,
    MigrationStatus.POSTCOPY_DEVICE,
    MigrationStatus.POSTCOPY_PAUSED,
    MigrationStatus.POSTCOPY_RECOVER,
    MigrationStatus.POSTCOPY_RECOVER_SETUP,
    MigrationStatus.CANCELLING,
}


def compare(
    source: Facts, destination: Facts, policy: Policy, *, copied: Collection[str] = ()
) -> tuple[Finding, ...]:
    """Return every finding about moving the guest in `source` to `destination` under `policy`, errors first.

    :param copied: devices whose disks are copied to the destination first.
    """
    found = [*source_ready(source, policy), *_destination_ready(destination)]
    found += _driven("destination", destination)
    if destination.run is RunState.INMIGRATE:
        found += [
            *_identity(source, destination),
            *_machine(source, destination),
            *_cpus(source, destination),
        ]
        found += [*_devices(source, destination), *_disks(source, destination, copied)]
    found += _abilities(source, destination, policy)
    return errors_first(found)


def source_ready(source: Facts, policy: Policy | None = None) -> Iterator[Finding]:
    """Yield the findings that the source alone has against a migration.

    :param policy: without it that of the default is taken for what policies say.
    """
    yield from _driven("source", source)
    if source.run is RunState.INMIGRATE:
        yield finding(
            "source-is-waiting",
            "the source itself waits for a migration",
            "check that --source and --destination are not swapped",
        )
    elif source.run is RunState.POSTMIGRATE:
        yield finding(
            "source-not-running",
            "the guest stands still at the source after an earlier migration (postmigrate)",
            "find out where the guest runs now; if it runs nowhere: migrator direct --rescue --source QMP",
        )
    elif source.run is RunState.FINISH_MIGRATE or source.status in _MIGRATING:
        yield finding(
            "source-migrating",
            f"the source is already migrating (run state {source.run}, migration {source.status})",
            "wait for it, or cancel it with the tool that began it; if nobody drives it: migrator direct --rescue",
        )
    runs_on = policy is None or not policy.offline
    if source.run not in (*RUNNING_STATES, RunState.INMIGRATE) or not runs_on:
        for card in source.unplugged_to_move:
            yield finding(
                "card-stays",
                f"the guest stands still, so that it cannot let go of {card.name}, which QEMU unplugs for the migration"
                f" ({card.standby} takes over)",
            )
    old = int(source.version.partition(".")[0]) < _TCG_SEES_WRITES_SINCE
    if source.accelerator == "tcg" and old and runs_on:
        yield finding(
            "tcg-loses-writes",
            f"under TCG, QEMU {source.version} misses writes of a guest that migrates as it runs: it may die of stale "
            "pages",
        )
    for reason in source.blockers:
        yield finding(
            "blocked",
            f"QEMU cannot migrate this guest now: {reason}",
            "remove what QEMU names, then try again",
        )
    yield from non_migrated_state.findings(
        source.non_migrated, policy.block_jobs if policy else BlockJobs.WAIT
    )


def _driven(side: str, facts: Facts) -> Iterator[Finding]:
    if facts.driven_by:
        yield finding("driven-elsewhere", f"the {side} is driven by {facts.driven_by}")


def _destination_ready(destination: Facts) -> Iterator[Finding]:
    remedy = "start a fresh QEMU there with the source's command line plus '-S -incoming defer'"
    if destination.run is not RunState.INMIGRATE:
        yield finding(
            "destination-not-waiting",
            f"the destination does not wait for a migration (run state {destination.run})",
            remedy,
        )
    elif destination.status not in (MigrationStatus.NONE, MigrationStatus.SETUP):
        yield finding(
            "destination-used",
            f"the destination was used for a migration already (migration {destination.status}); "
            "QEMU cannot use it again",
            remedy,
        )
    elif destination.listening or destination.incoming not in (None, "defer"):
        yield finding(
            "destination-not-deferred",
            "the destination listens already; its capabilities must be set before that",
            remedy,
        )


def _identity(source: Facts, destination: Facts) -> Iterator[Finding]:
    if source.uuid != destination.uuid:
        yield finding(
            "uuid",
            f"uuids differ: {source.uuid or 'none'} at the source, {destination.uuid or 'none'} at the destination",
            f"start the destination with {'-uuid ' + source.uuid if source.uuid else 'no -uuid'}",
        )
    if source.guest_name != destination.guest_name:
        yield finding(
            "name",
            f"names differ: {source.guest_name!r} at the source, {destination.guest_name!r} at the destination",
            "give both the same -name, so that other tools find the guest again",
        )


def _machine(source: Facts, destination: Facts) -> Iterator[Finding]:
    if source.machine != destination.machine:
        yield finding(
            "machine-type",
            f"machine types differ: {source.machine} at the source, {destination.machine} at the destination",
            f"start the destination with -machine {source.machine}",
        )
    if source.accelerator != destination.accelerator:
        yield finding(
            "accelerator",
            f"accelerators differ: {source.accelerator} at the source, {destination.accelerator} at the destination",
            f"start the destination with -accel {source.accelerator}",
        )
    if source.memory_bytes != destination.memory_bytes:
        yield finding(
            "memory-size",
            f"memory differs: {show_bytes(source.memory_bytes)} at the source, "
            f"{show_bytes(destination.memory_bytes)} at the destination",
            "give the destination the source's -m, and plug the memory devices that were hot-plugged",
        )
    elif source.memory_backends != destination.memory_backends:
        yield finding(
            "memory-backend",
            f"memory backends differ: {_backends(source)} at the source, {_backends(destination)} at the destination",
            "give both the same memory backends with the same ids and sizes",
        )


def _backends(facts: Facts) -> str:
    return ", ".join(f"{name} of {show_bytes(size)}" for name, size in facts.memory_backends) or "none"


def _cpus(source: Facts, destination: Facts) -> Iterator[Finding]:
    if len(source.cpus) != len(destination.cpus):
        yield finding(
            "cpu-count",
            f"vCPUs differ: {len(source.cpus)} at the source, {len(destination.cpus)} at the destination",
            "give the destination the source's -smp, and plug the vCPUs that were hot-plugged",
        )
    elif source.cpus != destination.cpus:
        mine, theirs = (
            sorted(set(source.cpus) - set(destination.cpus)),
            set(destination.cpus) - set(source.cpus),
        )
        models = {cpu.split()[0] for cpu in source.cpus} != {cpu.split()[0] for cpu in destination.cpus}
        yield finding(
            "cpu-model" if models else "cpu-topology",
            f"{'CPU models' if models else 'CPU topologies'} differ: {mine[0]} at the source, "
            f"{min(theirs)} at the destination",
            "give the destination the source's -cpu and -smp",
        )
    if source.accelerator != destination.accelerator:
        return  # then the features differ anyway
    registers = sorted(source.cpu_features.keys() | destination.cpu_features.keys())
    lacking, extra = [], []
    for register in registers:
        here, there = source.cpu_features.get(register, 0), destination.cpu_features.get(register, 0)
        if not register.startswith("CPUID"):
            if here != there:
                lacking.append(f"{register} {here} against {there}")
            continue
        told = _TOLD_BY_TOPOLOGY.get(register, 0)
        here, there = here & ~told, there & ~told
        if here & ~there:
            lacking.append(f"{register} bits {_bits(here & ~there)}")
        if there & ~here:
            extra.append(f"{register} bits {_bits(there & ~here)}")
    if lacking:
        yield finding(
            "cpu-features",
            f"the destination lacks CPU features that the guest may be using: {'; '.join(lacking)}",
            "use a -cpu model that both hosts have, or another destination",
        )
    if extra:
        yield finding(
            "cpu-features-extra",
            f"the destination shows the guest CPU features it did not have: {'; '.join(extra)}",
            "name the features of -cpu on both sides, so that they are the same",
        )


def _bits(word: int) -> str:
    return ",".join(str(bit) for bit in range(word.bit_length()) if word >> bit & 1)


def _devices(source: Facts, destination: Facts) -> Iterator[Finding]:
    named_here = {device.name: device for device in source.devices if device.name}
    named_there = {device.name: device for device in destination.devices if device.name}
    for name, device in named_here.items():
        other = named_there.get(name)
        if other is None and device.standby in named_there:
            continue  # its QEMU hides it until the guest in its standby asks for it
        if other is None:
            yield finding(
                "device-missing",
                f"the destination lacks device {name} ({device.driver})",
                f"add it with the source's arguments: -device {device.driver},id={name},…",
            )
        elif (device.driver, device.slot) != (other.driver, other.slot):
            yield finding(
                "device-differs",
                f"device {name} differs: {device.driver} {device.slot} at the source, "
                f"{other.driver} {other.slot} at the destination",
                "give it the same driver, bus and address on both sides",
            )
    for name in sorted(named_there.keys() - named_here.keys()):
        yield finding(
            "device-extra",
            f"the destination has device {name} ({named_there[name].driver}), which the source has not",
            "remove it: QEMU would accept it silently, and the guest would find a device from nowhere",
        )
    here = Counter((device.driver, device.slot) for device in source.devices if not device.name)
    there = Counter((device.driver, device.slot) for device in destination.devices if not device.name)
    for (driver, slot), count in sorted((here - there).items()):
        yield finding(
            "device-missing",
            f"the destination lacks {count} device without an id: {driver} {slot}".rstrip(),
            "start the destination with the source's -device arguments in the same order",
        )
    for (driver, slot), count in sorted((there - here).items()):
        yield finding(
            "device-extra",
            f"the destination has {count} device without an id that the source has not: {driver} {slot}".rstrip(),
            "start the destination with the source's -device arguments in the same order",
        )


def _disks(source: Facts, destination: Facts, copied: Collection[str]) -> Iterator[Finding]:
    there = {disk.device: disk for disk in destination.disks}
    for disk in source.disks:
        other = there.get(disk.device)
        if other is None:
            yield finding(
                "disk-missing",
                f"the destination has no medium in disk {disk.device}, the source has {disk.file}",
                "give the destination the source's -drive or -blockdev arguments",
            )
            continue
        if disk.virtual_bytes != other.virtual_bytes:
            yield finding(
                "disk-size",
                f"disk {disk.device} has {disk.virtual_bytes} bytes at the source and {other.virtual_bytes} at the "
                "destination",
                "use the same image on both sides, or resize the destination's",
            )
        if disk.read_only != other.read_only:
            yield finding(
                "disk-read-only",
                f"disk {disk.device} is {_access(disk)} at the source and {_access(other)} at the destination",
                "give both the same readonly=",
            )
        if disk.format != other.format:
            yield finding(
                "disk-format",
                f"disk {disk.device} is opened as {disk.format} at the source and as {other.format} at the destination",
                "give both the same format=",
            )
        if disk.device not in copied:
            yield from _same_file(disk, other)

    here = {disk.device for disk in source.disks}
    for disk in destination.disks:
        if disk.device not in here:
            yield finding(
                "medium-extra",
                f"the destination has {disk.file} in {disk.device}, which is empty or not there at the source",
            )


def _access(disk: Disk) -> str:
    return "read-only" if disk.read_only else "writable"


def _same_file(disk: Disk, other: Disk) -> Iterator[Finding]:
    if disk.is_flash:
        return  # QEMU carries what is in it
    if disk.identity and other.identity:
        if disk.identity != other.identity and not disk.read_only:
            yield finding(
                "disk-not-shared",
                f"disk {disk.device} is another file at the destination ({disk.file} and {other.file}): "
                "the guest would go on with other contents",
                "use the same image on both sides, or let it be copied (disks = auto)",
            )
    elif disk.file != other.file and not disk.read_only:
        yield finding(
            "disk-maybe-not-shared",
            f"disk {disk.device} has another name at the destination ({disk.file} and {other.file}), and from here "
            "it cannot be seen whether it is the same",
            "make sure that it is the same image, or have it copied (disks = all)",
        )


def _abilities(source: Facts, destination: Facts, policy: Policy) -> Iterator[Finding]:
    needed = dict(_NEEDED)
    if policy.postcopy is PostcopyMode.IMMEDIATE:
        needed["postcopy-ram"] = "the policy asks for postcopy"
    for side, facts in (("source", source), ("destination", destination)):
        for capability, why in needed.items():
            if capability not in facts.capabilities:
                yield finding(
                    "capability-missing",
                    f"the {side}'s QEMU {facts.version} has no {capability}: {why}",
                    "use QEMU 4.0 or later on both sides",
                )
    if policy.max_throttle_ratio > 0 and "auto-converge" not in source.capabilities:
        yield finding(
            "no-throttle",
            f"the source's QEMU {source.version} cannot throttle the guest",
            "expect it not to be",
        )
