"""The choice of disks and of the stream's layout, for a migration that the guest's manager carries out. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from migrator.core.migration.disk_copies import DiskCopy
from migrator.core.migration.stream_layout import LayoutChoice, StreamAbilities, StreamLayout, choose_layout
from migrator.core.policy import Policy
from migrator.core.preflight.facts import Facts

#: A manager hides which QEMU waits at the target: none is assumed that has several channels and may go to postcopy.
_TARGET_VERSION = "7.2"


def new_copies(facts: Facts, new_images: Collection[str]) -> tuple[DiskCopy, ...]:
    """Return the disks that are copied into images which were made for the migration."""
    return tuple(
        DiskCopy(
            device=disk.device,
            size_bytes=disk.virtual_bytes,
            allocated_bytes=disk.copied_bytes(keep_backing=False),
            path=disk.file,
            format=disk.format,
            new=True,
        )
        for disk in facts.disks
        if disk.device in new_images
    )


def choose_managed_layout(
    policy: Policy,
    facts: Facts,
    *,
    postcopy: bool,
    encrypted: bool,
) -> LayoutChoice:
    """Choose the layout of a stream that the policy asks for, without what managers have no word for (zstd)."""
    choice = choose_layout(
        policy,
        StreamAbilities(
            capabilities=facts.capabilities,
            versions=(facts.version, _TARGET_VERSION),
            postcopy=postcopy,
            memory_bytes=facts.memory_bytes,
            encrypted=encrypted,
        ),
    )
    if choice.layout.compression != "zstd":
        return choice
    reason = "pages are not compressed: libvirt is not asked for zstd"
    plain = StreamLayout(channels=policy.streams or 1)
    return replace(choice, layout=plain, notes=(("plain-stream", reason),))
