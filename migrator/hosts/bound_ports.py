"""The ports and addresses of a host, as its kernel shows them. Pure; the scripts that read a host print them."""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterator

from migrator.core.process.listening import ANY, ANY_V4, TCP, UDP, ListeningPort

#: For a script: the sockets that listen or are bound. Connections, which may be many, stay there: ss has them left out
#: by the kernel, whose own tables are gone through to the end.
SOCKETS = rb"""ss -HOlntu 2>/dev/null || {
for t in tcp tcp6; do echo "=$t"; grep -a ' 0A ' /proc/net/$t; done
for t in udp udp6; do echo "=$t"; grep -a ' 07 ' /proc/net/$t; done
} 2>/dev/null
"""
_ROW = re.compile(r"^ *\d+: ([0-9A-F]+):([0-9A-F]{4}) ")
_SHOWN = re.compile(r"^(tcp|udp) +(?:LISTEN|UNCONN) +\d+ +\d+ +(\S+):(\d+) ")


def parse_sockets(text: str) -> frozenset[ListeningPort]:
    """Parse the output of :data:`SOCKETS`."""
    return frozenset(_sockets(text))


def _sockets(text: str) -> Iterator[ListeningPort]:
    protocol = TCP
    for line in text.splitlines():
        if line.startswith("="):
            protocol = TCP if line.startswith("=tcp") else UDP
        elif match := _ROW.match(line):
            yield ListeningPort(protocol, _address(match[1]), int(match[2], 16))
        elif match := _SHOWN.match(line):
            where = match[2].partition("%")[0].strip("[]").replace("*", ANY)
            yield ListeningPort(match[1], _plain(ipaddress.ip_address(where)), int(match[3]))


def parse_addresses(text: str) -> frozenset[str]:
    """Parse the output of ``ip -o addr show``."""
    return frozenset(re.findall(r" inet6? ([0-9a-f.:]+)/", text))


def _address(written: str) -> str:
    """Parse an address as the kernel writes it, in words of four bytes, each in the host's order.

    Wherever QEMU runs KVM, that is little endian.
    """
    words = [int(written[at : at + 8], 16) for at in range(0, len(written), 8)]
    return _plain(ipaddress.ip_address(struct.pack(f"<{len(words)}I", *words)))


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if int(address) == 0:
        return ANY if address.version == 6 else ANY_V4
    return str(address)
