"""Disks of a guest of libvirt whose images are files of its host, for whoever makes images for them elsewhere."""

from __future__ import annotations

from typing import Any

from migrator.core.preflight.facts import Disk, ImageFeatures
from migrator.libvirt.binding import load
from migrator.libvirt.domain_xml import DomainXml


def read_disks(domain: Any, xml: DomainXml) -> tuple[Disk, ...]:
    """Return the disks whose images are files and can be looked at; on a thread."""
    disks = []
    for disk in xml.disks:
        if disk.kind != "file" or not disk.source.startswith("/"):
            continue
        try:
            size_bytes, allocated_bytes, _ = domain.blockInfo(disk.target)
        except load().libvirtError:  # its image cannot be looked at: it is not one to be copied
            continue
        disks.append(
            Disk(
                device=disk.target,
                file=disk.source,
                format=disk.format,
                virtual_bytes=size_bytes,
                read_only=disk.read_only,
                image=ImageFeatures(
                    allocated_bytes=allocated_bytes,
                    # What the images that it is based on have of it is not told: all of it, at the most.
                    backing_bytes=size_bytes if disk.based else 0,
                ),
            )
        )
    return tuple(disks)
