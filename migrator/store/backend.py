"""The journal's needs of the database it is in: SQLite (:mod:`~migrator.store.sqlite`) or PostgreSQL
(:mod:`~migrator.store.postgresql`).
"""

from __future__ import annotations

import enum
import sqlite3
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

#: What a database that cannot be used raises, whichever it is.
DATABASE_ERRORS = (SQLAlchemyError, sqlite3.Error, OSError)  # a time-out is an OSError


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the journal is that several may use: a PostgreSQL database."""

    #: ``postgresql+asyncpg://user@host/database``; the password is not in it.
    url: str
    password: str = field(default="", repr=False)
    #: ``auto``: with TLS and the server's certificate verified, unless it is reached by a Unix socket or loopback.
    tls: str = "auto"
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    #: One service at a time has a state directory: by a lock beside this file, which need not be there.
    beside: Path | None = None
    #: For a connection to be made.
    connect_seconds: float = 3.0
    #: For a transaction: a server that has not answered by then is given up, and with it the connection.
    answer_seconds: float = 5.0


#: Where a journal is: a file of SQLite, or a PostgreSQL server.
Place = Path | Server


class Remedy(enum.Enum):
    """Remedy after an error of the database."""

    #: Nothing but time: the connections are as good as new ones.
    WAIT = enum.auto()
    #: The same, and only for what waits for something that another program has: what was asked beside it can be done.
    APART = enum.auto()
    #: New connections, for what is asked next.
    RECONNECT = enum.auto()
    #: New connections, and what was asked can be tried once more at once.
    RETRY = enum.auto()


class Backend(Protocol):
    """A database that has been prepared: it is of this version's schema."""

    @property
    def name(self) -> str:
        """Return where it is, as messages say it; without secrets."""

    @property
    def timeout_seconds(self) -> float:
        """Return the seconds after which a database that does not answer is said to have failed."""

    @property
    def writers_go_beside_each_other(self) -> bool:
        """Tell whether one transaction can write while another one does, on different rows."""

    def engine(self, *, connections: int, writer: str = "") -> AsyncEngine:
        """Return connections to read with, each transaction a picture of one moment, or one to write with.

        :param writer: the name of what writes; empty: they are to read with.
        """

    def bounded(self, connection: AsyncConnection) -> AbstractAsyncContextManager[None]:
        """Bound what is done on `connection` in this block: what hangs fails as a lost connection does."""

    async def mark(self, connection: AsyncConnection, writer: str, batch: int) -> None:
        """Begin a transaction that writes with what :meth:`committed` will find it by."""

    async def committed(self, engine: AsyncEngine, writer: str, batch: int) -> bool:
        """Tell whether a transaction whose outcome is unknown was committed; when this returns, it will not be later.

        :raise DATABASE_ERRORS: it cannot be known now.
        """

    async def now(self, connection: AsyncConnection) -> int:
        """Return the microseconds since the epoch by the clock that all who use the database share."""

    def remedy(self, error: BaseException) -> Remedy:
        """Return the remedy after `error`."""

    def in_words(self, error: BaseException, what: str, *, unsure: bool = False) -> str:
        """Say in one line that the journal cannot be `what` (``read``, ``written``, ``opened``), why, and what to do.

        :param unsure: it may have been, or may still be, all the same.
        """

    async def close(self) -> None:
        """Let go of it, once no connection is left."""


#: Name of the writer of leases, where it is one of its own.
LEASES = "leases"
#: Said where nobody knows what became of a write.
UNSURE = "what was asked for last may still be written"


def cause(error: BaseException) -> BaseException:
    """Return the error that SQLAlchemy has wrapped."""
    wrapped = getattr(error, "orig", None) or error.__cause__ if isinstance(error, SQLAlchemyError) else None
    return wrapped or error


def close_what_is_lent(engine: AsyncEngine) -> None:
    """Have a connection that is in use while the engine is disposed of closed when it is given back.

    Without this it goes back to a pool that nobody has any more, and stays open until it is collected as garbage.
    """
    generation = 0
    key = "generation"

    @event.listens_for(engine.sync_engine, "do_connect")
    def connects(dialect: Any, record: Any, arguments: Any, options: Any) -> None:  # noqa: ARG001 - SQLAlchemy calls it so
        record.info[key] = generation

    @event.listens_for(engine.sync_engine, "engine_disposed")
    def disposed(disposed_of: Any) -> None:  # noqa: ARG001 - SQLAlchemy calls it so
        nonlocal generation
        generation += 1

    @event.listens_for(engine.sync_engine, "checkin")
    def given_back(connection: Any, record: Any) -> None:
        if connection is not None and record.info.get(key) != generation:
            record.invalidate()
