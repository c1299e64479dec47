"""A guest of libvirt that is shut down and started anew elsewhere: what it is started from, asked on a thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from migrator.core.migration.cold_situation import GuestIs
from migrator.core.model import RUNNING_STATES
from migrator.libvirt.binding import load
from migrator.libvirt.domain_view import DomainLook
from migrator.libvirt.domain_xml import DomainXml, parse_domain
from migrator.libvirt.domains import read_details, run_state
from migrator.libvirt.target_checks import LeavingGuest

#: CPU modes that libvirt fills in anew at each start, from the host that it is at.
_FILLED_IN = frozenset({"host-model", "host-passthrough", "maximum"})
_MARK = "urn:migrator:shutdown"


@dataclass(frozen=True, kw_only=True)
class ColdGuest:
    """The parts that a guest is started from elsewhere, and again where it was; plain values, but for its definition.

    :ivar definition: libvirt's XML of its next start, with what it keeps secret.
    """

    definition: str
    persistent: bool
    autostart: bool


@dataclass(frozen=True, kw_only=True)
class RestartableGuest:
    """A guest that runs, as it would be started anew."""

    cold: ColdGuest
    #: As a target is asked about it.
    leaving: LeavingGuest
    #: Files that images of its disks are based on.
    bases: tuple[str, ...]
    #: Why it cannot be started anew, each for a person.
    against: tuple[str, ...]


def read_restartable(connection: Any, uuid: str) -> RestartableGuest:
    """Read a guest as it would be started anew; on a thread.

    :raise libvirt.libvirtError: libvirt refuses, or has no such guest.
    :raise ValueError: libvirt's XML cannot be read.
    """
    module = load()
    domain = connection.lookupByUUIDString(uuid)
    details = read_details(domain)
    next_start = module.VIR_DOMAIN_XML_INACTIVE | module.VIR_DOMAIN_XML_MIGRATABLE
    public = domain.XMLDesc(next_start)
    xml = parse_domain(public)
    state, reason = domain.state()
    return RestartableGuest(
        cold=ColdGuest(
            definition=domain.XMLDesc(next_start | module.VIR_DOMAIN_XML_SECURE),
            persistent=details.domain.persistent,
            autostart=details.domain.autostart,
        ),
        leaving=LeavingGuest(
            definition=public,
            xml=replace(xml, cpu="") if xml.cpu_mode in _FILLED_IN else xml,
            domain=details.domain,
        ),
        bases=tuple(path for disk in details.xml.disks for path in disk.backing_files),
        against=tuple(
            _against(
                details.xml,
                xml,
                runs=run_state(domain, state, reason) in RUNNING_STATES,
                notes=details.domain.snapshots + details.domain.checkpoints,
            )
        ),
    )


def _against(now: DomainXml, next_start: DomainXml, *, runs: bool, notes: int) -> Iterator[str]:
    if not runs:
        yield "it does not run, so that it cannot shut down"
    if now.on_poweroff != "destroy":
        yield (
            f"libvirt does not end it when it shuts down (on_poweroff is {now.on_poweroff}): "
            "virsh set-lifecycle-action GUEST poweroff destroy --live --config"
        )
    if notes:
        yield "libvirt keeps snapshots or checkpoints of it, which do not go along"
    kinds: tuple[tuple[str, set[str], set[str]], ...] = (
        ("disk", {each.target for each in now.disks}, {each.target for each in next_start.disks}),
        ("host device", {*now.host_devices}, {*next_start.host_devices}),
        ("network card", {*now.macs}, {*next_start.macs}),
    )
    for kind, has, keeps in kinds:
        if plugged := sorted(has - keeps):
            yield f"its next start would be without what is plugged in for this one alone: {kind} {', '.join(plugged)}"
    if next_start.tpm == "emulator":
        yield "its TPM is emulated by another process, whose state is at its host alone"


def guest_is(look: DomainLook | None) -> GuestIs:
    """Return what libvirt's answer says of a guest at its host."""
    module = load()
    if look is None:
        return GuestIs.UNKNOWN
    if look.state == module.VIR_DOMAIN_SHUTOFF:
        reasons: Mapping[int, GuestIs] = {
            module.VIR_DOMAIN_SHUTOFF_SHUTDOWN: GuestIs.SHUT_DOWN,
            module.VIR_DOMAIN_SHUTOFF_UNKNOWN: GuestIs.OFF,
            module.VIR_DOMAIN_SHUTOFF_FAILED: GuestIs.OFF,  # its start has
        }
        return reasons.get(look.reason, GuestIs.ENDED)
    return GuestIs.PAUSED if look.state == module.VIR_DOMAIN_PAUSED else GuestIs.RUNS


# --- what is done, on a thread --------------------------------------------------------------------------------------


def mark_asked(domain: Any, migration: str) -> None:
    """Have whoever looks later see that the guest was asked to shut down; gone with its QEMU."""
    module = load()
    domain.setMetadata(
        module.VIR_DOMAIN_METADATA_ELEMENT,
        f"<shutdown migration='{migration}'/>",
        "migrator",
        _MARK,
        module.VIR_DOMAIN_AFFECT_LIVE,
    )


def was_asked(domain: Any) -> bool:
    """Return whether :func:`mark_asked` was called since its start."""
    module = load()
    try:
        domain.metadata(module.VIR_DOMAIN_METADATA_ELEMENT, _MARK, module.VIR_DOMAIN_AFFECT_LIVE)
    except module.libvirtError as error:
        if error.get_error_code() != module.VIR_ERR_NO_DOMAIN_METADATA:
            raise
        return False
    return True


def forget_asked(domain: Any) -> None:
    """Undo :func:`mark_asked`, where it was called."""
    module = load()
    if domain.isActive() and was_asked(domain):
        domain.setMetadata(
            module.VIR_DOMAIN_METADATA_ELEMENT, None, None, _MARK, module.VIR_DOMAIN_AFFECT_LIVE
        )


def start_again(connection: Any, uuid: str, guest: ColdGuest) -> None:
    """Start a guest that is off where it was, as it was."""
    if not guest.persistent:
        connection.createXML(guest.definition, 0)
        return
    domain = connection.lookupByUUIDString(uuid)
    domain.create()
    if guest.autostart:
        domain.setAutostart(1)


def start_paused(connection: Any, guest: ColdGuest) -> None:
    """Give a libvirt a guest and a QEMU for it, which does not run; where that fails nothing of it is left."""
    module = load()
    if not guest.persistent:
        connection.createXML(guest.definition, module.VIR_DOMAIN_START_PAUSED)
        return
    domain = connection.defineXML(guest.definition)
    try:
        domain.createWithFlags(module.VIR_DOMAIN_START_PAUSED)
    except module.libvirtError:
        _undefine(domain)
        raise


def remove(connection: Any, uuid: str, *, even_running: bool) -> bool:
    """End what a libvirt has of a guest and forget it; False: it runs, and may not be ended."""
    module = load()
    try:
        domain = connection.lookupByUUIDString(uuid)
    except module.libvirtError as error:
        if error.get_error_code() == module.VIR_ERR_NO_DOMAIN:
            return True
        raise
    persistent = bool(domain.isPersistent())
    if domain.isActive():
        if domain.state()[0] != module.VIR_DOMAIN_PAUSED and not even_running:
            return False
        domain.destroy()
    if persistent:
        _undefine(domain)
    return True


def forget(connection: Any, uuid: str) -> bool:
    """Undefine a guest that is off; False: it has a QEMU."""
    module = load()
    try:
        domain = connection.lookupByUUIDString(uuid)
    except module.libvirtError as error:
        if error.get_error_code() == module.VIR_ERR_NO_DOMAIN:
            return True
        raise
    if domain.isActive():
        return False
    _undefine(domain)
    return True


def _undefine(domain: Any) -> None:
    """Forget the definition alone: firmware's variables and a TPM's state are left to whoever has them."""
    module = load()
    domain.undefineFlags(module.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | module.VIR_DOMAIN_UNDEFINE_KEEP_TPM)
