"""Keys of ``migrator top``, as a terminal sends them."""

from __future__ import annotations

import os
import queue

import pytest

from migrator.cli import top


@pytest.mark.parametrize(
    ("parts", "keys"),
    [
        ([b"\x1b[A", b"\x1b[Bj"], ["up", "down", "down"]),
        ([b"\x1b", b"[", b"B"], ["down"]),
        ([b"\x1b[", b"Aq"], ["up", "quit"]),
        ([b"\x1b", b"q"], ["back", "quit"]),
        ([b"x\x1b"], ["", "back"]),
    ],
)
def test_an_arrow_that_comes_in_parts_is_not_taken_for_escape(
    monkeypatch: pytest.MonkeyPatch, parts: list[bytes], keys: list[str]
) -> None:
    reading, writing = os.pipe2(os.O_DIRECT)  # what is written at once is read at once
    for part in parts:
        os.write(writing, part)
    os.close(writing)
    coming: queue.SimpleQueue[top.Item] = queue.SimpleQueue()
    with os.fdopen(reading, "rb", buffering=0) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        top._read_keys(coming)

    assert [coming.get_nowait() for _ in range(coming.qsize())] == [*keys, "quit"]
