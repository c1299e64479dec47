"""A command line whose images are elsewhere at the target."""

from __future__ import annotations

import json

import pytest

from migrator.core.process.image_paths import ImagePaths, TargetImage
from migrator.qemu.image_locations import relocated_node, relocated_option

IMAGES = {
    "/a/disk": TargetImage(path="/dev/vg,0/disk", volume=True),
    "/dev/vg/disk": TargetImage(path="/srv/disk"),
}


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("drive", "file=/a/disk,if=none,id=d,format=raw", "file=/dev/vg,,0/disk,if=none,id=d,format=raw"),
        ("drive", "if=none,file.driver=host_device,file.filename=/dev/vg/disk,format=raw",
         "if=none,file.driver=file,file.filename=/srv/disk,format=raw"),
        ("drive", "file=file:/a/disk,format=raw", "file=/dev/vg,,0/disk,format=raw"),
        ("hda", "/a/disk", "/dev/vg,0/disk"),
        ("", "/a/disk", "/dev/vg,0/disk"),
        ("blockdev", "file,node-name=f,filename=/a/disk", "host_device,node-name=f,filename=/dev/vg,,0/disk"),
        ("blockdev", "driver=qcow2,file.driver=file,file.filename=/a/disk,backing.file.filename=/a/base",
         "driver=qcow2,file.driver=host_device,file.filename=/dev/vg,,0/disk,backing.file.filename=/a/base"),
        ("blockdev", "file,node-name=f,filename=/a/other", "file,node-name=f,filename=/a/other"),
        ("device", "loader,file=/a/disk", "loader,file=/a/disk"),
    ],
)  # fmt: skip
def test_options_name_the_paths_there(name: str, before: str, after: str) -> None:
    assert relocated_option(name, before, IMAGES) == (name, after)


def test_json_does_too() -> None:
    node = {
        "driver": "raw",
        "node-name": "d",
        "file": {"driver": "file", "filename": "/a/disk", "aio": "native"},
    }
    wanted = {**node, "file": {"driver": "host_device", "filename": "/dev/vg,0/disk", "aio": "native"}}
    assert relocated_node(node, IMAGES) == wanted
    _, option = relocated_option("blockdev", json.dumps(node), IMAGES)
    assert json.loads(option or "") == wanted
    _, option = relocated_option(
        "drive", f"file=json:{json.dumps(node)}".replace(",", ",,") + ",if=none", IMAGES
    )
    assert option == f"file=json:{json.dumps(wanted)}".replace(",", ",,") + ",if=none"


def test_the_nearest_directory_counts_and_a_name_that_the_target_lacks_does_not() -> None:
    here = {"fast": "/dev/vg", "deep": "/images/deep/", "all": "/images", "own": "/own"}
    paths = ImagePaths(here=here, there={"fast": "/srv", "deep": "/deep", "all": "/all"})
    found = [
        paths.at_target(path)
        for path in ("/dev/vg/a", "/images/a", "/images/deep/b/c", "/own/a", "/dev/vg2/a")
    ]
    assert found == ["/srv/a", "/all/a", "/deep/b/c", "/own/a", "/dev/vg2/a"]
    assert paths.at_target("/images/deep/../other/a") == "/images/deep/../other/a"
    assert not paths.is_volume("/dev/vg/a", here=True)
    assert paths.is_volume("/own/a", here=True)
