"""Removes the images that guests have left at their sources, where their policy says so: once compared, after a time.

Each removal is a document of the journal from the moment on at which its migration has ended, and survives whoever
carries it out. What is decided is decided by :mod:`migrator.core.image_removal`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from migrator import logs
from migrator.api.documents import DecisionDocument
from migrator.api.events import DecisionTaken, Subject
from migrator.core.image_removal import (
    GuestSeen,
    ImageRemoval,
    NextRemovalStep,
    RemovalState,
    from_fields,
    next_step,
    to_fields,
)
from migrator.core.inventory import Guest
from migrator.core.model import RUNNING_STATES, Decision, RunState
from migrator.engine import clock
from migrator.engine.event_bus import EventBus
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration.removal_document import source_images
from migrator.engine.registry import Registry
from migrator.errors import ComparisonFailed, JournalError, MigratorError

#: Kind of their documents in the journal.
KIND = "image-removal"
#: Actions of the decisions that tell of them.
COMPARED, REMOVED, KEPT = "source-image-compared", "source-image-removed", "source-image-kept"
#: They are looked at so often; and after the arrival of a guest for the first time: its inventory is not told before.
_LOOK_SECONDS, _FIRST_SECONDS = 15.0, 2.0
#: What failed because a host or a QEMU could not be asked is tried again after so long.
_RETRY_SECONDS = 60.0
#: While disks are compared it is looked so often whether the guest moves again.
_WATCH_SECONDS = 0.5
_EVENTS = 100_000


class ImageSite(Protocol):
    """The part of :class:`migrator.ports.Site` that this needs."""

    async def compare_images(self, removal: ImageRemoval) -> ImageRemoval: ...

    async def remove_images(self, removal: ImageRemoval) -> Mapping[str, str]: ...


@dataclass
class _Pending:
    removal: ImageRemoval
    #: On the engine's clock.
    not_before: float


class ImageRemovals:
    """Knows them across restarts, and carries them out, one comparison at a time.

    :param guests_of: every guest of a key, as the inventory knows them.
    """

    def __init__(
        self,
        *,
        site: ImageSite,
        registry: Registry,
        guests_of: Callable[[str], list[Guest]],
        journal_writer: JournalWriter,
        bus: EventBus,
    ) -> None:
        self._site, self._registry, self._guests_of = site, registry, guests_of
        self._journal_writer, self._bus = journal_writer, bus
        self._pending: dict[str, _Pending] = {}
        self._wake = asyncio.Event()
        self._log = logs.logger()

    def add(self, removal: ImageRemoval) -> None:
        """Take one in whose migration is being journalled as ended: it is journalled together with that."""
        self._pending[removal.migration] = _Pending(removal, clock.now() + _FIRST_SECONDS)
        self._journal_writer.schedule(KIND, _document(removal))
        self._wake.set()

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Take over what another controller had journalled."""
        removal = from_fields(saved["removal"])
        self._pending[removal.migration] = _Pending(removal, clock.now() + _FIRST_SECONDS)
        self._wake.set()

    def wake(self) -> None:
        """Look at them soon: something is different from before."""
        if self._pending:
            self._wake.set()

    async def run(self) -> None:
        """Carry them out until cancelled."""
        while True:
            due = [each.not_before for each in self._pending.values()]
            wait = max(0.1, min(due) - clock.now()) if due else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            self._wake.clear()
            for pending in list(self._pending.values()):
                if clock.now() >= pending.not_before and self._registry.may_begin:
                    pending.not_before = clock.now() + _LOOK_SECONDS
                    await self._look(pending)

    async def _look(self, pending: _Pending) -> None:
        removal = pending.removal
        step, why = next_step(removal, self._seen(removal), now=clock.wall())
        try:
            match step:
                case NextRemovalStep.KEEP:
                    await self._change(pending, removal.keep(why))
                case NextRemovalStep.COMPARE:
                    await self._compare(pending)
                case NextRemovalStep.REMOVE:
                    await self._remove(pending)
                case NextRemovalStep.WAIT if why != removal.reason:
                    await self._change(pending, replace(removal, reason=why))
            if pending.removal.state is RemovalState.COMPARED:
                left = pending.removal.due_at - clock.wall()
                pending.not_before = clock.now() + min(max(0.0, left), _LOOK_SECONDS)
        except JournalError as error:
            self._log.warning("image removal waits", migration=removal.migration, error=str(error))
            pending.not_before = clock.now() + _RETRY_SECONDS

    def _seen(self, removal: ImageRemoval) -> GuestSeen:
        guests = [each for each in self._guests_of(removal.guest) if not each.arriving]
        moving = self._registry.of_guest(removal.guest)
        return GuestSeen(
            hosts=[each.host for each in guests],
            alive=any(
                not each.lost_contact and (each.run in RUNNING_STATES or each.run is RunState.PAUSED)
                for each in guests
            ),
            goes_to=moving.target if moving is not None else "",
        )

    async def _compare(self, pending: _Pending) -> None:
        removal = pending.removal
        comparing = asyncio.create_task(
            self._site.compare_images(removal), name=f"compare the images of {removal.migration}"
        )
        try:
            while not comparing.done():
                await asyncio.wait([comparing], timeout=_WATCH_SECONDS)
                if self._registry.is_moving(removal.guest) or not self._registry.may_begin:
                    comparing.cancel()
                    await asyncio.wait([comparing])
                    return  # what is to be done now, the next look says
            compared = comparing.result()
        except ComparisonFailed as error:
            await self._change(pending, removal.keep(str(error)))
        except MigratorError as error:
            pending.not_before = clock.now() + _RETRY_SECONDS
            await self._change(pending, replace(removal, reason=str(error)))
        else:
            await self._change(pending, replace(compared, state=RemovalState.COMPARED, reason=""))
        finally:
            if not comparing.done():
                comparing.cancel()
                await asyncio.wait([comparing])

    async def _remove(self, pending: _Pending) -> None:
        if pending.removal.state is not RemovalState.REMOVING:
            await self._change(pending, replace(pending.removal, state=RemovalState.REMOVING, reason=""))
            step, _ = next_step(pending.removal, self._seen(pending.removal), now=clock.wall())
            if step is not NextRemovalStep.REMOVE or not self._registry.may_begin:
                return  # journalling it took a while: the next look says what is to be done now
        try:
            kept = await self._site.remove_images(pending.removal)
        except MigratorError as error:
            pending.not_before = clock.now() + _RETRY_SECONDS
            self._log.warning("images stay", migration=pending.removal.migration, error=str(error))
            return
        removal = replace(pending.removal, state=RemovalState.REMOVED, kept=kept, reason="")
        if kept:
            removal = removal.keep("; ".join(f"{path}: {why}" for path, why in kept.items()))
        await self._change(pending, removal)

    async def _change(self, pending: _Pending, removal: ImageRemoval) -> None:
        """Journal how far one is, before anything follows from it, and tell of it.

        :raise JournalError: it cannot be journalled; nothing is changed then.
        """
        before = pending.removal.state
        await self._journal_writer.commit((KIND, _document(removal)))
        pending.removal = removal
        if removal.state.final:
            self._pending.pop(removal.migration, None)
        await self._tell(removal, _decision(removal) if removal.state is not before else None)

    async def _tell(self, removal: ImageRemoval, decision: Decision | None) -> None:
        """Have the document of its migration, which has ended, say so too."""
        shown = source_images(removal).model_dump(mode="json")
        session = self._registry.migrations.get(removal.migration)
        if session is not None:
            session.image_removal = removal
            if decision is not None:
                session.result.decisions.append(decision)
            self._journal_writer.schedule_latest("migration", session.id, session.journalled)
        else:
            saved = await self._journal_writer.journal.find("migration", removal.migration)
            if saved is None:
                return  # it was so long ago that nobody keeps it
            saved["source_images"] = shown
            if decision is not None:
                saved["decisions"] = [*saved["decisions"], asdict(decision)]
            self._journal_writer.schedule("migration", saved)
        if decision is None:
            return
        if not self._bus.sequence(Subject.MIGRATION, removal.migration):
            await self._count_on(removal.migration)
        told = DecisionDocument(**asdict(decision))
        self._bus.publish(DecisionTaken(migration=removal.migration, decision=told))

    async def _count_on(self, migration: str) -> None:
        """Number its events after those that were told before it was forgotten."""
        events = await self._journal_writer.journal.events(
            limit=_EVENTS, subject=str(Subject.MIGRATION), subject_id=migration
        )
        if events:
            self._bus.resume({(Subject.MIGRATION, migration): max(each["sequence"] for each in events)})


def _document(removal: ImageRemoval) -> dict[str, Any]:
    return {
        "id": removal.migration,
        "removal": to_fields(removal),
        "ended_at": datetime.now(UTC).isoformat() if removal.state.final else None,
    }


def _decision(removal: ImageRemoval) -> Decision | None:
    paths = ", ".join(image.path for image in removal.images)
    match removal.state:
        case RemovalState.COMPARED:
            at = datetime.fromtimestamp(removal.due_at, UTC).isoformat(timespec="seconds")
            action, reason = (
                COMPARED,
                f"the same as the guest's disks but for what it wrote since: removed after {at}",
            )
        case RemovalState.REMOVED:
            action, reason = REMOVED, "the guest was seen to do well"
        case RemovalState.KEPT:
            action, reason = KEPT, removal.reason
        case _:
            return None
    at_seconds = max(0.0, clock.wall() - removal.arrived_at)
    return Decision(
        at_seconds=round(at_seconds, 3), action=action, reason=f"{removal.host}: {paths}: {reason}"
    )
