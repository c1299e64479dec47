"""QMP addresses as people write them: ``unix:PATH``, ``tcp:HOST:PORT``, ``tls:HOST:PORT``; IPv6 in brackets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from migrator.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a QMP monitor listens."""

    kind: str
    #: With ``unix``.
    path: str = ""
    #: With ``tcp`` and ``tls``.
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return (
            f"unix:{self.path}" if self.kind == "unix" else f"{self.kind}:{bracketed(self.host)}:{self.port}"
        )


def bracketed(host: str) -> str:
    """`host` as it stands before a port: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


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
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^:\[\]]+):(\d{1,5})", rest)
    if kind in ("tcp", "tls") and match is not None and 0 < int(match[2]) < 65536:
        return Address(kind=kind, host=match[1].strip("[]"), port=int(match[2]))
    if kind == "ssh":
        raise UsageError(
            f"{text!r}: ssh addresses are not supported by direct yet; forward the socket with ssh -L"
        )
    raise UsageError(f"{text!r} is not a QMP address: write unix:PATH, tcp:HOST:PORT or tls:HOST:PORT")
