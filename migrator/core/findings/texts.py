"""The words of the catalogue of findings: of every code its rank, what it means, and what to do.

The rank is ``error``, ``overridable`` (an error that a person may accept) or ``warning``. Overridable is what may be
harmless for a reason that cannot be seen from here, and what then goes wrong at most fails; never what would damage
the guest's disks or have it run twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

Texts: TypeAlias = Mapping[str, tuple[Literal["error", "overridable", "warning"], str, str]]

#: Why a guest cannot be moved at all.
GUEST: Texts = {
    "libvirt": (
        "error",
        "libvirt manages this guest and would take it for lost",
        "move it with virsh migrate",
    ),
    "monitor-held": (
        "error",
        "somebody else holds its QMP monitor, which serves one client at a time",
        "let that client go, or give the guest a monitor of its own for migrator",
    ),
    "monitor-silent": (
        "error",
        "its QEMU is there and does not answer: it is stopped, hangs, or its monitor may not be opened",
        "look at that process, continue it if it was stopped, give migrator the right to open its monitor",
    ),
    "no-monitor": (
        "error",
        "its QEMU has no QMP monitor where the host's monitors are looked for",
        "add its socket to that host's sockets, or start it with -qmp unix:/run/qemu/NAME.qmp,server=on,wait=off",
    ),
    "managed-elsewhere": (
        "overridable",
        "somebody else manages this guest, and may start it again at the source when it has left: it would run twice",
        "tell that manager to leave it alone, then accept this; MigratorGuestRunsTwice tells when it was not so",
    ),
    "managed-unit": (
        "warning",
        "a unit of systemd would start the guest again when it has left; it is told not to, until that host boots",
        "systemctl disable UNIT, if the guest shall not be started there when its host boots",
    ),
    "not-movable": (
        "error",
        "the configuration says that it shall not be moved, or has its host twice",
        "change its [[guests]] entry, or leave one of the two hosts out",
    ),
    "duplicate": (
        "error",
        "the same uuid runs twice: one guest, two QEMUs, and both write to its disks",
        "stop one at once, and whatever starts it again; then look at the disks",
    ),
    "unfinished-migration": (
        "error",
        "it stands in a migration that nobody drives: at the switch, left, or arrived and not let run",
        "run migrator direct --rescue with the monitors of both ends",
    ),
    "command-line-unknown": (
        "error",
        "the command line of its QEMU cannot be read, so what it needs of its host is unknown",
        "let migrator read /proc/PID/cmdline there (same user, or root), or start the destination by a template",
    ),
}

#: Findings that the source's QEMU shows by itself.
SOURCE: Texts = {
    "source-is-waiting": (
        "error",
        "the source itself waits for a migration",
        "check that source and destination are not swapped",
    ),
    "source-not-running": (
        "error",
        "the guest stands still at the source after an earlier migration; it may run elsewhere",
        "find out where it runs; if nowhere: migrator direct --rescue --source QMP",
    ),
    "source-migrating": (
        "error",
        "the source is already migrating",
        "wait for it, or cancel it with the tool that began it; if nobody drives it: migrator direct --rescue",
    ),
    "arriving": (
        "error",
        "it is not on this host yet: a migration brings it here",
        "wait until it has arrived, or cancel that migration",
    ),
    "driven-elsewhere": (
        "error",
        "another controller drives this QEMU, as its mark there says: two that do would be in each other's way",
        "wait for it; where it is dead for certain and cannot be seen from here: migrator direct --rescue --take-over",
    ),
    "blocked": (
        "error",
        "QEMU itself says that it cannot migrate this guest now",
        "remove what QEMU names, then try again",
    ),
    "dirty-ring": (
        "warning",
        "the guest has a KVM dirty ring; on some kernels (seen on Linux 6.18) one that fills stops it for good",
        "start the guest without dirty-ring-size, or first move a guest that does not matter",
    ),
    "tcg-loses-writes": (
        "overridable",
        "under TCG, QEMU before 9.0 misses writes of a guest that migrates as it runs: it may die of stale pages",
        "use KVM, or QEMU 9.0 at the source, or the policy offline; accept it where the guest does not matter",
    ),
    "no-throttle": (
        "warning",
        "the policy allows to throttle the guest, and the source's QEMU cannot",
        "expect that the guest is not throttled",
    ),
    "capability-missing": (
        "error",
        "a QEMU lacks a capability without which a migration cannot be made safe",
        "use QEMU 4.0 or later on both sides",
    ),
}

#: Findings that keep the source's command line from being used again as it is.
COMMAND: Texts = {
    "backend-lost": (
        "error",
        "what stood behind a device was taken from it while the guest ran (drive_del); none can be started without",
        "unplug that device (device_del), or start the guest anew",
    ),
    "backend-unreadable": (
        "error",
        "what stands behind a device was changed while the guest ran, and QEMU does not show enough of it",
        "unplug its device, or start the destination by a template",
    ),
    "config-file": (
        "warning",
        "QEMU reads a part of its configuration from a file, which must be the same at the target",
        "make sure that it is, and that no socket is named in it",
    ),
    "display": (
        "warning",
        "the window that shows the guest stays behind",
        "use -vnc or -spice to see the guest",
    ),
    "sound": (
        "warning",
        "the guest's sound goes to a device, program or file of the source's host, and stays behind",
        "use SPICE to hear the guest",
    ),
    "gdb": ("warning", "QEMU's gdb server does not move along", "attach a debugger again at the target"),
    "memory-file": (
        "error",
        "the file that the guest's memory is in exists at the target already: both QEMUs would write into it",
        "use share=off, a memfd, or a target on another machine",
    ),
    "port-in-use": (
        "overridable",
        "a port that QEMU listens at (VNC, SPICE, forwarded, serial) is taken at the target; accepted, it gets another",
        'choose another target, or let it have another port (ports = "any", or --accept port-in-use)',
    ),
    "port-moved": (
        "warning",
        'QEMU listens at another port at the target, as it may (ports = "any", or accepted)',
        "tell whoever connects to it",
    ),
    "address-missing": (
        "error",
        "QEMU listens at an address that the target has not",
        "give the target that address, choose another target, or start the guest with an address that all hosts have",
    ),
    "preconfig": (
        "error",
        "QEMU was configured over QMP before its machine was made (-preconfig), which cannot be read back",
        "put that configuration into the command line",
    ),
    "tap-in-use": (
        "error",
        "a process has the tap open that the destination would use: the source, on one machine, or another there",
        "end what has it there, leave ifname= out, or choose another target",
    ),
}

#: A destination that was started and shall take the guest.
DESTINATION: Texts = {
    "destination-not-waiting": (
        "error",
        "the destination does not wait for a migration",
        "start a fresh QEMU there with the source's command line plus '-S -incoming defer'",
    ),
    "destination-used": (
        "error",
        "the destination was used for a migration already; QEMU cannot use it again",
        "start a fresh QEMU there with the source's command line plus '-S -incoming defer'",
    ),
    "destination-not-deferred": (
        "error",
        "the destination listens already; its capabilities must be set before that",
        "start a fresh QEMU there with the source's command line plus '-S -incoming defer'",
    ),
}

#: How two QEMUs differ.
PAIR: Texts = {
    "ceiling-infeasible": (
        "overridable",
        "the downtime ceiling cannot be kept at the stream's share of the link: device state alone takes longer",
        "raise max_downtime, give the stream more, or accept a longer downtime",
    ),
    "ceiling-exceeded": (
        "warning",
        "the downtime will be above its ceiling: at the stream's share of the link device state alone takes longer",
        "raise max_downtime or give the stream more; the policy lets it go all the same",
    ),
    "uuid": (
        "error",
        "the uuids differ: this may be another guest",
        "start the destination with the source's -uuid",
    ),
    "name": (
        "warning",
        "the names differ",
        "give both the same -name, so that other tools find the guest again",
    ),
    "machine-type": (
        "error",
        "the machine types differ; QEMU would refuse in the middle of the stream",
        "start the destination with the source's -machine, aliases resolved",
    ),
    "accelerator": (
        "error",
        "one runs under KVM, the other under TCG",
        "start the destination with the source's -accel",
    ),
    "memory-size": (
        "error",
        "the sizes of memory differ; QEMU would refuse in the middle of the stream",
        "give the destination the source's -m, and plug the memory devices that were hot-plugged",
    ),
    "memory-backend": (
        "error",
        "ids or sizes of memory backends differ; QEMU matches memory by them",
        "give both the same memory backends with the same ids and sizes",
    ),
    "cpu-count": (
        "error",
        "the numbers of vCPUs differ",
        "give the destination the source's -smp, and plug the vCPUs that were hot-plugged",
    ),
    "cpu-model": (
        "error",
        "the CPU models differ, which QEMU accepts silently",
        "give the destination the source's -cpu",
    ),
    "cpu-topology": (
        "error",
        "sockets, cores or threads differ, which QEMU accepts silently",
        "give the destination the source's -smp",
    ),
    "cpu-features": (
        "overridable",
        "the destination lacks CPU features that the guest may be using, which QEMU accepts silently",
        "use a -cpu model that both hosts have, or another destination",
    ),
    "cpu-features-extra": (
        "warning",
        "the destination shows the guest CPU features it did not have",
        "name the features of -cpu on both sides, so that they are the same",
    ),
    "device-missing": (
        "error",
        "the destination lacks a device that the guest has",
        "start the destination with the source's -device arguments, what was hot-plugged included",
    ),
    "device-differs": (
        "error",
        "a device has another driver or another place at the destination",
        "give it the same driver, bus and address on both sides",
    ),
    "device-extra": (
        "error",
        "the destination has a device that the guest has not, which QEMU accepts silently",
        "remove it, or plug it in at the source first",
    ),
    "card-stays": (
        "error",
        "the guest stands still, so that it cannot let go of a card that QEMU unplugs for the migration",
        "let the guest run, with another policy than offline, or unplug the card first",
    ),
    "device-property": (
        "error",
        "a device that was plugged in later could not be made the same at the destination",
        "start the destination with this device by a template, or unplug it",
    ),
    "disk-missing": (
        "error",
        "the destination has no medium in a disk of the guest",
        "give the destination the source's -drive or -blockdev arguments",
    ),
    "medium-extra": (
        "error",
        "a drive has a medium at the destination and none at the source, which QEMU accepts silently",
        "start the destination with that drive empty, or eject the medium there",
    ),
    "disk-size": (
        "error",
        "a disk has another size at the destination",
        "use the same image on both sides",
    ),
    "disk-read-only": (
        "error",
        "a disk is writable on one side and read-only on the other",
        "give both the same readonly=",
    ),
    "disk-format": (
        "error",
        "a disk is opened as another format at the destination: the guest would read rubbish and write damage",
        "give both the same format=",
    ),
    "disk-not-shared": (
        "error",
        "a disk is another file at the destination: the guest would go on with other contents",
        "use the same image on both sides, or let it be copied (disks = auto)",
    ),
    "disk-maybe-not-shared": (
        "warning",
        "whether a disk is the same file on both sides cannot be seen",
        "make sure that it is the same image, or have it copied (disks = all)",
    ),
    "disk-not-copied": (
        "error",
        "a disk that both ends do not share cannot be copied without losing something of it",
        "remove what is in the way (encryption, internal snapshots, another format), or use shared storage",
    ),
}

#: Findings that come up only while a migration is under way.
WAY: Texts = {
    "save-unconfirmed": (
        "warning",
        "the guest is saved, and its file could not be told so: the journal knows it, and the file can be loaded here",
        "bring its host back before the file is loaded by a service with another journal",
    ),
    "guest-not-shut-down": (
        "overridable",
        "a guest that was asked to shut down has not done so in time; accepted, its QEMU is ended by force then",
        "shut it down from inside, give it more time (max_shutdown), or accept that what it has not written is lost",
    ),
    "hook-failed": (
        "warning",
        "a hook of the site failed, or could not be run, where it has no say: the migration went on without it",
        "look at what it printed, and do by hand what it would have done",
    ),
    "record-lost": (
        "warning",
        "the record of this migration can no longer be written",
        "make room there; do not kill migrator meanwhile",
    ),
    "record-left-over": ("warning", "the record of this migration could not be put away", "delete that file"),
    "network-down": (
        "warning",
        "the guest has arrived, but its tap or bridge there is down or not as it was at the source: it is not reached",
        "switch on what it names, or put it on its bridge; the guest need not move for that",
    ),
    "network-unlearned": (
        "warning",
        "the guest has arrived, but a bridge does not know all of its addresses there, or still has them at the source",
        "send a packet from each address that is named; the guest need not move for that",
    ),
    "left-over": (
        "warning",
        "something that was made for the migration, or a process of it, could not be removed",
        "wait: it is removed once its host answers again; remove by hand what is left then",
    ),
    "source-image-kept": (
        "warning",
        "the image of a disk that was copied is still at the source's host, as it was at the switch",
        "delete it once the guest was seen to do well where it is now",
    ),
    "source-left-over": (
        "warning",
        "the source's process could not be seen to end; it cannot run the guest by itself",
        "end that process; do not send cont to it",
    ),
    "destination-left-over": (
        "warning",
        "the destination's process could not be seen to end; it holds nothing and does not run",
        "end that process",
    ),
    "not-restored": (
        "warning",
        "not all of the source's migration settings could be put back",
        "compare query-migrate-parameters and query-migrate-capabilities with what you expect",
    ),
    "stream-not-shaped": (
        "warning",
        "the sockets of the stream could not be given options, and what waited in them took a part of the downtime",
        "let migrator trace QEMU at the source (as root), or set sysctl net.ipv4.tcp_notsent_lowat=131072 on that host",
    ),
    "not-announced": (
        "warning",
        "the guest's network addresses could not be announced at the destination",
        "send a packet from the guest, so that switches learn where it is",
    ),
}
