"""Ends of a move in which a manager's guest is shut down and started anew, shown as those of a migration. Pure, total.

The source copies until its guest is off, is at its switch then, and is done once what starts guests by itself there was
told not to; the destination waits, and is complete once it has the guest, which does not run yet. So
:mod:`migrator.core.migration.lifecycle` decides for them too.
"""

from __future__ import annotations

from enum import StrEnum

from migrator.core.model import MigrationStatus, ProcessState, RunState, View

S, R = MigrationStatus, RunState


class GuestIs(StrEnum):
    """State of a guest at one host, as the manager there tells it."""

    #: The manager cannot be asked.
    SILENT = "silent"
    #: The manager has nothing of it.
    UNKNOWN = "unknown"
    #: The manager has its definition; it never ran there since it was defined, or nobody remembers.
    OFF = "off"
    #: ... and it has shut down by itself.
    SHUT_DOWN = "shut-down"
    #: ... and it was ended, by somebody or by a fault.
    ENDED = "ended"
    #: It has not ended: somebody has taken what is in its memory into a file, or to another host.
    TAKEN = "taken"
    #: It has a QEMU, and stands still.
    PAUSED = "paused"
    RUNS = "runs"


class ColdPhase(StrEnum):
    """How far a source was brought."""

    #: Its guest was not asked for anything, or goes on there again.
    IDLE = "idle"
    #: Its guest was asked to shut down.
    ASKED = "asked"
    #: ... and is not waited for any more: it has not shut down in time.
    LATE = "late"
    #: It was off, and its manager does not start it by itself any more.
    PUT_AWAY = "put-away"
    #: The guest is elsewhere, and nothing of it is here.
    FORGOTTEN = "forgotten"


_HAS_NO_QEMU = frozenset({GuestIs.UNKNOWN, GuestIs.OFF, GuestIs.SHUT_DOWN, GuestIs.ENDED})


def is_off(guest: GuestIs) -> bool:
    """Tell whether the guest has no QEMU at a host whose manager has answered."""
    return guest in _HAS_NO_QEMU


def source_view(phase: ColdPhase, guest: GuestIs) -> View:
    """Return the source's end."""
    if guest is GuestIs.SILENT:
        return View(process=ProcessState.UNKNOWN)
    if (
        guest is GuestIs.TAKEN
    ):  # it is for whoever took it to have it go on; who did after its switch had started it
        put_away = phase is ColdPhase.PUT_AWAY
        return _alive(R.PAUSED, S.NONE) if put_away else View(process=ProcessState.DEAD, ended=True)
    if is_off(guest):
        if phase in (ColdPhase.IDLE, ColdPhase.FORGOTTEN):
            by_itself = phase is ColdPhase.IDLE and guest is GuestIs.SHUT_DOWN
            return View(process=ProcessState.DEAD, ended=by_itself)
        if phase is ColdPhase.PUT_AWAY:
            return _alive(R.POSTMIGRATE, S.COMPLETED)
        return _alive(R.FINISH_MIGRATE, S.PRE_SWITCHOVER)
    run = R.RUNNING if guest is GuestIs.RUNS else R.PAUSED
    if phase is ColdPhase.ASKED:
        return _alive(run, S.ACTIVE)
    return _alive(run, S.FAILED if phase is ColdPhase.LATE else S.NONE)  # or somebody has started it


def destination_view(guest: GuestIs, *, waits: bool) -> View:
    """Return the destination's end.

    :param waits: it is to be given the guest by this controller, and was not yet.
    """
    if guest is GuestIs.SILENT:
        return View(process=ProcessState.UNKNOWN)
    if guest in (GuestIs.PAUSED, GuestIs.RUNS):
        return _alive(R.RUNNING if guest is GuestIs.RUNS else R.PAUSED, S.COMPLETED, can_fence=True)
    if waits:
        return _alive(R.INMIGRATE, S.ACTIVE, can_fence=True)
    if guest is GuestIs.OFF:
        return _alive(R.INMIGRATE, S.FAILED, can_fence=True)  # defined, and not started: of no use any more
    return View(process=ProcessState.DEAD, ended=guest is GuestIs.SHUT_DOWN)


def _alive(run: RunState, status: MigrationStatus, *, can_fence: bool = False) -> View:
    return View(process=ProcessState.ALIVE, answers=True, run=run, status=status, can_fence=can_fence)
