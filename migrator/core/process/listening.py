"""Ports that a QEMU listens at, as its command line asks for them, and whether they can be had on a host. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from migrator.core.process.options import FIRST, Value, read

TCP, UDP = "tcp", "udp"
#: Every address of both families, and of IPv4 alone.
ANY, ANY_V4 = "::", "0.0.0.0"  # noqa: S104 - nothing is bound to it here
_VNC, _WEBSOCKET = 5900, 5700
#: Options that are character devices written out, and the prefixes of those that are on the network.
_CHARACTER = frozenset({"serial", "parallel", "monitor", "debugcon"})
_STREAMS = frozenset({"tcp", "telnet", "websocket", "tn3270"})
_NETWORK = frozenset({"netdev", "nic", "net"})
LAST_PORT = 65535


@dataclass(frozen=True, order=True)
class ListeningPort:
    """A port of a host, or a range of which the first free one is taken."""

    protocol: str
    #: :data:`ANY`, :data:`ANY_V4`, an address, or a name that only its host can look up.
    address: str
    number: int
    #: The last one that would do; 0: only `number`.
    last: int = 0

    def __str__(self) -> str:
        where = "" if self.address == ANY else f"[{self.address}]" if ":" in self.address else self.address
        last = f" to {self.last}" if self.last > self.number else ""
        return f"{self.protocol} {where}:{self.number}{last}".replace(
            f"{self.protocol} :", f"{self.protocol} "
        )

    def at(self, number: int) -> ListeningPort:
        """Return the same port at another number, and only there."""
        return replace(self, number=number, last=0)

    @classmethod
    def of(cls, protocol: str, address: str, number: int, last: int) -> ListeningPort:
        """Return the port that :meth:`fields` described."""
        return cls(protocol, address, number, last)

    def fields(self) -> list[str | int]:
        """Return the port as plain JSON."""
        return [self.protocol, self.address, self.number, self.last]


@dataclass(frozen=True, kw_only=True)
class ListeningOption:
    """One option of a command line that listens."""

    #: For a message: ``-vnc``, ``-netdev net0``.
    what: str
    port: ListeningPort
    #: Where in the value of the option the number stands.
    key: str = ""


def collides(one: ListeningPort, other: ListeningPort) -> bool:
    """Tell whether one process cannot have the second port while another has the first; both are single ports."""
    if (one.protocol, one.number) != (other.protocol, other.number):
        return False
    mine, theirs = _addresses(one.address), _addresses(other.address)
    return any(_overlap(here, there) for here in mine for there in theirs)


def _addresses(address: str) -> tuple[str, ...]:
    return ("127.0.0.1", "::1") if address == "localhost" else (address,)


def _overlap(one: str, other: str) -> bool:
    if ANY in (one, other) or one == other:
        return True
    return ANY_V4 in (one, other) and ":" not in one + other


def port_taken(port: ListeningPort, bound: Collection[ListeningPort]) -> ListeningPort | None:
    """Return the port that is in the way of the last number of the range; ``None`` where a number can be had."""
    found: ListeningPort | None = None
    for number in range(port.number, max(port.number, port.last) + 1):
        found = next((each for each in bound if collides(each, port.at(number))), None)
        if found is None:
            return None
    return found


def next_free_number(port: ListeningPort, bound: Collection[ListeningPort]) -> int:
    """Return the next number that can be had with this address; 0 where there is none."""
    for number in range(max(port.number, port.last) + 1, LAST_PORT + 1):
        if port_taken(port.at(number), bound) is None:
            return number
    return 0


def missing_address(port: ListeningPort, addresses: Collection[str]) -> bool:
    """Tell whether the port names an address that a host with these does not have; names are not looked up."""
    address = port.address
    if not addresses or address in (ANY, ANY_V4, "localhost") or not _is_literal(address):
        return False
    return address not in addresses and not address.startswith("127.")


def _is_literal(address: str) -> bool:
    return ":" in address or address.replace(".", "").isdigit()


def without(bound: Iterable[ListeningPort], listens: Collection[ListeningPort]) -> frozenset[ListeningPort]:
    """Return those of a host's ports that are not one of these, ranges included."""
    numbers: dict[tuple[str, int], list[ListeningPort]] = {}
    for each in listens:
        for number in range(each.number, max(each.number, each.last) + 1):
            numbers.setdefault((each.protocol, number), []).append(each.at(number))
    return frozenset(
        port
        for port in bound
        if not any(collides(port, mine) for mine in numbers.get((port.protocol, port.number), ()))
    )


# --- what a command line asks for ------------------------------------------------------------------------------------


def listens(arguments: Iterable[str]) -> tuple[ListeningPort, ...]:
    """Return every port that a QEMU with these arguments (its program left out) would listen at."""
    found = (
        each.port
        for name, text in read(list(arguments))
        for each in of_option(name, text or "", Value(text or "", first=FIRST.get(name, "")))
    )
    return tuple(dict.fromkeys(found))


def of_option(name: str, text: str, value: Value) -> Iterator[ListeningOption]:
    """Yield the ports of one option; what QEMU chooses by itself (port 0) is none."""
    for each in _of_option(name, text, value):
        if 0 < each.port.number <= LAST_PORT:
            yield each


def _of_option(name: str, text: str, value: Value) -> Iterator[ListeningOption]:
    what = f"-{name} {value.get('id')}".rstrip()
    if name in _NETWORK:
        yield from _of_network(what, value)
    elif name == "chardev":
        yield from _of_chardev(what, value)
    elif name in _CHARACTER:
        yield from _of_character(what, text)
    elif name == "spice" and not value.is_on("unix"):
        address = _address(value.get("addr"))
        for key in ("port", "tls-port"):
            yield ListeningOption(
                what=what, port=ListeningPort(TCP, address, _number(value.get(key))), key=key
            )
    elif name == "vnc":
        yield from _of_vnc(f"-{name}", value)


def _of_network(what: str, value: Value) -> Iterator[ListeningOption]:
    for forward in value.all("hostfwd"):
        protocol, _, rest = forward.partition(":")
        host, _, number = rest.rpartition("-")[0].rpartition(":")
        port = ListeningPort(protocol or TCP, _address(host, otherwise=ANY_V4), _number(number))
        yield ListeningOption(what=what, port=port, key="hostfwd")
    kind = value.get("type")
    if kind == "socket":
        host, _, number = value.get("listen").rpartition(":")
        yield ListeningOption(
            what=what,
            port=ListeningPort(TCP, _address(host, otherwise=ANY_V4), _number(number)),
            key="listen",
        )
        if value.get("udp"):
            host, _, number = value.get("localaddr").rpartition(":")
            port = ListeningPort(UDP, _address(host, otherwise=ANY_V4), _number(number))
            yield ListeningOption(what=what, port=port, key="localaddr")
    elif kind == "stream" and value.is_on("server") and value.get("addr.type") == "inet":
        port = ListeningPort(TCP, _address(value.get("addr.host")), _number(value.get("addr.port")))
        yield ListeningOption(what=what, port=port, key="addr.port")
    elif kind == "dgram" and value.get("local.type") == "inet":
        port = ListeningPort(UDP, _address(value.get("local.host")), _number(value.get("local.port")))
        yield ListeningOption(what=what, port=port, key="local.port")


def _of_chardev(what: str, value: Value) -> Iterator[ListeningOption]:
    backend = value.get("backend")
    if backend == "socket" and value.is_on("server") and not value.get("path"):
        port = ListeningPort(
            TCP, _address(value.get("host")), _number(value.get("port")), _number(value.get("to"))
        )
        yield ListeningOption(what=what, port=port, key="port")
    elif backend == "udp":
        port = ListeningPort(UDP, _address(value.get("localaddr")), _number(value.get("localport")))
        yield ListeningOption(what=what, port=port, key="localport")


def _of_character(what: str, text: str) -> Iterator[ListeningOption]:
    kind, _, rest = text.removeprefix("mon:").partition(":")
    if kind in _STREAMS:
        value = Value(rest, first="address")
        host, _, number = value.get("address").rpartition(":")
        if value.is_on("server"):
            port = ListeningPort(TCP, _address(host), _number(number), _number(value.get("to")))
            yield ListeningOption(what=what, port=port, key="address")
    elif kind == "udp" and "@" in rest:
        host, _, number = rest.rpartition("@")[2].rpartition(":")
        yield ListeningOption(
            what=what, port=ListeningPort(UDP, _address(host), _number(number)), key="address"
        )


def _of_vnc(what: str, value: Value) -> Iterator[ListeningOption]:
    display = value.get("vnc")
    if display in ("", "none", "on") or display.startswith("unix:") or value.is_on("reverse"):
        return
    host, _, number = display.rpartition(":")
    if not number.isdecimal():
        return
    address, last = _address(host), _number(value.get("to"))
    port = ListeningPort(TCP, address, _VNC + int(number), _VNC + last if last else 0)
    yield ListeningOption(what=what, port=port, key="vnc")
    if websocket := value.get("websocket"):
        own, _, named = websocket.rpartition(":")
        at = _WEBSOCKET + int(number) if websocket == "on" else _number(named)
        yield ListeningOption(
            what=what, port=ListeningPort(TCP, _address(own) if own else address, at), key="websocket"
        )


def with_number(each: ListeningOption, text: str, value: Value, number: int) -> str:
    """Return the option's value with another number at that place; `value` is of the same text."""
    old = str(each.port.number)
    if each.key == "vnc":
        host = value.get("vnc").rpartition(":")[0]
        value.set("vnc", f"{host}:{number - _VNC}")
        return str(value)
    if each.key == "hostfwd":
        return text.replace(f":{old}-", f":{number}-", 1)
    if each.key == "address":
        head, mark, rest = text.rpartition("@") if "@" in text else ("", "", text)
        address, comma, options = rest.partition(",")
        return head + mark + address[: len(address) - len(old)] + str(number) + comma + options
    if each.key in ("listen", "localaddr"):
        value.set(each.key, f"{value.get(each.key).rpartition(':')[0]}:{number}")
        return str(value)
    if each.key == "websocket":
        host = value.get("websocket").rpartition(":")[0]
        value.set("websocket", f"{host}:{number}" if host else str(number))
        return str(value)
    value.set(each.key, str(number))
    return str(value)


def _address(text: str, *, otherwise: str = ANY) -> str:
    address = text.strip("[]")
    if address in ("", "*"):
        return otherwise
    return ANY if address == "::" else address


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
