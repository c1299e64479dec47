"""Values as a person may write them: suffixes, paths, addresses; each becomes a base unit once, here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, StringConstraints, ValidationInfo
from pydantic_core import PydanticCustomError

from migrator import addresses, host_scope, units
from migrator.core.managed_guest import DaemonAddress
from migrator.core.policy import MOST_STREAMS
from migrator.errors import UsageError
from migrator.text import shortened


def wrong(message: str) -> PydanticCustomError:
    """Return the error that a validator raises; the message is shown as it is."""
    # As a parameter: braces in a message would be taken for parameters.
    return PydanticCustomError("wrong", "{message}", {"message": message})


def _in_units(parse: Callable[[str], Any]) -> BeforeValidator:
    def validate(value: Any) -> Any:
        if value is None:  # as it was understood before
            return None
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            value = str(value)
        try:
            return parse(_written(value))
        except UsageError as error:
            raise wrong(str(error)) from None

    return BeforeValidator(validate)


def _host_patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    try:
        return host_scope.checked(patterns)
    except UsageError as error:
        raise wrong(str(error)) from None


#: Names of hosts, or patterns of them; one at least.
HostPatterns = Annotated[tuple[str, ...], AfterValidator(_host_patterns)]


def _written(value: str | float) -> str:
    """Return the number as it would be typed; no exponent, which no unit takes."""
    return f"{value:f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _auto(parse: Callable[[str], int]) -> Callable[[str], int | None]:
    return lambda text: None if text.strip().lower() == "auto" else parse(text)


def _none(parse: Callable[[str], float]) -> Callable[[str], float | None]:
    return lambda text: None if text.strip().lower() == "none" else parse(text)


#: ``300ms``, ``10m``; seconds.
Seconds = Annotated[float, _in_units(units.seconds)]
#: ``10m``, or ``none``: without a limit.
SecondsOrNone = Annotated[float | None, _in_units(_none(units.seconds))]
#: ``64KiB``; bytes.
Size = Annotated[int, _in_units(units.size)]
#: ``10Gbit/s``; bytes per second.
Rate = Annotated[int, _in_units(units.rate)]


def _streams(text: str) -> int:
    if text not in map(str, range(1, MOST_STREAMS + 1)):
        raise UsageError(f"{shortened(text)} is no count of streams: give 1 to {MOST_STREAMS}, or auto")
    return int(text)


#: ``4``, or ``auto``.
StreamsOrAuto = Annotated[int | None, Field(ge=1, le=MOST_STREAMS), _in_units(_auto(_streams))]
#: ``1GiB/s``, or ``auto``.
RateOrAuto = Annotated[int | None, _in_units(_auto(units.rate))]
#: ``80%``, ``0.8``.
Ratio = Annotated[float, _in_units(units.ratio)]


#: Ids, hosts, sites, instances and users: what may be a part of a path, and a level of a topic.
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def _name(value: Any) -> Any:
    if isinstance(value, str) and not NAME.fullmatch(value):
        raise wrong(f"{shortened(value)} cannot be a name: use 1 to 64 of A-Z a-z 0-9 . _ -")
    return value


#: Ids, hosts, sites.
Name = Annotated[str, BeforeValidator(_name)]
#: Not empty, and no novel.
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


def _path(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        return value
    if not value or "\0" in value:
        raise wrong(f"{shortened(value)} is no path")
    # A relative one starts where the file is that it stands in.
    return (info.context or {}).get("directory", Path()) / Path(value).expanduser()


#: Absolute once it is loaded.
FilePath = Annotated[Path, BeforeValidator(_path)]


def _path_or_none(value: Any, info: ValidationInfo) -> Any:
    return None if value == "" else _path(value, info)


#: Empty: none.
OptionalPath = Annotated[Path | None, BeforeValidator(_path_or_none)]


def _secret(value: Any) -> Any:
    # Else the message would repeat what was given.
    if not isinstance(value, (str, SecretStr)):
        raise wrong("a secret is a string in quotes")
    return value


#: Never printed.
Secret = Annotated[SecretStr, BeforeValidator(_secret)]


def _url(value: Any) -> Any:
    if value == "" or not isinstance(value, str):
        return value
    if "@" in value:
        raise wrong("a URL with a name or a password would be in every log: put them into headers_file")
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        if good and not re.search(r"\s", value):
            addresses.host(parts.hostname or "")
    except UsageError as error:
        raise wrong(f"{shortened(value)} is no URL: {error}") from None
    except ValueError:  # a port that is none
        good = False
    if not good or re.search(r"[\s?#]", value):
        raise wrong(
            f"{shortened(value)} is no URL: write it like http://127.0.0.1:4318 or https://traces.example/v1/traces"
        )
    return value


#: ``https://host:port/path``, without secrets; may be empty.
Url = Annotated[str, BeforeValidator(_url)]

_DATABASE = re.compile(r"postgresql\+asyncpg://[^\s#]*/[^\s/?#]+(\?[^\s#]*)?")


def _database_url(value: Any) -> Any:
    if value == "" or not isinstance(value, str):
        return value
    user, _, rest = value.partition("://")[2].partition("@")
    if (rest and ":" in user) or "password=" in value:
        raise wrong("a password in the URL would be in every log: put it into password_file")
    if not _DATABASE.fullmatch(value):
        raise wrong(
            f"{shortened(value)} is no URL of a database: write it like postgresql+asyncpg://migrator@db.example/migrator"
        )
    return value


#: ``postgresql+asyncpg://user@host:port/database``, without a password; may be empty.
DatabaseUrl = Annotated[str, BeforeValidator(_database_url)]


@dataclass(frozen=True, kw_only=True)
class Ssh:
    """Where an SSH server is, from ``user@host:port``."""

    host: str
    port: int = 22
    #: Empty: as whom the service runs.
    user: str = ""


T = TypeVar("T")


def _checked(parse: Callable[[], T]) -> T:
    try:
        return parse()
    except UsageError as error:
        raise wrong(str(error)) from None


def _text(value: Any, parse: Callable[[str], str]) -> Any:
    return _checked(lambda: parse(value)) if isinstance(value, str) else value


#: A name or an address, IPv6 without brackets.
HostName = Annotated[str, BeforeValidator(lambda value: _text(value, addresses.host))]
#: May be empty.
OptionalHost = Annotated[str, BeforeValidator(lambda value: value and _text(value, addresses.host))]


def _reachable(value: Any) -> Any:
    if isinstance(value, str):
        return (_text(value, addresses.reachable),)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(each, str) for each in value):
        raise wrong(f"{shortened(value)} is no address: write 192.0.2.1, or a list of several")
    found = tuple(_text(each, addresses.reachable) for each in value)
    seen: set[str] = set()
    for each in found:
        if (same := _canonical(each)) in seen:
            raise wrong(f"{shortened(each)} is in it twice: leave one out")
        seen.add(same)
    return found


def _canonical(host: str) -> str:
    """Return the one spelling of an address, or of a name."""
    try:
        return str(ip_address(host))
    except ValueError:
        return host.lower()


#: One address that others can connect to, or several, the usual one first.
ReachableHosts = Annotated[tuple[str, ...], BeforeValidator(_reachable)]


def _ssh(value: Any) -> Any:
    match = re.fullmatch(
        r"(?:([^@\s:/]+)@)?(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|([^\s:@/\[\]]+))(?::([0-9]{1,5}))?",
        str(value),
    )
    if not isinstance(value, str) or match is None or str(value).startswith("-"):
        raise wrong(
            f"{shortened(value)} is no SSH address: write it like root@host-1, host-1:2222 or root@[fd00::1]:22"
        )
    where = value.rpartition("@")[2]
    host, port = _checked(lambda: addresses.host_port(where, default=22))
    return Ssh(user=match[1] or "", host=host, port=port)


#: ``user@host:port``.
SshAddress = Annotated[Ssh, BeforeValidator(_ssh)]


@dataclass(frozen=True, kw_only=True)
class Listen:
    """Where to listen, from ``HOST:PORT``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        return self.host in ("::1", "localhost") or self.host.startswith("127.")


def _listen(value: Any) -> Any:
    if value == "":
        return None
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|([^\s:\[\]]+)):([0-9]{1,5})", str(value))
    if match is None:
        raise wrong(
            f"{shortened(value)} is no address to listen at: write it like 127.0.0.1:8443 or [::]:8443"
        )
    host, port = _checked(lambda: addresses.host_port(str(value), least=0))
    return Listen(host=host, port=port)


#: ``HOST:PORT``; empty: nowhere.
ListenAddress = Annotated[Listen | None, BeforeValidator(_listen)]


def _auto_or_bool(value: Any) -> Any:
    if value == "auto":
        return None
    if isinstance(value, str) and value in ("true", "false"):  # from a variable
        return value == "true"
    if value is None or isinstance(value, bool):
        return value
    raise wrong(f'{shortened(value)} is none of true, false and "auto"')


#: ``true``, ``false``, or ``"auto"``, which is ``None``.
AutoOrBool = Annotated[bool | None, BeforeValidator(_auto_or_bool)]


def _libvirt(value: Any) -> Any:
    if isinstance(value, str):
        try:
            DaemonAddress.parse(value)
        except ValueError as error:
            raise wrong(str(error)) from error
    return value


#: ``"auto"``, ``"off"``, or a URI of libvirt's as its host sees it.
LibvirtDaemon = Annotated[str, BeforeValidator(_libvirt)]


def _peer_uri(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        return value
    try:
        filled = value.format(address="192.0.2.1", name="host")
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise wrong(
            f"{shortened(value)} names what does not exist; there are {{address}} and {{name}}"
        ) from None
    if not urlsplit(filled).scheme.startswith("qemu+"):
        raise wrong(
            f"{shortened(value)} is no URI that leads to another host: write qemu+tls://{{address}}/system"
        )
    return value


#: URI by which another libvirtd reaches a host's, with ``{address}`` and ``{name}`` of that; or empty.
LibvirtPeer = Annotated[str, BeforeValidator(_peer_uri)]


def _mode(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3}", value):
        return int(value, 8)
    raise wrong(f'{shortened(value)} is no file mode: write it in quotes, like "0660"')


#: ``"0660"``.
FileMode = Annotated[int, BeforeValidator(_mode)]
