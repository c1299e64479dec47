"""What a policy may ask for that a move by libvirt has not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from migrator.core.model import Finding
from migrator.core.policy import Backing, CopiedDisks, Policy, PostcopyMode, SourceImages, StreamRoute
from migrator.core.preflight.facts import Disk
from migrator.core.process.files import FileFacts, FileKind, HostFiles
from migrator.libvirt.domain_xml import DiskXml
from migrator.site.managed_checks import copied, refused_wishes


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"stream": StreamRoute.SSH}, "ssh"),
        ({"disks": CopiedDisks.ALL}, "disks"),
    ],
)
def test_what_it_has_not_is_refused_and_named(wish: dict[str, Any], named: str) -> None:
    (said,) = refused_wishes(Policy(name="own", max_downtime_seconds=0.3, **wish))
    assert said.code == "libvirt-policy"
    assert named in said.message


def test_a_usual_policy_is_taken() -> None:
    assert list(refused_wishes(Policy(name="own", max_downtime_seconds=0.3))) == []
    early = Policy(name="own", max_downtime_seconds=0.3, postcopy=PostcopyMode.IMMEDIATE)
    assert list(refused_wishes(early)) == []
    still = Policy(name="own", max_downtime_seconds=0.3, offline=True)
    assert list(refused_wishes(still)) == []


def _copied(disk: DiskXml, path: str = "/there/a", **wish: Any) -> Finding:
    """Return what is said of a disk whose image the target has not."""
    facts = Disk(device=disk.target, file=disk.source, format=disk.format, virtual_bytes=1 << 20)
    room = FileFacts(kind=FileKind.DIRECTORY, device="8:1", free_bytes=1 << 30)
    there = HostFiles(files={"/there": room, "/dev/vg": room})
    policy = Policy(name="own", max_downtime_seconds=0.3, **wish)
    (said,) = copied(disk, facts, "beta", there, path=path, policy=policy)
    return said


_DISK = DiskXml(target="vda", source="/here/a", format="qcow2")
_BASED = replace(_DISK, based=True, backing_files=("/here/base",))


@pytest.mark.parametrize("disk", [_DISK, _BASED], ids=["alone", "based on another"])
def test_disk_that_the_target_has_not_is_copied_with_all_that_it_is_based_on(disk: DiskXml) -> None:
    assert _copied(disk).code == "disk-copied"


@pytest.mark.parametrize(
    ("disk", "how", "remedy"),
    [
        (_BASED, {"backing": Backing.KEEP}, "flatten"),
        (_DISK, {"source_images": SourceImages.REMOVE}, "keep"),
        (_DISK, {"path": "/dev/vg/a"}, "--copy-storage-all"),
    ],
    ids=["base kept", "source removed", "volume"],
)
def test_copy_that_libvirt_does_not_make_is_refused_with_what_to_do(
    disk: DiskXml, how: dict[str, Any], remedy: str
) -> None:
    said = _copied(disk, **how)
    assert said.code == "disk-not-copied"
    assert remedy in said.remedy
