"""Texts of findings about hosts; see :mod:`migrator.core.findings.texts`."""

from __future__ import annotations

from migrator.core.findings.texts import Texts

#: Findings about what the target's host lacks, before anything is started there.
HOSTS: Texts = {
    "placement": (
        "error",
        "the rules of placement (state of the host, memory, CPUs, labels, affinity) keep the guest from this host",
        "choose another host, or change what keeps it from this one",
    ),
    "not-checked": (
        "error",
        "the guest or the target cannot be looked at, so nothing can be promised; a migration would fail too",
        "make sure that the host answers and that nobody else holds the guest's monitor, then ask again",
    ),
    "save-path": (
        "error",
        "the guest cannot be saved under that name: its directory is not there, or something is there already",
        "name a file that is not there yet, in a directory of the guest's host",
    ),
    "save-room": (
        "overridable",
        "there may be less room for the guest's state than it has memory; where it does not fit, the guest goes on",
        "make room there, or name a file on another disk",
    ),
    "load-disks": (
        "overridable",
        "an image of the saved guest has changed since the guest was saved: its memory is older, and would destroy it",
        "start the guest from its disks; accept it only where you know that nothing in the image has changed",
    ),
    "load-form": (
        "error",
        "the file has the form mapped-ram, which the QEMU that is to take the guest cannot read",
        "load it on a host with QEMU 9.0 or later",
    ),
    "save-plugged": (
        "error",
        "something was plugged into the guest since its start, which no command line would make again",
        "unplug it first, or move the guest instead",
    ),
    "save-process": (
        "error",
        "the guest's QEMU could not be started again like that when it is loaded",
        "move the guest instead",
    ),
    "cold-start": (
        "warning",
        "the guest cannot move live, and its policy (cold) has it shut down and started anew at the target",
        "expect that it is away until it has booted there, and that what is in its memory is lost",
    ),
    "cold-start-impossible": (
        "error",
        "the guest cannot move live, and could not be started anew, at the target or where it is, as it is now",
        "unplug what was plugged in, have its QEMU run as migrator's own user, or shut the guest down yourself",
    ),
    "hook-veto": (
        "error",
        "a hook of the site says no to this migration",
        "do what it asks for, or change the hook ([[hooks]] in the configuration)",
    ),
    "hook-not-run": (
        "error",
        "a hook of the site that is to be asked before a migration could not be run, or did not end in time",
        "mend what the message says, then ask again",
    ),
    "no-guard": (
        "warning",
        "no guard at the source's host: a controller that dies may leave the guest standing still at its switch",
        "install python3 on the source's host, and let OpenSSH's server there begin a command more (MaxSessions)",
    ),
    "does-not-converge": (
        "warning",
        "as the guest dirties memory now, nothing that its policy allows would let it end: it would be tried and stay",
        "give it a policy that may do more (--policy must-finish), a faster link, or a quieter hour",
    ),
    "tls-required": (
        "error",
        "the policy requires that what goes between the hosts is encrypted, and they cannot do that",
        "give both hosts certificates (migrator pki issue HOST; docs/tls.md), or the guest a policy with tls = prefer",
    ),
    "tls-certificate": (
        "overridable",
        "both hosts have certificates, and one of them would be refused; once accepted, nothing is encrypted",
        "renew it (migrator pki renew), or give the guest a policy with tls = off; docs/tls.md",
    ),
    "tls-plain": (
        "warning",
        "one of the hosts has no certificates, so that what goes between them is not encrypted",
        "give it certificates (migrator pki issue HOST), or set tls = off where that is as it shall be",
    ),
    "tls-expires": (
        "warning",
        "a certificate that the stream is encrypted with expires soon",
        "migrator pki renew",
    ),
    "stream-route": (
        "error",
        "the policy has the stream go through an SSH tunnel, and none can be made",
        "let the source's host log in to the target's by SSH without a password, or set stream = direct; docs/tls.md",
    ),
    "tunnel-ceiling": (
        "warning",
        "what an SSH tunnel may hold takes longer over this link than the guest may stand still",
        "let the stream go directly with certificates (docs/tls.md), or allow a longer downtime",
    ),
    "stream-through-controller": (
        "warning",
        "the hosts cannot log in to each other: the stream goes through the controller's machine and its link",
        "let the source's host log in to the target's by SSH without a password; docs/tls.md",
    ),
    "kvm-missing": (
        "error",
        "the guest runs under KVM, which cannot be opened at the target",
        "load kvm there and give the user access to /dev/kvm, or use another target",
    ),
    "cpu-flags": (
        "overridable",
        "the target's CPU lacks features that the guest was shown and may be using: it may crash on arrival",
        "use a target with these features, or a -cpu model that all hosts have (from the guest's next start on)",
    ),
    "cpu-host-passthrough": (
        "warning",
        "the guest was started with the CPU of its host, and the target has another",
        "name a -cpu model that all hosts have",
    ),
    "nested-missing": (
        "error",
        "the guest was shown virtualisation of its own, which the target's CPU or kernel does not offer",
        "switch nested virtualisation on there (kvm_intel or kvm_amd, nested=1), or use another target",
    ),
    "nested-abilities": (
        "overridable",
        "the target's virtualisation lacks abilities that nested guests may be using (EPT, VPID and the like)",
        "stop the guests inside it first, or use a target of the same generation",
    ),
    "memory-free": (
        "overridable",
        "the target has less memory free than the guest has",
        "make room there, or use another target",
    ),
    "hugepages": (
        "overridable",
        "the target has fewer free huge pages of that size than the guest's memory needs",
        "reserve more there (/sys/kernel/mm/hugepages), or use another target",
    ),
    "memory-path": (
        "error",
        "the directory that the guest's memory lies in is not at the target, or is no hugetlbfs of the same page size",
        "mount it there as it is at the source",
    ),
    "qemu-missing": (
        "error",
        "no QEMU for this guest was found at the target",
        "install the source's version there",
    ),
    "qemu-too-old": (
        "error",
        "the target's QEMU is older than any that a migration can be made safe with",
        "install QEMU 4.0 or later there",
    ),
    "qemu-older": (
        "warning",
        "the target's QEMU is older than the source's; nobody promises that it takes the state",
        "try it with a guest that does not matter, or install the source's version there",
    ),
    "machine-not-offered": (
        "error",
        "the target's QEMU does not know the guest's machine type",
        "install a QEMU there that lists it in -machine help",
    ),
    "machine-unversioned": (
        "overridable",
        "the machine type has no version, so that two versions of QEMU need not understand each other's state",
        "use the same version on both sides, or a versioned machine type (from the guest's next start on)",
    ),
    "device-not-offered": (
        "error",
        "the target's QEMU does not know a device that the guest has",
        "install the QEMU, or the module package of it, that lists it in -device help",
    ),
    "cpu-not-offered": (
        "error",
        "the target's QEMU does not know the guest's CPU model",
        "install a QEMU there that lists it in -cpu help",
    ),
    "userfaultfd": (
        "error",
        "the policy begins with postcopy, which the target's kernel does not allow this user (userfaultfd)",
        "set vm.unprivileged_userfaultfd=1 there or run QEMU as root, or use a policy that does not need postcopy",
    ),
    "no-postcopy": (
        "warning",
        "the policy allows postcopy, which the target's kernel does not allow this user (userfaultfd)",
        "set vm.unprivileged_userfaultfd=1 there or run QEMU as root",
    ),
    "path-not-probed": (
        "warning",
        "the network cannot be probed before a postcopy: the source's host has no ping, nor have both python3",
        "install python3 on both hosts, or ping on the source's; a postcopy over a broken network stands still",
    ),
    "disk-file-missing": (
        "error",
        "a disk's file does not exist at the target",
        "mount the storage there at the same path",
    ),
    "disk-copied": (
        "warning",
        "a disk is not there at the target: it is copied to there before the guest's memory",
        "nothing; expect the move to take as long as that",
    ),
    "disk-room": (
        "error",
        "the target has no room for the disks that would be copied to there, beside those of others",
        "make room there, or use another target",
    ),
    "disk-access": (
        "overridable",
        "a disk's file cannot be opened at the target by the user that QEMU will be there",
        "give that user access to it",
    ),
    "disk-locked": (
        "error",
        "a process at the target holds the image open for writing: the guest may run there already",
        "find that process (lsof at the target) and end it if it is not the guest",
    ),
    "disk-lock-off": (
        "warning",
        "QEMU was told not to lock the image, so nothing but migrator keeps two from writing to it",
        "leave locking at auto",
    ),
    "snapshot": (
        "error",
        "what the guest writes goes to a temporary file (snapshot=on) that stays behind at the source",
        "start the guest without snapshot=on",
    ),
    "disk-remote": (
        "warning",
        "a disk is reached over the network by QEMU itself; whether the target reaches it cannot be seen from here",
        "make sure that the target may connect to it",
    ),
    "cache-unsafe": (
        "overridable",
        "the disk goes through the hosts' page caches, which do not know of each other: the target may read stale data",
        "use cache=none or cache=directsync",
    ),
    "cache-unknown": (
        "warning",
        "how a disk that was plugged in later is cached cannot be seen; through the page cache it may be read stale",
        "use cache=none or cache=directsync (cache.direct=on)",
    ),
    "backing-missing": (
        "error",
        "a file that the image is based on does not exist at the target",
        "put the whole backing chain where the source has it",
    ),
    "backing-differs": (
        "error",
        "the image is based on other files at the target than at the source",
        "make the backing chain the same on both sides",
    ),
    "backing-not-shared": (
        "warning",
        "a file that the image is based on is, or may be, a copy of its own at the target",
        "make sure that the copies are equal, byte by byte",
    ),
    "backing-unknown": (
        "warning",
        "what the image is based on cannot be read: there is no qemu-img that can tell",
        "install qemu-img (qemu-utils) at source and target, or make sure that its backing chain is at the target",
    ),
    "file-missing": (
        "error",
        "a file that QEMU's command line names (firmware, kernel, key, secret, socket) does not exist at the target",
        "copy it there, to the same path",
    ),
    "file-access": (
        "overridable",
        "a file that QEMU's command line names cannot be read at the target by the user that QEMU will be there",
        "give that user access to it",
    ),
    "file-differs": (
        "warning",
        "a file that QEMU's command line names has another size at the target",
        "copy it there again; firmware of another size is refused in the middle of the stream",
    ),
    "bridge-missing": (
        "error",
        "the bridge that the guest's network card hangs on does not exist at the target",
        "make it there, or use another target",
    ),
    "bridge-maybe-missing": (
        "warning",
        "the guest's tap is on a bridge that does not exist at the target; a script may put it elsewhere there",
        "make that bridge there, or check what the script does",
    ),
    "tap-missing": (
        "overridable",
        "the tap that the guest uses is not at the target, and no script sets it up: the guest would have no network",
        "make it there (ip tuntap add) and put it on its bridge",
    ),
    "tap-down": (
        "overridable",
        "the tap that the guest uses is down at the target: the guest would not be reached",
        "switch it on there (ip link set TAP up)",
    ),
    "tap-bridge": (
        "overridable",
        "the tap that the guest uses is on no bridge at the target, or on another than at the source",
        "put it on its bridge there (ip link set TAP master BRIDGE)",
    ),
    "tap-vlan": (
        "overridable",
        "the guest's tap, or its bridge, is in other VLANs at the target than at the source",
        "set the same there (bridge vlan), or use another target",
    ),
    "bridge-down": (
        "overridable",
        "the bridge that the guest's network card hangs on is down at the target",
        "switch it on there (ip link set BRIDGE up)",
    ),
    "bridge-uplink": (
        "overridable",
        "the bridge leads out of the source's host, but not out of the target",
        "add the target's network card to that bridge, and check its cable",
    ),
    "net-script": (
        "error",
        "the script or helper that sets up the guest's network does not exist, or is not executable, at the target",
        "copy it there, to the same path",
    ),
    "net-interface": (
        "error",
        "a network interface of the host that the guest's network is built on does not exist at the target",
        "make it there, or use another target",
    ),
    "passed-descriptor": (
        "error",
        "another program handed QEMU an open file (fd=), which cannot be opened again from the command line",
        "have the program that started the guest start the destination (launch = template or attached)",
    ),
    "user-network": (
        "warning",
        "the guest's network is QEMU's own (user mode): its connections and forwarded ports are lost",
        "use a tap on a bridge for a guest whose connections matter",
    ),
    "user-networks": (
        "error",
        "of several networks of QEMU's own, QEMU before 8.2 takes in only the first from a later one",
        "use a target with QEMU 8.2 or later, or unplug all of them but one",
    ),
    "socket-network": (
        "warning",
        "the guest's network is a socket to another program, which has to be reachable in the same way at the target",
        "make sure that the other program listens there",
    ),
    "vhost-net-missing": (
        "warning",
        "the guest's network uses vhost, which the target has not: it will be slower there",
        "load vhost_net there",
    ),
    "vhost-net-required": (
        "error",
        "the guest's network insists on vhost (vhostforce=on), which the target has not",
        "load vhost_net there",
    ),
    "vhost-user": (
        "overridable",
        "a device is served by another process (vhost-user), which has to run and be set up alike at the target",
        "start that process there first",
    ),
    "vhost-user-socket": (
        "error",
        "the socket of the process that serves a device, or TPM, does not exist at the target",
        "start that process there, with the same socket",
    ),
    "vsock": (
        "warning",
        "connections over vsock between host and guest are lost",
        "open them again after the move",
    ),
    "tpm": (
        "overridable",
        "the guest's TPM is another process (swtpm), which has to run at the target; its state comes with the stream",
        "start swtpm there first, at the same socket, with an empty state directory of its own",
    ),
    "tpm-emulator": (
        "error",
        "the emulator of the guest's TPM (swtpm) cannot be started at the target",
        "install swtpm there, and what its command line names; or start it there by hand, at the same socket",
    ),
    "tpm-state": (
        "error",
        "the target has the state of a TPM where that of the guest would be, which is never written over",
        "see whose it is; where the guest left it, end its swtpm and rename or remove the directory",
    ),
    "tpm-of-host": (
        "error",
        "the guest has the TPM of its host, whose keys no other has",
        "give the guest a TPM of its own (-tpmdev emulator, swtpm), or stop it there and start it here",
    ),
    "vfio": (
        "error",
        "the guest has hardware of its host passed through, whose state cannot be moved",
        "unplug it first, or pair it with a virtio-net card (failover=on there, failover_pair_id= here)",
    ),
    "vfio-state": (
        "warning",
        "the guest has hardware of its host passed through; its driver moves the state only to the same hardware",
        "make sure that the target has the same device with the same firmware",
    ),
    "vfio-failover": (
        "warning",
        "QEMU unplugs a card for the migration and its virtio partner takes over; not tried with hardware by us",
        "make sure that the guest's system bonds the two (net_failover) and lets the card go: QEMU waits for that",
    ),
    "vfio-missing": (
        "error",
        "the device that is to be passed through does not exist at the target or is not bound to vfio",
        "bind it to vfio-pci there, under the same address",
    ),
    "host-device": (
        "warning",
        "the guest uses a device of its host, which stays behind",
        "unplug it first, or plug one in at the target",
    ),
}
