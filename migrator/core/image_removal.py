"""Images that a guest has left at its source, and that are to be removed there once it was seen to do well. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

#: It has to be seen running somewhere else within so long, in seconds; else its images are kept.
LONGEST_SECONDS = 7 * 86_400.0


class RemovalState(StrEnum):
    """How far the removal of a guest's old images is."""

    #: Its disks at both ends have not been compared yet.
    PENDING = "pending"
    #: They are the same but for what the guest has written since; a time of grace goes by.
    COMPARED = "compared"
    #: They are being removed, or were when the controller went.
    REMOVING = "removing"
    REMOVED = "removed"
    #: They stay, for the reason that is given; a person may delete them.
    KEPT = "kept"

    @property
    def final(self) -> bool:
        """Return whether nothing more is done about them."""
        return self in (RemovalState.REMOVED, RemovalState.KEPT)


@dataclass(frozen=True, kw_only=True)
class OldImage:
    """One image at the source whose contents have left."""

    #: The disk's name in both QEMUs.
    device: str
    #: Path that it had, and the one that it was given when the guest left.
    named: str
    path: str
    format: str
    #: Bitmap at the destination of what was written to the disk since the switch.
    written: str
    #: Device, inode, size, and time of the last change when it was compared; empty before.
    identity: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImageRemoval:
    """The removal of what one migration left at its source."""

    migration: str
    guest: str
    #: The host with the images.
    host: str
    #: Where the guest went, and its process there.
    target: str
    socket: str
    process: Mapping[str, Any]
    images: tuple[OldImage, ...]
    #: Seconds that go by between the guest's arrival and the removal, at the least.
    grace_seconds: float
    #: Seconds since the epoch.
    arrived_at: float
    state: RemovalState = RemovalState.PENDING
    #: With ``kept``: why. Before: what is waited for.
    reason: str = ""
    #: What went wrong with each that could not be removed, by path.
    kept: Mapping[str, str] = field(default_factory=dict)

    @property
    def due_at(self) -> float:
        """Return when they are removed at the earliest."""
        return self.arrived_at + self.grace_seconds

    def keep(self, reason: str) -> ImageRemoval:
        """Return it given up."""
        return replace(self, state=RemovalState.KEPT, reason=reason)


class NextRemovalStep(StrEnum):
    """Next step of a removal."""

    WAIT = "wait"
    COMPARE = "compare"
    REMOVE = "remove"
    KEEP = "keep"


@dataclass(frozen=True, kw_only=True)
class GuestSeen:
    """The guest of a removal, as far as it is seen now."""

    #: Hosts with a process of it that can be asked, and hosts of those that cannot.
    hosts: Sequence[str] = ()
    #: It runs, or is paused by a person, at one of them.
    alive: bool = False
    #: Path of its socket at the target.
    socket: str = ""
    #: The host that a migration under way takes it to; empty: none is.
    goes_to: str = ""


def next_step(removal: ImageRemoval, seen: GuestSeen, *, now: float) -> tuple[NextRemovalStep, str]:
    """Return what to do about a removal, and why.

    :param now: seconds since the epoch.
    """
    # One that was begun is judged anew: its host may not have answered for days, and what is left be needed by now.
    if removal.host in seen.hosts or seen.goes_to == removal.host:
        return NextRemovalStep.KEEP, f"the guest is back at {removal.host}, or on its way there"
    if now - removal.arrived_at > LONGEST_SECONDS:
        waited = removal.reason or "the guest was not seen running"
        return NextRemovalStep.KEEP, f"a week has gone by: {waited}"
    if removal.state is RemovalState.PENDING:
        if seen.goes_to or (seen.hosts and removal.target not in seen.hosts):
            return NextRemovalStep.KEEP, "the guest moved on before its disks were compared"
        if not seen.alive:
            return NextRemovalStep.WAIT, f"the guest is not seen running at {removal.target}"
        return NextRemovalStep.COMPARE, ""
    if now < removal.due_at:
        return NextRemovalStep.WAIT, ""
    if not seen.alive:
        return NextRemovalStep.WAIT, "the guest is not seen running anywhere"
    return NextRemovalStep.REMOVE, ""


def to_fields(removal: ImageRemoval) -> dict[str, Any]:
    """Return it as plain JSON."""
    return asdict(removal)


def from_fields(fields: Mapping[str, Any]) -> ImageRemoval:
    """Return what :func:`to_fields` wrote.

    :raise TypeError: a later version wrote it.
    """
    images = tuple(
        OldImage(**{**each, "identity": tuple(each.get("identity", ()))}) for each in fields["images"]
    )
    return ImageRemoval(**{**fields, "images": images, "state": RemovalState(fields["state"])})
