"""The routes that are commands: each becomes an envelope and goes to its handler."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from migrator import logs
from migrator.api import trace_context
from migrator.api.commands import COMMANDS, Name
from migrator.api.documents import CheckDocument, MigrationDocument, ResolutionDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.inventory_documents import HostDocument
from migrator.api.plan_documents import PlanDocument, RestorePlanDocument
from migrator.api.replies import Reply
from migrator.api.requests import Caller, Envelope
from migrator.api.saved_documents import SavedGuestDocument, SavedGuestsDocument
from migrator.api.site_documents import HooksDocument, PoliciesDocument
from migrator.api.trace_context import TRACEPARENT, TRACESTATE
from migrator.http import query_routes
from migrator.http.dependencies import KnownCaller, dependencies
from migrator.http.problems import ProblemError, request_id
from migrator.http.problems import response as problem

router = APIRouter()
_Route = TypeVar("_Route", bound=Callable[..., Awaitable[Response]])

_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": r"^[\x21-\x7e]{1,128}$"},
    "description": "The caller's own id of this command: the same again gets the same answer and does nothing.",
}
#: One that is wrong is ignored, as the standard says: so anything is allowed here.
_TRACE_PARAMETERS = [
    {
        "name": name,
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": meaning,
    }
    for name, meaning in (
        (TRACEPARENT, "W3C Trace Context: what this is done for. Ignored where it is none."),
        (TRACESTATE, "W3C Trace Context, with `traceparent`."),
    )
]


def _takes(verb: str, *from_path: str) -> dict[str, Any]:
    """The body of `verb` as OpenAPI says it, without what the path gives."""
    schema = COMMANDS[verb].model_json_schema()
    for name in from_path:
        schema["properties"].pop(name)
    required = [name for name in schema.pop("required", []) if name not in from_path]
    if required:
        schema["required"] = required
    return {
        "parameters": [_KEY_PARAMETER, *_TRACE_PARAMETERS],
        "requestBody": {
            "required": bool(required or "oneOf" in schema),
            "content": {"application/json": {"schema": schema}},
        },
    }


def _command(
    path: str,
    verb: str,
    *from_path: str,
    answer: Any,
    tag: str,
    status_code: int = 202,
    responses: dict[int | str, dict[str, Any]] | None = None,
) -> Callable[[_Route], _Route]:
    """Make a function the route of a command.

    :param answer: the model, or union of models, of what it is answered with.
    :param from_path: the fields of the command that the path gives.
    """
    return router.post(
        path,
        status_code=status_code,
        response_model=answer,
        responses=responses,
        tags=[tag],
        openapi_extra=_takes(verb, *from_path),
    )


@_command("/migrations", "migrate", answer=MigrationDocument | EvacuationDocument, tag="migrations")
async def migrate(request: Request, caller: KnownCaller) -> Response:
    """Move one guest, or with `group` all guests of that group, with their switches within a second.

    Of a group the answer is the document of a set of migrations, as of an evacuation: with its `kind`, `group`, and
    below `/evacuations`.
    """
    return await _ask(request, caller, "migrate", {})


@_command("/saves", "save", answer=MigrationDocument, tag="migrations")
async def save(request: Request, caller: KnownCaller) -> Response:
    """Save one guest into a file on its host, and end its QEMU: it runs nowhere until it is loaded."""
    return await _ask(request, caller, "save", {})


@_command("/loads", "load", answer=MigrationDocument, tag="migrations")
async def load(request: Request, caller: KnownCaller) -> Response:
    """Have a guest that was saved go on, out of its file."""
    return await _ask(request, caller, "load", {})


@_command("/discards", "discard", answer=SavedGuestDocument, tag="guests", status_code=200)
async def discard(request: Request, caller: KnownCaller) -> Response:
    """Delete a file with a saved guest, and what is beside it; `only_copy` where the guest may be nowhere else."""
    return await _ask(request, caller, "discard", {})


@router.get("/saved", response_model=SavedGuestsDocument, tags=["guests"])
async def saved(
    request: Request,
    caller: KnownCaller,
    host: Annotated[Name | None, Query(description="Only files of this host.")] = None,
) -> Response:
    """Guests that are saved in files: where, whether each is still there, and where it can be loaded.

    Every host that is up is asked.
    """
    return await _look(request, caller, "saved", {} if host is None else {"host": host})


@router.get("/policies", response_model=PoliciesDocument, tags=["service"])
async def policies(request: Request, caller: KnownCaller) -> Response:
    """The policies of the site, those built in among them, and what each allows."""
    return await _look(request, caller, "policies", {})


@router.get("/hooks", response_model=HooksDocument, tags=["service"])
async def hooks(request: Request, caller: KnownCaller) -> Response:
    """The hooks that are configured for rolls, by point; what they run is not said."""
    return await _look(request, caller, "hooks", {})


async def _look(request: Request, caller: Caller, verb: str, body: Mapping[str, Any]) -> Response:
    """Answer a command that changes nothing, asked with GET."""
    envelope = Envelope(verb=verb, body=body, caller=caller)
    return _said(request, await dependencies(request).execute(envelope))


@_command("/migrations/{id}/cancel", "cancel", "target", answer=MigrationDocument, tag="migrations")
async def cancel_migration(request: Request, id: query_routes.Identifier, caller: KnownCaller) -> Response:  # noqa: A002
    """Stop a migration as far as that is safe."""
    await query_routes.migration(request, id, caller)
    return await _ask(request, caller, "cancel", {"target": id})


@_command("/migrations/{id}/postcopy", "postcopy", "migration", answer=MigrationDocument, tag="migrations")
async def postcopy(request: Request, id: query_routes.Identifier, caller: KnownCaller) -> Response:  # noqa: A002
    """Switch a migration to postcopy now, where its policy allows it."""
    return await _ask(request, caller, "postcopy", {"migration": id})


@_command(
    "/migrations/{id}/resolve",
    "resolve",
    "migration",
    answer=MigrationDocument,
    tag="migrations",
    responses={200: {"model": ResolutionDocument, "description": "With `dry_run`: what would be done"}},
)
async def resolve(request: Request, id: query_routes.Identifier, caller: KnownCaller) -> Response:  # noqa: A002
    """End a held migration: a person has looked and says where the guest is.

    Ask with `dry_run` first: the answer says what will be done. Its `code`, given back as `agreed`, has it done only if
    it still is the same.
    """
    return await _ask(request, caller, "resolve", {"migration": id})


@_command("/hosts/{host}/evacuate", "evacuate", "host", answer=EvacuationDocument, tag="hosts")
async def evacuate(request: Request, host: query_routes.Identifier, caller: KnownCaller) -> Response:
    """Empty a host."""
    return await _ask(request, caller, "evacuate", {"host": host})


@_command(
    "/hosts/{host}/restore",
    "restore",
    "host",
    answer=EvacuationDocument,
    tag="hosts",
    responses={200: {"model": RestorePlanDocument, "description": "With `dry_run`: who would come home"}},
)
async def restore(request: Request, host: query_routes.Identifier, caller: KnownCaller) -> Response:
    """Bring the guests of the last evacuation home and make the host active.

    With `dry_run` nothing is done: the answer says who would come home by which policy, and what that allows.
    """
    return await _ask(request, caller, "restore", {"host": host})


@_command("/hosts/{host}/activate", "activate", "host", answer=HostDocument, tag="hosts", status_code=200)
async def activate(request: Request, host: query_routes.Identifier, caller: KnownCaller) -> Response:
    """End a host's maintenance without bringing anyone home."""
    return await _ask(request, caller, "activate", {"host": host})


@_command("/hosts/{host}/cordon", "cordon", "host", answer=HostDocument, tag="hosts", status_code=200)
async def cordon(request: Request, host: query_routes.Identifier, caller: KnownCaller) -> Response:
    """Have no new guests come to a host; nobody is moved."""
    return await _ask(request, caller, "cordon", {"host": host})


@_command("/hosts/{host}/uncordon", "uncordon", "host", answer=HostDocument, tag="hosts", status_code=200)
async def uncordon(request: Request, host: query_routes.Identifier, caller: KnownCaller) -> Response:
    """Let new guests come to a host again."""
    return await _ask(request, caller, "uncordon", {"host": host})


@_command("/rolls", "roll", answer=EvacuationDocument, tag="evacuations")
async def roll(request: Request, caller: KnownCaller) -> Response:
    """Empty hosts a few at a time, hand each over to hooks, and fill it again once it is ready.

    The answer is a document as of an evacuation, of the kind `roll`, with its `hosts`, and below `/evacuations`.
    """
    return await _ask(request, caller, "roll", {})


@_command("/plans", "plan", answer=PlanDocument, tag="hosts", status_code=200)
async def plan(request: Request, caller: KnownCaller) -> Response:
    """Return what an evacuation would do; changes nothing."""
    return await _ask(request, caller, "plan", {})


@_command("/checks", "check", answer=CheckDocument, tag="migrations", status_code=200)
async def check(request: Request, caller: KnownCaller) -> Response:
    """Preflight alone; changes nothing."""
    return await _ask(request, caller, "check", {})


@_command("/evacuations/{id}/cancel", "cancel", "target", answer=EvacuationDocument, tag="evacuations")
async def cancel_evacuation(request: Request, id: query_routes.Identifier, caller: KnownCaller) -> Response:  # noqa: A002
    """Stop an evacuation or a restore; guests that moved stay moved."""
    await query_routes.evacuation(request, id, caller)
    return await _ask(request, caller, "cancel", {"target": id})


async def _ask(request: Request, caller: Caller, verb: str, from_path: Mapping[str, Any]) -> Response:
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise ProblemError(
            422, "invalid", "Idempotency-Key: up to 128 characters of ASCII without spaces, please"
        )
    body = _object(await request.body())
    if twice := sorted(set(body) & set(from_path)):
        raise ProblemError(422, "invalid", f"{twice[0]}: the path says it already")
    trace = trace_context.read(request.headers.getlist(TRACEPARENT), request.headers.getlist(TRACESTATE))
    caller = replace(caller, trace=trace)
    envelope = Envelope(verb=verb, body={**body, **from_path}, caller=caller, id=key)
    reply = await dependencies(request).execute(envelope)
    logs.logger(request=request_id(request), user=caller.user, origin=caller.origin).info(
        "command",
        verb=verb,
        answer=reply.code or reply.kind,
        subject=reply.subject,
        subject_id=reply.subject_id,
        **({"trace_id": trace.trace_id} if trace else {}),
    )
    return _said(request, reply)


def _object(body: bytes) -> dict[str, Any]:
    """:raise ProblemError: when it is not a JSON object."""
    if not body.strip():
        return {}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProblemError(422, "invalid", f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise ProblemError(422, "invalid", "the body must be a JSON object")
    return found


def _said(request: Request, reply: Reply) -> Response:
    if reply.kind == "refused":
        code = reply.code or "invalid"
        return problem(
            reply.status,
            code,
            reply.message or "refused",
            request_id=request_id(request),
            findings=reply.findings,
            headers={"Retry-After": "5"} if code == "unavailable" else None,
        )
    headers = {}
    if reply.subject in ("migration", "evacuation"):
        headers["Location"] = f"/api/v1/{reply.subject}s/{reply.subject_id}"
    text = json.dumps(reply.body or {}, allow_nan=False)
    status = 200 if reply.kind == "outcome" else reply.status
    return Response(text, status_code=status, media_type="application/json", headers=headers)
