"""The page's way in: a token for a cookie."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from migrator.engine.commands import Role
from migrator.http import access
from migrator.http.parts import Asks, answer, parts

router = APIRouter(prefix="/session", tags=["session"])


class Given(BaseModel):
    """A token."""

    model_config = ConfigDict(extra="forbid")
    token: Annotated[str, Field(min_length=1, max_length=512)]


class Session(BaseModel):
    """Who asks."""

    user: str
    role: Role


@router.get("", response_model=Session)
async def who(caller: Asks) -> Response:
    """Who asks, and what they may do."""
    return answer(Session(user=caller.user, role=caller.role))


@router.post("", response_model=Session)
async def begin(request: Request, given: Annotated[Given, Body()]) -> Response:
    """Trade a token for a cookie that scripts cannot read."""
    access.require_same_origin(request)
    user, role = await parts(request).access.verify(request, given.token)
    response = answer(Session(user=user, role=role))
    access.set_cookie(request, response, given.token)
    return response


@router.delete("", status_code=204, response_class=Response)
async def end(request: Request) -> Response:
    """Forget the cookie."""
    access.require_same_origin(request)
    response = Response(status_code=204)
    response.delete_cookie(access.COOKIE, path="/", httponly=True, samesite="strict")
    return response
