"""Errors of a PostgreSQL server, and of the connection to it: the remedy, and words for a person. Pure."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from migrator.store.backend import Remedy, cause

#: Classes of errors after which a connection is of no use: 08 of the connection, 57P of a server that is stopped.
_LOST = {"08"}
#: The server is being stopped or started, or takes no writes (any more): another may by now.
_ELSEWHERE = {"57P01", "57P02", "57P03", "25006"}
#: Two who wait for each other's rows, of whom the server let one go on.
_DEADLOCK = "40P01"
#: A lock was waited for too long.
_LOCKED = "55P03"
#: By PostgreSQL's code of an error, or its class.
_WORDS = {
    "08": "the connection to the server was lost",
    "28": (
        "the server does not let this user in: see [store] url, password_file and pg_hba.conf (by its socket Debian's "
        "lets in the system's user of that name alone: be the service's user)"
    ),
    "3D": "there is no such database: make it (createdb), or name another in [store] url",
    _LOCKED: (
        "another session of the database keeps something locked for too long: look for it by SELECT pid, "
        "application_name, xact_start, query FROM pg_stat_activity ORDER BY xact_start, and have it end"
    ),
    "57014": "the server does not answer in time: see whether it runs, and what it waits for",
    "42501": "the user may not do that: make it the owner of the database",
    "53100": "the server's disk is full: make room there",
    "53300": "the server has no connection left: raise max_connections",
    "53": "the server is short of something",
    "25006": "the server takes no writes: is it a standby? See [store] url",
    "57P": "the server is being stopped or started",
    "57": "the server is being stopped or started",
    "58": "the server's disk does not do what it should",
    "XX": "the database is damaged: see the server's log",
}


def remedy(error: BaseException) -> Remedy:
    """Return the remedy after `error`."""
    state = _state(error)
    # Without a code it is the client's: the connection was ended while something was asked.
    if isinstance(error, DBAPIError) and (error.connection_invalidated or not state):
        return Remedy.RETRY
    if isinstance(error, OSError) or state[:2] in _LOST or state in _ELSEWHERE or state == _DEADLOCK:
        return Remedy.RETRY
    if state == _LOCKED:
        return Remedy.APART
    return Remedy.WAIT if state else Remedy.RECONNECT


def why(error: BaseException) -> str:
    """Return what is wrong, and what to do; as the server said it, it may have several lines."""
    found = cause(error)
    state = _state(error)
    said = str(found)
    if isinstance(found, TimeoutError):
        return "the server does not answer in time: see whether it runs, and what it waits for"
    if isinstance(found, OSError):
        return (
            f"the server cannot be reached: {found.strerror or found}: see whether it runs, and [store] url"
        )
    if not state and isinstance(error, DBAPIError):
        return f"{_WORDS['08']}: {said}"
    return f"{_WORDS.get(state) or _WORDS.get(state[:2]) or 'the server says'}: {said}"


def _state(error: BaseException) -> str:
    """Return PostgreSQL's code of an error; empty: it has none."""
    return str(getattr(cause(error), "sqlstate", None) or "")
