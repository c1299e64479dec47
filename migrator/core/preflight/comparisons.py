"""The comparison behind every finding: what is read, where, and what it is held against.

``docs/preflight.md`` has it beside the words of the catalogue; a test asks for one of every code. "Source" and
"destination" are the two QEMU processes, "here" and "there" their hosts.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_INVENTORY = {
    "libvirt": "the monitor's socket, who is connected to it, and the process's arguments, with libvirt's own names",
    "monitor-held": "clients of the monitor's socket (ss, /proc/*/fd), while it does not greet us",
    "monitor-silent": "whether the listening socket greets within a second",
    "no-monitor": "QEMU processes of the host, with the sockets under its patterns",
    "managed-elsewhere": "the QEMU's arguments, cgroup and parents, with what Proxmox, Incus, LXD, Ganeti, supervisors "
    "and shells with a loop leave there",
    "managed-unit": "the QEMU's cgroup, with MainPID and Restart of that unit (systemctl show)",
    "duplicate": "uuids of all guests that run, as looks at every host show them",
    "unfinished-migration": "run state, migration status (query-status, query-migrate) and the mark of a controller",
    "arriving": "the targets of all migrations that have not ended, with the host that is to be emptied",
    "not-movable": "the guest, with the [[guests]] entries of the configuration; its uuid, with "
    "those of its host; its process, with those of all hosts",
    "command-line-unknown": "/proc/PID/cmdline of the source",
}
_SOURCE = {
    "source-is-waiting": "the source's run state (query-status), with inmigrate",
    "source-not-running": "the source's run state, with postmigrate",
    "source-migrating": "the source's run state and migration status, with those of a migration under way",
    "driven-elsewhere": "the mark of a controller in the QEMU, with our own",
    "blocked": "the source's blocked-reasons (query-migrate)",
    "dirty-ring": "-accel and -machine on the source's command line, with dirty-ring-size=",
    "tcg-loses-writes": "the source's accelerator and version (query-kvm, query-version), with TCG before 9.0; not "
    "under a policy that stops the guest",
    "no-throttle": "the policy's max_throttle, with auto-converge among the source's capabilities",
    "capability-missing": "capabilities of both (query-migrate-capabilities), with those that the policy needs",
}
_CEILING = {
    "ceiling-infeasible": "the policy's max_downtime, with device state and round trips at the links' speed",
    "ceiling-exceeded": "the same, under a policy that may stop the guest (last_resort = pause)",
}
_TRAVEL = {
    "block-job": "query-jobs of the source, with the policy's block_jobs",
    "block-job-waits": "query-jobs of the source, with the policy's block_jobs",
    "block-export": "query-block-exports of the source, with the policy's block_jobs",
    "block-export-waits": "query-block-exports of the source, with the policy's block_jobs",
    "replay": "query-replay of the source, with none",
    "dirty-bitmap": "dirty bitmaps of the source (query-named-block-nodes), with persistent ones",
    "display-password": "query-vnc-servers and query-spice of the source, with passwords on its command line",
    "stays-behind": "ring buffers, descriptor sets, vCPU limits, filters, job results and monitors of the source, with "
    "what its command line makes",
    "path-moved": "the operator's paths on the source's command line, with what is at the same paths there",
    "not-put-back": "what was set in the source, as both QEMUs show it ([travels.md](travels.md))",
}
_HOSTS = {
    "placement": "the guest's memory, vCPUs and rules, with the state, room, labels and guests of the target",
    "not-checked": "whether source and target could be asked",
    "cold-start": "the errors of a check, with those that a guest which is started anew does not have",
    "cold-start-impossible": "the source's user, command line, paths and plugged devices, with what can be started; of "
    "a guest of libvirt its next start, with the target's definitions, disks and devices",
    "save-path": "the name, with what is there on the guest's host",
    "save-room": "the guest's memory, with the room on that file system",
    "load-form": "form of the file, with the capabilities of the QEMU that is to read it",
    "load-disks": "size and time of the last change of each image, with those when the guest was saved",
    "save-plugged": "whether each of the source's devices was plugged in after its start (QOM)",
    "save-process": "the source's user, command line and paths, with what a later start can make",
    "hook-veto": "the exit status of the site's hooks",
    "hook-not-run": "whether the site's hooks could be run and ended in time",
    "tls-required": "QEMU's certificates in tls_dir at both hosts, beside the policy and the name of the target",
    "tls-certificate": "QEMU's certificates in tls_dir at both hosts, beside the name of the target and the time",
    "tls-plain": "which files of certificates are in tls_dir at both hosts",
    "tls-expires": "when QEMU's certificates in tls_dir at both hosts expire",
    "stream-route": "ssh from the source's host to the target's, and from the controller's machine to both",
    "tunnel-ceiling": "what an SSH tunnel holds, at the stream's speed, with the policy's max_downtime",
    "stream-through-controller": "the same",
    "no-guard": "whether a python3 of the source's host begins and answers",
    "does-not-converge": "the dirty rate last measured, with the links' speed under the guest's policy",
    "kvm-missing": "the source's accelerator, with /dev/kvm there",
    "cpu-flags": "CPU features the guest was shown, with /proc/cpuinfo there",
    "cpu-host-passthrough": "-cpu host or max, with the CPU models of both hosts",
    "nested-missing": "vmx or svm in what the guest was shown, with the CPU and kvm_intel or kvm_amd there",
    "nested-abilities": "vmx flags or SVM flags of /proc/cpuinfo here, with those there",
    "memory-free": "the source's memory (query-memory-size-summary), with MemAvailable there",
    "hugepages": "the source's memory in huge pages, with the free ones of that size there",
    "memory-path": "mem-path= of the source, with that directory and its page size there",
    "qemu-missing": "the configured QEMU, else that under the source's path, else that in PATH, with what is there",
    "qemu-too-old": "the version of the QEMU there, with 4.0",
    "qemu-older": "the version of the QEMU there, with the source's",
    "machine-not-offered": "the source's machine type (QOM), with -machine help of the QEMU there",
    "machine-unversioned": "the source's machine type, with versioned names, where the QEMUs' versions differ",
    "device-not-offered": "types of the source's devices (QOM), with -device help of the QEMU there",
    "cpu-not-offered": "the source's CPU model, with -cpu help of the QEMU there",
    "userfaultfd": "the policy's postcopy, with userfaultfd there",
    "no-postcopy": "the policy's postcopy, with userfaultfd there",
    "path-not-probed": "the policy's postcopy, with ping at the source's host and python3 at both",
    "disk-file-missing": "files of the source's disks (query-block), with the same paths there",
    "disk-copied": "files of the source's disks, with the same paths there, and the policy's disks",
    "disk-room": "what is allocated of those disks, with what is free in their directories there (stat -f)",
    "disk-access": "files of the source's disks, opened there as QEMU's user would",
    "disk-locked": "the image's device and inode there, with QEMU's locks in /proc/locks there",
    "disk-lock-off": "locking= of the source's disks, with auto",
    "snapshot": "-snapshot and snapshot=on of the source",
    "disk-remote": "the driver of the source's disks, with those that are files",
    "cache-unsafe": "cache.direct of the source's images (query-named-block-nodes), with file systems that keep hosts "
    "coherent",
    "cache-unknown": "cache.direct of the source's images, with what QEMU shows",
    "backing-missing": "the backing chain as the source has it open, with the same paths there",
    "backing-differs": "the backing chain as the source has it open, with that of the image there (qemu-img info)",
    "backing-not-shared": "device, inode, size and content of backing files here, with those there",
    "backing-unknown": "whether QEMU or qemu-img can tell the backing chain",
    "file-missing": "files on the source's command line, with the same paths there",
    "file-access": "files on the source's command line, opened there as QEMU's user would",
    "file-differs": "sizes of files on the source's command line, with those of the same paths there",
    "bridge-missing": "bridges of the source's networks, with the interfaces there",
    "bridge-maybe-missing": "the bridge that the source's tap is on, with the interfaces there",
    "tap-missing": "ifname= of the source's taps, with the interfaces there",
    "tap-down": "whether the source's taps are up here (ip), with the destination's there; before the start those of "
    "ifname= with script=no, after it those that the process has open (/proc/PID/fdinfo)",
    "tap-bridge": "the bridge that each of the source's taps is on here, with that of the destination's there",
    "tap-vlan": "VLANs of taps on bridges that filter (bridge vlan), and of the ways out, here and there",
    "bridge-down": "whether the bridges of the source's taps are up here, with those there",
    "bridge-uplink": "what is on those bridges beside taps, with a cable, here and there",
    "net-script": "scripts and helpers of the source's networks, with the same paths there",
    "net-interface": "interfaces that the source's networks are built on, with the interfaces there",
    "passed-descriptor": "fd= and the like on the source's command line",
    "user-network": "the source's networks (info network), with QEMU's own kind",
    "user-networks": "the number of the source's own networks, with what the version of the QEMU there takes in",
    "socket-network": "the source's networks, with those that lead to another program",
    "vhost-net-missing": "vhost= of the source's networks, with /dev/vhost-net there",
    "vhost-net-required": "vhostforce= of the source's networks, with /dev/vhost-net there",
    "vhost-user": "devices of the source that another process serves, with its socket there",
    "vhost-user-socket": "sockets of processes that serve the source's devices, with the same paths there",
    "vsock": "the source's devices, with vhost-vsock",
    "tpm": "TPMs of the source, with where their state is",
    "tpm-emulator": "the swtpm that serves the source, with what the target has",
    "tpm-state": "the state directory of that swtpm, with what is at the same path there",
    "tpm-of-host": "-tpmdev of the source, with passthrough",
    "vfio": "the source's devices, with passed-through ones",
    "vfio-state": "passed-through devices of the source, with those whose driver can migrate",
    "vfio-failover": "cards of the source with a virtio-net partner (failover_pair_id), whose failover=on",
    "vfio-missing": "host= of passed-through devices, with the devices and their drivers there",
    "host-device": "devices of the host that the source's command line names, with the same paths there",
}
_PROCESS = {
    "process-unknown": "/proc/PID of the source: whether it may be read",
    "process-user": "uid and gids of the source's process, tried at the target",
    "user-differs": "the name of the source's uid, with the uid of that name there",
    "user-missing": "the source's uid, with the accounts there",
    "runas-missing": "-runas and -run-with user= of the source, with the accounts there",
    "chroot": "root directory of the source's process, with its host's",
    "mount-namespace": "device and inode of the guest's files in the source's mounts, with those in its host's",
    "user-namespace": "the user namespace of the source's process, with its host's",
    "process-namespace": "further namespaces of the source's process, with its host's",
    "relative-path": "relative paths on the source's command line, with its working directory there",
    "image-unreachable": "device and inode of relative images that are open for writing, with those of the same path "
    "from where the process is now",
    "working-directory": "the source's working directory, entered there as its user",
    "disk-replaced": "device and inode of what the source has open (/proc/PID/fd), with those of the path",
    "run-directory": "the directory of the destination's sockets, entered there as the source's user",
    "process-settings": "groups, umask, limits, CPUs, scheduling, OOM score, rights, label of the source, with "
    "what can be had there",
    "cgroup": "the source's cgroup and its limits, with systemd there",
}
_COMMAND = {
    "backend-lost": "what each of the source's devices has behind it now, with its command line",
    "backend-unreadable": "what each of the source's devices has behind it now, with its command line",
    "config-file": "-readconfig on the source's command line",
    "display": "-display of the source, with windows of its host; where there is none, whether QEMU shows a VNC server",
    "sound": "-audiodev and -audio of the source, with drivers that are of its host",
    "gdb": "-gdb and -s of the source, and its character devices (query-chardev)",
    "memory-file": "mem-path= with share=on of the source, with the same path there",
    "port-in-use": "ports that the source listens at, with those in use there (/proc/net/tcp, udp)",
    "port-moved": "ports that the source listens at, with those in use there, where others are allowed",
    "address-missing": "addresses that the source listens at, with those of the interfaces there",
    "preconfig": "-preconfig on the source's command line",
    "tap-in-use": "ifname= of the source's taps, with taps there that are open (ip), and where both are one machine",
}
_DESTINATION = {
    "destination-not-waiting": "the destination's run state, with inmigrate",
    "destination-used": "the destination's migration status, with none",
    "destination-not-deferred": "the destination's socket address and -incoming, with defer",
}
_PAIR = {
    "uuid": "query-uuid of both",
    "name": "query-name of both",
    "machine-type": "machine types of both, aliases resolved (QOM)",
    "accelerator": "query-kvm of both",
    "memory-size": "query-memory-size-summary of both",
    "memory-backend": "ids and sizes of memory backends of both (query-memdev)",
    "cpu-count": "plugged vCPUs of both (query-hotpluggable-cpus)",
    "cpu-model": "types of plugged vCPUs of both (query-hotpluggable-cpus)",
    "cpu-topology": "places of plugged vCPUs of both (query-hotpluggable-cpus)",
    "cpu-features": "CPUID words of the first vCPU of both (QOM): bits of the source that the destination lacks",
    "cpu-features-extra": "CPUID words of the first vCPU of both (QOM): bits that only the destination has",
    "device-missing": "devices of both by id, those without one by driver and place (QOM, query-pci)",
    "device-differs": "driver, bus and slot of each device of both",
    "device-extra": "devices of both by id, those without one by driver and place",
    "card-stays": "cards of the source with failover_pair_id that the guest has, with its run state and the policy",
    "device-property": "every property of a device that was plugged in later, of both",
    "disk-missing": "media of the source's drives, with those of the destination's (query-block)",
    "medium-extra": "media of the destination's drives, with those of the source's (query-block)",
    "disk-size": "virtual sizes of each disk of both (query-block)",
    "disk-read-only": "whether each disk of both may be written",
    "disk-format": "formats of each disk of both",
    "disk-not-shared": "device and inode of each disk's file, or its name and driver, of both",
    "disk-not-copied": "format, encryption, snapshots, bitmaps and data file of a disk that is to be copied, with what "
    "a copy can have",
    "disk-maybe-not-shared": "names of each disk's file of both, where their identity cannot be read",
}
_MANAGED = {
    "libvirt-target": "whether the libvirt of the target can be asked",
    "libvirt-policy": "the policy's stream and disks, and whether the guest is to be saved, with what libvirt moves",
    "libvirt-cpu": "the guest's CPU in libvirt's XML, with the target's (virConnectCompareHypervisorCPU; of "
    "host-passthrough the source's host, virConnectCompareCPU)",
    "libvirt-definition": "libvirt's migratable XML of the guest, with what the target's libvirt makes of it "
    "(virConnectDomainXMLToNative, which defines and starts nothing)",
    "libvirt-defined": "the guest's uuid, with the definitions of the target's libvirt",
    "libvirt-name": "the guest's name, with those of the target's libvirt",
    "libvirt-unsafe-cache": "cache= and the file system of each disk's image that the guest writes to, with what "
    "libvirt takes for safe",
    "libvirt-network": "networks in libvirt's XML, with those of the target's libvirt",
    "libvirt-pool": "pools and volumes in libvirt's XML, with those of the target's libvirt",
    "libvirt-secret": "secrets of disks in libvirt's XML, with those of the target's libvirt",
    "libvirt-firmware": "the loader in libvirt's XML, with that path there",
    "libvirt-tpm": "the backend of the guest's TPM, with those of the target (virConnectGetDomainCapabilities)",
    "libvirt-host-device": "hostdev and interface type='hostdev' in libvirt's XML",
    "libvirt-snapshots": "the numbers of libvirt's snapshots and checkpoints of the guest",
}
_WAY = {
    "save-unconfirmed": "whether the saved file could be marked as complete",
    "guest-not-shut-down": "whether the guest is off, once its policy's time for that is over",
    "hook-failed": "the exit status of the site's hooks, and whether they could be run",
    "record-lost": "whether the record of the migration can be written",
    "record-left-over": "whether the record of the migration can be put away",
    "network-down": "what the taps hang on where the guest has arrived, with what they hung on at the source",
    "network-unlearned": "the forwarding databases of the bridges of both hosts, after a few rounds of announcing",
    "left-over": "what was made for the migration, with what could be removed",
    "stream-not-shaped": "what waited in the stream's sockets when the guest was stopped, where that cost it something",
    "source-image-kept": "the source's images of disks that were copied, once its process has ended",
    "source-left-over": "the source's process, which should have ended",
    "destination-left-over": "the destination's process, which should have ended",
    "not-restored": "migration parameters and capabilities of the source, with those before",
    "not-announced": "the answer to announce-self",
    "autostart-lost": "the answer of the destination's libvirt to setting autostart (virDomainSetAutostart)",
}

#: Comparison behind every code of the catalogue.
COMPARED: Mapping[str, str] = MappingProxyType(
    {
        **_INVENTORY,
        **_SOURCE,
        **_CEILING,
        **_TRAVEL,
        **_HOSTS,
        **_MANAGED,
        **_PROCESS,
        **_COMMAND,
        **_DESTINATION,
        **_PAIR,
        **_WAY,
    }
)
