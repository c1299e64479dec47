"""The state of a migration as one guest of libvirt shows it, in the words that the engine has for a QEMU."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from migrator.core.model import MigrationStatus, ProcessState, RunState, View
from migrator.libvirt.binding import load
from migrator.libvirt.domains import run_state
from migrator.libvirt.job_stats import read_sample


@dataclass(frozen=True, kw_only=True)
class DomainLook:
    """One guest as libvirt answered; see :func:`look_at`."""

    state: int
    reason: int
    run: RunState
    #: Of its job; empty where there is none.
    stats: Mapping[str, Any] = field(default_factory=dict)


def look_at(connection: Any, uuid: str) -> DomainLook | None:
    """Return what libvirt says of a guest; ``None``: it has none of that uuid. On a thread."""
    module = load()
    try:
        domain = connection.lookupByUUIDString(uuid)
        state, reason = domain.state()
    except module.libvirtError as error:
        if error.get_error_code() == module.VIR_ERR_NO_DOMAIN:
            return None
        raise
    if state == module.VIR_DOMAIN_SHUTOFF:
        return DomainLook(state=state, reason=reason, run=RunState.SHUTDOWN)
    stats: dict[str, Any] = {}
    with contextlib.suppress(module.libvirtError):  # it ends at this moment: the next look tells
        stats = domain.jobStats()
    if stats.get("type", module.VIR_DOMAIN_JOB_NONE) not in (
        module.VIR_DOMAIN_JOB_BOUNDED,
        module.VIR_DOMAIN_JOB_UNBOUNDED,
    ):
        stats = {}
    return DomainLook(state=state, reason=reason, run=run_state(domain, state, reason), stats=stats)


def source_view(look: DomainLook | None, *, ended: bool = False) -> View:
    """Return the source's end.

    :param ended: the guest was heard to end by itself.
    """
    module = load()
    if look is None:
        return View(process=ProcessState.DEAD, ended=ended)
    if look.state == module.VIR_DOMAIN_SHUTOFF:
        return View(
            process=ProcessState.DEAD, ended=ended or look.reason == module.VIR_DOMAIN_SHUTOFF_SHUTDOWN
        )
    leaves = look.stats.get("operation") == module.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
    run, status = look.run, MigrationStatus.ACTIVE if leaves else MigrationStatus.NONE
    if look.state == module.VIR_DOMAIN_PAUSED:
        if look.reason == module.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED:
            run, status = RunState.FINISH_MIGRATE, MigrationStatus.POSTCOPY_PAUSED
        elif look.reason == module.VIR_DOMAIN_PAUSED_POSTCOPY:
            run, status = RunState.FINISH_MIGRATE, MigrationStatus.POSTCOPY_ACTIVE
        elif look.reason == module.VIR_DOMAIN_PAUSED_MIGRATION:
            run = RunState.FINISH_MIGRATE if leaves else RunState.POSTMIGRATE
            status = MigrationStatus.DEVICE if leaves else MigrationStatus.COMPLETED
    sample = read_sample(look.stats) if leaves and look.stats.get("memory_total") else None
    return View(process=ProcessState.ALIVE, answers=True, run=run, status=status, sample=sample)


def destination_view(look: DomainLook | None, *, ended: bool = False) -> View:
    """Return the destination's end; one that has nothing of the guest is shown as dead."""
    module = load()
    if look is None or look.state == module.VIR_DOMAIN_SHUTOFF:
        return View(process=ProcessState.DEAD, ended=ended)
    comes = look.stats.get("operation") == module.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN
    run, status = look.run, MigrationStatus.COMPLETED
    failed = {
        (module.VIR_DOMAIN_PAUSED, module.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED),
        (module.VIR_DOMAIN_RUNNING, module.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED),
    }
    fetching = {
        (module.VIR_DOMAIN_PAUSED, module.VIR_DOMAIN_PAUSED_POSTCOPY),
        (module.VIR_DOMAIN_RUNNING, module.VIR_DOMAIN_RUNNING_POSTCOPY),
    }
    if (look.state, look.reason) in failed:
        status = MigrationStatus.POSTCOPY_PAUSED
        run = RunState.RUNNING if look.state == module.VIR_DOMAIN_RUNNING else RunState.PAUSED
    elif (look.state, look.reason) in fetching:
        status = MigrationStatus.POSTCOPY_ACTIVE
    elif look.run is RunState.INMIGRATE or (comes and look.state == module.VIR_DOMAIN_PAUSED):
        run, status = RunState.INMIGRATE, MigrationStatus.ACTIVE
    return View(process=ProcessState.ALIVE, answers=True, run=run, status=status)
