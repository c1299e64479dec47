"""Access over TCP: bearer tokens and the page's sessions, shown once, kept as hashes.

A token is ``migrator_ID_SECRET``. Its secret is 256 random bits, which nobody can guess or try out, so one round of
SHA-256 is enough to keep whoever reads the journal from using it; slow hashes are there for what people think up.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from migrator import host_scope
from migrator.errors import UsageError
from migrator.ports import Grant
from migrator.store.backend import Place
from migrator.store.database import Database
from migrator.store.rows import microseconds, moment
from migrator.store.schema import sessions, tokens

ROLES = ("viewer", "operator")
_TOKEN = re.compile(r"migrator_([0-9a-f]{12})_([0-9a-f]{64})")
_SESSION = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: Stands for the hash of a token that does not exist.
_NOBODY = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token as it may be shown: without its secret."""

    #: The part of the token between the underscores.
    id: str
    name: str
    #: ``viewer`` or ``operator``.
    role: str
    #: Patterns of the hosts that it is limited to; ``None``: it is for all.
    hosts: tuple[str, ...] | None
    created_at: datetime
    #: ``None``: it does not end by itself.
    expires_at: datetime | None
    revoked_at: datetime | None

    def valid(self, now: datetime) -> bool:
        """Tell whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class Tokens:
    """The tokens in a journal. Every call raises :class:`~migrator.errors.JournalError` when that cannot be used.

    The service has them as :attr:`SqlJournal.tokens <migrator.store.journal.SqlJournal.tokens>`; beside a service that
    runs, use :meth:`open`.
    """

    def __init__(
        self, database: Database, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database = database
        self._now = now

    @classmethod
    async def open(cls, place: Place) -> Tokens:
        """Open the journal there for its tokens alone, whether a service has it open or not."""
        return cls(await Database.open(place, alone=False))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._database.close()

    async def create(
        self,
        *,
        name: str,
        role: str,
        expires_at: datetime | None = None,
        hosts: Sequence[str] | None = None,
    ) -> str:
        """Make a new token. It is in no file and cannot be shown again.

        :param name: who will use it; what they do is journalled under it.
        :param hosts: what it is limited to: names of hosts, or patterns of them; ``None``: it is for all.
        :raise UsageError: the name, the role or a host cannot be, a valid token has that name, or it would have expired
            already.
        """
        now = self._now()
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be a token's name: use 1 to 64 of A-Z a-z 0-9 . _ -")
        if role not in ROLES:
            raise UsageError(f"there is no role {role!r}; there are {' and '.join(ROLES)}")
        if expires_at is not None and expires_at <= now:
            raise UsageError(f"a token that expires at {expires_at.isoformat()} would have expired already")
        limits = None if hosts is None else json.dumps(host_scope.checked(hosts))
        identifier, secret = secrets.token_hex(6), secrets.token_hex(32)
        row = {
            "id": identifier,
            "name": name,
            "role": role,
            "hosts": limits,
            "hash": _hashed(secret),
            "created_at": microseconds(now),
            "expires_at": None if expires_at is None else microseconds(expires_at),
        }

        async def write(connection: AsyncConnection) -> bool:
            found = await connection.execute(select(tokens).where(tokens.c.name == name))
            if any(_token(each).valid(now) for each in found):
                return False
            await connection.execute(insert(tokens).values(row))
            return True

        if not await self._database.write(write):
            raise UsageError(f"there is a valid token of the name {name!r}; revoke it or take another name")
        return f"migrator_{identifier}_{secret}"

    async def list(self) -> list[Token]:
        """Return every token, revoked and expired ones too, oldest first."""

        async def read(connection: AsyncConnection) -> list[Token]:
            found = await connection.execute(select(tokens).order_by(tokens.c.created_at, tokens.c.id))
            return [_token(each) for each in found]

        return await self._database.read(read)

    async def revoke(self, which: str) -> Token:
        """End the token with that id or name, at once and for good.

        :raise UsageError: there is no such token that has not been revoked.
        """
        now = self._now()
        mine = (or_(tokens.c.id == which, tokens.c.name == which), tokens.c.revoked_at.is_(None))

        async def write(connection: AsyncConnection) -> list[Token]:
            found = [_token(each) for each in await connection.execute(select(tokens).where(*mine))]
            await connection.execute(update(tokens).where(*mine).values(revoked_at=microseconds(now)))
            return found

        found = await self._database.write(write)
        if not found:
            raise UsageError(
                f"there is no token {which!r} to revoke; see those there are with: migrator token list"
            )
        return found[-1]

    async def verify(self, secret: str) -> Grant | None:
        """Return the grant of this token; ``None`` when it is unknown, expired or revoked.

        How long it takes tells nothing about a secret.
        """
        parts = _TOKEN.fullmatch(secret)
        identifier, shown = parts.groups() if parts else ("", "")

        async def read(connection: AsyncConnection) -> Any:
            return (await connection.execute(select(tokens).where(tokens.c.id == identifier))).first()

        found = await self._database.read(read)
        same = hmac.compare_digest(_hashed(shown), _NOBODY if found is None else found.hash)
        if found is None or not same or not _token(found).valid(self._now()):
            return None
        return _grant(_token(found), f"token {found.id}", None)

    # --- sessions of the page ----------------------------------------------------------------------------------------

    async def begin_session(self, token: Grant, *, seconds: float) -> tuple[str, Grant]:
        """Begin a session that ends with its token, after `seconds`, or when it is signed out.

        :param token: what :meth:`verify` gave.
        :returns: what the browser shows from now on, which is in no file; and what it gives.
        """
        now = self._now()
        ends_at = now + timedelta(seconds=seconds)
        if token.ends_at is not None:
            ends_at = min(ends_at, token.ends_at)
        secret = secrets.token_hex(32)
        row = {
            "hash": _hashed(secret),
            "token": token.id.removeprefix("token "),
            "created_at": microseconds(now),
            "ends_at": microseconds(ends_at),
        }

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(delete(sessions).where(sessions.c.ends_at < microseconds(now)))
            await connection.execute(insert(sessions).values(row))

        await self._database.write(write)
        return secret, replace(token, id=f"session {row['hash']}", ends_at=ends_at)

    async def session(self, secret: str) -> Grant | None:
        """Return the grant of a session; ``None`` when it is unknown, over or signed out, or its token ended."""
        if not _SESSION.fullmatch(secret):
            return None
        return (await self._holding([_hashed(secret)])).get(_hashed(secret))

    async def end_session(self, secret: str) -> None:
        """End a session; one that is unknown is no error."""
        now = microseconds(self._now())
        mine = (sessions.c.hash == _hashed(secret), sessions.c.ended_at.is_(None))

        async def write(connection: AsyncConnection) -> None:
            await connection.execute(update(sessions).where(*mine).values(ended_at=now))

        await self._database.write(write)

    async def holding(self, grants: Collection[str]) -> set[str]:
        """Return the given grants (their ids) that hold now."""
        own = {each.removeprefix("token ") for each in grants if each.startswith("token ")}
        hashes = [each.removeprefix("session ") for each in grants if each.startswith("session ")]

        async def read(connection: AsyncConnection) -> list[Token]:
            return [
                _token(each) for each in await connection.execute(select(tokens).where(tokens.c.id.in_(own)))
            ]

        now = self._now()
        held = (
            {f"token {each.id}" for each in await self._database.read(read) if each.valid(now)}
            if own
            else set()
        )
        return held | {each.id for each in (await self._holding(hashes)).values()}

    async def _holding(self, hashes: Collection[str]) -> dict[str, Grant]:
        if not hashes:
            return {}
        now = self._now()
        query = select(sessions.c.hash, sessions.c.ends_at, tokens).join(
            tokens, tokens.c.id == sessions.c.token
        )
        query = query.where(
            sessions.c.hash.in_(list(hashes)),
            sessions.c.ended_at.is_(None),
            sessions.c.ends_at > microseconds(now),
        )

        async def read(connection: AsyncConnection) -> list[Any]:
            return list(await connection.execute(query))

        return {
            row[0]: _grant(_token_of(row[2:]), f"session {row[0]}", moment(row[1]))
            for row in await self._database.read(read)
            if _token_of(row[2:]).valid(now)
        }


def _hashed(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def _grant(token: Token, identifier: str, ends_at: datetime | None) -> Grant:
    ends_at = ends_at or token.expires_at
    return Grant(id=identifier, name=token.name, role=token.role, ends_at=ends_at, hosts=token.hosts)


def _token_of(columns: Sequence[Any]) -> Token:
    return _token(SimpleNamespace(**dict(zip(tokens.c.keys(), columns, strict=True))))


def _token(row: Any) -> Token:
    def time(value: int | None) -> datetime | None:
        return None if value is None else moment(value)

    return Token(
        id=row.id,
        name=row.name,
        role=row.role,
        # An empty list would be nobody's right: never everybody's.
        hosts=None if row.hosts is None else tuple(json.loads(row.hosts)),
        created_at=moment(row.created_at),
        expires_at=time(row.expires_at),
        revoked_at=time(row.revoked_at),
    )
