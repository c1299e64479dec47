"""Images that are made at a host, removed again, and put aside: never anybody else's."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from migrator.errors import HostError
from migrator.hosts.host_files import FileQuery, read_host_files
from migrator.hosts.local import LocalAccess
from migrator.hosts.new_files import NewFile, forget_images, make_images, put_aside, remove_images

HOST = LocalAccess("alpha")


@dataclass(frozen=True)
class Made:
    """An image that was made for a guest, and where that is noted."""

    path: Path
    run_directory: str

    async def remove(self) -> bool:
        """Remove what was made; tell whether anything is at its path afterwards."""
        await remove_images(HOST, self.run_directory)
        return self.path.is_symlink() or self.path.exists()


def like(path: Path) -> NewFile:
    found = path.parent.stat()
    return NewFile(
        path=str(path), format="raw", size_bytes=4096, owner=f"{found.st_uid}:{found.st_gid}", mode="600"
    )


@pytest.fixture
async def made(tmp_path: Path) -> Made:
    run = tmp_path / "run"
    run.mkdir()
    path = tmp_path / "a name\nof two lines.img"
    await make_images(HOST, str(run), [like(path)], migration="m")
    return Made(path, str(run))


async def test_what_was_made_is_removed_and_nothing_else(made: Made) -> None:
    beside = made.path.with_name("a name")
    beside.write_text("somebody's")
    assert made.path.stat().st_size == 4096
    assert not await made.remove()
    assert beside.read_text() == "somebody's"
    assert list(made.path.parent.glob("*.migrator-*")) == []


async def test_what_has_taken_its_place_meanwhile_stays(made: Made) -> None:
    other = made.path.with_name("other")
    other.write_text("somebody's")
    made.path.rename(made.path.with_name("kept"))
    other.rename(made.path)
    assert await made.remove()
    assert made.path.read_text() == "somebody's"
    made.path.rename(other)
    made.path.symlink_to(other)
    assert await made.remove()
    assert other.read_text() == "somebody's"


async def test_images_of_a_guest_that_has_arrived_are_not_removed_any_more(made: Made) -> None:
    await forget_images(HOST, made.run_directory)
    assert await made.remove()


async def test_one_that_is_there_already_is_neither_written_over_nor_removed(tmp_path: Path) -> None:
    taken = tmp_path / "taken.img"
    taken.write_text("somebody's")
    with pytest.raises(HostError, match="is there already"):
        await make_images(HOST, str(tmp_path), [like(tmp_path / "free.img"), like(taken)], migration="m")
    await remove_images(HOST, str(tmp_path))
    assert [each.name for each in tmp_path.glob("*.img")] == ["taken.img"]
    assert taken.read_text() == "somebody's"


async def test_room_that_an_image_will_take_is_held_until_its_guest_has_arrived(tmp_path: Path) -> None:
    first, second = tmp_path / "one.img", tmp_path / "two.img"
    runs = [tmp_path / "run-1", tmp_path / "run-2"]
    for run in runs:
        run.mkdir()
    await make_images(HOST, str(runs[0]), [replace(like(first), expected_bytes=1 << 50)], migration="m-1")
    assert await held(tmp_path) == {"m-1": 1 << 50}
    wanted = [replace(like(second), expected_bytes=1 << 20)]
    with pytest.raises(HostError, match="promised to images that other migrations are filling"):
        await make_images(HOST, str(runs[1]), wanted, migration="m-2")
    await remove_images(HOST, str(runs[1]))
    assert not second.exists()
    await forget_images(HOST, str(runs[0]))
    assert await held(tmp_path) == {}
    await make_images(HOST, str(runs[1]), wanted, migration="m-2")
    assert await held(tmp_path) == {"m-2": 1 << 20}
    await remove_images(HOST, str(runs[1]))
    assert [each.name for each in tmp_path.iterdir() if not each.is_dir()] == ["one.img"]


async def test_room_that_nobody_fills_any_more_is_not_held_for_ever(tmp_path: Path) -> None:
    image, run = tmp_path / "one.img", tmp_path / "run"
    run.mkdir()
    filled = replace(like(image), expected_bytes=1 << 50)
    await make_images(HOST, str(run), [filled], migration="m-1")
    for broken in ("", "m", "m 08 one.img\n", "m x one.img\n", "m  one.img\n"):
        (tmp_path / ".migrator-room-broken").write_text(broken)
        assert await held(tmp_path) == {"m-1": 1 << 50}
    (run / "images").unlink()  # the host was restarted
    image.unlink()
    await make_images(HOST, str(run), [replace(filled, expected_bytes=1 << 20)], migration="m-2")
    assert await held(tmp_path) == {"m-2": 1 << 20}
    long_ago = time.time() - 3 * 86_400
    os.utime(image, (long_ago, long_ago))
    assert await held(tmp_path) == {}


async def held(directory: Path) -> Mapping[str, int]:
    seen = await read_host_files(HOST, FileQuery(paths=(str(directory),)))
    return seen.files[str(directory)].held_bytes


async def test_image_that_is_in_use_or_is_a_link_is_not_put_aside(tmp_path: Path) -> None:
    image, link = tmp_path / "disk.img", tmp_path / "link.img"
    image.write_text("a disk")
    link.symlink_to(image)
    paths = [str(image), str(link)]
    with image.open("r+b") as user:
        fcntl.lockf(user, fcntl.LOCK_SH)
        assert await put_aside(HOST, paths, ".left-m") == {}
    aside = {str(image): f"{image}.left-m"}
    assert await put_aside(HOST, paths, ".left-m") == aside
    assert await put_aside(HOST, [str(image)], ".left-m") == aside  # whoever takes it up says the same
    assert (tmp_path / "disk.img.left-m").read_text() == "a disk"
    image.write_text("another")
    assert await put_aside(HOST, [str(image)], ".left-m") == {}
    assert image.read_text() == "another"
