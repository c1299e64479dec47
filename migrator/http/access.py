"""Who asks, and what they may: the Unix socket's permissions, a bearer token, or the page's cookie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fastapi import Request
from starlette.responses import Response

from migrator.engine.commands import Caller, Role
from migrator.http.limits import Rates
from migrator.http.problems import ProblemError

COOKIE = "migrator_session"
#: A browser keeps it this long; the token's own end comes first where that is earlier.
_COOKIE_SECONDS = 7 * 24 * 3600
#: A guess at a token costs as much as so many requests.
_GUESS_COST = 10.0
_LONGEST_SECRET = 512


class Tokens(Protocol):
    """The tokens that were made."""

    async def verify(self, secret: str) -> tuple[str, str] | None:
        """Name and role of a token that holds now; ``None`` for any other.

        :raise JournalError: when they cannot be read.
        """


@dataclass(kw_only=True)
class Access:
    """Tells callers apart."""

    tokens: Tokens
    rates: Rates

    async def caller(self, request: Request) -> Caller:
        """Who asks.

        :raise ProblemError: 401 for nobody known, 403 for a write that another site's page sent, 429.
        """
        secret, by_cookie = _secret(request)
        if secret is None:
            if entrance(request) == "unix":
                return self._counted(
                    Caller(
                        user=origin(request), role=Role.OPERATOR, interface="http", origin=_process(request)
                    )
                )
            raise _unknown("give a token: the header Authorization: Bearer TOKEN")
        name, role = await self.verify(request, secret)
        if by_cookie and request.method not in ("GET", "HEAD"):
            require_same_origin(request)
        return self._counted(Caller(user=name, role=role, interface="http", origin=origin(request)))

    async def verify(self, request: Request, secret: str) -> tuple[str, Role]:
        """Name and role of a token.

        :raise ProblemError: 401 when it is none, 429 after many that were none.
        """
        found = None
        if len(secret) <= _LONGEST_SECRET and secret.isascii():
            found = await self.tokens.verify(secret)
        if found is None:
            self.rates.take(f"guess {origin(request)}", cost=_GUESS_COST)
            raise _unknown("the token is unknown, has expired or was revoked")
        name, role = found
        return name, Role(role)

    def _counted(self, caller: Caller) -> Caller:
        self.rates.take(caller.user)
        return caller


def entrance(request: Request) -> str:
    """Which listener it came by: ``unix``, ``tcp``."""
    return str(getattr(request.state, "entrance", "tcp"))


def origin(request: Request) -> str:
    """Where from: ``unix:UID`` or an address."""
    if request.client is not None and request.client.host:
        return request.client.host
    return entrance(request)


def _process(request: Request) -> str:
    pid = request.client.port if request.client is not None else 0
    return f"unix socket, pid {pid}" if pid else "unix socket"


def require_same_origin(request: Request) -> None:
    """Browsers add cookies to what other sites' pages send; they also say which site that was.

    :raise ProblemError: 403 when it was not ours, or was not said.
    """
    given = request.headers.get("origin", "")
    if given != f"{request.url.scheme}://{request.headers.get('host', '')}":
        raise ProblemError(
            403, "foreign-origin", "a write with a cookie must come from this service's own page"
        )


def set_cookie(request: Request, response: Response, secret: str) -> None:
    """Let the browser come with `secret` from now on; scripts cannot read it."""
    response.set_cookie(
        COOKIE,
        secret,
        max_age=_COOKIE_SECONDS,
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def _secret(request: Request) -> tuple[str | None, bool]:
    given = request.headers.get("authorization")
    if given is not None:
        scheme, _, secret = given.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise _unknown("the header Authorization must be: Bearer TOKEN")
        return secret.strip(), False
    cookie = request.cookies.get(COOKIE)
    return (cookie, True) if cookie else (None, False)


def _unknown(detail: str) -> ProblemError:
    return ProblemError(
        401, "unauthenticated", detail, headers={"WWW-Authenticate": 'Bearer realm="migrator"'}
    )
