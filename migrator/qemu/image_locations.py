"""Options and arguments that name images, changed for a QEMU whose host has these images elsewhere. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from migrator.core.process.command_line import path_of
from migrator.core.process.image_paths import TargetImage
from migrator.core.process.options import FIRST, Value

#: Drivers of which QEMU takes the one for a regular file, the other for a block device.
_FILE, _DEVICE = "file", "host_device"
#: Options that are the path of an image as a whole.
_WHOLE = frozenset({"", "hda", "hdb", "hdc", "hdd", "fda", "fdb", "sd", "mtdblock"})


def relocated_option(
    name: str, text: str | None, images: Mapping[str, TargetImage]
) -> tuple[str, str | None]:
    """Return an option of a command line with the paths that its images have there.

    :param images: by the paths at the source.
    """
    if text is None or not images:
        return name, text
    if name in _WHOLE:
        return name, images[path_of(text)].path if path_of(text) in images else text
    if name not in ("drive", "blockdev"):
        return name, text
    value = Value(text, first=FIRST.get(name, ""))
    flat, changed = value.flat(), False
    for key, given in flat.items():
        last = key.rpartition(".")[2]
        if last not in ("file", "filename") or path_of(given) not in images:
            continue
        changed = True
        if given.startswith("json:"):
            node = relocated_node(json.loads(given.removeprefix("json:")), images)
            value.set(key, f"json:{json.dumps(node)}")
            continue
        there = images[path_of(given)]
        value.set(key, there.path)
        driver = f"{key.removesuffix(last)}driver"
        if last == "filename" and flat.get(driver) in (_FILE, _DEVICE):
            value.set(driver, _DEVICE if there.volume else _FILE)
    return name, str(value) if changed else text


def relocated_node(node: Mapping[str, Any], images: Mapping[str, TargetImage]) -> dict[str, Any]:
    """Return the arguments of a block node, or of a change of a medium, likewise."""
    changed: dict[str, Any] = {}
    for key, given in node.items():
        if isinstance(given, Mapping):
            changed[key] = relocated_node(given, images)
        elif key.rpartition(".")[2] == "filename" and isinstance(given, str) and path_of(given) in images:
            there, driver = images[path_of(given)], f"{key.removesuffix('filename')}driver"
            changed[key] = there.path
            if node.get(driver) in (_FILE, _DEVICE):
                changed[driver] = _DEVICE if there.volume else _FILE
        elif key not in changed:
            changed[key] = given
    return changed
