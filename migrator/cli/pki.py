"""``migrator pki``: the site's authority, and the certificates of its hosts."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from migrator import settings as configuration
from migrator import units
from migrator.certificates import key_hash
from migrator.cli import Exit, tables
from migrator.core.process.certificates import (
    CA_FILE,
    CLIENT_FILES,
    DH_FILE,
    SERVER_FILES,
    HostCertificates,
)
from migrator.errors import HostError, UsageError
from migrator.hosts.certificate_install import install_certificates
from migrator.hosts.certificates import read_certificates
from migrator.hosts.host_config import HostConfig, access, host_config
from migrator.pki.authority import DH_PARAMS, Authority
from migrator.settings import DEFAULT_PATH, Settings
from migrator.text import clean

_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class HostResult:
    """Outcome of a command at one host."""

    host: str
    directory: str
    #: ``issued``, ``kept``, ``none``, ``ours``, ``foreign``, ``unusable`` or ``failed``.
    result: str
    expires: str | None = None
    names: tuple[str, ...] = ()
    error: str = ""


def make_authority(config: Path | None, valid: str, *, json_output: bool) -> None:
    """Make the authority, and say where it is.

    :raise UsageError: there is one, or it cannot be written.
    """
    settings = configuration.load(config or DEFAULT_PATH)
    directory = settings.site.pki_dir
    made = Authority.make(directory, site=settings.site.name, days=_days(valid))
    expires = made.certificate.not_valid_after_utc.isoformat(timespec="seconds")
    if json_output:
        print(json.dumps({"directory": str(directory), "expires": expires}))
        return
    print(f"the authority of site {settings.site.name} is in {directory}, valid until {expires}")
    print("keep a copy of its key off-line; next: migrator pki issue HOST")


def issue(
    config: Path | None,
    hosts: Sequence[str],
    *,
    names: Sequence[str],
    owner: str,
    valid: str,
    replaces: bool,
    json_output: bool,
) -> None:
    """Issue certificates to hosts, and install them there.

    :raise UsageError: there is no authority, or no such host.
    """
    settings = configuration.load(config or DEFAULT_PATH)
    authority, days = Authority.read(settings.site.pki_dir), _days(valid)

    async def one(host: HostConfig) -> HostResult:
        found = await _read(host)
        if found.any and not replaces and _whose(found, authority) != "ours":
            raise HostError(
                host.name,
                f"there are certificates in {host.tls_dir} that this authority did not make; see --replace",
            )
        return await _install(authority, host, [*host.certificate_names, *names], days=days, owner=owner)

    _finish(_each(_configs(settings, hosts), one), json_output=json_output)


def renew(config: Path | None, hosts: Sequence[str], *, within: str, valid: str, json_output: bool) -> None:
    """Issue new certificates to hosts whose own expire soon.

    :raise UsageError: there is no authority, or no such host.
    """
    settings = configuration.load(config or DEFAULT_PATH)
    authority, days = Authority.read(settings.site.pki_dir), _days(valid)
    limit = time.time() + _option("--within", within)

    async def one(host: HostConfig) -> HostResult:
        found = await _read(host)
        whose = _whose(found, authority)
        if whose != "ours":
            return _result(host, found, whose)
        if (found.expires or 0.0) >= limit:
            return _result(host, found, "kept")
        before = found.server.names if found.server is not None else ()
        return await _install(authority, host, [*host.certificate_names, *before], days=days)

    _finish(_each(_configs(settings, hosts), one), json_output=json_output)


def show(config: Path | None, *, json_output: bool) -> None:
    """Show the authority, and what every host has.

    :raise UsageError: there is no authority.
    """
    settings = configuration.load(config or DEFAULT_PATH)
    authority = Authority.read(settings.site.pki_dir)

    async def one(host: HostConfig) -> HostResult:
        found = await _read(host)
        return _result(host, found, _whose(found, authority))

    about = {
        "directory": str(settings.site.pki_dir),
        "expires": authority.certificate.not_valid_after_utc.isoformat(timespec="seconds"),
    }
    results = _each(_configs(settings, []), one)
    if not json_output:
        print(f"authority: {about['directory']}, valid until {about['expires']}")
    _finish(results, json_output=json_output, about={"authority": about})


async def _install(
    authority: Authority, host: HostConfig, names: Sequence[str], *, days: int, owner: str = ""
) -> HostResult:
    issued = authority.issue(host.name, names, days=days)
    files = {CA_FILE: authority.pem, DH_FILE: DH_PARAMS}
    for certificate, key in (SERVER_FILES, CLIENT_FILES):
        files |= {key: issued.key, certificate: issued.certificate}
    host_access = access(host)
    try:
        await install_certificates(host_access, host.tls_dir, files, owner=owner)
    finally:
        await host_access.close()
    return HostResult(
        host=host.name,
        directory=host.tls_dir,
        result="issued",
        expires=issued.expires.isoformat(timespec="seconds"),
        names=tuple(dict.fromkeys(names)),
    )


async def _read(host: HostConfig) -> HostCertificates:
    host_access = access(host)
    try:
        return await read_certificates(host_access, host.tls_dir)
    finally:
        await host_access.close()


def _whose(found: HostCertificates, authority: Authority) -> str:
    """Return whether a host has certificates, and whether this authority made them."""
    if not found.any:
        return "none"
    if found.problems or found.server is None:
        return "unusable"
    ours = key_hash(authority.certificate)
    each = [cert.authority for cert in (found.server, found.client) if cert is not None]
    return "ours" if set(each) == {ours} else "foreign"


def _result(host: HostConfig, found: HostCertificates, result: str) -> HostResult:
    expires = found.expires
    return HostResult(
        host=host.name,
        directory=host.tls_dir,
        result=result,
        expires=None
        if expires is None
        else dt.datetime.fromtimestamp(expires, dt.UTC).isoformat(timespec="seconds"),
        names=found.server.names if found.server is not None else (),
        error="; ".join(found.problems),
    )


def _configs(settings: Settings, names: Sequence[str]) -> list[HostConfig]:
    known = {host.name: host for host in settings.hosts}
    for name in names:
        if name not in known:
            raise UsageError(f"there is no host {name!r} in the configuration; there are {', '.join(known)}")
    wanted = names or list(known)
    return [host_config(known[name], settings.hosts, settings.limits) for name in dict.fromkeys(wanted)]


def _each(
    hosts: Sequence[HostConfig], work: Callable[[HostConfig], Awaitable[HostResult]]
) -> list[HostResult]:
    """Do the same at each host, one after the other: what cannot be done at one harms no other."""

    async def all_of_them() -> list[HostResult]:
        results = []
        for host in hosts:
            try:
                results.append(await work(host))
            except HostError as error:
                results.append(
                    HostResult(host=host.name, directory=host.tls_dir, result="failed", error=str(error))
                )
        return results

    return asyncio.run(all_of_them())


def _finish(results: Sequence[HostResult], *, json_output: bool, about: dict[str, Any] | None = None) -> None:
    if json_output:
        print(json.dumps({**(about or {}), "hosts": [asdict(each) for each in results]}))
    else:
        rows = (
            (each.host, each.result, each.expires or "-", ", ".join(each.names) or "-", each.directory)
            for each in results
        )
        tables.table(("HOST", "CERTIFICATES", "EXPIRE", "NAMES", "DIRECTORY"), rows, empty="no hosts")
        for each in results:
            if each.error:
                print(f"migrator: {clean(each.error)}", file=sys.stderr)
    if any(each.result == "failed" for each in results):
        sys.exit(Exit.FAILED)


def _days(text: str) -> int:
    seconds = _option("--valid", text)
    if seconds < _DAY:
        raise UsageError(f"--valid: {text} is less than a day")
    return int(seconds // _DAY)


def _option(flag: str, text: str) -> float:
    try:
        return units.seconds(text)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from None
