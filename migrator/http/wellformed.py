"""Checks of a request before anything of it is done: its size, its framing, and for whom it is."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable

from starlette.types import Scope

from migrator.http.problems import ProblemError
from migrator.text import shortened

#: Names that are always ours; an address is too: nobody can make a browser believe that it is another site's.
_LOCAL = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
#: Of what a request line and a header add to what they hold.
_LINE_BYTES = 4


def require_well_formed(scope: Scope, *, head_bytes: int, hosts: Collection[str], any_host: bool) -> None:
    """Check one request by its head alone.

    :param head_bytes: the largest head that is taken.
    :param hosts: names of this service, in lower case.
    :param any_host: by a Unix socket no name matters.
    :raise ProblemError: 400, 421 or 431; the connection is to be closed after it.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    size = len(scope["raw_path"]) + len(scope["query_string"])
    size += sum(len(name) + len(value) + _LINE_BYTES for name, value in headers)
    if size > head_bytes:
        raise _closing(431, "head-too-large", f"the request's head is larger than {head_bytes} bytes")
    names = [name for name, _ in headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise _closing(
            400, "ambiguous-length", "give Content-Length or Transfer-Encoding, never both: they may disagree"
        )
    if any_host:
        return
    given = next((value for name, value in headers if name == b"host"), b"").decode("latin-1")
    name = host_name(given)
    wild = f"*.{name.partition('.')[2]}"  # as certificates have them
    if not name or not (name in _LOCAL or name in hosts or wild in hosts or _is_address(name)):
        raise _closing(
            421,
            "unknown-host",
            f"this service is not known as {shortened(given)}: add that name to [http] hosts, or use one that is known",
        )


def host_name(header: str) -> str:
    """The name in a header ``Host``, in lower case and without its port; empty where it is none."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


def known_names(names: Iterable[str]) -> frozenset[str]:
    """Names of a service as they are compared."""
    return frozenset(name.lower().strip("[]").removesuffix(".") for name in names if name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _closing(status: int, code: str, detail: str) -> ProblemError:
    return ProblemError(status, code, detail, headers={"Connection": "close"})
