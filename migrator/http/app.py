"""The application: every route under its limits, every error a problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from fastapi import APIRouter, FastAPI

from migrator import __version__
from migrator.api.service_documents import ServiceDocument
from migrator.http import command_routes, openapi, page_routes, probes, query_routes, session, stream
from migrator.http.access import Access, TokenVerifier
from migrator.http.dependencies import ALONE, Dependencies, Metrics
from migrator.http.limits import Limits, LimitsMiddleware, Rates, Streams
from migrator.http.problems import answer_with_problems
from migrator.http.role_headers import RoleHeaders
from migrator.ports.commands import CommandExecutor
from migrator.ports.queries import Queries


def create_app(
    commands: CommandExecutor,
    queries: Queries,
    auth: TokenVerifier,
    *,
    metrics: Metrics | None = None,
    limits: Limits | None = None,
    why_silent: Callable[[], str] = str,
    service: Callable[[], ServiceDocument] = lambda: ALONE,
) -> FastAPI:
    """The API, the page and the probes.

    A request that came by the Unix socket (:mod:`migrator.http.server` says so) needs no token: who may open the
    socket is an operator. Every other needs one of `auth`.

    :param metrics: see :data:`migrator.http.dependencies.Metrics`; ``None``: there are none.
    :param why_silent: why what drives migrations cannot be believed to live, in one line; empty while it can.
    :param service: this controller, and those it shares the journal with.
    """
    limits = limits or Limits()
    app = FastAPI(
        title="migrator",
        version=__version__,
        # Ours, below: this one would be made into text for each who asks.
        openapi_url=None,
        # They load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.dependencies = Dependencies(
        commands=commands,
        queries=queries,
        access=Access(tokens=auth, rates=Rates(per_second=limits.requests_per_second, burst=limits.burst)),
        limits=limits,
        streams=Streams(limits),
        metrics=metrics,
        why_silent=why_silent,
        service=service,
    )
    api = APIRouter(prefix="/api/v1")
    for routes in (command_routes, query_routes, stream, session):
        api.include_router(routes.router)
    app.include_router(api)
    app.include_router(probes.router)
    app.include_router(page_routes.router)
    app.add_route("/openapi.json", openapi.served(app), include_in_schema=False)
    answer_with_problems(app)
    app.add_middleware(LimitsMiddleware, limits=limits)
    app.add_middleware(RoleHeaders, service=service)
    app.openapi = lambda: openapi.describe(app)  # type: ignore[method-assign] # as FastAPI's documents do it
    return app


def describe_only() -> FastAPI:
    """The application with nothing behind it, to be described."""
    nothing = cast("Any", None)
    return create_app(nothing, nothing, nothing)
