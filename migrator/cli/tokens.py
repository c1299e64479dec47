"""``migrator token``: makes, lists and ends what opens the service over TCP."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from migrator import host_scope, units
from migrator import settings as configuration
from migrator.cli import Exit, tables
from migrator.errors import JournalError, UsageError
from migrator.settings import DEFAULT_PATH, Settings
from migrator.store import schema, sqlite
from migrator.store.place import journal_place
from migrator.store.tokens import Token, Tokens
from migrator.text import clean

T = TypeVar("T")

#: Lifetime of a token for which no other was given.
_DEFAULT_LIFETIME = "90d"
#: Columns of the list.
HEADER = ("NAME", "ROLE", "ID", "CREATED", "EXPIRES", "STATE", "HOSTS")


def create(
    config: Path | None,
    name: str,
    role: str,
    expires: str | None,
    *,
    hosts: Sequence[str],
    json_output: bool,
) -> None:
    """Create a token, and print it alone on standard output.

    :param hosts: what it is limited to; none: it is for all.
    :raise UsageError: the name, the role, the time or a host cannot be; nothing was made.
    """
    settings = configuration.load(config or DEFAULT_PATH)
    now = datetime.now(UTC)
    expires_at = None if expires == "never" else _end(now, expires or _DEFAULT_LIFETIME)

    if hosts:
        host_scope.checked(hosts)
    known = [each.name for each in settings.hosts]
    for pattern in hosts:
        if not any(host_scope.covers([pattern], each) for each in known):
            _note(f"there is no host {pattern} in the configuration (there are {', '.join(known[:20])})")

    async def make(tokens: Tokens) -> tuple[str, Token]:
        secret = await tokens.create(name=name, role=role, expires_at=expires_at, hosts=hosts or None)
        return secret, next(each for each in await tokens.list() if each.id == secret.split("_")[1])

    secret, token = _with(settings, make)
    if json_output:
        print(json.dumps({**_document(token, now), "token": secret}))
        return
    print(secret)
    until = "until it is revoked" if expires_at is None else f"until {_moment(expires_at)}"
    _note(
        f"this is the only time that it is shown; it holds {until}. To use it: MIGRATOR_TOKEN, or the HTTP header "
        "'Authorization: Bearer ...'"
    )
    if settings.http.listen is None:
        _note("the service does not listen on TCP, and its Unix socket asks for no token: see [http] listen")


def show_all(config: Path | None, *, json_output: bool) -> None:
    """Print all tokens, also those that no longer hold; never what opens the service."""
    settings = configuration.load(config or DEFAULT_PATH)
    found, now = _with(settings, lambda tokens: tokens.list()), datetime.now(UTC)
    if json_output:
        print(json.dumps({"items": [_document(each, now) for each in found]}))
        return
    rows = (
        (
            each.name,
            each.role,
            each.id,
            _moment(each.created_at),
            "never" if each.expires_at is None else _moment(each.expires_at),
            _state(each, now),
            "all" if each.hosts is None else " ".join(each.hosts),
        )
        for each in found
    )
    tables.table(
        HEADER, rows, empty="there are no tokens; make one with: migrator token create NAME --role viewer"
    )


def revoke(config: Path | None, which: str, *, json_output: bool) -> None:
    """Revoke one token.

    :raise UsageError: there is none of that name or id that has not been revoked.
    """
    settings = configuration.load(config or DEFAULT_PATH)
    token = _with(settings, lambda tokens: tokens.revoke(which))
    if json_output:
        print(json.dumps({"id": token.id, "name": token.name, "state": "revoked"}))
    else:
        print(f"the token {token.name} ({token.id}) is revoked")


def names(config: Path | None) -> list[str]:
    """Return the names of all tokens not revoked; none where there is no journal of this version yet.

    :raise MigratorError: configuration or journal cannot be read; ``OSError`` and ``sqlite3.Error`` likewise.
    """
    place = journal_place(configuration.load(config or DEFAULT_PATH).store)
    if isinstance(place, Path) and (not place.exists() or sqlite.present(place) != schema.HEAD):
        return []

    async def read() -> list[str]:
        async with await Tokens.open(place) as tokens:
            return [token.name for token in await tokens.list() if token.revoked_at is None]

    return asyncio.run(read())


def _with(settings: Settings, work: Callable[[Tokens], Awaitable[T]]) -> T:
    async def run() -> T:
        async with await Tokens.open(journal_place(settings.store)) as tokens:
            return await work(tokens)

    try:
        return asyncio.run(run())
    except JournalError as error:
        print(f"migrator: {clean(error)}", file=sys.stderr)
        sys.exit(Exit.FAILED)


def _end(now: datetime, text: str) -> datetime:
    try:
        return now + timedelta(seconds=units.seconds(text))
    except UsageError as error:
        raise UsageError(f"--expires: {error}".replace("300ms, 2s or 10m", "90d, 12h or never")) from error
    except OverflowError as error:
        raise UsageError(
            f"--expires: {text} is beyond the calendar; give never, if it shall not end"
        ) from error


def _state(token: Token, now: datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "valid" if token.valid(now) else "expired"


def _document(token: Token, now: datetime) -> dict[str, Any]:
    fields = asdict(token)
    return {
        **{key: value.isoformat() if isinstance(value, datetime) else value for key, value in fields.items()},
        "state": _state(token, now),
    }


def _moment(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _note(text: str) -> None:
    print(f"migrator: {text}", file=sys.stderr)
