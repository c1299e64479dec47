"""What the program at a host says of files whose pages have a place of their own, and of many files at once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from migrator.hosts import state_program
from migrator.hosts.state_program import MAPPED, checksum, write_document

_MIB = 1 << 20


def sparse(path: Path) -> Path:
    """Make a file of mostly holes, as QEMU makes one with each page at a place of its own."""
    with path.open("wb") as file:
        file.truncate(64 * _MIB)
        for at in (0, 7 * _MIB + 5, 40 * _MIB):
            file.seek(at)
            file.write(b"page")
        file.seek(0, os.SEEK_END)
        file.write(b"devices")
    return path


def summed(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return checksum(file, MAPPED)


@pytest.fixture(autouse=True)
def _nobody_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_program, "read_input", lambda timeout: [])


def test_checksum_of_a_copy_with_other_holes_is_the_same(tmp_path: Path) -> None:
    first = sparse(tmp_path / "first")
    full = tmp_path / "full"
    full.write_bytes(first.read_bytes())
    assert summed(full) == summed(first)


@pytest.mark.parametrize("at", [0, 7 * _MIB + 6, 20 * _MIB, 64 * _MIB + 6])
def test_checksum_sees_a_byte_that_is_another_also_in_a_hole(tmp_path: Path, at: int) -> None:
    before = summed(sparse(tmp_path / "file"))
    with (tmp_path / "file").open("r+b") as file:
        file.seek(at)
        file.write(b"!")
    assert summed(tmp_path / "file") != before


def test_page_at_another_place_is_another_state(tmp_path: Path) -> None:
    before = summed(sparse(tmp_path / "file"))
    with (tmp_path / "file").open("r+b") as file:
        for at, what in ((40 * _MIB, bytes(4)), (41 * _MIB, b"page")):
            file.seek(at)
            file.write(what)
    assert summed(tmp_path / "file") != before


def test_survey_says_what_is_there_and_what_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, altered, alone, none = (tmp_path / name for name in ("good", "altered", "alone", "none"))
    for path in (good, altered, alone):
        path.write_bytes(b"state")
    for path in (good, altered):
        document = {"migration": "m", "state": "saved", "bytes": 5, "arguments": ["/usr/bin/qemu"]}
        write_document(str(path), {**document, "images": {str(tmp_path / "disk"): [1, 2]}}, new=True)
    shutil.copy(f"{good}.json", f"{altered}.json")
    beside = Path(f"{altered}.json")
    beside.write_text(beside.read_text().replace("/usr/bin/qemu", "/tmp/other"))
    assert state_program.main(["survey", *map(str, (good, altered, alone, none))]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["path"] for each in said] == list(map(str, (good, altered, alone, none)))
    assert said[0]["document"]["binary"] == "/usr/bin/qemu"
    assert (said[0]["size"], said[0]["changed"]) == (5, [str(tmp_path / "disk")])
    assert "its checksum is another" in said[1]["problem"]
    assert (said[2]["document"], said[2]["size"]) == (None, 5)
    assert (said[3]["document"], said[3]["size"]) == (None, None)
