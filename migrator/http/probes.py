"""``/metrics``, ``/healthz`` and ``/readyz``, on the API's entrances and on one of their own."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from migrator.http.limits import Guard
from migrator.http.parts import Asks, Parts, answer, parts
from migrator.http.problems import ProblemError, answer_with_problems

router = APIRouter(tags=["probes"])


class Ready(BaseModel):
    """Whether new work is taken."""

    ready: bool
    #: Why not, in one line each.
    complaints: list[str] = []


@router.get("/healthz", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def healthz() -> Response:
    """The process lives and its event loop turns."""
    return Response("ok\n", media_type="text/plain")


@router.get("/readyz", response_model=Ready, responses={503: {"model": Ready}})
async def readyz(request: Request) -> Response:
    """Whether new work is taken; 503 and the reasons when it is not."""
    own = parts(request)
    complaints = list(own.reading.complaints())
    if own.closing():
        complaints.append("the service is being stopped")
    return answer(Ready(ready=not complaints, complaints=complaints), 503 if complaints else 200)


async def _metrics(request: Request) -> Response:
    metrics = parts(request).metrics
    if metrics is None:
        raise ProblemError(404, "not-found", "this service has no metrics")
    text, media_type = await metrics(request.headers.get("accept"))
    # Starlette would add a second charset to a media type of its own choice.
    return Response(text, headers={"Content-Type": media_type})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request, _: Asks) -> Response:
    """For Prometheus."""
    return await _metrics(request)


def create_probes(app: FastAPI) -> FastAPI:
    """Only the probes of `app`, for whoever can reach the port: guests' names are in the metrics."""
    probes = FastAPI(title="migrator probes", openapi_url=None)
    own = app.state.parts
    assert isinstance(own, Parts)
    probes.state.parts = own
    answer_with_problems(probes)
    probes.add_middleware(Guard, limits=own.limits)
    probes.add_api_route("/healthz", healthz)
    probes.add_api_route("/readyz", readyz)
    probes.add_route("/metrics", _metrics)
    return probes
