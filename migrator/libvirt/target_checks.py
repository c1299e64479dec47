"""Questions to the libvirt of a target about a guest that might come, and what the answers mean; changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from xml.etree import ElementTree as ET

from migrator.core.findings import finding
from migrator.core.managed_guest import ManagedDomain
from migrator.core.model import Finding
from migrator.core.preflight.facts import Disk
from migrator.libvirt.binding import error_code, error_text, load
from migrator.libvirt.domain_disks import read_disks
from migrator.libvirt.domain_xml import DiskXml, DomainXml, parse_domain
from migrator.libvirt.domains import read_details

#: File systems that libvirt knows to be shared by hosts, and those of them that keep their page caches coherent.
_SHARED = frozenset(
    {"nfs", "nfs4", "afs", "smb2", "smb3", "cifs", "ceph", "gpfs", "fuse.glusterfs", "gfs2", "ocfs2"}
)
_CLUSTER = frozenset({"gfs2", "ocfs2"})
_DIRECT = frozenset({"none", "directsync"})
#: CPU modes of which the guest sees what the host has.
_OF_HOST = frozenset({"host-passthrough", "maximum"})


@dataclass(frozen=True, kw_only=True)
class LeavingGuest:
    """A guest as its source's libvirt describes it, for another one."""

    #: The definition that a target is given.
    definition: str
    xml: DomainXml
    domain: ManagedDomain
    #: Those whose images are files, and can be made elsewhere.
    disks: tuple[Disk, ...] = ()
    #: The ``cpu`` element of its host.
    host_cpu: str = ""


@dataclass(frozen=True, kw_only=True)
class TargetAnswers:
    """Answers of the libvirt of a target; empty words stand for nothing that speaks against the guest."""

    cpu: str = ""
    definition: str = ""
    #: Of what is not there, or not active, libvirt's words, by its name.
    networks: Mapping[str, str] = field(default_factory=dict)
    pools: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    #: Backends that it has for TPMs; ``None``: it does not say.
    tpm_backends: frozenset[str] | None = None
    #: Uuid of another guest of the same name; empty: there is none.
    namesake: str = ""
    #: It has a definition of this guest; the guest runs there.
    defined: bool = False
    runs: bool = False


def read_leaving(connection: Any, uuid: str) -> LeavingGuest:
    """Read a guest from its source's libvirt; on a thread.

    :raise libvirt.libvirtError: libvirt refuses, or has no such guest.
    :raise ValueError: libvirt's XML cannot be read.
    """
    module = load()
    domain = connection.lookupByUUIDString(uuid)
    details = read_details(domain)
    definition = domain.XMLDesc(module.VIR_DOMAIN_XML_MIGRATABLE)
    host_cpu = ""
    if details.xml.cpu_mode in _OF_HOST:
        cpu = ET.fromstring(connection.getCapabilities()).find("host/cpu")  # noqa: S314 - of that daemon
        host_cpu = ET.tostring(cpu, encoding="unicode") if cpu is not None else ""
    return LeavingGuest(
        definition=definition,
        # What images are based on is not said to a target.
        xml=replace(parse_domain(definition), disks=details.xml.disks),
        domain=details.domain,
        disks=read_disks(domain, details.xml),
        host_cpu=host_cpu,
    )


def ask_target(connection: Any, guest: LeavingGuest) -> TargetAnswers:
    """Ask the libvirt of a target whether the guest could come; changes nothing. On a thread.

    :raise libvirt.libvirtError: the connection was lost.
    """
    xml = guest.xml
    here = _domain(connection, xml.uuid)
    return TargetAnswers(
        cpu=_cpu(connection, guest),
        definition=_said(lambda: connection.domainXMLToNative("qemu-argv", guest.definition, 0)),
        networks=_lacking(xml.networks, lambda name: _active(connection.networkLookupByName(name))),
        pools={**_pools(connection, xml.disks)},
        secrets=_lacking(xml.secrets, lambda secret: _secret(connection, secret)),
        tpm_backends=_tpm_backends(connection, xml) if xml.tpm else None,
        namesake=_namesake(connection, xml),
        defined=here is not None and bool(here.isPersistent()),
        runs=here is not None and bool(here.isActive()),
    )


def judge(guest: LeavingGuest, answers: TargetAnswers, target: str) -> Iterator[Finding]:
    """Yield what speaks against the target, in libvirt's words. Pure."""
    xml = guest.xml
    if answers.runs:
        yield finding(
            "duplicate", f"{xml.name} ({xml.uuid}) is in the hands of the libvirt of {target} already"
        )
    elif answers.defined:
        yield finding("libvirt-defined", f"the libvirt of {target} has a definition of {xml.name} already")
    if answers.namesake:
        yield finding(
            "libvirt-name", f"another guest of {target} is called {xml.name} (its uuid is {answers.namesake})"
        )
    if answers.cpu:
        yield finding("libvirt-cpu", f"libvirt of {target} says: {answers.cpu}")
    if answers.definition:
        yield finding("libvirt-definition", f"libvirt of {target} says: {answers.definition}")
    for name, words in answers.networks.items():
        yield finding("libvirt-network", f"network {name}: libvirt of {target} says: {words}")
    for name, words in answers.pools.items():
        yield finding("libvirt-pool", f"storage {name}: libvirt of {target} says: {words}")
    for name, words in answers.secrets.items():
        yield finding("libvirt-secret", f"secret {name}: libvirt of {target} says: {words}")
    if answers.tpm_backends is not None and xml.tpm not in answers.tpm_backends:
        yield finding("libvirt-tpm", f"{target} has no TPM of the kind {xml.tpm}")
    for device in xml.host_devices:
        yield finding("libvirt-host-device", f"{xml.name} has {device} of its host")
    counts = ((guest.domain.snapshots, "snapshots"), (guest.domain.checkpoints, "checkpoints"))
    if kept := [f"{count} {what}" for count, what in counts if count]:
        yield finding("libvirt-snapshots", f"{xml.name} has {' and '.join(kept)}")


def unsafe_disk(disk: DiskXml, filesystem: str) -> str:
    """Return why libvirt would call it unsafe to move a guest with this disk, not copied; empty: it would not.

    :param filesystem: of its image at the source, as the kernel names it.
    """
    if not disk.source or disk.read_only or disk.kind == "network":
        return ""
    if disk.kind == "file":
        if filesystem in _CLUSTER:
            return ""
        if filesystem not in _SHARED:
            return (
                f"its file system there, {filesystem or 'unknown'}, is none that libvirt knows to be shared"
            )
    if disk.shareable or disk.cache in _DIRECT:
        return ""
    return f"it goes through the page cache (cache={disk.cache or 'default'})"


# --- one question each, on a thread ---------------------------------------------------------------------------------


def _said(ask: Callable[[], Any]) -> str:
    """Return libvirt's words where it refuses; empty where it does not, or has no such function."""
    try:
        ask()
    except load().libvirtError as error:
        return "" if error_code(error) == "VIR_ERR_NO_SUPPORT" else error_text(error)
    return ""


def _lacking(names: Iterable[str], ask: Callable[[str], str]) -> dict[str, str]:
    """Return libvirt's words of each that is not there; one that it has no driver for is not there either."""
    lacking = {}
    for name in names:
        try:
            words = ask(name)
        except load().libvirtError as error:
            words = error_text(error)
        if words:
            lacking[name] = words
    return lacking


def _active(thing: Any) -> str:
    return "" if thing.isActive() else "it is not active"


def _pools(connection: Any, disks: Iterable[DiskXml]) -> dict[str, str]:
    def ask(name: str) -> str:
        pool, _, volume = name.partition("/")
        found = connection.storagePoolLookupByName(pool)
        if words := _active(found):
            return words
        found.storageVolLookupByName(volume)
        return ""

    return _lacking((f"{disk.pool}/{disk.source}" for disk in disks if disk.pool), ask)


def _secret(connection: Any, secret: str) -> str:
    kind, _, usage = secret.partition(":")
    if not usage:
        connection.secretLookupByUUIDString(secret)
        return ""
    module = load()
    number = getattr(module, f"VIR_SECRET_USAGE_TYPE_{'CEPH' if kind == 'ceph' else kind.upper()}", None)
    if number is not None:
        connection.secretLookupByUsage(number, usage)
    return ""


def _cpu(connection: Any, guest: LeavingGuest) -> str:
    """Return libvirt's words where the target has not the CPU; empty where it has, or that cannot be told."""
    module, xml = load(), guest.xml
    try:
        if xml.cpu_mode in _OF_HOST:
            if not guest.host_cpu:
                return ""
            found = connection.compareCPU(guest.host_cpu, module.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)
        elif xml.cpu:
            found = connection.compareHypervisorCPU(
                xml.emulator or None,
                xml.architecture or None,
                xml.machine or None,
                xml.virt,
                xml.cpu,
                module.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE,
            )
        else:
            return ""
    except module.libvirtError as error:
        return error_text(error) if error_code(error) == "VIR_ERR_CPU_INCOMPATIBLE" else ""
    return "the CPU is not compatible" if found == module.VIR_CPU_COMPARE_INCOMPATIBLE else ""


def _tpm_backends(connection: Any, xml: DomainXml) -> frozenset[str] | None:
    try:
        text = connection.getDomainCapabilities(
            xml.emulator or None, xml.architecture or None, xml.machine or None, xml.virt
        )
    except load().libvirtError:
        return None  # the definition tells
    root = ET.fromstring(text)  # noqa: S314 - of that daemon
    tpm = root.find("devices/tpm")
    if tpm is None:
        return None
    if tpm.get("supported") != "yes":
        return frozenset()
    return frozenset(each.text or "" for each in tpm.findall("enum[@name='backendModel']/value"))


def _domain(connection: Any, uuid: str) -> Any:
    try:
        return connection.lookupByUUIDString(uuid)
    except load().libvirtError as error:
        if error_code(error) != "VIR_ERR_NO_DOMAIN":
            raise
        return None


def _namesake(connection: Any, xml: DomainXml) -> str:
    try:
        found = str(connection.lookupByName(xml.name).UUIDString())
    except load().libvirtError as error:
        if error_code(error) != "VIR_ERR_NO_DOMAIN":
            raise
        return ""
    return "" if found == xml.uuid else found
