"""The API's description, from the routes and the models; ``python -m migrator.http.openapi`` prints it."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from migrator import __version__
from migrator.http.problems import MEDIA_TYPE, Problem
from migrator.http.stream import EventPage

_SCHEMAS = "#/components/schemas/{model}"
_HTTP_METHODS = ("get", "post", "delete", "put", "patch")


def describe(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1 of `app`, made once."""
    if app.openapi_schema is None:
        found = get_openapi(
            title="migrator",
            version=__version__,
            description="Moves running QEMU/KVM guests between hosts, and empties whole hosts. Units: bytes, bytes "
            "per second, seconds, ratios of 0 to 1. Version 1 only gains fields.",
            routes=app.routes,
        )
        _complete(found)
        app.openapi_schema = found
    return app.openapi_schema


def served(app: FastAPI) -> Callable[[Request], Awaitable[Response]]:
    """The route that answers with the description of `app`; it is made into bytes once."""
    made = b""

    async def description(request: Request) -> Response:
        nonlocal made
        if not made:
            made = json.dumps(app.openapi(), separators=(",", ":"), ensure_ascii=False).encode()
        tag = f'"{sha256(made).hexdigest()[:16]}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return Response(made, media_type="application/json", headers={"ETag": tag})

    return description


def text() -> str:
    """The description, as it stands in docs/: the same from run to run."""
    from migrator.http.app import describe_only  # noqa: PLC0415 - it imports this module

    return json.dumps(describe(describe_only()), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _complete(found: dict[str, Any]) -> None:
    schemas = found["components"]["schemas"]
    for model in (Problem, EventPage):
        schema = model.model_json_schema(ref_template=_SCHEMAS, mode="serialization")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    problem = {
        "description": "What went wrong.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path, operations in found["paths"].items():
        for method in _HTTP_METHODS:
            if method not in operations:
                continue
            responses = operations[method]["responses"]
            responses.pop("422", None)
            responses["4XX"] = problem
            responses["5XX"] = problem
            if path not in ("/healthz", "/readyz"):
                operations[method]["security"] = [{"token": []}, {"cookie": []}, {}]
    found["components"]["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "Over TCP; made by `migrator token create`.",
        },
        "cookie": {
            "type": "apiKey",
            "in": "cookie",
            "name": "__Host-migrator",
            "description": "The page's session; by plain HTTP, on loopback, it is called `migrator_session`.",
        },
    }


if __name__ == "__main__":
    sys.stdout.write(text())
