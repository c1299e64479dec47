"""Facts of a host: one script there, one pure function here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from migrator.core.inventory import TLS_DIRECTORY, HostFacts
from migrator.core.process.certificates import HostCertificates
from migrator.errors import HostError
from migrator.hosts import bound_ports
from migrator.hosts.access import HostAccess
from migrator.hosts.certificates import SHOW_CERTIFICATES, parse_certificates
from migrator.hosts.customary_places import SHOW_PLACES, note_places
from migrator.hosts.guest_network import SHOW_LINKS, SHOW_VLANS, parse_links
from migrator.hosts.host_output import number, reading_output
from migrator.hosts.network_output import interfaces
from migrator.text import writable

#: What TCP over IPv4 with time stamps, and Ethernet below it, leave of a link's speed at an MTU of 1500.
PAYLOAD_RATIO = 0.95

# Arguments: the migration address, the directory of certificates, the files whose versions are known, then the QEMUs
# that are configured.
_SCRIPT = (
    rb"""
# Every program that is run costs a millisecond, so what the shell can do it does itself.
section() { printf '\n@@%s\n' "$1"; }
first() { IFS= read -r line <"$1" && printf '%s %s\n' "$2" "$line"; } 2>/dev/null
line() { IFS= read -r line <"$1" && printf '%s\n' "$line"; } 2>/dev/null
address=$1 tls=$2 known=$3 u=$(id -u); shift 3
section memory
while IFS= read -r line; do
  case $line in MemTotal:*) printf '%s\n' "$line" ;; MemAvailable:*) printf '%s\n' "$line"; break ;; esac
done </proc/meminfo
section cpus; grep -c ^processor /proc/cpuinfo
section load; line /proc/loadavg
section cpu; sed '/^$/q' /proc/cpuinfo
section has
( : <>/dev/kvm ) 2>/dev/null && echo kvm
[ -e /dev/vhost-net ] && echo vhost-net
[ -d /run/systemd/system ] && echo systemd
[ "$u" = 0 ] && echo root
command -v python3 >/dev/null || echo no-python3
command -v ping >/dev/null || echo no-ping
[ "$(line /proc/sys/vm/unprivileged_userfaultfd)" = 1 ] && echo userfaultfd
section hugepages
for d in /sys/kernel/mm/hugepages/hugepages-*; do first "$d/free_hugepages" "${d##*-}"; done
section boot; line /proc/sys/kernel/random/boot_id
section kernel; line /proc/sys/kernel/osrelease
section links; """
    + SHOW_LINKS.encode()
    + rb"""
section vlans; """
    + SHOW_VLANS.encode()
    + rb"""
section speeds
for d in /sys/class/net/*; do
  [ -d "$d" ] || continue
  kind=virtual; [ -e "$d/device" ] && kind=device
  mac=; speed=
  { IFS= read -r mac <"$d/address"; IFS= read -r speed <"$d/speed"; } 2>/dev/null
  printf '%s %s %s %s\n' "${d##*/}" "${mac:--}" $kind "$speed"
done
section sockets
"""
    + bound_ports.SOCKETS
    + rb"""
section mine; getent ahosts "$address"
section qemus
machine=$(uname -m)
IFS=:
set -f
for d in $PATH /usr/libexec; do
  [ -L "$d" ] && continue
  for n in "qemu-system-$machine" qemu-kvm; do set -- "$@" "$d/$n"; done
done
IFS=' '
end='
'
for q; do
  [ -f "$q" ] && [ -x "$q" ] || continue
  # A program that is the same file as before is not run again; a script may run another one by now.
  file= version=
  IFS= read -r magic <"$q"
  case $magic in ?ELF*) file=$(stat -L -c %d:%i:%s:%Z -- "$q" 2>/dev/null) ;; esac
  case " $known " in *" ${file:-none} "*) ;; *) version=$("$q" --version </dev/null 2>/dev/null) ;; esac
  printf '%s\n%s\n%s\n' "$q" "$file" "${version%%"$end"*}"
done
section certificates
"""
    + SHOW_CERTIFICATES.encode()
    + rb"""
section places
"""
    + SHOW_PLACES.encode()
    + rb"""
section end
"""
)


#: Versions of QEMUs of each host by the file that each is, so that none is run again for it.
_VERSIONS: WeakKeyDictionary[HostAccess, dict[str, str]] = WeakKeyDictionary()


@dataclass
class _Link:
    #: Mbit/s, where it says.
    speed: float | None = None
    bridge: bool = False
    #: There is hardware behind it.
    device: bool = False
    addresses: frozenset[str] = frozenset()
    lower: list[str] = field(default_factory=list)


async def read_facts(
    access: HostAccess,
    *,
    address: str,
    qemus: Sequence[str] = (),
    tls_directory: str = TLS_DIRECTORY,
    timeout: float = 20.0,
) -> HostFacts:
    """Read the facts in one command; what this host does not tell is left at its default.

    :param address: where other hosts reach it with a stream; whose interface it is, that link counts.
    :param qemus: paths of QEMUs beside those in its PATH.
    :param tls_directory: of certificates for QEMU.
    :raise HostError: when the host cannot be asked.
    """
    known = _VERSIONS.get(access, {})
    output = await access.run(
        ["sh", "-s", "--", address, tls_directory, " ".join(known), *qemus], stdin=_SCRIPT, timeout=timeout
    )
    if "\n@@end\n" not in output.text:
        raise HostError(access.name, f"its facts cannot be read: {output.complaint or 'no answer'}")
    with reading_output(access.name, "itself"):
        facts = parse(output.text, tls_directory, known)
        _VERSIONS[access] = {
            file: version
            for _, file, version in _qemus(_sections(output.text).get("qemus", ""), known)
            if file
        }
        note_places(access, output.text.partition("\n@@places\n")[2].partition("\n@@end\n")[0])
        return facts


def parse(text: str, tls_directory: str = TLS_DIRECTORY, known: Mapping[str, str] | None = None) -> HostFacts:
    """Parse the script's answer. Pure.

    :param known: versions of QEMUs that were not run again, by the file that each is.
    :raise ValueError: it is none; further errors see :mod:`migrator.hosts.host_output`.
    """
    sections = _sections(text)
    has = frozenset(sections.get("has", "").split())
    memory = dict(re.findall(r"^(\w+): +(\d+) kB", sections.get("memory", ""), re.MULTILINE))
    cpu = {
        key.strip(): value.strip()
        for key, colon, value in (line.partition(":") for line in sections.get("cpu", "").splitlines())
        if colon
    }
    links = _links(sections.get("links", ""), sections.get("speeds", ""))
    return HostFacts(
        memory_total_bytes=number(memory.get("MemTotal", "0")) << 10,
        memory_free_bytes=number(memory.get("MemAvailable", "0")) << 10,
        cpus=_number(sections.get("cpus", "")),
        load=_load(sections.get("load", "")),
        cpu_model=writable(cpu.get("model name", cpu.get("Processor", "")), 256),
        cpu_flags=frozenset(cpu.get("flags", cpu.get("Features", "")).split()),
        nested_flags=frozenset(cpu.get("vmx flags", "").split()),
        kvm="kvm" in has,
        userfaultfd=bool(has & {"root", "userfaultfd"}),
        vhost_net="vhost-net" in has,
        python3="no-python3" not in has,
        ping="no-ping" not in has,
        hugepages={
            number(size) << 10: number(count)
            for size, count in re.findall(r"^(\d+)kB (\d+)$", sections.get("hugepages", ""), re.MULTILINE)
        },
        link_bytes_per_second=_speed(links, _interface(links, sections.get("mine", ""))),
        qemus={path: version for path, _, version in _qemus(sections.get("qemus", ""), known or {})},
        interfaces=frozenset(links),
        bridges=frozenset(name for name, link in links.items() if link.bridge),
        links=parse_links(sections.get("links", ""), sections.get("vlans", "")),
        ports=bound_ports.parse_sockets(sections.get("sockets", "")),
        addresses=frozenset(address for link in links.values() for address in link.addresses),
        systemd="systemd" in has,
        boot_id=writable(sections.get("boot", "").strip(), 256),
        kernel=writable(sections.get("kernel", "").strip(), 256),
        certificates=(
            parse_certificates(tls_directory, sections["certificates"])
            if "certificates" in sections
            else HostCertificates()
        ),
    )


def _sections(text: str) -> dict[str, str]:
    sections: dict[str, str] = {}
    for part in text.split("\n@@")[1:]:
        name, _, content = part.partition("\n")
        sections[name] = content
    return sections


def _load(text: str) -> float | None:
    first = text.split(" ", 1)[0]
    return float(first) if re.fullmatch(r"\d{1,9}\.\d\d", first, re.ASCII) else None


def _number(text: str) -> int:
    return number(text) if text.strip().isdecimal() else 0


def _links(text: str, speeds: str) -> dict[str, _Link]:
    shown = interfaces(text)
    links: dict[str, _Link] = {}
    hardware: dict[str, str] = {}
    for entry in shown:
        name = entry["ifname"]
        links[name] = _Link(
            bridge=entry.get("linkinfo", {}).get("info_kind") == "bridge",
            addresses=frozenset(each["local"] for each in entry.get("addr_info", ()) if "local" in each),
            lower=[entry["link"]] if entry.get("link") else [],
        )
        hardware[name] = entry.get("address", "-")
    for entry in shown:
        if entry.get("master") in links:
            links[entry["master"]].lower.append(entry["ifname"])
    for line in speeds.splitlines():
        name, mac, kind, speed = (line.split(" ") + [""] * 4)[:4]
        # What /sys shows may be another network namespace than the one that ip is asked in.
        if name in links and hardware[name] == mac:
            links[name].device = kind == "device"
            links[name].speed = float(number(speed)) if speed.isdecimal() and number(speed) > 0 else None
    return links


def _interface(links: Mapping[str, _Link], resolved: str) -> str:
    """Return the interface that holds the migration address; empty where none does."""
    mine = {line.split()[0] for line in resolved.splitlines() if line.strip()}
    return next((name for name, link in links.items() if link.addresses & mine), "")


def _speed(links: Mapping[str, _Link], name: str) -> float | None:
    """Return the bytes per second of the slowest link below an interface, as a stream goes over one of them only."""
    speeds = list(_leaves(links, name, frozenset()))
    # Guests' taps are below a bridge too, at a speed that somebody made up; the devices are what counts.
    real = [speed for device, speed in speeds if device] or [speed for _, speed in speeds]
    return min(real) * 1e6 / 8 * PAYLOAD_RATIO if real else None


def _leaves(links: Mapping[str, _Link], name: str, seen: frozenset[str]) -> Iterator[tuple[bool, float]]:
    link = links.get(name)
    if link is None or name in seen:
        return
    below = [leaf for lower in link.lower for leaf in _leaves(links, lower, seen | {name})]
    if below:
        yield from below
    elif link.speed is not None:
        yield link.device, link.speed


def _qemus(text: str, known: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield the path of each QEMU, the file that it is (empty where that may be a script), and its version."""
    lines = text.splitlines()
    for path, file, said in zip(lines[::3], lines[1::3], lines[2::3], strict=False):
        if version := re.search(r"version (\d+(?:\.\d+)+)", said):
            yield writable(path), file, writable(version[1], 64)
        elif file in known and not said:
            yield writable(path), file, known[file]
