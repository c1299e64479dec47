"""A saved state that was cut off anywhere is none."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from migrator.hosts.state_program import discard, look, read_document, remove, stamp, whole, write_document

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


def test_a_saved_guest_is_deleted_only_as_it_was_seen_and_while_nobody_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.state"
    path.write_bytes(STREAM)
    write_document(str(path), {"migration": "m1", "state": "saved"}, new=True)
    there = sorted(tmp_path.iterdir())
    discard(str(path), json.dumps({"migration": "m1", "state": "loaded"}))
    assert json.loads(capsys.readouterr().out) == {"done": False}
    with path.open() as reader:
        fcntl.flock(reader, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="somebody works on it"):
            discard(str(path), json.dumps({"migration": "m1", "state": "saved"}))
    assert sorted(tmp_path.iterdir()) == there
    discard(str(path), json.dumps({"migration": "m1", "state": "saved"}))
    assert json.loads(capsys.readouterr().out) == {"done": True}
    assert list(tmp_path.iterdir()) == []


def test_a_description_whose_file_is_gone_is_deleted_too(tmp_path: Path) -> None:
    path = str(tmp_path / "a.state")
    write_document(path, {"migration": "m1", "state": "loaded"}, new=True)
    discard(path, json.dumps({"migration": "m1"}))
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_somebody_else_beside_it_is_never_touched(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("a.state.part", "a.state.json.part", "a.state.m2.part")]
    for other in others:
        other.write_text("a backup")
    assert remove(str(tmp_path / "a.state"), "m1")
    write_document(str(tmp_path / "a.state"), {"migration": "m1", "state": "saved"}, new=True)
    assert [other.read_text() for other in others] == 3 * ["a backup"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.chmod(0o666), "others may write to"),
        (lambda path: path.parent.chmod(0o777), "others may write to"),
        (lambda path: os.chown(path, 1234, 1234), "belongs to another user"),
        (lambda path: os.lchown(path.with_suffix(""), 1234, 1234), "belongs to another user"),
        (lambda path: path.write_text(path.read_text().replace("qemu", "evil")), "its checksum is another"),
        (lambda path: path.rename(f"{path}.real") and path.symlink_to(f"{path}.real"), "symbolic links"),
    ],
)
def test_description_that_others_may_have_written_is_not_believed(
    tmp_path: Path, spoil: Callable[[Path], object], why: str
) -> None:
    if os.geteuid() != 0 and "user" in why:
        pytest.skip("only root gives files away")
    state = tmp_path / "a.state"
    state.write_bytes(STREAM)
    write_document(str(state), {"migration": "m1", "state": "saved", "arguments": ["qemu"]}, new=True)
    assert read_document(str(state)) is not None
    spoil(Path(f"{state}.json"))
    with pytest.raises((OSError, ValueError), match=why):
        read_document(str(state))


def test_what_is_no_file_is_not_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "a.state")  # would wait for a writer
    look(str(tmp_path / "a.state"), "m1")
    said = json.loads(capsys.readouterr().out)
    assert said["there"]
    assert said["size"] is None


def test_image_that_changes_is_known_and_a_device_is_not_judged(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"before")
    before = stamp(str(image), settle=True)
    os.utime(image, ns=(0, before[1] + 1))
    assert stamp(str(image)) != before
    assert stamp("/dev/null") == []
