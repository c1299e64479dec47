"""Every error as ``application/problem+json`` (RFC 9457), with nothing in it of how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from migrator.api import field_errors
from migrator.api.documents import FindingDocument
from migrator.api.replies import Refusal
from migrator.errors import JournalError, MigratorError, Unavailable

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """Description of what went wrong, for a person (``detail``) and for a program (``code``)."""

    type: str = Field(description="`urn:migrator:problem:CODE`.")
    title: str = Field(description="HTTP's words for the status.")
    status: int
    detail: str = Field(description="One line: what is wrong and what to do.")
    code: str = Field(description="Stable; what a program decides by.")
    request_id: str = Field("", description="As in the header X-Request-Id and in the log.")
    findings: list[FindingDocument] = Field(default=[], description="With `preflight`: what it has to say.")


class ProblemError(MigratorError):
    """A request that is answered with a problem.

    :ivar status: of HTTP.
    :ivar code: stable.
    :ivar headers: to be sent with it.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


def response(
    status: int,
    code: str,
    detail: str,
    *,
    request_id: str,
    headers: Mapping[str, str] | None = None,
    findings: list[dict[str, Any]] | None = None,
) -> Response:
    """The answer that says so."""
    problem = Problem(
        type=f"urn:migrator:problem:{code}",
        title=_title(status),
        status=status,
        detail=detail,
        code=code,
        request_id=request_id,
        findings=[FindingDocument.model_validate(finding) for finding in findings or []],
    )
    return Response(
        problem.model_dump_json(), status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {})
    )


def answer_with_problems(app: FastAPI) -> None:
    """Let `app` answer every error with a problem; the log has the traceback of those that are ours."""

    def answer(request: Request, status: int, code: str, detail: str, **more: Any) -> Response:
        return response(status, code, detail, request_id=request_id(request), **more)

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)
        return answer(request, error.status, error.code, str(error), headers=error.headers)

    async def refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return answer(request, Refusal.STATUS[error.code], error.code, str(error), findings=error.findings)

    async def journal(request: Request, error: Exception) -> Response:
        return answer(request, 503, "unavailable", str(error), headers={"Retry-After": "5"})

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer(request, 422, "invalid", field_errors.describe(error.errors()))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = error.status_code
        headers = dict(error.headers or {})
        detail = str(error.detail)
        if status == HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.url.path[:200]}; see /openapi.json"
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = allowed_methods(app, request.url.path) or headers.get("Allow", "GET")
            headers["Allow"] = allowed
            detail = f"{request.method[:20]} does not go here; {allowed} does"
        code = _title(status).lower().replace(" ", "-")
        return answer(request, status, code, detail, headers=headers)

    async def internal(request: Request, _: Exception) -> Response:
        return answer(
            request,
            500,
            "internal",
            "the service has a fault here; its log tells more under this request id",
            # The guard, which adds it everywhere else, has been left by the exception.
            headers={"X-Request-Id": request_id(request)},
        )

    app.add_exception_handler(ProblemError, problem)
    app.add_exception_handler(Refusal, refusal)
    app.add_exception_handler(JournalError, journal)
    app.add_exception_handler(Unavailable, journal)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, internal)


def allowed_methods(app: FastAPI, path: str) -> str:
    """Return what may be done at `path`, as the header ``Allow`` says it; empty when nothing."""
    for template, operations in app.openapi()["paths"].items():
        if _fits(template.split("/"), path.split("/")):
            methods = {method.upper() for method in operations if method != "parameters"}
            return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
    return ""


def _fits(template: list[str], path: list[str]) -> bool:
    return len(template) == len(path) and all(
        part == given or part.startswith("{") for part, given in zip(template, path, strict=True)
    )


def request_id(request: Request) -> str:
    """Return the id of this request; empty before the guard has given it one."""
    return str(getattr(request.state, "request_id", ""))


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
