"""Network interfaces of a host, and which taps its QEMUs have open."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from migrator.core.process.guest_network import GuestTaps, NetworkInterface, NetworkInterfaces
from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.host_output import reading_output
from migrator.hosts.network_output import forwarding, interfaces, vlans

#: For scripts: all there is to see of interfaces, and of the VLANs of a bridge's ports.
SHOW_LINKS, SHOW_VLANS = "ip -j -d addr show 2>/dev/null", "bridge -j vlan show 2>/dev/null"
#: So many taps of a guest are looked up in their bridges' tables, and so much is read of each, characters.
_MOST_TAPS, _MOST_SHOWN = 64, 60_000
# What a process has open of /dev/net/tun the kernel names in its fdinfo, whoever made the tap and whatever its name.
_SCRIPT = f"""
known=$1 learned=$2; shift 2
[ -n "$known" ] || printf '%s\\0' "$({SHOW_LINKS})" "$({SHOW_VLANS})"
[ -z "$known" ] || printf '\\0\\0'
for pid; do
  case $pid in tap:*) continue ;; esac
  [ -r "/proc/$pid/fdinfo" ] && printf '%s\\n' "$pid" && grep -Hs '^iff:' /proc/"$pid"/fdinfo/*
done
printf '\\0'
[ -z "$learned" ] || for each; do
  case $each in
    tap:*) printf '%s\\n' "${{each#tap:}}" ;;
    *) sed -n 's/^iff:[[:space:]]*//p' /proc/"$each"/fdinfo/* 2>/dev/null ;;
  esac
done | sort -u | head -n {_MOST_TAPS} | while read -r tap; do
  shown=$(bridge -j fdb show brport "$tap" 2>/dev/null | tr -d '\\n')
  [ "${{#shown}}" -gt {_MOST_SHOWN} ] || printf '%s %s\\n' "$tap" "$shown"
done
printf '\\0end'
"""
_LINE = re.compile(r"/proc/(\d{1,10})/fdinfo/(\d{1,10}):iff:\s*(\S{1,256})")


async def read_guest_taps(
    access: HostAccess,
    pids: Iterable[int],
    *,
    links: NetworkInterfaces | None = None,
    learned_on: Sequence[str] | None = None,
    timeout: float = 10.0,
) -> dict[int, GuestTaps]:
    """Read for each of these processes the taps that it has open, and the interfaces that they hang on.

    :param links: the host's interfaces, where they have been read already.
    :param learned_on: read besides which addresses bridges have learned on the taps of these processes, and on the taps
        of these names; ``None``: do not.
    :raise HostError: the host cannot be asked.
    """
    wanted = list(pids)
    if not wanted:
        return {}
    output = await access.run(
        [
            *("sh", "-s", "--", "" if links is None else "known", "" if learned_on is None else "learned"),
            *map(str, wanted),
            *(f"tap:{name}" for name in learned_on or ()),
        ],
        stdin=_SCRIPT.encode(),
        timeout=timeout,
    )
    ip, bridge, taps, tables, end = (output.text.split("\0") + [""] * 5)[:5]
    if end != "end":
        raise HostError(access.name, f"its network cannot be read: {output.complaint or 'no answer'}")
    with reading_output(access.name, "its network"):
        shown = parse_links(ip, bridge) if links is None else links
        opened = parse_taps(taps)
        learned = parse_learned(tables)
    read = {int(line) for line in taps.splitlines() if line.isdecimal() and len(line) < 11}
    return {
        pid: GuestTaps(
            taps=tuple(dict.fromkeys(name for _, name in sorted(opened.get(pid, {}).items())))
            if pid in read
            else None,
            links=shown,
            learned=learned,
        )
        for pid in wanted
    }


def parse_taps(text: str) -> dict[int, dict[int, str]]:
    """Parse the interface behind each descriptor of each process."""
    opened: dict[int, dict[int, str]] = {}
    for match in _LINE.finditer(text):
        opened.setdefault(int(match[1]), {})[int(match[2])] = match[3]
    return opened


def parse_learned(text: str) -> Mapping[str, frozenset[str]]:
    """Parse the addresses that a bridge has learned on each tap; a tap whose table cannot be read is left out.

    :raise ValueError: the output is of another form.
    """
    found = {}
    for line in text.splitlines():
        tap, _, shown = line.partition(" ")
        if (entries := forwarding(shown)) is not None:
            found[tap] = frozenset(
                f"{each['mac']} in VLAN {each['vlan']}" if each.get("vlan") else each["mac"]
                for each in entries
                # Permanent ones are the tap's own; those without a master are no bridge's.
                if each.get("master") and each.get("state") != "permanent"
            )
    return found


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
        learning=info.get("info_slave_data", {}).get("learning", True),
        filters=bool(data.get("vlan_filtering")) if kind == "bridge" else False,
        vlans=vlans,
    )


def _vlan(each: Mapping[str, Any]) -> str:
    last = f"-{each['vlanEnd']}" if "vlanEnd" in each else ""
    return " ".join([f"{each.get('vlan')}{last}", *each.get("flags", ())])
