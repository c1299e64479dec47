"""The page's way in: a token for a session."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from migrator.api.commands import Role
from migrator.http import access
from migrator.http.dependencies import KnownCaller, answer, dependencies
from migrator.ports import Grant

router = APIRouter(prefix="/session", tags=["session"])


class Given(BaseModel):
    """A token."""

    model_config = ConfigDict(extra="forbid")
    token: Annotated[str, Field(min_length=1, max_length=512)]


class Session(BaseModel):
    """A session of a browser: who asks."""

    user: str
    role: Role
    #: Patterns of the hosts that this is limited to; ``null``: it is for all.
    hosts: list[str] | None = None
    #: When the token or the session ends by itself; ``null``: never, or asked by the Unix socket.
    ends_at: datetime | None = None


@router.get("", response_model=Session)
async def who(request: Request, caller: KnownCaller) -> Response:
    """Return who asks, what they may do, and until when."""
    grant = getattr(request.state, "grant", None)
    ends_at = grant.ends_at if isinstance(grant, Grant) else None
    hosts = None if caller.hosts is None else list(caller.hosts)
    return answer(Session(user=caller.user, role=caller.role, hosts=hosts, ends_at=ends_at))


@router.post("", response_model=Session)
async def begin(request: Request, given: Annotated[Given, Body()]) -> Response:
    """Trade a token for a session, whose cookie scripts cannot read.

    It ends with the token, or when it is signed out.
    """
    access.require_same_origin(request)
    secret, grant = await dependencies(request).access.begin_session(request, given.token)
    hosts = None if grant.hosts is None else list(grant.hosts)
    response = answer(Session(user=grant.name, role=Role(grant.role), hosts=hosts, ends_at=grant.ends_at))
    access.set_cookie(request, response, secret)
    return response


@router.delete("", status_code=204, response_class=Response)
async def end(request: Request) -> Response:
    """Sign out: the session holds no more, whoever still has its cookie."""
    access.require_same_origin(request)
    await dependencies(request).access.end_session(request)
    response = Response(status_code=204)
    secure = request.url.scheme == "https"
    response.delete_cookie(
        access.cookie_name(request), path="/", httponly=True, samesite="strict", secure=secure
    )
    return response
