"""The same reading and probing over SSH: what runs through another shell on the way is read as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from migrator.core.process.files import FileFacts, SameFile
from migrator.hosts.host_files import FileQuery, read_host_files
from migrator.hosts.local import LocalAccess
from migrator.hosts.sharing_probe import probe_sharing
from migrator.hosts.ssh import SshAccess
from migrator.testing.lab import until
from tests.integration.test_checks_files import AWKWARD, OtherMounts, image, names
from tests.sshd import Sshd

HERE = LocalAccess("alpha")


@pytest.fixture
async def beta(tmp_path: Path) -> AsyncIterator[SshAccess]:
    with Sshd(tmp_path / "sshd") as sshd:
        access = SshAccess("beta", sshd.config())
        try:
            yield access
        finally:
            await access.close()


async def test_files_and_chains_are_the_same_as_from_here(beta: SshAccess, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in AWKWARD:
        (images / name).write_bytes(b"12345")
    image("create", "-f", "raw", "base 'x", "1M", at=images)
    image("create", "-f", "qcow2", "-b", "base 'x", "-F", "raw", "top $(y)", at=images)
    top = str(images / "top $(y)")
    paths = [*(str(images / name) for name in AWKWARD), top, "/dev/null", str(images / "gone")]
    question = FileQuery(paths=paths, images={top: "qcow2"}, qemus=["/no/such"])
    here, there = await read_host_files(HERE, question), await read_host_files(beta, question)
    assert _without_room(there.files) == _without_room(here.files)
    assert there.chains == here.chains == {top: (top, str(images / "base 'x"))}
    assert [there.file(path).exists for path in paths] == [True] * (len(paths) - 1) + [False]


def _without_room(files: Mapping[str, FileFacts]) -> dict[str, FileFacts]:
    """Return them without what is free around them: others write meanwhile."""
    return {path: replace(each, free_bytes=0) for path, each in files.items()}


async def test_probe_over_ssh_tells_and_leaves_nothing(beta: SshAccess, tmp_path: Path) -> None:
    images, own = tmp_path / "im ages $(x)", tmp_path / "own"
    images.mkdir()
    own.mkdir()
    for directory in (images, own):
        (directory / "disk").write_bytes(b"")
    path = str(images / "disk")
    seen = (await read_host_files(beta, FileQuery(paths=[path]))).file(path)
    assert await probe_sharing(HERE, beta, {path: (seen, seen)}) == {path: SameFile.YES}
    assert await probe_sharing(beta, HERE, {path: (seen, seen)}) == {path: SameFile.YES}
    mounts = OtherMounts(images, own)
    try:
        other = LocalAccess("gamma", mounts.prefix)
        assert await probe_sharing(beta, other, {path: (seen, seen)}) == {path: SameFile.NO}
    finally:
        mounts.close()
    await until(lambda: names(images) == names(own) == ["disk"], what="the end of the markers")
