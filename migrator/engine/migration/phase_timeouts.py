"""Timeouts of the phases of a migration: how long nothing may change before one is overdue."""

from __future__ import annotations

from dataclasses import dataclass

from migrator.core.migration.rules import STREAM_S as _STREAM
from migrator.core.migration.rules import recovers
from migrator.core.migration.situation import Intent, Milestone, SourceIs, source_is
from migrator.core.model import MigrationStatus, ProcessState, RunState, View


@dataclass(frozen=True, kw_only=True)
class PhaseTimeouts:
    """Seconds without any change after which a phase is overdue."""

    #: Nothing has been copied. The guest runs meanwhile.
    copying: float = 30.0
    #: The guest stands still and a cancel is safe.
    at_switch: float = 2.0
    #: The guest stands still, or is at risk, and going back takes a fence; or the source's host cannot be asked.
    switching: float = 10.0
    #: A cancel takes effect where nothing was sent yet; else as for copying. QEMU 7.2 that is cancelled while it still
    #: tries to connect only ends when the kernel gives the connection up, after 127 s (tcp_syn_retries = 6); the guest
    #: runs meanwhile.
    cancelling: float = 150.0
    #: Nothing comes through the stream of a guest that runs at the destination, and the source has more to send. TCP
    #: has sent a lost packet again four times by then.
    fetching: float = 3.0
    #: One end has lost the stream of such a guest; the other is told then.
    broken: float = 1.0
    #: Its recovery makes no progress.
    recovering: float = 10.0
    #: A libvirtd whose peer is gone ends what it did for it: it gives the connection up after 30 s of silence
    #: (keepalive_interval, keepalive_count), and ends the QEMU that waits.
    lapsing: float = 60.0
    #: Nothing has come through it for so long: its recovery is not tried any more, and a person has to look.
    recovery: float = 3600.0

    def of(self, intent: Intent, source: View, *, waits_for_disks: bool = False) -> float:
        """Return the timeout of the phase that `intent` and the source are in.

        :param waits_for_disks: the source may be silent because it waits for a disk at a destination that hangs.
        """
        here = source_is(source)
        if (
            source.answers
            and source.status is MigrationStatus.CANCELLING
            and source.run is not RunState.FINISH_MIGRATE
        ):
            connected = source.sample is not None and source.sample.transferred_bytes > 0
            return self.copying if connected else self.cancelling
        stopped = intent.postcopy and intent.stopped_by_us and intent.guest_runs
        if here is SourceIs.AT_SWITCH or (here is SourceIs.COPIES and stopped):
            return self.at_switch  # on the way to a postcopy switch nobody has stopped the guest for long
        before_switch = intent.milestone < Milestone.SWITCHING and here is SourceIs.SILENT
        if before_switch and source.process is ProcessState.UNKNOWN and source.can_fence:
            # Its host is out of reach, not QEMU busy: it may come to the switch and wait there, with the guest stopped.
            return self.switching
        if before_switch and waits_for_disks:
            return self.switching  # with its guest stopped, and nobody heard before the destination is dead
        if intent.postcopy and intent.milestone is Milestone.HANDED_OVER and here in _STREAM:
            if recovers(source):
                return self.recovering
            return self.fetching if here is SourceIs.SERVES else self.broken
        return self.copying if here is SourceIs.COPIES or before_switch else self.switching
