"""Findings against moving a guest to a host, made before anything is started there. Pure.

Facts of both hosts, what the source's QEMU says and was started with, and what was read of the files it uses go in
(:class:`~migrator.core.preflight.host_pair.HostPair`); findings of the catalogue come out. What could not be read is
never held against the target: a check that knows nothing is silent, or a warning says that it knows nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from migrator.core.findings import errors_first, finding
from migrator.core.inventory import Guest
from migrator.core.model import Finding
from migrator.core.policy import PostcopyMode
from migrator.core.preflight import host_disks, host_files, host_network, host_process
from migrator.core.preflight.compare import source_ready
from migrator.core.preflight.cpu_flags import guest_flags
from migrator.core.preflight.host_pair import HostPair
from migrator.units import show_bytes

#: Flags of AMD's virtualisation in /proc/cpuinfo that nested guests may use; Intel's are listed by themselves.
_SVM = frozenset(
    {
        *(
            "npt",
            "lbrv",
            "nrip_save",
            "tsc_scale",
            "vmcb_clean",
            "flushbyasid",
            "decodeassists",
            "pausefilter",
        ),
        *("pfthreshold", "v_vmsave_vmload", "vgif"),
    }
)
#: What KVM gives the guest whether the CPU has it or not, or what only describes the topology.
_KVM_HAS = frozenset({"x2apic", "tsc_deadline_timer", "tsc_adjust", "umip", "arat", "ht", "cmp_legacy"})
_OLDEST = (4, 0)
_SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
#: Page size of memory-backend-memfd,hugetlb=on without a size: the default on x86.
_HUGE_PAGE_BYTES = 2 << 20


def check(pair: HostPair) -> tuple[Finding, ...]:
    """Return everything that is known to speak against the target, errors first."""
    found = list(source_ready(pair.source, pair.policy))
    if not pair.command:
        found.append(finding("command-line-unknown", "the command line of the guest's QEMU cannot be read"))
    if any("dirty-ring-size=" in option.text for option in pair.command.all("accel", "machine")):
        found.append(finding("dirty-ring", "the guest's QEMU was started with a KVM dirty ring"))
    for part in (_process, _cpu, _nested, _memory, _versions, _postcopy):
        found += part(pair)
    found += [*host_disks.check(pair), *host_files.check(pair), *host_network.check(pair)]
    return errors_first(found)


def obstacle(guest: Guest) -> Iterator[Finding]:
    """Yield the obstacle that keeps the guest from being moved at all, as the inventory says."""
    if guest.obstacle:
        yield finding(guest.obstacle_code or "not-movable", f"{guest.label}: {guest.obstacle}")


def _process(pair: HostPair) -> Iterator[Finding]:
    if pair.process is None:
        return
    kvm = pair.kvm and pair.there.kvm
    yield from host_process.check(
        pair.process, pair.command, target=pair.target, systemd=pair.there.systemd, kvm=kvm
    )
    yield from host_process.images_unreachable(pair.process.open_files)
    if pair.process.replicated:
        paths = [*pair.files_there.files, *pair.files_there.chains]
        yield from host_process.paths_unclear(pair.process, paths, target=pair.target)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


# --- CPU ----------------------------------------------------------------------------------------------------


def _cpu(pair: HostPair) -> Iterator[Finding]:
    if not pair.kvm:
        return
    if not pair.there.kvm:
        yield finding("kvm-missing", f"{pair.target} has no KVM, which the guest runs under")
        return
    here, there = pair.here, pair.there
    if not here.cpu_flags or not there.cpu_flags:
        return
    shown = guest_flags(pair.source.cpu_features)
    if not shown and pair.command.cpu_of_host:
        shown = here.cpu_flags
    # Only what the CPU here has: the rest KVM makes up there as well.
    lacking = (shown & here.cpu_flags) - there.cpu_flags - _KVM_HAS - {"vmx", "svm"}
    if lacking:
        yield finding(
            "cpu-flags",
            f"the CPU of {pair.target} lacks {_some(lacking)}, which the guest was shown",
        )
    if pair.command.cpu_of_host and here.cpu_model != there.cpu_model:
        yield finding(
            "cpu-host-passthrough",
            f"the guest was started with the CPU of its host ({here.cpu_model}); {pair.target} has {there.cpu_model}",
        )


def _nested(pair: HostPair) -> Iterator[Finding]:
    here, there = pair.here, pair.there
    if not pair.kvm or not there.kvm or not there.cpu_flags:
        return
    shown = guest_flags(pair.source.cpu_features)
    for flag, mine, theirs in (
        ("vmx", here.nested_flags, there.nested_flags),
        ("svm", here.cpu_flags & _SVM, there.cpu_flags & _SVM),
    ):
        if flag not in shown:
            continue
        if flag not in there.cpu_flags or pair.files_there.nested is False:
            yield finding(
                "nested-missing",
                f"the guest was shown virtualisation ({flag}), which {pair.target} does not offer",
            )
        elif theirs and mine - theirs:  # old kernels list none of Intel's
            yield finding(
                "nested-abilities",
                f"the virtualisation of {pair.target} lacks {_some(mine - theirs)}, which nested guests may be using",
            )


def _some(words: frozenset[str]) -> str:
    shown = sorted(words)
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return ", ".join(shown[:12]) + more


# --- memory -------------------------------------------------------------------------------------------------


def _memory(pair: HostPair) -> Iterator[Finding]:
    huge: dict[int, int] = {}
    normal = pair.source.memory_bytes
    sizes = dict(pair.source.memory_backends)
    for option in pair.command.all("object", "mem-path"):
        if option.name == "mem-path":
            path, size = option.text, normal
        elif option["qom-type"].startswith("memory-backend-"):
            path, size = option["mem-path"], sizes.get(option["id"], 0) or _size(option["size"])
        else:
            continue
        page = 0
        if path:
            page = host_files.page_bytes(pair, path)
            yield from host_files.memory_path(pair, path)
        elif option["hugetlb"] in ("on", "yes", "true"):
            page = _size(option["hugetlbsize"]) or _HUGE_PAGE_BYTES
        if page:
            huge[page] = huge.get(page, 0) + size
            normal -= size
    for page, size in sorted(huge.items()):
        free = pair.there.hugepages.get(page, 0)
        if free * page < size:
            yield finding(
                "hugepages",
                f"the guest needs {-(-size // page)} pages of {show_bytes(page)}; {pair.target} has {free} free",
            )
    if pair.there.memory_total_bytes and normal > pair.there.memory_free_bytes:
        yield finding(
            "memory-free",
            f"the guest has {show_bytes(normal)}; {pair.target} has {show_bytes(pair.there.memory_free_bytes)} free",
        )


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([bkmgt]?)(?:i?b)?", text.lower())
    return int(float(match[1]) * _SIZES[match[2]]) if match else 0


# --- QEMU ---------------------------------------------------------------------------------------------------


def _versions(pair: HostPair) -> Iterator[Finding]:
    seen, offer = pair.files_there, pair.files_there.offer
    if not seen.qemu:
        known = ", ".join(f"{path} ({version})" for path, version in sorted(pair.there.qemus.items()))
        name = pair.command.program or "QEMU"
        yield finding(
            "qemu-missing", f"{name} was not found at {pair.target}" + (f", only {known}" if known else "")
        )
        return
    mine, theirs = _version(pair.source.version)[:2], _version(offer.version)[:2]
    if theirs and theirs < _OLDEST:
        yield finding("qemu-too-old", f"{seen.qemu} at {pair.target} is QEMU {offer.version}")
    elif theirs and theirs < mine:
        yield finding(
            "qemu-older",
            f"{seen.qemu} at {pair.target} is QEMU {offer.version}, the guest runs in {pair.source.version}",
        )
    machine = pair.source.machine
    if offer.machines and machine and machine not in offer.machines:
        yield finding(
            "machine-not-offered", f"{seen.qemu} at {pair.target} does not know the machine type {machine}"
        )
    elif machine and theirs and theirs != mine and not re.search(r"\d\.\d", machine):
        yield finding(
            "machine-unversioned",
            f"the machine type {machine} has no version; QEMU is {pair.source.version} here and {offer.version} there",
        )
    if offer.devices:
        drivers = {device.driver for device in pair.source.devices if " " not in device.driver}
        for driver in sorted(drivers - offer.devices):
            yield finding(
                "device-not-offered", f"{seen.qemu} at {pair.target} does not know the device {driver}"
            )
    if offer.cpus:
        types = {cpu.split()[0] for cpu in pair.source.cpus}
        models = {kind.removesuffix("-x86_64-cpu") for kind in types if kind.endswith("-x86_64-cpu")}
        for model in sorted(models - offer.cpus):
            yield finding(
                "cpu-not-offered", f"{seen.qemu} at {pair.target} does not know the CPU model {model}"
            )


def _postcopy(pair: HostPair) -> Iterator[Finding]:
    if pair.policy is None or pair.policy.postcopy is PostcopyMode.NEVER:
        return
    if not (pair.here.ping or (pair.here.python3 and pair.there.python3)):
        yield finding(
            "path-not-probed",
            f"policy {pair.policy.name} allows postcopy, and the network to {pair.target} cannot be probed before it: "
            "there is no ping at the source's host, nor python3 at both",
        )
    if pair.there.userfaultfd:
        return
    if pair.policy.postcopy is PostcopyMode.IMMEDIATE:
        yield finding(
            "userfaultfd",
            f"policy {pair.policy.name} begins with postcopy, which {pair.target} does not allow (userfaultfd)",
        )
    else:
        yield finding(
            "no-postcopy",
            f"policy {pair.policy.name} allows postcopy, which {pair.target} does not (userfaultfd)",
        )
