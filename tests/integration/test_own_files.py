"""Files of this machine are read in this process, and seen as the script of other hosts sees them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from migrator.core.process.files import HostFiles
from migrator.hosts.host_files import FileQuery, read_host_files
from migrator.hosts.local import LocalAccess
from migrator.hosts.own_files import read_files

HERE, PREFIXED = LocalAccess("alpha"), LocalAccess("beta", ("env",))


def _comparable(seen: HostFiles) -> HostFiles:
    """Return the facts without what other programs of the machine change from one moment to the next."""
    return HostFiles(
        files={path: replace(file, free_bytes=file.free_bytes >> 30) for path, file in seen.files.items()},
        kvm=seen.kvm,
        boot_id=seen.boot_id,
    )


async def test_they_look_the_same_either_way(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"1" * 5000)
    (tmp_path / "image").chmod(0o640)
    (tmp_path / "link").symlink_to("image")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "na\nme ü").write_bytes(b"")
    paths = [str(path) for path in (tmp_path, *sorted(tmp_path.iterdir()))]
    paths += ["/", "/dev/null", "/dev/shm", str(tmp_path / "none"), "/dev/shm/."]
    here = await read_files(HERE, paths)
    assert _comparable(here) == _comparable(await read_host_files(HERE, FileQuery(paths=paths)))
    assert here.file(str(tmp_path / "link")).real == str(tmp_path / "image")
    assert here.boot_id


async def test_what_takes_more_than_a_look_is_left_to_the_script(tmp_path: Path) -> None:
    """Room that another migration holds there counts, wherever it is read."""
    (tmp_path / "image").write_bytes(b"")
    (tmp_path / ".migrator-room-m1").write_text("m1 4096 image\n")
    paths = [str(tmp_path), str(tmp_path / "image")]
    for host in (HERE, PREFIXED):
        assert (await read_files(host, paths)).file(paths[0]).held_bytes == {"m1": 4096}
