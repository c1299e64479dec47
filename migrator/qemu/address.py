"""QMP addresses as people write them: ``unix:PATH``, ``tcp:HOST:PORT``, ``tls:HOST:PORT``, ``ssh:HOST:PATH``; IPv6 in
brackets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from migrator import addresses
from migrator.addresses import bracketed
from migrator.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a QMP monitor listens."""

    kind: str
    #: With ``unix`` and ``ssh``.
    path: str = ""
    #: With ``tcp``, ``tls`` and ``ssh``.
    host: str = ""
    #: With ``tcp`` and ``tls``.
    port: int = 0
    #: With ``ssh``; may be empty.
    user: str = ""

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        if self.kind == "ssh":
            user = f"{self.user}@" if self.user else ""
            return f"ssh:{user}{bracketed(self.host)}:{self.path}"
        return f"{self.kind}:{bracketed(self.host)}:{self.port}"


def parse(text: str) -> Address:
    """Read an address; a unix path is made absolute.

    :raise UsageError: with what was expected.
    """
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        path = str(Path(rest).absolute())
        if len(path.encode()) > 107:  # sun_path of struct sockaddr_un
            raise UsageError(
                f"{text!r}: a unix socket's path has at most 107 bytes; use a shorter one or a link"
            )
        return Address(kind=kind, path=path)
    if kind in ("tcp", "tls"):
        try:
            host, port = addresses.host_port(rest)
        except UsageError as error:
            raise UsageError(f"{text!r} is not a QMP address: {error}") from None
        return Address(kind=kind, host=host, port=port)
    if kind == "ssh":
        return _parse_ssh(text, rest)
    raise UsageError(
        f"{text!r} is not a QMP address: write unix:PATH, tcp:HOST:PORT, tls:HOST:PORT or ssh:HOST:PATH"
    )


def _parse_ssh(text: str, rest: str) -> Address:
    word = r"[^-@:\[\]\s][^@:\[\]\s]*"
    match = re.fullmatch(rf"(?:({word})@)?(\[[0-9A-Fa-f:.%\w]+\]|{word}):(/.*)", rest, re.DOTALL)
    if match is None:
        raise UsageError(f"{text!r} is not an SSH address: write ssh:HOST:/PATH or ssh:USER@HOST:/PATH")
    if len(os.fsencode(match[3])) > 107:
        raise UsageError(f"{text!r}: a unix socket's path has at most 107 bytes; use a shorter one or a link")
    try:
        host, _ = addresses.host_port(match[2], default=22)
    except UsageError as error:
        raise UsageError(f"{text!r} is not an SSH address: {error}") from None
    return Address(kind="ssh", user=match[1] or "", host=host, path=match[3])
