"""Volumes that a host's own commands make, and remove again: loop devices stand in for LVM and ZFS."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.errors import HostError
from migrator.hosts.local import LocalAccess
from migrator.hosts.new_volumes import NewVolume, forget_volumes, make_volumes, remove_volumes
from tests.conftest import missing
from tests.disks import MIB

HOST = LocalAccess("alpha")
_MAKE = 'truncate -s "$2" -- "$1.file" && ln -s "$(losetup -f --show -- "$1.file")" "$1"'
_REMOVE = 'losetup -d "$(readlink -- "$1")" && rm -- "$1" "$1.file"'


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[NewVolume]:
    if os.geteuid() != 0 or subprocess.run(["losetup", "-f"], capture_output=True, check=False).returncode:
        missing("loop devices need root")
    path = tmp_path / "a name"
    (tmp_path / "run").mkdir()
    yield NewVolume(
        path=str(path),
        size_bytes=MIB,
        virtual_bytes=MIB,
        owner="0:0",
        mode="600",
        make=("sh", "-c", _MAKE, "sh", str(path), str(MIB)),
        remove=("sh", "-c", _REMOVE, "sh", str(path)),
    )
    for link in tmp_path.rglob("*"):
        if link.is_symlink() and str(link.readlink()).startswith("/dev/loop"):
            subprocess.run(["losetup", "-d", str(link.readlink())], check=False)


async def test_what_was_made_is_removed(volume: NewVolume, tmp_path: Path) -> None:
    run = tmp_path / "run"
    await make_volumes(HOST, str(run), [volume])
    assert Path(volume.path).is_block_device()
    await remove_volumes(HOST, str(run))
    assert list(run.iterdir()) == []
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


async def test_one_of_a_guest_that_has_arrived_or_that_is_another_by_now_stays(
    volume: NewVolume, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    await make_volumes(HOST, str(run), [volume])
    made = Path(volume.path)
    device = made.readlink()
    made.unlink()
    made.symlink_to("/dev/loop-control")
    await remove_volumes(HOST, str(run))
    assert made.is_symlink()
    made.unlink()
    made.symlink_to(device)
    (run / "other").mkdir()
    with pytest.raises(HostError, match="is there already"):
        await make_volumes(HOST, str(run / "other"), [volume])
    await remove_volumes(HOST, str(run / "other"))
    assert made.is_block_device()
    await forget_volumes(HOST, str(run))
    await remove_volumes(HOST, str(run))
    assert made.is_block_device()


async def test_one_of_another_size_is_refused_and_removed(volume: NewVolume, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(HostError, match="and the disk has 524288"):
        await make_volumes(HOST, str(run), [replace(volume, size_bytes=MIB // 2)])
    await remove_volumes(HOST, str(run))
    assert not Path(volume.path).is_symlink()


async def test_command_that_fails_says_why(volume: NewVolume, tmp_path: Path) -> None:
    command = ("sh", "-c", "echo the group is full >&2; exit 5")
    with pytest.raises(HostError, match="the group is full"):
        await make_volumes(HOST, str(tmp_path / "run"), [replace(volume, make=command)])
