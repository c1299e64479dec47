"""Whatever a configuration contains, the answer is file, key and reason, and a service that runs goes on."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.errors import UsageError
from migrator.settings import REPEATED, SECTIONS, load

_DIGITS = "9" * 4000

#: As TOML; every kind of value that no key was written for.
_HOSTILE = [
    "9" * 5000,
    _DIGITS,
    f'"{_DIGITS}"',
    f'"{_DIGITS}d"',
    f'"{_DIGITS}GiB/s"',
    f'"{_DIGITS}Gbit/s"',
    "1e400",
    "-1e400",
    "inf",
    "nan",
    "-0.0",
    '"99999999999d"',
    '"\\u0000"',
    '"\\u001b[31m"',
    '"' + "x" * 100_000 + '"',
    "[" * 200 + "]" * 200,
    "[" * 5000 + "]" * 5000,
    "{a = " * 300 + "1" + "}" * 300,
    "1979-05-27T07:32:00Z",
    "23:59:60",
    "true",
    '""',
    "[]",
    "{}",
    '["", 1, inf]',
]
_KEYS = [(name, key) for name, model in {**SECTIONS, **REPEATED}.items() for key in model.model_fields]


def answer(file: Path, text: str | bytes) -> list[str]:
    """What is said of it, a line each; nothing where it is taken."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        load(file, environ={})
    except UsageError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("section", [*SECTIONS, *REPEATED])
def test_no_value_of_any_key_is_too_odd(tmp_path: Path, section: str) -> None:
    file = tmp_path / "m.toml"
    for key in (key for name, key in _KEYS if name == section):
        for value in _HOSTILE:
            head = f"[[{section}]]" if section in ("hosts", "guests", "hooks") else f"[{section}]"
            head = "[policies.x]" if section == "policies" else head
            said = answer(file, f"{head}\n{key} = {value}\n")
            for line in said:
                assert line.startswith(f"{file}: "), value[:40]
                assert len(line) < 600, value[:40]
                assert "Error" not in line, value[:40]


@pytest.mark.parametrize(
    "pattern",
    ["hosts.d/**.toml", "**", "/**/*.toml", "[", "//", "a\\u0000b", "../" * 3000, ".", "/", "*" * 3000],
)
def test_no_pattern_of_files_is_too_odd(tmp_path: Path, pattern: str) -> None:
    for line in answer(tmp_path / "m.toml", f'include = ["{pattern}"]'):
        assert "include" in line or "cannot be read" in line
        assert len(line) < 600


def test_pattern_that_walks_through_everything_is_refused_with_what_to_write(tmp_path: Path) -> None:
    (said,) = answer(tmp_path / "m.toml", 'include = ["hosts.d/**.toml"]')
    assert said == f"{tmp_path}/m.toml: include: 'hosts.d/**.toml': name each directory instead of **"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("9" * 5000, "is no TOML: "),
        ("[" * 5000 + "]" * 5000, "nested too deep"),
        ('"99999999999d"', "store.retention: '99999999999d' is more than can be meant"),
        ("inf", "store.retention: 'inf' is not a duration"),
    ],
    ids=["digits", "depth", "century", "inf"],
)
def test_reason_is_in_words(tmp_path: Path, value: str, words: str) -> None:
    (said,) = answer(tmp_path / "m.toml", f"[store]\nretention = {value}\n")
    assert words in said


def test_file_that_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    (tmp_path / "huge.toml").touch()
    os.truncate(tmp_path / "huge.toml", 1 << 40)
    for name, reason in (
        ("pipe", "no regular file"),
        ("zero", "no regular file"),
        ("huge", "larger than 4 MiB"),
    ):
        with pytest.raises(UsageError, match=reason):
            load(tmp_path / f"{name}.toml", environ={})
        (said,) = answer(tmp_path / "m.toml", f'include = ["{name}.toml"]')
        assert reason in said


_scalars = st.one_of(
    st.text(),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.sampled_from(["1s", "1GiB", "auto", "none", "80%"]),
)


@given(given=st.dictionaries(st.sampled_from(_KEYS), _scalars, max_size=3))
def test_no_variable_of_the_environment_is_too_odd(given: dict[tuple[str, str], object]) -> None:
    environ = {f"MIGRATOR_{section}_{key}".upper(): str(value) for (section, key), value in given.items()}
    with contextlib.suppress(UsageError):
        load(None, environ=environ)


@given(
    text=st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    )
)
def test_no_bytes_are_too_odd(text: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    answer(tmp_path_factory.getbasetemp() / "any.toml", text)
