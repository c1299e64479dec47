"""The API keeps to its own description, whatever it is sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from starlette.types import Receive, Scope, Send

from migrator.api.commands import COMMANDS, Migrate
from migrator.http import openapi
from migrator.http.app import create_app
from migrator.http.limits import Limits
from tests.http_service import OPERATOR, MemoryTokens
from tests.service_thread import ServiceThread, in_thread

if (
    TYPE_CHECKING
):  # each process of the tests reads this file, and few run its tests: these load it themselves
    from schemathesis import Case


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


@pytest.fixture(scope="module", autouse=True)
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    limits = Limits(requests_per_second=1e9, burst=10**9, hosts=frozenset({"testserver"}))
    with in_thread(tmp_path_factory.mktemp("service"), limits=limits) as service:
        service.prepare_slowly()
        service.ask(Migrate(guest="db", to="beta"))
        _ENTRANCE.service = service
        yield
        _ENTRANCE.service = None


_DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
#: Every operation but these: a stream never ends, so what is generated for it would be waited for; tests of its own are
#: beside this.
_ENDLESS = re.compile(r"/events$|^/metrics$")
_OPERATIONS = [
    f"{method.upper()} {path}"
    for path, methods in json.loads(_DOCUMENT.read_text(encoding="utf-8"))["paths"].items()
    if not _ENDLESS.search(path)
    for method in methods
]


@cache
def _schema() -> Any:
    schemathesis = import_module("schemathesis")
    return schemathesis.openapi.from_asgi("/openapi.json", _ENTRANCE).exclude(path_regex=_ENDLESS.pattern)


@cache
def _operations() -> dict[str, Any]:
    """Every operation by its method and path."""
    operations = [result.ok() for result in _schema().get_all_operations()]
    return {operation.label: operation for operation in operations}


def _validate(case: Case[Any]) -> None:
    checks = import_module("schemathesis.specs.openapi.checks")
    case.call_and_validate(
        headers={"Authorization": f"Bearer {OPERATOR}"},
        checks=[
            checks.content_type_conformance,
            checks.ignored_auth,
            checks.response_headers_conformance,
            checks.response_schema_conformance,
            import_module("schemathesis.checks").not_a_server_error,
            checks.status_code_conformance,
            checks.unsupported_method,
        ],
    )


def test_every_operation_is_tried():
    assert sorted(_operations()) == sorted(_OPERATIONS)


# Not by schemathesis's parametrize(), which generates the examples of all while tests are collected, in each process.
# The service draws numbers in a thread of its own while Hypothesis does.
@pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning"
)
@pytest.mark.parametrize("label", _OPERATIONS)
def test_as_described(label: str):
    import_module("schemathesis.checks").load_all_checks()
    constants = import_module("schemathesis.python._constants.orchestrator")
    generation = import_module("schemathesis.generation.feedback")

    @hypothesis.settings(
        max_examples=6,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    def as_described(case: Case[Any]) -> None:
        _validate(case)

    schema = _schema()
    import_module("schemathesis.pytest._test_builder").build_operation_test(
        config=schema.config,
        operation=_operations()[label],
        test_func=as_described,
        given_kwargs={},
        feedback=generation.FeedbackSources(
            constants_value_source=constants.make_constants_value_source(schema)
        ),
    )()


@pytest.mark.soak
@pytest.mark.parametrize("label", _OPERATIONS)
def test_as_described_at_length(label: str):
    @hypothesis.given(case=_operations()[label].as_strategy())
    @hypothesis.settings(
        max_examples=1500, suppress_health_check=list(HealthCheck), deadline=None, derandomize=False
    )
    def as_described(case: Case[Any]) -> None:
        _validate(case)

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
