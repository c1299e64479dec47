"""Libvirt's XML of a guest, read into values. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from xml.etree import ElementTree as ET

_UNITS: dict[str, int] = {"b": 1, "bytes": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kMGT", start=1)
    for suffix, base in (("", 1 << 10), ("iB", 1 << 10), ("B", 1000))
}
#: Where libvirt writes the path of an image, and how it writes quotes in one.
_IMAGE = re.compile(r"(<source\b[^>]*\bfile=)'([^']*)'")
#: A disk, and the images that its own is based on, each within the one above.
_DISK = re.compile(r"<disk\b.*?</disk>", re.DOTALL)
_CHAIN = re.compile(r"<backingStore type=.*</backingStore>", re.DOTALL)
#: Signs of XML and what stands for them, in this order. (``xml.sax.saxutils`` loads HTTP, mail and temporary files.)
_ENTITIES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&apos;"), ('"', "&quot;"))


@dataclass(frozen=True, kw_only=True)
class DiskXml:
    """One disk of a guest."""

    #: libvirt's name for it: ``vda``.
    target: str
    #: ``file``, ``block``, ``network``, ``volume``…
    kind: str = "file"
    #: Path of its image, or name of its volume; empty where there is no medium.
    source: str = ""
    pool: str = ""
    protocol: str = ""
    #: As libvirt calls it; empty is the hypervisor's default.
    cache: str = ""
    #: ``raw``, ``qcow2``.
    format: str = ""
    #: Its image is based on another one; those that are files, the nearest first.
    based: bool = False
    backing_files: tuple[str, ...] = ()
    read_only: bool = False
    shareable: bool = False
    #: A job of libvirt's copies it somewhere.
    mirrored: bool = False


@dataclass(frozen=True, kw_only=True)
class DomainXml:
    """A guest as libvirt's XML describes it."""

    uuid: str
    name: str
    #: ``kvm`` or ``qemu``.
    virt: str = "kvm"
    emulator: str = ""
    architecture: str = ""
    machine: str = ""
    memory_bytes: int = 0
    vcpus: int = 1
    #: The ``cpu`` element as it stands there; empty where there is none.
    cpu: str = ""
    cpu_mode: str = ""
    loader: str = ""
    nvram: str = ""
    #: Backend of its TPM; empty where it has none.
    tpm: str = ""
    disks: tuple[DiskXml, ...] = ()
    #: What its network cards hang on.
    networks: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    #: Interfaces of the host that cards of macvtap use.
    direct_devices: tuple[str, ...] = ()
    #: Uuids, or usages as ``TYPE:ID``, of the secrets that its disks take.
    secrets: tuple[str, ...] = ()
    #: ``pci 0000:01:00.0``…
    host_devices: tuple[str, ...] = ()
    #: Addresses of its network cards.
    macs: tuple[str, ...] = ()
    #: What libvirt does when it shuts down.
    on_poweroff: str = "destroy"


def parse_domain(text: str) -> DomainXml:
    """Return what the XML of a domain says.

    :raise ValueError: it is no XML of a domain.
    """
    try:
        root = ET.fromstring(text)  # noqa: S314 - of the daemon that runs the guests
    except ET.ParseError as error:
        raise ValueError(f"libvirt's description of a guest cannot be read: {error}") from error
    kind = root.find("os/type")
    cpu = root.find("cpu")
    devices = root.find("devices")
    empty = ET.Element("devices")
    inside = devices if devices is not None else empty
    return DomainXml(
        uuid=root.findtext("uuid", "").strip(),
        name=root.findtext("name", ""),
        virt=root.get("type", "kvm"),
        emulator=inside.findtext("emulator", "").strip(),
        architecture=kind.get("arch", "") if kind is not None else "",
        machine=kind.get("machine", "") if kind is not None else "",
        memory_bytes=_bytes(root.find("memory")),
        vcpus=_vcpus(root.find("vcpu")),
        cpu=ET.tostring(cpu, encoding="unicode") if cpu is not None else "",
        cpu_mode=cpu.get("mode", "custom") if cpu is not None else "",
        loader=root.findtext("os/loader", "").strip(),
        nvram=root.findtext("os/nvram", "").strip(),
        tpm=next((each.get("type", "") for each in inside.findall("tpm/backend")), ""),
        disks=tuple(_disk(each) for each in inside.findall("disk")),
        networks=_named(inside, "interface[@type='network']/source", "network"),
        bridges=_named(inside, "interface[@type='bridge']/source", "bridge"),
        direct_devices=_named(inside, "interface[@type='direct']/source", "dev"),
        secrets=tuple(dict.fromkeys(_secrets(inside))),
        host_devices=tuple(_host_device(each) for each in _host_devices(inside)),
        macs=_named(inside, "interface/mac", "address"),
        on_poweroff=root.findtext("on_poweroff", "destroy").strip(),
    )


def _escaped(text: str) -> str:
    for sign, entity in _ENTITIES:
        text = text.replace(sign, entity)
    return text


def _unescaped(text: str) -> str:
    for sign, entity in reversed(_ENTITIES):
        text = text.replace(entity, sign)
    return text


def with_images(text: str, moved: Mapping[str, str], *, alone: Collection[str] = ()) -> str:
    """Return the XML of a domain with other images for its disks, and nothing else changed.

    :param moved: those that have another path, by the one that they have now; what the XML does not name is left out.
    :param alone: disks, by their targets, whose images are based on no other there.
    :raise ValueError: that cannot be had of it.
    """

    def standing_alone(found: re.Match[str]) -> str:
        (disk,) = parse_domain(f"<domain><devices>{found[0]}</devices></domain>").disks
        return _CHAIN.sub("<backingStore/>", found[0]) if disk.target in alone else found[0]

    def elsewhere(found: re.Match[str]) -> str:
        path = moved.get(_unescaped(found[2]))
        return found[0] if path is None else f"{found[1]}'{_escaped(path)}'"

    changed = _IMAGE.sub(elsewhere, _DISK.sub(standing_alone, text) if alone else text)
    before, after = parse_domain(text), parse_domain(changed)
    disks = tuple(
        replace(
            disk,
            source=moved.get(disk.source, disk.source) if disk.kind == "file" else disk.source,
            based=disk.based and disk.target not in alone,
            backing_files=tuple(
                moved.get(path, path) for path in disk.backing_files if disk.target not in alone
            ),
        )
        for disk in before.disks
    )
    if after != replace(before, disks=disks):
        raise ValueError("libvirt's description of a guest cannot be given other paths of its images")
    return changed


def _bytes(element: ET.Element | None) -> int:
    if element is None or not (element.text or "").strip().isdecimal():
        return 0
    unit = element.get("unit", "KiB")
    return int((element.text or "0").strip()) * _UNITS.get(unit.replace("K", "k", 1), 1 << 10)


def _vcpus(element: ET.Element | None) -> int:
    if element is None:
        return 1
    said = element.get("current") or (element.text or "").strip()
    return int(said) if said.isdecimal() else 1


def _disk(element: ET.Element) -> DiskXml:
    source, driver, target = element.find("source"), element.find("driver"), element.find("target")
    where = source if source is not None else ET.Element("source")
    names = ("file", "dev", "volume", "name", "dir")
    return DiskXml(
        target=target.get("dev", "") if target is not None else "",
        kind=element.get("type", "file"),
        source=next((where.get(name, "") for name in names if where.get(name)), ""),
        pool=where.get("pool", ""),
        protocol=where.get("protocol", ""),
        cache=driver.get("cache", "") if driver is not None else "",
        format=driver.get("type", "") if driver is not None else "",
        based=element.find("backingStore[@type]") is not None,
        backing_files=tuple(
            path for each in element.findall(".//backingStore/source") if (path := each.get("file", ""))
        ),
        read_only=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        mirrored=element.find("mirror") is not None,
    )


def _named(devices: ET.Element, path: str, key: str) -> tuple[str, ...]:
    found = (each.get(key, "") for each in devices.findall(path))
    return tuple(dict.fromkeys(name for name in found if name))


def _secrets(devices: ET.Element) -> Iterator[str]:
    for each in devices.iter("secret"):
        if uuid := each.get("uuid"):
            yield uuid
        elif usage := each.get("usage"):
            yield f"{each.get('type', '')}:{usage}"


def _host_devices(devices: ET.Element) -> Iterator[ET.Element]:
    yield from devices.findall("hostdev")
    yield from devices.findall("interface[@type='hostdev']")


def _host_device(element: ET.Element) -> str:
    address = element.find("source/address")
    kind = element.get("type", "")
    if address is None:
        adapter = element.find("source/adapter")
        return f"{kind} {adapter.get('name', '')}".strip() if adapter is not None else kind
    if "slot" in address.attrib:
        parts = (int(address.get(name, "0"), 16) for name in ("domain", "bus", "slot", "function"))
        domain, bus, slot, function = parts
        return f"pci {domain:04x}:{bus:02x}:{slot:02x}.{function:x}"
    if "uuid" in address.attrib:
        return f"mdev {address.get('uuid')}"
    return f"{kind} {address.get('bus', '')}:{address.get('device', '')}"
