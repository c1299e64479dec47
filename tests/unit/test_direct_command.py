"""The quick way to the options of ``migrator direct`` reads what Typer reads, or leaves it to Typer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from migrator.cli.app import app
from migrator.cli.direct_command import DirectCommand, command_of, read_quickly
from migrator.cli.direct_policy import policy_of
from migrator.errors import UsageError

_PROGRAM = get_command(app)
_DIRECT = _PROGRAM.get_command(_PROGRAM.make_context("migrator", ["direct"]), "direct")  # type: ignore[attr-defined]
#: Every option that Typer knows, and whether it takes a value.
_OPTIONS = {
    name: not parameter.is_flag
    for parameter in _DIRECT.params
    for name in parameter.opts
    if name not in ("--help", "-y")
}
_VALUES = st.text("abc:/.,7 ~ä=", min_size=1, max_size=8)


def by_typer(arguments: list[str]) -> DirectCommand:
    context = _DIRECT.make_context("direct", arguments)
    return command_of(dict(context.params))


@st.composite
def _typed(draw: st.DrawFn) -> list[str]:
    names = draw(st.lists(st.sampled_from(sorted(_OPTIONS)), unique=True))
    names += draw(st.lists(st.just("--accept"), max_size=2)) if "--accept" in names else []
    arguments = []
    for name in names:
        arguments.append(name)
        if _OPTIONS[name]:
            value = str(draw(st.integers(0, 99999))) if name == "--destination-pid" else draw(_VALUES)
            arguments.append(value)
    return arguments


@given(arguments=_typed())
def test_reads_what_typer_reads(arguments: list[str]) -> None:
    assert read_quickly(["direct", *arguments]) == by_typer(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["serve"],
        ["direct", "--help"],
        ["direct", "--source"],
        ["direct", "--source", "--json"],
        ["direct", "--source", ""],
        ["direct", "--source=unix:/a"],
        ["direct", "--source", "unix:/a", "--source", "unix:/b"],
        ["direct", "--destination-pid", "seven"],
        ["direct", "--destination-pid", "-7"],
        ["direct", "--sourc", "unix:/a"],
        ["direct", "unix:/a"],
        ["direct", "-y"],
        ["direct", "--", "--json"],
    ],
)
def test_leaves_the_rest_to_typer(arguments: list[str]) -> None:
    assert read_quickly(arguments) is None


def test_leaves_completion_to_typer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MIGRATOR_COMPLETE", "complete_bash")
    assert read_quickly(["direct", "--json"]) is None


@pytest.mark.parametrize("name", ["cold", "save"])
def test_a_policy_that_takes_a_service_is_refused_before_anything_is_asked(name: str) -> None:
    command = read_quickly(["direct", "--source", "unix:/a", "--destination", "unix:/b", "--policy", name])
    assert command is not None
    with pytest.raises(
        UsageError, match=f"--policy {name}: migrator direct .*: leave it out, or have the service"
    ):
        policy_of(command.request)
