"""Signs that a QEMU stands in a migration: whether somebody drives it, and what it is in the way of. Pure."""

from __future__ import annotations

from migrator.core.migration.drivers import Driver
from migrator.core.model import MigrationStatus, RunState

#: Code of the obstacle where nobody drives it.
UNFINISHED = "unfinished-migration"

_IDLE = {MigrationStatus.NONE, MigrationStatus.COMPLETED, MigrationStatus.FAILED, MigrationStatus.CANCELLED}
_LEFT = {RunState.FINISH_MIGRATE, RunState.POSTMIGRATE}
_RESCUE = "migrator direct --rescue --source QMP --destination QMP"


def unfinished_migration(
    run: RunState,
    status: MigrationStatus,
    driver: Driver | None,
    *,
    ours: bool,
    gone: bool | None,
) -> tuple[bool, str] | None:
    """Tell whether another controller drives this QEMU, and what part of a migration keeps its guest from being moved.

    :param driver: named by QEMU's mark; ``None`` where it has none.
    :param ours: the driver is this controller: what it drives now is not asked about.
    :param gone: the driver's process is proven dead; ``None`` where that cannot be told from here.
    :return: whether another drives it, and the obstacle in words; ``None`` where no migration is in the way.
    """
    if run is RunState.INMIGRATE:
        return None if ours else _arrival(status, driver, gone=gone)
    what = _what(run, status, marked=driver is not None and not ours)
    if ours:
        if run not in _LEFT:
            return None
        which = f"migration {driver.migration}" if driver is not None else "a migration"
        return False, f"it {what}: {which} of this service; see migrator status"
    if driver is not None and gone is not True:
        if gone is False:
            return True, f"{driver} drives it: wait for that"
        return True, (
            f"{driver} drives it, and cannot be seen from here: wait for it, or where it is dead for certain {_RESCUE} "
            "--take-over"
        )
    if not what:
        return None
    by = f", which {driver} began before it died" if driver is not None else ""
    return False, f"it {what}{by}: if nobody drives it, {_RESCUE}"


def _arrival(status: MigrationStatus, driver: Driver | None, *, gone: bool | None) -> tuple[bool, str] | None:
    """Judge a QEMU that waits for a guest: it holds none, unless another controller moves one into it soon."""
    if driver is not None:
        if gone is True:
            return None
        text = f"a guest is on its way here, {driver} drives it: wait until it has arrived"
        return (
            True,
            text if gone is False else f"{text}; where that controller is dead for certain, end this process",
        )
    if status in _IDLE or status is MigrationStatus.SETUP:
        return None
    return (
        True,
        f"a guest is on its way here by a migration that somebody else began ({status}): wait for that",
    )


def _what(run: RunState, status: MigrationStatus, *, marked: bool) -> str:
    if run in _LEFT and status is MigrationStatus.PRE_SWITCHOVER:
        return "stands still at the switch of a migration"
    if run in _LEFT and status is MigrationStatus.COMPLETED:
        return "was left standing by a migration that has sent all of it"
    if run in _LEFT:
        return f"stands still in a migration ({status})"
    if status.startswith("postcopy-"):
        return "has come by a postcopy migration that has not ended"
    if status not in _IDLE:
        return f"is being migrated ({status})"
    if marked and status is MigrationStatus.COMPLETED and run in (RunState.PAUSED, RunState.PRELAUNCH):
        return "has arrived by a migration, and nobody has let it run"
    return ""
