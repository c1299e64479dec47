"""A saved state that was cut off anywhere is none."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from migrator.hosts.state_program import remove, whole, write_document

DESCRIPTION = b'{"devices": []}'
STREAM = (
    b"QEVM\x00\x06\x00\x00"
    + 1000 * b"\x06\x00"
    + b"\x00\x06"
    + len(DESCRIPTION).to_bytes(4, "big")
    + DESCRIPTION
)


def test_whole_stream_is_known_by_its_end() -> None:
    assert whole(io.BytesIO(STREAM), len(STREAM))


@pytest.mark.parametrize("missing", [1, 5, len(DESCRIPTION), len(DESCRIPTION) + 5, 500, len(STREAM)])
def test_stream_that_was_cut_off_is_not_whole(missing: int) -> None:
    cut = STREAM[: len(STREAM) - missing]
    assert not whole(io.BytesIO(cut), len(cut))


def test_only_what_nobody_may_use_yet_is_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "a.state")
    Path(path).write_bytes(STREAM)
    write_document(path, {"migration": "m1", "state": "saved"}, new=True)
    assert not remove(path, "m1")
    assert remove(path, "m2")  # it is another's: nothing of this one is left
    assert Path(path).exists()
    write_document(path, {"migration": "m1", "state": "unconfirmed"}, new=False)
    assert remove(path, "m1")
    assert list(tmp_path.iterdir()) == []
