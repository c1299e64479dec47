"""Callers and their rights, by the Unix socket's permissions, a bearer token, or the page's cookie."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from fastapi import Request
from starlette.responses import Response

from migrator.api.commands import Role
from migrator.api.requests import Caller
from migrator.http.limits import Rates
from migrator.http.problems import ProblemError
from migrator.ports import Grant

#: Over TLS the name makes browsers take it from this very host only, and only over TLS. By plain HTTP, on loopback,
#: they would not take it under that name.
COOKIES = {"https": "__Host-migrator", "http": "migrator_session"}
#: A session ends after so long; with its token where that ends earlier.
_SESSION_SECONDS = 7 * 24 * 3600
#: A guess at a token costs as much as so many requests.
_GUESS_COST = 10.0
_LONGEST_SECRET = 512


class TokenVerifier(Protocol):
    """The tokens that were made, and the sessions begun with them. Every call raises
    :class:`~migrator.errors.JournalError` when they cannot be read or written.
    """

    async def verify(self, secret: str) -> Grant | None:
        """Return the grant of a token that holds now; ``None`` for any other."""

    async def begin_session(self, token: Grant, *, seconds: float) -> tuple[str, Grant]:
        """Return a secret for a browser and its grant; both end with the token, or after `seconds`."""

    async def session(self, secret: str) -> Grant | None:
        """Return the grant of a session; ``None`` when it is unknown or over, or its token holds no more."""

    async def end_session(self, secret: str) -> None:
        """Sign it out."""

    async def holding(self, grants: Collection[str]) -> set[str]:
        """Return those of the given grants (their ids) that hold now."""


@dataclass(kw_only=True)
class Access:
    """Tells callers apart."""

    tokens: TokenVerifier
    rates: Rates

    async def caller(self, request: Request) -> Caller:
        """Return who asks.

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
        grant = await self._grant(request, secret, by_cookie=by_cookie)
        if by_cookie and request.method not in ("GET", "HEAD"):
            require_same_origin(request)
        request.state.grant = grant
        return self._counted(
            Caller(
                user=grant.name,
                role=Role(grant.role),
                interface="http",
                origin=origin(request),
                hosts=grant.hosts,
            )
        )

    async def begin_session(self, request: Request, secret: str) -> tuple[str, Grant]:
        """Trade a token for a session.

        :raise ProblemError: 401 when it is none, 429 after many that were none.
        """
        token = await self._grant(request, secret, by_cookie=False)
        return await self.tokens.begin_session(token, seconds=_SESSION_SECONDS)

    async def end_session(self, request: Request) -> None:
        """Sign the session of a request out, if it has one."""
        cookie = request.cookies.get(cookie_name(request))
        if cookie and len(cookie) <= _LONGEST_SECRET and cookie.isascii():
            await self.tokens.end_session(cookie)

    async def _grant(self, request: Request, secret: str, *, by_cookie: bool) -> Grant:
        found = None
        if len(secret) <= _LONGEST_SECRET and secret.isascii():
            found = await (self.tokens.session(secret) if by_cookie else self.tokens.verify(secret))
        if found is None:
            self.rates.take(f"guess {origin(request)}", cost=_GUESS_COST, what="wrong tokens")
            raise _unknown(
                "the session is over: sign in again"
                if by_cookie
                else "the token is unknown, has expired or was revoked"
            )
        return found

    def _counted(self, caller: Caller) -> Caller:
        self.rates.take(caller.user)
        return caller


def entrance(request: Request) -> str:
    """Return the listener that a request came by: ``unix``, ``tcp``."""
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


def cookie_name(request: Request) -> str:
    """Return the name of the cookie that a browser has for this scheme."""
    return COOKIES["https" if request.url.scheme == "https" else "http"]


def set_cookie(request: Request, response: Response, secret: str) -> None:
    """Let the browser come with `secret` from now on; scripts cannot read it."""
    response.set_cookie(
        cookie_name(request),
        secret,
        max_age=_SESSION_SECONDS,
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
    cookie = request.cookies.get(cookie_name(request))
    return (cookie, True) if cookie else (None, False)


def _unknown(detail: str) -> ProblemError:
    return ProblemError(
        401, "unauthenticated", detail, headers={"WWW-Authenticate": 'Bearer realm="migrator"'}
    )
