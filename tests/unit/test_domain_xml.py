"""What libvirt's XML says of a guest."""

from __future__ import annotations

import pytest

from migrator.libvirt.domain_xml import DiskXml, parse_domain, with_images
from migrator.libvirt.target_checks import unsafe_disk

_DOMAIN = """\
<domain type='kvm' id='7'>
  <name>vm &amp; co</name><uuid>0f5f</uuid>
  <memory unit='MiB'>512</memory><vcpu placement='static' current='2'>4</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/CODE.fd</loader><nvram>/var/vm_VARS.fd</nvram></os>
  <cpu mode='host-passthrough'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='/img'/>
      <target dev='vda'/><mirror type='file' job='copy'/></disk>
    <disk type='block' device='disk'><source dev='/dev/vg/v'/><target dev='vdb'/><shareable/></disk>
    <disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='vdc'/></disk>
    <disk type='network' device='disk'><auth><secret type='ceph' usage='client'/></auth>
      <source protocol='rbd' name='pool/image'/><target dev='vdd'/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
    <interface type='network'><source network='n'/></interface>
    <interface type='bridge'><source bridge='br0'/></interface>
    <interface type='direct'><source dev='eno1' mode='bridge'/></interface>
    <interface type='hostdev'><source>
      <address type='pci' domain='0x0000' bus='0x81' slot='0x10' function='0x2'/></source></interface>
    <hostdev mode='subsystem' type='mdev'><source><address uuid='m-1'/></source></hostdev>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
  </devices>
</domain>
"""


def test_description_of_a_guest_is_read() -> None:
    xml = parse_domain(_DOMAIN)
    assert (xml.name, xml.uuid, xml.virt, xml.memory_bytes, xml.vcpus) == (
        "vm & co",
        "0f5f",
        "kvm",
        512 << 20,
        2,
    )
    assert (xml.emulator, xml.architecture, xml.machine) == (
        "/usr/bin/qemu-system-x86_64",
        "x86_64",
        "pc-q35-7.2",
    )
    assert (xml.loader, xml.nvram, xml.tpm) == ("/usr/share/OVMF/CODE.fd", "/var/vm_VARS.fd", "emulator")
    assert xml.cpu_mode == "host-passthrough"
    assert (xml.networks, xml.bridges, xml.direct_devices) == (("n",), ("br0",), ("eno1",))
    assert xml.secrets == ("ceph:client",)
    assert xml.host_devices == ("mdev m-1", "pci 0000:81:10.2")
    assert xml.disks == (
        DiskXml(target="vda", source="/img", cache="none", format="raw", mirrored=True),
        DiskXml(target="vdb", kind="block", source="/dev/vg/v", shareable=True),
        DiskXml(target="vdc", kind="volume", source="v", pool="p"),
        DiskXml(target="vdd", kind="network", source="pool/image", protocol="rbd"),
        DiskXml(target="sda", read_only=True),
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("<memory>1024</memory>", 1 << 20),
        ("<memory unit='b'>7</memory>", 7),
        ("<memory unit='KB'>2</memory>", 2000),
    ],
)
def test_memory_is_read_in_its_unit(said: str, expected: int) -> None:
    assert parse_domain(f"<domain>{said}</domain>").memory_bytes == expected


def test_what_is_no_xml_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        parse_domain("<domain>")


@pytest.mark.parametrize(
    ("disk", "filesystem", "why"),
    [
        (DiskXml(target="vda", source="/i", cache="none"), "nfs4", ""),
        (DiskXml(target="vda", source="/i", cache="none"), "ext4", "none that libvirt knows to be shared"),
        (DiskXml(target="vda", source="/i"), "nfs4", "page cache (cache=default)"),
        (DiskXml(target="vda", source="/i", shareable=True), "nfs4", ""),
        (DiskXml(target="vda", source="/i", cache="writeback"), "ocfs2", ""),
        (DiskXml(target="vda", source="/i", read_only=True), "ext4", ""),
        (DiskXml(target="vda", kind="block", source="/dev/v", cache="directsync"), "devtmpfs", ""),
        (DiskXml(target="vda", kind="block", source="/dev/v"), "devtmpfs", "page cache"),
        (DiskXml(target="vda", kind="network", source="p/i"), "", ""),
        (DiskXml(target="sda"), "", ""),
    ],
)
def test_disk_is_unsafe_where_libvirt_would_say_so(disk: DiskXml, filesystem: str, why: str) -> None:
    found = unsafe_disk(disk, filesystem)
    assert why in found
    assert bool(found) == bool(why)


def test_images_are_given_other_paths_and_nothing_else_is_changed() -> None:
    text = (
        "<domain><uuid>u</uuid><metadata><a:b xmlns:a='urn:x' file='/old/a&amp;b'/></metadata><devices>"
        "<disk type='file'><source file='/old/a&amp;b' index='1'/><target dev='vda'/></disk>"
        "<disk type='file'><source file='/old/it&apos;s'/><target dev='vdb'/></disk>"
        "<disk type='file'><source file='/old/other'/><target dev='vdc'/></disk>"
        "<serial type='file'><source path='/old/other'/></serial></devices></domain>"
    )
    moved = {"/old/a&b": "/new/it's", "/old/it's": "/old/a&b", "/none": "/there"}
    changed = with_images(text, moved)
    assert changed == text.replace("<source file='/old/it&apos;s'", "<source file='?'").replace(
        "<source file='/old/a&amp;b'", "<source file='/new/it&apos;s'"
    ).replace("<source file='?'", "<source file='/old/a&amp;b'")
    assert [disk.source for disk in parse_domain(changed).disks] == ["/new/it's", "/old/a&b", "/old/other"]


def test_description_that_cannot_be_given_other_paths_is_not_taken_as_it_is() -> None:
    text = "<domain><devices><disk type='file'><source file=\"/old/a\"/><target dev='vda'/></disk></devices></domain>"
    with pytest.raises(ValueError, match="cannot be given other paths"):
        with_images(text, {"/old/a": "/new/a"})


_BASED = """\
<domain><devices><disk type='file'><source file='/a'/>
  <backingStore type='file'><source file='/base'/>
    <backingStore type='file'><source file='/first'/><backingStore/></backingStore>
  </backingStore><target dev='vda'/></disk>
<disk type='file'><source file='/b'/><backingStore type='file'><source file='/base'/></backingStore>
  <target dev='vdb'/></disk></devices></domain>"""


def test_disk_is_said_to_be_based_on_each_file_of_its_chain() -> None:
    first, second = parse_domain(_BASED).disks
    assert (first.based, first.backing_files) == (True, ("/base", "/first"))
    assert (second.based, second.backing_files) == (True, ("/base",))


def test_disk_whose_contents_are_copied_stands_alone_and_others_are_as_they_were() -> None:
    first, second = parse_domain(with_images(_BASED, {"/a": "/there"}, alone=["vda"])).disks
    assert (first.source, first.based, first.backing_files) == ("/there", False, ())
    assert second == parse_domain(_BASED).disks[1]


def test_guest_that_libvirt_starts_again_when_it_shuts_down_says_so() -> None:
    assert parse_domain(_BASED).on_poweroff == "destroy"
    restarts = _BASED.replace("<devices>", "<on_poweroff>restart</on_poweroff><devices>")
    assert parse_domain(restarts).on_poweroff == "restart"
