"""A guest of libvirt that is shut down and started anew elsewhere: what it is started from, asked on a thread."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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
#: What is noted at a guest that was asked to shut down, and how the migration is found in it again.
_MARK = "urn:migrator:shutdown"
_ASKED_BY = re.compile(r"""migration=['"]([^'"]*)""")


@dataclass(frozen=True, kw_only=True)
class ColdGuest:
    """The parts that a guest is started from elsewhere, and again where it was; plain values, but for its definition.

    :ivar definition: libvirt's XML of its next start, with what it keeps secret: written down nowhere but by libvirt;
        empty: another controller began, and libvirt has it.
    """

    definition: str = field(repr=False)
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
            module.VIR_DOMAIN_SHUTOFF_SAVED: GuestIs.TAKEN,
            module.VIR_DOMAIN_SHUTOFF_MIGRATED: GuestIs.TAKEN,
        }
        return reasons.get(look.reason, GuestIs.ENDED)
    return GuestIs.PAUSED if look.state == module.VIR_DOMAIN_PAUSED else GuestIs.RUNS


# --- what is done, on a thread --------------------------------------------------------------------------------------


def mark_asked(domain: Any, guest: ColdGuest, migration: str) -> str:
    """Have whoever looks later see that the guest was asked to shut down; gone with its QEMU.

    A guest without a definition that lasts gets one until it is let go of: libvirt, and nobody else, keeps what it is
    started from while it is off, with its secrets.

    :return: the migration for which somebody else has asked it, and nothing was changed; empty: there is none.
    """
    module = load()
    if (other := asked_by(domain)) and other != migration:
        return other
    if not guest.persistent and not domain.isPersistent():
        domain.connect().defineXML(guest.definition)
    domain.setMetadata(
        module.VIR_DOMAIN_METADATA_ELEMENT,
        f"<shutdown migration='{migration}'/>",
        "migrator",
        _MARK,
        module.VIR_DOMAIN_AFFECT_LIVE,
    )
    return ""


def asked_by(domain: Any) -> str:
    """Return the migration for which the guest was asked to shut down since its start; empty: it was not."""
    module = load()
    try:
        mark = domain.metadata(module.VIR_DOMAIN_METADATA_ELEMENT, _MARK, module.VIR_DOMAIN_AFFECT_LIVE)
    except module.libvirtError as error:
        if error.get_error_code() != module.VIR_ERR_NO_DOMAIN_METADATA:
            raise
        return ""
    found = _ASKED_BY.search(mark)
    return found[1] if found else ""


def stay(domain: Any, guest: ColdGuest, migration: str) -> None:
    """Have a guest that stays be as it was: undo :func:`mark_asked`, and have it start with its host where it did.

    One that has ended meanwhile, or that another controller shuts down, is left alone.
    """
    module = load()
    if not domain.isActive() or (asked := asked_by(domain)) not in ("", migration):
        return
    if asked:
        domain.setMetadata(
            module.VIR_DOMAIN_METADATA_ELEMENT, None, None, _MARK, module.VIR_DOMAIN_AFFECT_LIVE
        )
    if guest.autostart:
        domain.setAutostart(1)
    if not guest.persistent and domain.isPersistent():
        _undefine(domain)


def start_again(connection: Any, uuid: str, guest: ColdGuest) -> None:
    """Start a guest that is off where it was, as it was."""
    domain = connection.lookupByUUIDString(uuid)
    domain.create()
    if guest.autostart:
        domain.setAutostart(1)
    if not guest.persistent:
        _undefine(domain)


def start_paused(connection: Any, uuid: str, guest: ColdGuest) -> bool:
    """Give a libvirt a guest and a QEMU for it, which does not run; where that fails nothing of it is left.

    :return: False: it has a guest of that uuid already, and nothing was changed.
    """
    module = load()
    if _find(connection, uuid) is not None:
        return False
    if not guest.persistent:
        connection.createXML(guest.definition, module.VIR_DOMAIN_START_PAUSED)
        return True
    domain = connection.defineXML(guest.definition)
    try:
        domain.createWithFlags(module.VIR_DOMAIN_START_PAUSED)
    except module.libvirtError:
        if not domain.isActive():
            _undefine(domain)
        raise
    return True


def remove(connection: Any, uuid: str, *, even_running: bool) -> bool:
    """End what a libvirt has of a guest and forget it; False: it runs, and may not be ended."""
    module = load()
    if (domain := _find(connection, uuid)) is None:
        return True
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
    if (domain := _find(connection, uuid)) is None:
        return True
    if domain.isActive():
        return False
    _undefine(domain)
    return True


def _find(connection: Any, uuid: str) -> Any:
    """Return the guest; ``None``: this libvirt has none of that uuid."""
    module = load()
    try:
        return connection.lookupByUUIDString(uuid)
    except module.libvirtError as error:
        if error.get_error_code() == module.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _undefine(domain: Any) -> None:
    """Forget the definition alone: firmware's variables are left to whoever has them.

    A TPM that has state of its own is refused before, and libvirt before 8.9 refuses to be told to keep it.
    """
    domain.undefineFlags(load().VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
