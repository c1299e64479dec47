"""Forms of output: YAML that reads as the same document, and names for the next command."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # what types it is nowhere else needed
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from migrator.cli.app import app
from migrator.cli.output import OutputForm, names, without_kind, yaml_lines
from tests.documents import a_guest, a_host, a_migration, an_evacuation

_DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def printed(output: OutputForm, document: Any, capsys: pytest.CaptureFixture[str]) -> str:
    output.print(document)
    return capsys.readouterr().out


@given(document=_DOCUMENTS)
def test_yaml_reads_as_the_document(document: Any) -> None:
    assert yaml.safe_load("\n".join(yaml_lines(document))) == document


@pytest.mark.parametrize(
    "text",
    ["2026-11-30T02:30:00Z", "22:30", "yes", "null", "1e3", "0x1", "a: b", "a #b", "- a", "", " a", "~"],
)
def test_a_text_that_yaml_would_take_for_something_else_is_quoted(text: str) -> None:
    assert yaml.safe_load("\n".join(yaml_lines({"it": text}))) == {"it": text}


def test_yaml_is_in_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"items": [{"host": "a", "labels": {}, "guests": 3}, {"host": "b", "labels": {"rack": "1"}}]}
    assert printed(OutputForm.YAML, document, capsys) == (
        'items:\n  - host: a\n    labels: {}\n    guests: 3\n  - host: b\n    labels:\n      rack: "1"\n'
    )


def test_names_are_kind_and_id() -> None:
    def document(one: Any) -> dict[str, Any]:
        return json.loads(one.model_dump_json())  # type: ignore[no-any-return] # of a model

    some = {
        "items": [document(a_host("host-1")), document(a_guest("guest-1"))],
        "migrations": [document(a_migration("m1"))],
        "evacuations": [document(an_evacuation("e1"))],
    }
    assert list(names(some)) == ["host/host-1", "guest/guest-1", "migration/m1", "evacuation/e1"]
    assert list(names({"error": "no", "code": "conflict"})) == []


def test_an_unknown_form_is_named_with_those_that_there_are() -> None:
    result = CliRunner().invoke(app, ["guests", "-o", "csv"])

    assert result.exit_code == 2
    assert "'--output' / '-o': 'csv' is not one of 'table', 'wide', 'json', 'yaml', 'name'." in result.output


def test_what_is_printed_as_a_name_is_taken_by_the_next_command() -> None:
    uuid = "bd407941-c4bf-4a10-a580-31e85bdab9b7"

    assert without_kind(f"guest/{uuid}") == uuid
    assert without_kind("migration/56e6ad82148f") == without_kind("evacuation/56e6ad82148f") == "56e6ad82148f"


@pytest.mark.parametrize("given", ["web", "guest/web", "migration/web", "host-1/web"])
def test_a_guest_of_a_host_is_taken_as_it_is(given: str) -> None:
    assert without_kind(given) == given
