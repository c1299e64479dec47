"""The words of the catalogue about guests that libvirt manages."""

from __future__ import annotations

from migrator.core.findings.texts import Texts

#: What the libvirt of both hosts says of a move between them.
MANAGED: Texts = {
    "libvirt-target": (
        "error",
        "libvirt manages the guest, and the target has no libvirt that can be asked",
        "install libvirt there and let migrator's user use it, or name its socket with libvirt of that host",
    ),
    "libvirt-policy": (
        "error",
        "what is asked for a guest of libvirt is nothing that a move by libvirt can have",
        "give it a policy without that; what else libvirt does with it: virsh migrate, virsh save",
    ),
    "libvirt-cpu": (
        "error",
        "the CPU that the guest was shown cannot be had at the target: libvirt will refuse the move",
        "give the guest a CPU model that all hosts have (virsh hypervisor-cpu-baseline), or choose another target",
    ),
    "libvirt-definition": (
        "error",
        "the libvirt of the target cannot make a QEMU of the guest's definition",
        "install there what it names, or change the definition at the source (virsh edit) and restart the guest",
    ),
    "libvirt-defined": (
        "warning",
        "the target has a definition of this guest already, which the move replaces",
        "virsh undefine it there, if it is of no use any more",
    ),
    "libvirt-name": (
        "error",
        "another guest of the target's libvirt has the same name, which libvirt refuses",
        "rename one of them (virsh domrename)",
    ),
    "libvirt-unsafe-cache": (
        "overridable",
        "libvirt calls the move unsafe: a disk is cached by its host, or on no file system that it knows to be shared",
        "set cache='none'; accept this where both hosts are known to see the same file: libvirt is told so (--unsafe)",
    ),
    "libvirt-network": (
        "error",
        "a network of libvirt that the guest is on does not exist at the target, or is not active there",
        "virsh net-define and net-start it there (net-dumpxml at the source shows it), with virtnetworkd if it is away",
    ),
    "libvirt-pool": (
        "error",
        "a storage pool, or a volume in it, that a disk is in does not exist at the target, or is not active there",
        "virsh pool-define, -start or -refresh it there (pool-dumpxml shows it), with virtstoraged if it is away",
    ),
    "libvirt-secret": (
        "error",
        "a secret that a disk of the guest takes is not known to the target's libvirt",
        "virsh secret-define and -set-value it there, with virtsecretd if it is away: migrator carries no secrets",
    ),
    "libvirt-firmware": (
        "error",
        "the firmware that the guest was started with does not exist at the target",
        "install the same firmware package there",
    ),
    "libvirt-tpm": (
        "error",
        "the libvirt of the target cannot give the guest its TPM",
        "install swtpm and swtpm-tools there",
    ),
    "libvirt-host-device": (
        "error",
        "the guest has a device of its host, which does not go with it",
        "detach it first (virsh detach-device), or have the guest shut down and started at the target (policy cold)",
    ),
    "libvirt-snapshots": (
        "overridable",
        "the guest has snapshots or checkpoints of libvirt, which do not go with it: most versions refuse the move",
        "delete them (virsh snapshot-delete, checkpoint-delete), or only what libvirt notes of them (--metadata)",
    ),
}

#: Findings about a guest of libvirt that come up only while a migration is under way.
MANAGED_WAY: Texts = {
    "autostart-lost": (
        "warning",
        "the guest has arrived, but the libvirt there could not be told to start it with its host, as it was before",
        "set it there: virsh autostart GUEST",
    ),
}
