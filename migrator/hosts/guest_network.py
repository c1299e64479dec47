"""Network interfaces of a host, and which taps its QEMUs have open."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from migrator.core.process.guest_network import GuestTaps, NetworkInterface, NetworkInterfaces
from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import interfaces, reading_output, vlans

#: For scripts: all there is to see of interfaces, and of the VLANs of a bridge's ports.
SHOW_LINKS, SHOW_VLANS = "ip -j -d addr show 2>/dev/null", "bridge -j vlan show 2>/dev/null"
# What a process has open of /dev/net/tun the kernel names in its fdinfo, whoever made the tap and whatever its name.
_SCRIPT = f"""
known=$1; shift
[ -n "$known" ] || printf '%s\\0' "$({SHOW_LINKS})" "$({SHOW_VLANS})"
[ -z "$known" ] || printf '\\0\\0'
for pid; do
  [ -r "/proc/$pid/fdinfo" ] && printf '%s\\n' "$pid" && grep -Hs '^iff:' /proc/"$pid"/fdinfo/*
done
printf '\\0end'
"""
_LINE = re.compile(r"/proc/(\d{1,10})/fdinfo/(\d{1,10}):iff:\s*(\S{1,256})")


async def read_guest_taps(
    access: HostAccess, pids: Iterable[int], *, links: NetworkInterfaces | None = None, timeout: float = 10.0
) -> dict[int, GuestTaps]:
    """Read for each of these processes the taps that it has open, and the interfaces that they hang on.

    :param links: the host's interfaces, where they have been read already.
    :raise HostError: the host cannot be asked.
    """
    wanted = list(pids)
    if not wanted:
        return {}
    output = await access.run(
        ["sh", "-s", "--", "" if links is None else "known", *map(str, wanted)],
        stdin=_SCRIPT.encode(),
        timeout=timeout,
    )
    ip, bridge, taps, end = (output.text.split("\0") + [""] * 4)[:4]
    if end != "end":
        raise HostError(access.name, f"its network cannot be read: {output.complaint or 'no answer'}")
    with reading_output(access.name, "its network"):
        shown = parse_links(ip, bridge) if links is None else links
        opened = parse_taps(taps)
    read = {int(line) for line in taps.splitlines() if line.isdecimal() and len(line) < 11}
    return {
        pid: GuestTaps(
            taps=tuple(dict.fromkeys(name for _, name in sorted(opened.get(pid, {}).items())))
            if pid in read
            else None,
            links=shown,
        )
        for pid in wanted
    }


def parse_taps(text: str) -> dict[int, dict[int, str]]:
    """Parse the interface behind each descriptor of each process."""
    opened: dict[int, dict[int, str]] = {}
    for match in _LINE.finditer(text):
        opened.setdefault(int(match[1]), {})[int(match[2])] = match[3]
    return opened


def parse_links(shown: str, of_vlans: str) -> Mapping[str, NetworkInterface]:
    """Parse the output of :data:`SHOW_LINKS` and :data:`SHOW_VLANS`, by name; empty where there is no ``ip``.

    :raise ValueError: the output is of another form.
    """
    ports = {
        entry["ifname"]: frozenset(_vlan(each) for each in entry.get("vlans", ()))
        for entry in vlans(of_vlans)
    }
    return {
        entry["ifname"]: _link(entry, ports.get(entry["ifname"], frozenset())) for entry in interfaces(shown)
    }


def _link(entry: Mapping[str, Any], vlans: frozenset[str]) -> NetworkInterface:
    info = entry.get("linkinfo", {})
    data, flags = info.get("info_data", {}), entry.get("flags", ())
    kind = info.get("info_kind", "")
    return NetworkInterface(
        kind=kind,
        up="UP" in flags,
        carrier="LOWER_UP" in flags,
        master=entry.get("master", ""),
        vlan=data.get("id") if kind == "vlan" else None,
        filters=bool(data.get("vlan_filtering")) if kind == "bridge" else False,
        vlans=vlans,
    )


def _vlan(each: Mapping[str, Any]) -> str:
    last = f"-{each['vlanEnd']}" if "vlanEnd" in each else ""
    return " ".join([f"{each.get('vlan')}{last}", *each.get("flags", ())])
