"""Clears the hosts up once a migration has ended; what cannot be done is said in its result."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from migrator.core.image_removal import ImageRemoval, OldImage
from migrator.core.managed_guest import uuid_at
from migrator.core.migration.disk_copies import DiskCopy, bitmap_name
from migrator.core.policy import SourceImages
from migrator.engine import clock
from migrator.engine.migration.session_state import SessionState
from migrator.errors import MigratorError

if TYPE_CHECKING:
    from migrator.core.inventory import Guest  # which `migrator direct` does not load

_WILL_GO = "bring that host back, or wait: it is removed by itself once its host answers again"
_OLD_IMAGE = "delete it once the guest was seen to do well where it is now"
_BY_HAND = "remove what it names by hand"


async def allow_restart(session: SessionState) -> None:
    """Tell who manages the guest that it stays where it is: they may do as before."""
    try:
        await session.services.site.allow_restart(session.guest)
    except MigratorError as error:
        session.result.warn("left-over", str(error), _BY_HAND)


async def clear(session: SessionState, *, arrived: bool) -> None:
    """Remove what is left of the source; a guest that has arrived is found from now on where the operator knows it."""
    try:
        await session.services.site.clear(session.guest)
    except MigratorError as error:
        session.left_behind.add("source")
        session.result.warn("left-over", str(error), _WILL_GO)
    if not arrived:
        return
    try:
        await _settle(session)
    except MigratorError as error:
        session.result.warn(
            "path-moved", str(error), "bring that host back; until then use the path that it has there"
        )


async def _settle(session: SessionState) -> None:
    """Have the paths that the operator knows lead to the guest's process where it is now."""
    there = replace(
        cast("Guest", session.guest),
        host=session.target,
        socket=session.arrived_socket,
        pid=session.arrived_pid,
    )
    if lacking := await session.services.site.settle(there):
        session.result.warn(
            "path-moved",
            "; ".join(lacking),
            "free that path there, or make its directory; until then use the one that is named",
        )


async def put_aside(session: SessionState, copies: Sequence[DiskCopy], *, arrived: bool) -> None:
    """Give the images at the source whose contents have left another name, so that nobody starts a guest from them.

    Those at the target are removed by nobody from then on. Where that is certain, the policy has those at the source
    removed, and the guest has arrived, :attr:`SessionState.image_removal` says which.
    """
    if not (paths := [copy.path for copy in copies]):
        return
    safe_there = False
    with contextlib.suppress(
        MigratorError
    ):  # what it is kept from is that nobody knows any more that it has arrived
        await session.services.site.keep_images(session.target, migration=session.id)
        safe_there = True
    try:
        moved = await session.services.site.put_aside(session.guest, paths, migration=session.id)
    except MigratorError as error:
        session.result.warn("source-image-kept", str(error), _OLD_IMAGE)
        return
    if arrived and safe_there and session.policy.source_images is SourceImages.REMOVE:
        session.image_removal = _removal(session, copies, moved)
        removed = {image.named for image in session.image_removal.images} if session.image_removal else set()
        paths = [path for path in paths if path not in removed]
        if not paths:
            return
    names = ", ".join(moved.get(path, path) for path in paths)
    where = f"{session.guest.host} keeps the image as it was at the switch: {names}"
    session.result.warn("source-image-kept", where, _OLD_IMAGE)


def _removal(
    session: SessionState, copies: Sequence[DiskCopy], moved: Mapping[str, str]
) -> ImageRemoval | None:
    """Return the removal of images that were given another name; those that were not stay."""
    images = tuple(
        OldImage(
            device=copy.device,
            named=copy.path,
            path=moved[copy.path],
            format=copy.format,
            written=bitmap_name(session.id, copy.device),
        )
        for copy in copies
        if copy.path in moved and copy.format != "luks"  # nobody but its QEMU can read what is in it
    )
    place = session.places["destination"]
    if (
        not images or uuid_at(place.socket) is not None
    ):  # a QEMU of libvirt's is not asked what was written since
        return None
    return ImageRemoval(
        migration=session.id,
        guest=cast("Guest", session.guest).key,
        host=session.guest.host,
        target=session.target,
        socket=place.socket,
        process=dict(place.identity),
        images=images,
        grace_seconds=session.services.source_image_grace_seconds(),
        arrived_at=clock.wall(),
    )


async def abandon(session: SessionState, *, images: bool) -> None:
    """Remove what another controller may have started at the target.

    :param images: see :meth:`migrator.ports.IncomingDestination.discard`.
    """
    try:
        await session.services.site.abandon(session.target, migration=session.id, images=images)
    except MigratorError as error:
        note_left_over(session, error, images=images)


def note_left_over(session: SessionState, error: MigratorError, *, images: bool) -> None:
    """Note that something of a migration stays at its target: it is removed once that answers.

    :param images: those that were made there are to go too, as :meth:`abandon` has it.
    """
    session.left_behind |= {"destination", "images"} if images else {"destination"}
    session.result.warn("left-over", str(error), _WILL_GO)
