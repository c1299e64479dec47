"""Names and addresses of hosts as people write them: what is none is refused here, with what was meant. Pure.

``getaddrinfo`` takes much that nobody means: ``10.66`` is 10.0.0.66 to it, ``012`` is ten, and what it does not know it
asks the network for.
"""

from __future__ import annotations

import ipaddress
import re

from migrator.errors import UsageError
from migrator.text import shortened

#: Where the service listens on its own machine, and who asks it looks for it, where nothing else is said.
SERVICE_SOCKET = "/run/migrator/api.sock"

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_ZONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")
_PORTS = 65535
#: Longest name, by RFC 1035.
_LONGEST = 253


def host(text: str) -> str:
    """A name or an address, IPv6 without brackets, as it was given.

    :raise UsageError: it is none; says why, and what to write.
    """
    why = _why_no_host(text)
    if why:
        raise UsageError(f"{shortened(text)} is no host: {why}")
    return text


def reachable(text: str) -> str:
    """Check an address as :func:`host` does, and that other hosts can connect to it.

    :raise UsageError: as there; or no other host ever reaches that.
    """
    address = _address(host(text))
    if address is None:
        return text
    if address.is_unspecified:
        raise UsageError(f"{shortened(text)} is where to listen, not where to be reached: give one address")
    if address.is_multicast or text == "255.255.255.255":
        raise UsageError(f"{shortened(text)} is the address of many: give the one of this host")
    if isinstance(address, ipaddress.IPv6Address) and address.is_link_local and not address.scope_id:
        raise UsageError(f"{shortened(text)} is on every link: add the interface, {text}%eth0")
    return text


def port(text: str, *, least: int = 1) -> int:
    """A number of a port.

    :param least: 0 where any free one is meant by it.
    :raise UsageError: there is no such port.
    """
    if not re.fullmatch(r"[0-9]{1,5}", text) or not least <= int(text) <= _PORTS:
        raise UsageError(f"there is no port {shortened(text)[1:-1]}: they go from {least} to {_PORTS}")
    return int(text)


def host_port(text: str, *, least: int = 1, default: int | None = None) -> tuple[str, int]:
    """``HOST:PORT``, IPv6 in brackets.

    :param default: the port where none is given; ``None``: one has to be.
    :raise UsageError: it is none; says why, and what to write.
    """
    inner = re.fullmatch(r"\[([^\[\]]*)\](?::([^:]*))?", text)
    if inner is not None:
        name, number = inner[1], inner[2]
        if ":" not in name:
            raise UsageError(
                f"{shortened(text)}: brackets are for IPv6 only: {_write(text[1:].replace(']', '', 1))}"
            )
    elif text.count(":") > 1:
        raise UsageError(_unbracketed(text))
    else:
        name, colon, rest = text.partition(":")
        number = rest if colon else None
    if not name:
        raise UsageError(f"{shortened(text)} has no host: {_write(f'127.0.0.1{text} or [::]{text}')}")
    host(name)
    if number is None:
        if default is None:
            raise UsageError(f"{shortened(text)} has no port: {_write(f'{text}:PORT')}")
        return name, default
    return name, port(number, least=least)


def _write(text: str) -> str:
    plain = text.isascii() and text.replace(" or ", "").isprintable() and 0 < len(text) <= _LONGEST + 8
    return f"write {text}" if plain else "write the name or the address alone"


def bracketed(name: str) -> str:
    """Return the host as it stands before a port: IPv6 in brackets."""
    return f"[{name}]" if ":" in name else name


def stream_host(listen: str) -> str:
    """Return the host of where a stream is taken, ``tcp:HOST:PORT``, IPv6 without brackets."""
    return listen.removeprefix("tcp:").rpartition(":")[0].strip("[]")


def _unbracketed(text: str) -> str:
    head, _, tail = text.rpartition(":")
    if _address(text) is not None:
        meant = f"[{text}]:PORT"
        if _address(head) is not None and tail.isdecimal():
            meant = f"[{head}]:{tail} or [{text}]:PORT"
        return f"{shortened(text)}: IPv6 stands in brackets before a port: write {meant}"
    if _address(head) is not None and tail.isdecimal():
        return f"{shortened(text)}: IPv6 stands in brackets before a port: write [{head}]:{tail}"
    return f"{shortened(text)} is no HOST:PORT: write it like 10.0.0.1:4444, host-1:4444 or [fd00::1]:4444"


def _why_no_host(text: str) -> str:
    if not text:
        return "it is empty"
    if len(text) > _LONGEST:
        return f"a name has at most {_LONGEST} characters"
    if text.startswith("[") and text.endswith("]") and _address(text[1:-1]) is not None:
        return f"write it without brackets: {text[1:-1]}"
    if "://" in text:
        return f"that is a URL: {_write(_of_url(text))}"
    if "/" in text:
        return f"that is a network: {_write(text.partition('/')[0])}"
    if re.search(r"\s|[^\x21-\x7e]", text):
        return _not_ascii(text)
    if "@" in text:
        return f"a user has no place in it: {_write(text.rpartition('@')[2])}"
    if ":" in text:
        return _with_colon(text)
    if re.fullmatch(r"[0-9.]+|0[xX][0-9A-Fa-f.xX]+", text):
        return _numeric(text)
    return _why_no_name(text)


def _why_no_name(text: str) -> str:
    name = text.removesuffix(".")
    if len(name) > 253:
        return "a name has at most 253 characters"
    for label in name.split("."):
        if not _LABEL.fullmatch(label):
            return (
                f"{shortened(label)} in it is no part of a name: use A-Z a-z 0-9 -"
                if label
                else "two dots in a row"
            )
    last = name.rpartition(".")[2]
    if last.isdecimal():
        return "the last part of a name is no number, and an IPv4 address is four numbers of 0 to 255"
    return ""


def _of_url(text: str) -> str:
    inner = text.partition("://")[2].partition("/")[0].rpartition("@")[2]
    return (
        inner
        if _address(inner) is not None
        else inner.strip("[]")
        if inner[:1] == "["
        else inner.partition(":")[0]
    )


def _not_ascii(text: str) -> str:
    if re.search(r"\s", text):
        return "there is a blank in it"
    try:
        name = text.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    plain = re.fullmatch(r"[A-Za-z0-9._-]+", name) and not _why_no_name(name)
    return f"write it as the name system does: {name}" if plain else "a name is of A-Z a-z 0-9 - ."


def _with_colon(text: str) -> str:
    address, _, zone = text.partition("%")
    if _address(address) is not None:
        if "%" not in text or _ZONE.fullmatch(zone):
            return ""
        return f"{shortened(zone)} is no interface"
    name, _, number = text.rpartition(":")
    if number.isdecimal() and not _why_no_host(name.removeprefix("[").removesuffix("]")):
        return f"a port has no place in it: write {name.removeprefix('[').removesuffix(']')}"
    return "it is no IPv6 address: eight groups of up to four hexadecimal digits, like fd00::1"


def _numeric(text: str) -> str:
    parts = text.split(".")
    if re.search(r"[xX]", text) or len(parts) != 4 or not all(parts):
        return "an IPv4 address is four numbers of 0 to 255, like 10.0.0.1"
    if any(int(part) > 255 for part in parts):
        wrong = next(part for part in parts if int(part) > 255)
        return f"{wrong} in it is more than 255"
    if any(len(part) > 1 and part.startswith("0") for part in parts):
        return f"a leading zero may mean an octal number: write {'.'.join(str(int(part)) for part in parts)}"
    return ""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
