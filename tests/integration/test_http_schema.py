"""The API keeps to its own description, whatever it is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from starlette.types import Receive, Scope, Send

from migrator.api.commands import COMMANDS, Migrate
from migrator.http import openapi
from migrator.http.app import create_app
from migrator.http.limits import Limits
from tests.http_service import OPERATOR, MemoryTokens
from tests.service_thread import ServiceThread, in_thread

_CHECKS = [
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    unsupported_method,
]


class _Entrance:
    """The entrance of the service of this module, while there is one; before that, what it says of itself."""

    def __init__(self) -> None:
        nobody: Any = None
        limits = Limits(hosts=frozenset({"testserver"}))
        self._description = create_app(nobody, nobody, MemoryTokens(), limits=limits)
        self.service: ServiceThread | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.service is None or scope["type"] == "lifespan":
            await self._description(scope, receive, send)
        else:
            await self.service.answer(scope, receive, send)


_ENTRANCE = _Entrance()
schema = schemathesis.openapi.from_asgi("/openapi.json", _ENTRANCE)


@pytest.fixture(scope="module", autouse=True)
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    limits = Limits(requests_per_second=1e9, burst=10**9, hosts=frozenset({"testserver"}))
    with in_thread(tmp_path_factory.mktemp("service"), limits=limits) as service:
        service.prepare_slowly()
        service.ask(Migrate(guest="db", to="beta"))
        _ENTRANCE.service = service
        yield
        _ENTRANCE.service = None


# A stream never ends, so what is generated for it would be waited for; tests of its own are beside this.
_FINITE = schema.exclude(path_regex=r"/events$|^/metrics$")


# The service draws numbers in a thread of its own while Hypothesis does.
@pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning"
)
@_FINITE.parametrize()
@hypothesis.settings(
    max_examples=6,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    deadline=None,
)
def test_as_described(case: schemathesis.Case[Any]):
    case.call_and_validate(headers={"Authorization": f"Bearer {OPERATOR}"}, checks=_CHECKS)


def _operations() -> dict[str, Any]:
    """Every operation by its method and path."""
    results: list[Any] = list(_FINITE.get_all_operations())
    return {operation.label: operation for operation in (result.ok() for result in results)}


# Not by parametrize(), which generates each one's examples while tests are collected, whether or not it will run.
@pytest.mark.soak
@pytest.mark.parametrize("label", _operations())
def test_as_described_at_length(label: str):
    operation = _operations()[label]

    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(
        max_examples=1500, suppress_health_check=list(HealthCheck), deadline=None, derandomize=False
    )
    def as_described(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {OPERATOR}"}, checks=_CHECKS)

    as_described()


def test_the_description_is_whole():
    found = json.loads(openapi.text())
    paths = found["paths"]
    assert set(paths) == {
        "/api/v1/migrations",
        "/api/v1/migrations/{id}",
        "/api/v1/migrations/{id}/cancel",
        "/api/v1/migrations/{id}/postcopy",
        "/api/v1/migrations/{id}/resolve",
        "/api/v1/migrations/{id}/events",
        "/api/v1/migrations/{id}/samples",
        "/api/v1/events",
        "/api/v1/hosts",
        "/api/v1/hosts/{host}",
        "/api/v1/hosts/{host}/evacuate",
        "/api/v1/hosts/{host}/restore",
        "/api/v1/hosts/{host}/activate",
        "/api/v1/hosts/{host}/cordon",
        "/api/v1/hosts/{host}/uncordon",
        "/api/v1/guests",
        "/api/v1/guests/{guest}",
        "/api/v1/dirty-rates",
        "/api/v1/rolls",
        "/api/v1/plans",
        "/api/v1/checks",
        "/api/v1/saves",
        "/api/v1/loads",
        "/api/v1/discards",
        "/api/v1/saved",
        "/api/v1/policies",
        "/api/v1/hooks",
        "/api/v1/evacuations",
        "/api/v1/evacuations/{id}",
        "/api/v1/evacuations/{id}/cancel",
        "/api/v1/service",
        "/api/v1/session",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    text = json.dumps(found)
    for name in ("Problem", "MigrationDocument", "EvacuationDocument", "EventDocument", "PlanDocument"):
        assert name in found["components"]["schemas"]
    for reference in set(_references(found)):
        assert reference.rpartition("/")[2] in found["components"]["schemas"], reference
    assert "HTTPValidationError" not in text
    assert openapi.text() == openapi.text()


def test_every_command_has_a_way_in_by_http():
    ways = {"migrate", "cancel", "postcopy", "resolve", "evacuate", "restore", "activate", "plan", "check"}
    ways |= {"save", "load", "cordon", "uncordon", "roll", "saved", "discard", "policies", "hooks"}
    assert ways == set(COMMANDS)


def _references(found: object) -> Iterator[str]:
    if isinstance(found, dict):
        for key, value in found.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(found, list):
        for value in found:
            yield from _references(value)
