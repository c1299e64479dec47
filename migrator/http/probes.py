"""``/metrics``, ``/healthz`` and ``/readyz``, on the API's entrances and on one of their own."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from migrator.http.dependencies import Dependencies, KnownCaller, Metrics, dependencies
from migrator.http.limits import LimitsMiddleware
from migrator.http.problems import ProblemError, answer_with_problems

router = APIRouter(tags=["probes"])

#: A scrape answers those too that come so soon after it was begun.
_SCRAPE_SECONDS = 0.25
#: Formats whose last scrape is kept, and how much of the header that asks for one tells it from others.
_FORMATS = 8
_FORMAT_CHARACTERS = 200


class Ready(BaseModel):
    """Readiness to take new work."""

    ready: bool
    #: Why not, in one line each.
    complaints: list[str] = []
    #: ``acting``, ``standby`` or ``replaced``, where several controllers share a journal.
    role: str | None = None
    #: Instance of the one that acts.
    acting: str | None = None


@router.get("/healthz", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def healthz(request: Request) -> Response:
    """Return 200 while what drives migrations, or stands by to do so, lives and its event loop turns; else 503."""
    why = dependencies(request).why_silent()
    service = dependencies(request).service()
    well = "ok" if service.role != "standby" else f"ok: stands by, {service.acting or 'nobody'} acts"
    return Response(f"{why or well}\n", status_code=503 if why else 200, media_type="text/plain")


@router.get("/readyz", response_model=Ready, responses={503: {"model": Ready}})
async def readyz(
    request: Request,
    role: Annotated[
        Literal["acting"] | None,
        Query(description="``acting``: only the controller that acts is ready, not one that stands by."),
    ] = None,
) -> Response:
    """Return 200 while new work is taken; else 503 and the reasons.

    A controller that stands by takes it too, and passes it on.
    """
    own = dependencies(request)
    complaints = list(own.queries.complaints())
    service = own.service()
    if role == "acting" and service.role not in ("acting", "alone"):
        what = "was replaced" if service.role == "replaced" else "stands by"
        complaints.append(f"this controller {what}: {service.acting or 'nobody'} acts")
    if own.closing():
        complaints.append("the service is being stopped")
    ready = Ready(ready=not complaints, complaints=complaints)
    if service.role != "alone":
        ready = ready.model_copy(update={"role": service.role, "acting": service.acting})
    text = ready.model_dump_json(exclude_none=True)
    return Response(text, status_code=503 if complaints else 200, media_type="application/json")


async def _shared(request: Request, metrics: Metrics) -> tuple[bytes, str]:
    """A scrape; those that come together get the same one: a look at a thousand guests takes its time."""
    accept = request.headers.get("accept")
    made = dependencies(request).scrapes
    wanted = (accept or "")[:_FORMAT_CHARACTERS]
    now = asyncio.get_running_loop().time()
    found = made.get(wanted)
    if found is None or (found[1].done() and now - found[0] > _SCRAPE_SECONDS):
        if len(made) >= _FORMATS:
            made.clear()
        found = made[wanted] = now, asyncio.ensure_future(metrics(accept))
        found[1].add_done_callback(_heard)
    return await asyncio.shield(found[1])


def _heard(scrape: asyncio.Future[tuple[bytes, str]]) -> None:
    if not scrape.cancelled():
        scrape.exception()  # whoever waited has it; perhaps nobody did any more


async def _metrics(request: Request) -> Response:
    metrics = dependencies(request).metrics
    if metrics is None:
        raise ProblemError(404, "not-found", "this service has no metrics")
    text, media_type = await _shared(request, metrics)
    # Starlette would add a second charset to a media type of its own choice.
    return Response(text, headers={"Content-Type": media_type})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request, caller: KnownCaller) -> Response:
    """For Prometheus."""
    if caller.hosts is not None:
        raise caller.outside("metrics are of every host")
    return await _metrics(request)


def create_probes(app: FastAPI) -> FastAPI:
    """Only the probes of `app`, for whoever can reach the port: guests' names are in the metrics."""
    probes = FastAPI(title="migrator probes", openapi_url=None)
    own = app.state.dependencies
    assert isinstance(own, Dependencies)
    probes.state.dependencies = own
    answer_with_problems(probes)
    probes.add_middleware(LimitsMiddleware, limits=own.limits)
    probes.add_api_route("/healthz", healthz)
    probes.add_api_route("/readyz", readyz)
    probes.add_route("/metrics", _metrics)
    return probes
