"""Paths that the images of disks have at a target whose directories, or volume groups, have other names. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Below this everything is a block device.
_DEVICES = "/dev/"


@dataclass(frozen=True, kw_only=True)
class TargetImage:
    """The image of a disk at a target where its path is another."""

    path: str
    #: It is a block device there.
    volume: bool = False


@dataclass(frozen=True, kw_only=True)
class ImagePaths:
    """Directories of images of the source's host and of the target, by names that hosts share."""

    here: Mapping[str, str] = field(default_factory=dict)
    there: Mapping[str, str] = field(default_factory=dict)

    def at_target(self, path: str) -> str:
        """Return the path at the target of an image; the same where nothing else is said of its directory.

        So it is where ``..`` may lead out of that directory.
        """
        found, directory = "", ""
        if ".." in path.split("/"):
            return path
        for name, each in self.here.items():
            above = f"{each.rstrip('/')}/"
            if path.startswith(above) and len(above) > len(directory) and name in self.there:
                found, directory = name, above
        return f"{self.there[found].rstrip('/')}/{path.removeprefix(directory)}" if found else path

    def is_volume(self, path: str, *, here: bool) -> bool:
        """Tell whether the image is a block device at the target.

        :param path: at the source.
        :param here: it is one at the source.
        """
        there = self.at_target(path)
        return here if there == path else there.startswith(_DEVICES)
