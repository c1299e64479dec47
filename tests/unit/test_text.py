"""What others say never acts on the terminal that it is read on."""

from __future__ import annotations

import json
import logging

import pytest

from migrator import logs
from migrator.text import clean, clean_lines

_RED = "\x1b[31m"


@pytest.mark.parametrize(
    "evil", ["\x1b]0;title\x07", _RED, "\x9b31m", "\r", "\b", "\u202e", "\u2028", "\udcff", "\0"]
)
def test_what_would_act_is_replaced(evil: str) -> None:
    assert clean(f"web{evil}1") == "web" + "".join("\ufffd" if not c.isprintable() else c for c in evil) + "1"


def test_what_can_be_shown_stays() -> None:
    assert clean("Bücher 書 – 1 %") == "Bücher 書 – 1 %"
    assert clean_lines("a\nb\tc") == "a\nb\ufffdc"


@pytest.mark.parametrize("lines", [False, True], ids=["console", "json"])
@pytest.mark.parametrize(
    "name", [f"{_RED}web", f"{_RED}web with blanks", "web\r\nforged line", ["in", [_RED]], {"a": _RED}]
)
def test_log_says_no_character_that_acts(
    capsys: pytest.CaptureFixture[str], name: object, lines: bool
) -> None:
    logs.configure(verbose=True, json=lines)
    try:
        logs.logger(guest=name).warning("guest is odd", error=RuntimeError(f"{_RED}said"))
    finally:
        logs.configure()
    said = capsys.readouterr().err
    assert "guest is odd" in said
    assert "said" in said
    assert not {"\x1b", "\r"} & set(said)


def test_log_line_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(verbose=True)
    try:
        logs.logger().info("long", name="x" * 3_000_000)
    finally:
        logs.configure()
    assert len(capsys.readouterr().err) < 20_000


def test_what_asyncio_says_by_itself_is_logged_like_everything_else_and_a_warning_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    library = logging.getLogger("asyncio")
    logs.configure(verbose=True, json=True)
    try:
        for _ in range(3):
            library.warning("socket.send() raised exception of %s", "this test")
            logs.configure(verbose=True, json=True)
        for _ in range(2):
            library.error("a task failed", exc_info=RuntimeError("why"))
    finally:
        logs.configure()
    warning, *errors = map(json.loads, capsys.readouterr().err.splitlines())
    assert (warning["event"], warning["level"]) == ("asyncio", "warning")
    assert warning["what"] == "socket.send() raised exception of this test"
    assert [each["what"] for each in errors] == ["a task failed"] * 2
    assert "RuntimeError: why" in errors[0]["traceback"]
