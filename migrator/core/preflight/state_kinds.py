"""The fate of each kind of state that a QEMU can be given while it runs.

One table, from which docs/travels.md is made.

Every command of QMP and of the human monitor that changes something is in exactly one row, or acts once and leaves
nothing. A test asks real QEMUs for their commands, so that those of a new version show up here first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class StateHandling(StrEnum):
    """Handling of a kind of state when the guest moves."""

    #: In QEMU's stream, or in an image that both ends see.
    TRAVELS = "travels in the stream"
    #: Read at the source and made or set again at the destination, before the guest runs there or at once after.
    REPRODUCED = "reproduced by us"
    #: Stays behind, and a finding names it.
    WARNED = "warned about"
    #: The migration waits for its end or does not begin.
    REFUSED = "waited for or refused"
    #: Stays behind, and QEMU has no way to show that it was set.
    UNSEEN = "stays behind unseen"
    #: Belongs to the migration itself: ours while it lasts.
    OURS = "belongs to the migration"
    #: Does something once, and leaves nothing that could travel.
    MOMENT = "acts at once"


@dataclass(frozen=True, kw_only=True)
class StateKind:
    """One kind of state."""

    what: str
    fate: StateHandling
    #: How it is read, and how it is handled.
    how: str
    #: QMP commands that change it.
    qmp: tuple[str, ...] = ()
    #: Commands of the human monitor that change it, beside those that are called like one of QMP.
    hmp: tuple[str, ...] = ()
    #: Findings that speak of it.
    findings: tuple[str, ...] = ()


# fmt: off
# A table: a row reads better as one paragraph.
KINDS: tuple[StateKind, ...] = (
    StateKind(what="run state of the guest", fate=StateHandling.TRAVELS,
         how="read again at every STOP: one that is paused, powered off or resumed by somebody stays so",
         qmp=("cont", "stop", "system_powerdown", "system_reset", "system_wakeup", "inject-nmi",
              "rtc-reset-reinjection"),
         hmp=("nmi", "boot_set")),
    StateKind(what="memory, vCPUs, registers and devices' own state, the clock's drift among it",
         fate=StateHandling.TRAVELS,
         how="QEMU's stream", hmp=("mce", "o", "i", "pcie_aer_inject_error")),
    StateKind(what="how large the guest's balloon shall be", fate=StateHandling.TRAVELS,
         how="in the balloon's state", qmp=("balloon",)),
    StateKind(what="whether a network card's link is up", fate=StateHandling.TRAVELS,
         how="in the state of the usual cards (virtio-net, e1000, e1000e, rtl8139)", qmp=("set_link",)),
    StateKind(what="whether somebody is connected to a serial port of the guest (guest agent)",
         fate=StateHandling.TRAVELS,
         how="in the port's state; whoever was connected connects again to the same path", hmp=()),
    StateKind(what="size of a disk, what is written in it, its snapshots", fate=StateHandling.TRAVELS,
         how="in the image, which both see or which is copied ([disks.md](disks.md)); sizes and files are compared",
         qmp=("block_resize", "blockdev-snapshot-internal-sync", "blockdev-snapshot-delete-internal-sync",
              "change-backing-file"),
         hmp=("commit", "snapshot_blkdev_internal", "snapshot_delete_blkdev_internal", "savevm", "loadvm", "delvm",
              "qemu-io"),
         findings=("disk-size", "disk-not-shared")),
    StateKind(what="dirty bitmaps that are kept in the image (persistent)", fate=StateHandling.TRAVELS,
         how="QEMU stores them in the image at the switch and loads them at the other end"),
    StateKind(what="devices, vCPUs, memory, objects and backends that were plugged or unplugged",
         fate=StateHandling.REPRODUCED,
         how="read at the source, added at the destination at the same place before it listens",
         qmp=("device_add", "device_del", "netdev_add", "netdev_del", "chardev-add", "chardev-remove", "chardev-change",
              "object-add", "object-del", "blockdev-add", "blockdev-del"),
         hmp=("drive_add", "drive_del", "object_add", "object_del"),
         findings=("device-missing", "device-extra", "device-differs", "device-property")),
    StateKind(what="which images a disk consists of", fate=StateHandling.REPRODUCED,
         how="block nodes are compared as both QEMUs show them; where one cannot be made again it is an error",
         qmp=("blockdev-snapshot", "blockdev-snapshot-sync", "blockdev-reopen", "x-blockdev-change"),
         hmp=("snapshot_blkdev",), findings=("disk-not-shared", "disk-maybe-not-shared")),
    StateKind(what="medium in a drive", fate=StateHandling.REPRODUCED,
         how="compared and changed at the destination",
         qmp=("blockdev-change-medium", "blockdev-close-tray", "blockdev-insert-medium", "blockdev-open-tray",
              "blockdev-remove-medium", "eject"), hmp=("change",), findings=("disk-missing",)),
    StateKind(what="I/O limits of disks", fate=StateHandling.REPRODUCED,
         how="limits of each device, as query-block shows them, are set at the destination",
         qmp=("block_set_io_throttle",)),
    StateKind(what="properties of objects: limits of throttle groups, polling and threads of iothreads, and so on",
         fate=StateHandling.REPRODUCED,
         how="every property of every object is compared, and set at the destination where it differs",
         qmp=("qom-set",), findings=("not-put-back",)),
    StateKind(what="how often the balloon tells its statistics, and the order in which devices are booted from",
         fate=StateHandling.REPRODUCED, how="qom-get at the source, qom-set at the destination",
         findings=("not-put-back",)),
    StateKind(what="write thresholds of block nodes", fate=StateHandling.REPRODUCED,
         how="as query-named-block-nodes shows them; nodes are found by name, or below the same device",
         qmp=("block-set-write-threshold",), findings=("not-put-back", "stays-behind")),
    StateKind(what="latency histograms of disks", fate=StateHandling.REPRODUCED,
         how="their boundaries are set; what was counted stays behind, as all statistics do",
         qmp=("block-latency-histogram-set",), findings=("not-put-back",)),
    StateKind(what="trace events", fate=StateHandling.REPRODUCED,
         how="those that are enabled at the source are enabled where migrator starts the destination",
         qmp=("trace-event-set-state",), hmp=("trace-event",), findings=("not-put-back",)),
    StateKind(what="forwarded ports of user networks", fate=StateHandling.REPRODUCED,
         how="info usernet of both; one more or less is added or removed at the destination",
         hmp=("hostfwd_add", "hostfwd_remove"), findings=("not-put-back",)),
    StateKind(what="migration parameters and capabilities that somebody set", fate=StateHandling.REPRODUCED,
         how="put back at the source when a migration is undone, and at the destination when it is done",
         qmp=("migrate-set-capabilities", "migrate-set-parameters"),
         hmp=("migrate_set_capability", "migrate_set_parameter"), findings=("not-restored",)),
    StateKind(what="block jobs and other jobs: backup, mirror, commit, stream, create, amend, snapshots",
         fate=StateHandling.REFUSED,
         how="query-jobs, before anything is changed and at the last safe point before the switch; "
             "the policy's block_jobs says whether to wait or to refuse; one that begins meanwhile ends the migration",
         qmp=("block-commit", "block-stream", "blockdev-backup", "blockdev-create", "blockdev-mirror", "drive-backup",
              "drive-mirror", "x-blockdev-amend", "snapshot-delete", "snapshot-load", "snapshot-save",
              "block-job-cancel", "block-job-change", "block-job-complete", "block-job-dismiss", "block-job-finalize",
              "block-job-pause", "block-job-resume", "block-job-set-speed", "job-cancel", "job-complete", "job-dismiss",
              "job-finalize", "job-pause", "job-resume"),
         hmp=("drive_backup", "drive_mirror", "block_stream", "block_job_cancel", "block_job_complete",
              "block_job_pause", "block_job_resume", "block_job_set_speed"),
         findings=("block-job", "block-job-waits")),
    StateKind(what="exports of disks: NBD, vhost-user-blk, FUSE (fleecing backups among them)",
         fate=StateHandling.REFUSED,
         how="query-block-exports, as with jobs",
         qmp=("block-export-add", "block-export-del", "nbd-server-add", "nbd-server-remove", "nbd-server-start",
              "nbd-server-stop"),
         hmp=("nbd_server_add", "nbd_server_remove", "nbd_server_start", "nbd_server_stop"),
         findings=("block-export", "block-export-waits")),
    StateKind(what="recording or replaying of execution", fate=StateHandling.REFUSED, how="query-replay",
         qmp=("replay-break", "replay-delete-break", "replay-seek"),
         hmp=("replay_break", "replay_delete_break", "replay_seek"), findings=("replay",)),
    StateKind(what="configuration before the machine is made (-preconfig)",
         fate=StateHandling.REFUSED, how="the command line",
         qmp=("set-numa-node", "x-exit-preconfig"), hmp=("exit_preconfig",), findings=("preconfig",)),
    StateKind(what="what QEMU itself forbids to migrate: a dump under way, encrypted guests, CXL memory, Xen guests",
         fate=StateHandling.REFUSED, how="QEMU's own list of reasons (blocked-reasons)",
         qmp=("dump-guest-memory", "sev-inject-launch-secret", "cxl-add-dynamic-capacity",
              "cxl-inject-correctable-error", "cxl-inject-dram-event", "cxl-inject-general-media-event",
              "cxl-inject-memory-module-event", "cxl-inject-poison", "cxl-inject-uncorrectable-errors",
              "cxl-release-dynamic-capacity", "xen-event-inject"),
         findings=("blocked",)),
    StateKind(what="dirty bitmaps that are in QEMU's memory alone", fate=StateHandling.WARNED,
         how="query-named-block-nodes",
         qmp=("block-dirty-bitmap-add", "block-dirty-bitmap-clear", "block-dirty-bitmap-disable",
              "block-dirty-bitmap-enable", "block-dirty-bitmap-merge", "block-dirty-bitmap-remove"),
         findings=("dirty-bitmap",)),
    StateKind(what="passwords of VNC and SPICE, and when they expire", fate=StateHandling.WARNED,
         how="a display that asks for a password, where none is on the command line; "
             "that one was changed, or expires, is not shown by QEMU",
         qmp=("change-vnc-password", "expire_password", "set_password"), findings=("display-password",)),
    StateKind(what="gdb server", fate=StateHandling.WARNED, how="the command line and query-chardev",
         hmp=("gdbserver",), findings=("gdb",)),
    StateKind(what="what a ring buffer holds", fate=StateHandling.WARNED, how="query-chardev",
         qmp=("ringbuf-read", "ringbuf-write"), hmp=("ringbuf_read", "ringbuf_write"), findings=("stays-behind",)),
    StateKind(what="files that were handed to QEMU",
         fate=StateHandling.WARNED, how="query-fdsets, and fd= on the command line",
         qmp=("add-fd", "closefd", "getfd", "remove-fd", "request-ebpf"),
         findings=("stays-behind", "passed-descriptor")),
    StateKind(what="limits of what vCPUs may dirty", fate=StateHandling.WARNED, how="query-vcpu-dirty-limit",
         qmp=("cancel-vcpu-dirty-limit", "set-vcpu-dirty-limit"),
         hmp=("cancel_vcpu_dirty_limit", "set_vcpu_dirty_limit"), findings=("stays-behind",)),
    StateKind(what="network filters that were added while it ran", fate=StateHandling.WARNED,
         how="objects filter-* and colo-* that the command line does not name", findings=("stays-behind",)),
    StateKind(what="block nodes that somebody made inactive", fate=StateHandling.WARNED, how="query-named-block-nodes",
         qmp=("blockdev-set-active",), findings=("stays-behind",)),
    StateKind(what="monitors, sockets, pid file and log of the process", fate=StateHandling.REPRODUCED,
         how="under the same paths where they are free at the target; see docs/process.md",
         findings=("path-moved",)),
    StateKind(what="actions on a reboot, shutdown, panic or watchdog that were set over QMP", fate=StateHandling.UNSEEN,
         how="those of the command line are the destination's too",
         qmp=("set-action", "watchdog-set-action"), hmp=("watchdog_action",)),
    StateKind(what="what QEMU logs, and where", fate=StateHandling.UNSEEN,
         how="those of the command line are the destination's too", hmp=("log", "logfile", "sync-profile")),
    StateKind(what="iothread of a block node", fate=StateHandling.UNSEEN,
         how="that of its device is the destination's too", qmp=("x-blockdev-set-iothread",)),
    StateKind(what="addresses of remote displays that were changed, and who looks at them", fate=StateHandling.UNSEEN,
         how="viewers connect again", qmp=("add_client", "client_migrate_info", "display-reload", "display-update")),
    StateKind(what="how TCG translates, which mouse is used, sound that is being captured", fate=StateHandling.UNSEEN,
         how="QEMU's defaults, or those of the command line",
         hmp=("singlestep", "one-insn-per-tb", "mouse_set", "wavcapture", "stopcapture")),
    StateKind(what="a measurement of the dirty rate", fate=StateHandling.MOMENT, how="ends with the source",
         qmp=("calc-dirty-rate",), hmp=("calc_dirty_rate",)),
    StateKind(what="the migration", fate=StateHandling.OURS, how="one that somebody else began is an error",
         qmp=("announce-self", "migrate", "migrate-continue", "migrate-incoming", "migrate-pause", "migrate-recover",
              "migrate-start-postcopy", "migrate_cancel", "x-colo-lost-heartbeat", "xen-colo-do-checkpoint",
              "xen-load-devices-state", "xen-save-devices-state", "xen-set-global-dirty-log", "xen-set-replication",
              "yank", "quit"),
         hmp=("announce_self", "migrate_continue", "migrate_incoming", "migrate_pause", "migrate_recover",
              "migrate_start_postcopy", "x_colo_lost_heartbeat"),
         findings=("source-migrating",)),
    StateKind(what="keys, pictures, copies of memory",
         fate=StateHandling.MOMENT, how="done when the command has answered",
         qmp=("chardev-send-break", "device-sync-config", "dumpdtb", "input-send-event", "memsave", "pmemsave",
              "qmp_capabilities", "screendump", "send-key"),
         hmp=("sendkey", "mouse_button", "mouse_move", "cpu")),
    StateKind(what="several at once", fate=StateHandling.MOMENT, how="each command within is in a row of its own",
         qmp=("transaction", "human-monitor-command")),
)
# fmt: on
