"""``migrator doctor``: everything that the service needs, looked at from here. Changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import sys
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from migrator import settings as configuration
from migrator.cli import Exit
from migrator.cli.diagnosis import DoctorCheck, Level, fail, ok, open_to_all, warn
from migrator.cli.doctor_broker import broker
from migrator.cli.doctor_hosts import hosts
from migrator.cli.doctor_server import journal_server
from migrator.cli.doctor_service import journal, running, state_directory
from migrator.errors import UsageError
from migrator.settings import DEFAULT_PATH, Settings
from migrator.store.backend import Server
from migrator.store.place import journal_place
from migrator.text import clean
from migrator.tls import File, server_context

_COLOURS = {Level.OK: "32", Level.WARN: "33", Level.FAIL: "1;31"}
#: A certificate that ends sooner is worth a warning.
_CERTIFICATE_LASTS = timedelta(days=21)


def main(config: Path | None, *, json_output: bool) -> None:
    """Print what was found, and exit with 0, or with 1 when something is wrong."""
    found = asyncio.run(_print_all(config or DEFAULT_PATH, json_output=json_output))
    count = {level: sum(each.level is level for each in found) for level in Level}
    if json_output:
        checks = [
            {"level": each.level, "about": each.about, "message": each.text, "remedy": each.remedy}
            for each in found
        ]
        print(json.dumps({"ok": not count[Level.FAIL], "checks": checks}))
    else:
        print(f"{count[Level.OK]} ok, {count[Level.WARN]} to know, {count[Level.FAIL]} wrong")
    sys.exit(Exit.FAILED if count[Level.FAIL] else Exit.DONE)


async def _print_all(path: Path, *, json_output: bool) -> list[DoctorCheck]:
    found: list[DoctorCheck] = []
    async for checks in examine(path):
        for check in checks:
            found.append(check)
            if not json_output:
                print(_line(check), flush=True)
    return found


def _line(check: DoctorCheck) -> str:
    level = f"{check.level:<4}"
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        level = f"\x1b[{_COLOURS[check.level]}m{level}\x1b[0m"
    remedy = f"; {check.remedy}" if check.remedy else ""
    return f"{level}  {clean(f'{check.about}: {check.text}{remedy}')}"


async def examine(path: Path) -> AsyncIterator[list[DoctorCheck]]:
    """Yield every check, those that belong together at a time; each is bounded in time.

    A configuration that cannot be used ends it: nothing else is known then.
    """
    try:
        settings = configuration.load(path)
    except UsageError as error:
        yield [fail("configuration", line) for line in str(error).splitlines()]
        return
    yield list(_configuration(settings, path))
    yield state_directory(settings.store.path)
    place = journal_place(settings.store)
    if isinstance(place, Server):
        yield await journal_server(place, settings.site)
    else:
        yield await asyncio.to_thread(journal, place)
    service = await asyncio.to_thread(running, settings)
    yield service.checks
    async for checks in hosts(settings, service):
        yield checks
    yield await broker(settings, service)


def _configuration(settings: Settings, path: Path) -> Iterable[DoctorCheck]:
    about = "configuration"
    complaints = [*_entrance(settings), *_secrets(settings, path), *_certificate(settings), *_user(settings)]
    if not settings.hosts:
        complaints.append(fail(about, f"{path} names no host", "add [[hosts]]"))
    yield from complaints
    if not any(check.level is Level.FAIL for check in complaints):
        count = len(settings.hosts)
        yield ok(about, f"{path}: {count} host{'' if count == 1 else 's'}")


def _entrance(settings: Settings) -> Iterable[DoctorCheck]:
    mode = settings.http.socket_mode
    if settings.http.socket is not None and mode & 0o002:
        text = f'socket_mode = "{mode:04o}": everybody on this machine may open the API\'s socket and is an operator'
        yield fail(
            "API socket", text, 'set [http] socket_mode = "0660", and socket_group to the operators\' group'
        )


def _secrets(settings: Settings, path: Path) -> Iterable[DoctorCheck]:
    about = "configuration"
    mqtt, http = settings.mqtt, settings.http
    if mqtt.password_file is not None:
        yield from open_to_all(about, mqtt.password_file, "[mqtt] password_file")
    elif mqtt.password.get_secret_value() and "MIGRATOR_MQTT_PASSWORD" not in os.environ:
        yield from open_to_all(about, path, "a password is in the configuration, and")
    keys = [(mqtt.tls_key, "[mqtt] tls_key"), (http.tls_key, "[http] tls_key")]
    keys += [(file, "SSH key_file") for file in {host.key_file for host in settings.hosts if host.ssh}]
    for file, what in keys:
        if file is not None:
            yield from open_to_all(about, file, what)


def _certificate(settings: Settings) -> Iterable[DoctorCheck]:
    file = settings.http.tls_certificate
    if file is None:
        return
    about = "configuration"
    try:
        server_context(
            certificate=File(name="[http] tls_certificate", path=file),
            key=File(name="[http] tls_key", path=settings.http.tls_key) if settings.http.tls_key else None,
        )
    except UsageError as error:
        yield fail(about, str(error), "put a certificate and its key there")
        return
    from cryptography import x509  # noqa: PLC0415 - most have none

    end = x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    left = end - datetime.now(UTC)
    if left < timedelta(0):
        yield fail(about, f"[http] {file} has expired on {end:%Y-%m-%d}", "renew it and restart the service")
    elif left < _CERTIFICATE_LASTS:
        yield warn(about, f"[http] {file} expires on {end:%Y-%m-%d}", "renew it and restart the service")


def _user(settings: Settings) -> Iterable[DoctorCheck]:
    """Check who runs the doctor: only the service's own rights and keys count."""
    try:
        owner = settings.store.path.parent.stat().st_uid
    except OSError:
        return
    if owner != os.geteuid():
        name, mine = _name(owner), _name(os.geteuid())
        yield warn(
            "configuration",
            f"this was run by {mine}, the service seems to run as {name}: its rights and SSH keys are others",
            f"setpriv --reuid {name} --regid {name} --init-groups --reset-env migrator doctor",
        )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
