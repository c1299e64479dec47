"""Copies the disks of one migration that both ends do not share, before its memory and in step with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from migrator.core.migration.disk_copies import (
    MIRRORS,
    DiskCopy,
    MirrorPhase,
    Mirrors,
    bitmap_name,
    judge_mirrors,
    mirror_name,
)
from migrator.core.preflight.disk_images import longest_end_seconds, seconds_to_end
from migrator.core.preflight.non_migrated_state import BlockJob, DiskUsers
from migrator.core.preflight.stream_tls import StreamTls
from migrator.engine import clock
from migrator.errors import CommandFailed, Refused
from migrator.gathering import gather_to_end
from migrator.ports import Qemu
from migrator.units import show_bytes, show_seconds

#: Between two looks at mirrors that copy.
_LOOK_SECONDS = 0.1
#: ... and at such that end while the guest stands still: what has little left has ended a moment after it was asked to.
_FIRST_END_LOOK_SECONDS, _END_LOOK_SECONDS = 0.0005, 0.002
#: Where the copy ends within so many seconds at its present speed, looks are nearer to each other.
_NEARLY_SECONDS, _NEAR_LOOK_SECONDS = 0.2, 0.02
#: Mirrors in which nothing moves for so long are given up.
_STALLED_SECONDS = 30.0
#: So long mirrors may take to end where the guest stands still anyway.
_RESTING_END_SECONDS = 120.0


#: The action of the decision that what the guest writes at its destination is not noted there.
WRITES_NOT_NOTED = "writes-not-noted"


class DiskMirrors:
    """The mirrors of one migration: begun before its memory is copied, ended at the last safe point before its switch.

    The truth is in the source's QEMU: each mirror is a job there with a name made of the migration's id, and the result
    of one that has ended is kept until the source is quit, so that any controller can tell whether a disk arrived.

    :param tls: the certificates that both ends use; ``None``: they send plainly.
    :param lead: returns the address that the source is given for one of the destination; raises Refused.
    :param tell: is told an action and its reason.
    :param note_writes: whether what the guest writes after its switch is to be noted at the destination, so that its
        disks can be compared with what it leaves.
    """

    def __init__(
        self,
        source: Qemu,
        destination: Qemu,
        *,
        migration: str,
        tls: StreamTls | None,
        lead: Callable[[str], Awaitable[str]],
        tell: Callable[[str, str], None],
        note_writes: Callable[[], bool] = lambda: False,
    ) -> None:
        self._source, self._destination = source, destination
        self._note_writes = note_writes
        self._migration, self._tls, self._lead, self._tell = migration, tls, lead, tell
        self._speed: int | None = None
        #: Mirrors that were asked to end, with the guest standing still.
        self._asked: set[str] = set()
        #: The disks that travel; none of a migration whose ends share them all.
        self.copies: tuple[DiskCopy, ...] = ()
        #: The most that the path was seen to carry; 0: nothing is known.
        self.carried_bytes_per_second = 0.0
        #: The guest stood still for so long until they were ended.
        self.end_seconds = 0.0

    @property
    def total_bytes(self) -> int:
        """Return how many bytes of the guest's disks are copied, as far as that is known before."""
        return sum(min(copy.allocated_bytes, copy.size_bytes) for copy in self.copies)

    def _names(self) -> list[str]:
        return [mirror_name(self._migration, number) for number in range(len(self.copies))]

    def judge(self, jobs: Sequence[BlockJob]) -> Mirrors:
        """Judge how far they are by the jobs of ours that the source shows."""
        return judge_mirrors(self.copies, self._migration, jobs)

    async def _look(self) -> Mirrors:
        return self.judge((await self._source.disk_users()).ours)

    async def begin(self, uri: str, *, speed: Callable[[], int | None]) -> None:
        """Begin to copy the disks; nothing where none travels.

        :param uri: where the destination takes the stream: disks go to the same address.
        :param speed: returns the share of the links in bytes per second, which they keep to from their first byte on;
            ``None``: no limit.
        :raise Refused: a disk cannot be copied; what was begun is there until :meth:`give_up`.
        :raise QemuError: an end refused, or did not answer; likewise.
        """
        if not self.copies:
            return
        devices = dict(zip((copy.device for copy in self.copies), self._names(), strict=True))
        encrypted_for = self._migration if self._tls is not None else ""

        async def serve() -> str:
            # Where there is none, that is said once its time has come; an earlier controller may have made it.
            with contextlib.suppress(CommandFailed):
                await self._destination.mirroring.prepare_bitmaps(self._noted())
            return await self._destination.mirroring.serve(devices, _beside(uri), encrypted_for=encrypted_for)

        # Besides, the source lets go of what an earlier controller may have left.
        beginning: list[Awaitable[Any]] = [serve(), self._source.mirroring.give_up(MIRRORS)]
        served, _ = await gather_to_end(*beginning)
        where = await self._lead(served)
        made = [copy.device for copy in self.copies if copy.new]
        volumes = await self._destination.mirroring.on_volumes(made) if made else frozenset()
        # The one that takes longest first: the source is a tenth of a second at each connection.
        self._speed = self._part(speed())
        named = zip(self.copies, self._names(), strict=True)
        for copy, name in sorted(named, key=lambda each: -(each[0].allocated_bytes or each[0].size_bytes)):
            used = f", {show_bytes(copy.allocated_bytes)} of it used" if copy.allocated_bytes else ""
            self._tell(
                "copy-disk",
                f"disk {copy.device} ({show_bytes(copy.size_bytes)}{used}) is not shared: it is copied",
            )
            await self._source.mirroring.begin(
                copy.device,
                name,
                where,
                whole=not copy.new or copy.device in volumes,
                based=copy.based,
                bytes_per_second=self._speed,
                encrypted_for=encrypted_for,
                tls=self._tls,
            )

    async def copy(
        self,
        *,
        speed: Callable[[], int | None],
        unwanted: Callable[[], bool],
        tend: Callable[[Mirrors], Awaitable[None]],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        """Return once each disk was written once and is kept the same, or the copy is unwanted; after :meth:`begin`.

        :param speed: returns the share of the links in bytes per second; ``None``: no limit.
        :param tend: is told how far they are, and raises :class:`Refused` where they are to be given up.
        :param pause: waits so many seconds, or until an end tells of something.
        :raise Refused: a disk cannot be copied; what was begun is there until :meth:`give_up`.
        :raise QemuError: an end refused, or did not answer; likewise.
        """
        await self._until_ready(speed, unwanted, tend, pause)
        if not unwanted():
            await self._share(None)

    async def _until_ready(
        self,
        speed: Callable[[], int | None],
        unwanted: Callable[[], bool],
        tend: Callable[[Mirrors], Awaitable[None]],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        seen, moved_at = (-1, -1), clock.now()
        before = moved_at, 0
        while not unwanted():
            await self._share(speed())
            now = await self._look()
            await tend(now)
            if now.phase is MirrorPhase.READY:
                return
            if now.phase is not MirrorPhase.COPYING:
                raise Refused(now.problem or "a mirror has ended by itself")
            at, copied = clock.now(), now.done_bytes - before[1]
            nearly = 0 < now.remaining_bytes * (at - before[0]) <= _NEARLY_SECONDS * copied
            before = at, now.done_bytes
            if (now.done_bytes, now.total_bytes) != seen:
                seen, moved_at = (now.done_bytes, now.total_bytes), clock.now()
            elif clock.now() - moved_at > _STALLED_SECONDS:
                raise Refused(f"nothing of the disks was copied for {_STALLED_SECONDS:g} s")
            await pause(_NEAR_LOOK_SECONDS if nearly else _LOOK_SECONDS)

    async def _share(self, bytes_per_second: int | None) -> None:
        """Give each its part of the links, where that has changed."""
        each = self._part(bytes_per_second)
        if each == self._speed or (each == 0 and self._speed is None):
            return
        self._speed = each
        for name in self._names():
            await self._source.mirroring.set_speed(name, each)

    def _part(self, bytes_per_second: int | None) -> int:
        """Return what each of them may take of that; 0: as much as there is."""
        return max(1, bytes_per_second // len(self.copies)) if bytes_per_second is not None else 0

    def broken(self, jobs: Sequence[BlockJob]) -> str:
        """Return why the migration cannot go on while memory is copied; empty where it can."""
        if not self.copies:
            return ""
        now = self.judge(jobs)
        return "" if now.phase is MirrorPhase.READY else now.problem or f"the mirrors are {now.phase}"

    async def end(
        self, users: DiskUsers, *, ceiling_seconds: float | None, ended_before: bool = False
    ) -> tuple[str, DiskUsers]:
        """End the mirrors at the last safe point, with the guest standing still.

        Afterwards both sides have the same contents, no job holds a disk, and nothing can write to the destination's.
        May be called again. A mirror that has ended and was not asked to proves nothing: the guest may have written
        since.

        :param users: of the source's disks, as it was looked at last with the guest standing still.
        :param ceiling_seconds: of the guest's downtime, which bounds how long it waits for this; ``None``: it stands
            still anyway.
        :param ended_before: it is on record that they were ended with the guest standing still, as it does yet.
        :return: why that failed, or nothing; and who uses the disks now.
        :raise QemuError: an end refused, or did not answer.
        """
        if not self.copies:
            return "", users
        within = _RESTING_END_SECONDS
        if ceiling_seconds is not None:
            within = longest_end_seconds(ceiling_seconds)
        began, sent_before, look = clock.now(), None, _FIRST_END_LOOK_SECONDS
        while True:
            jobs = users.ours
            now = self.judge(jobs)
            early = {job.id for job in jobs if job.status == "concluded"} & {*self._names()} - self._asked
            if early and not ended_before and now.phase is not MirrorPhase.BROKEN:
                why = "a mirror of the disks was ended by somebody else, maybe before the guest stood still"
                return why, users
            if now.phase is MirrorPhase.ARRIVED:
                break
            if now.phase in (MirrorPhase.BROKEN, MirrorPhase.COPYING):
                return now.problem or "the disks are not the same yet", users
            if sent_before is None:
                sent_before = now.done_bytes
            passed = clock.now() - began
            more = seconds_to_end(
                now.remaining_bytes,
                sent_bytes=now.done_bytes - sent_before,
                passed_seconds=passed,
                carried_bytes_per_second=self.carried_bytes_per_second,
            )
            if ceiling_seconds is not None and passed + more > within:
                return _too_late(now.remaining_bytes, passed, more, within), users
            due = [job.id for job in jobs if job.status in ("ready", "standby") and job.id in self._names()]
            due = [name for name in due if name not in self._asked]
            self._asked.update(due)
            await gather_to_end(*(self._source.mirroring.end(name) for name in due))
            if clock.now() - began > within:
                return _too_late(now.remaining_bytes, within, 0.0, within), users
            await asyncio.sleep(look)
            look = min(2 * look, _END_LOOK_SECONDS)
            users = await self._source.disk_users()
        # Nothing is on its way any more: which end closes first does not matter, and the last look is the same one.
        closing: list[Awaitable[Any]] = [
            self._source.mirroring.remove_targets(MIRRORS),
            self._end_serving(),
            self._source.disk_users(),
        ]
        *_, users = await gather_to_end(*closing)
        self.end_seconds = clock.now() - began
        return "", users

    def _noted(self) -> dict[str, str]:
        """Return the disks whose writes are noted at the destination, with the names of their bitmaps."""
        if not self._note_writes():
            return {}
        return {copy.device: bitmap_name(self._migration, copy.device) for copy in self.copies if copy.new}

    async def _end_serving(self) -> None:
        await self._destination.mirroring.stop_serving()
        try:
            await self._destination.mirroring.note_writes(self._noted())
        except CommandFailed as error:  # without them the guest can go on as well
            self._tell(WRITES_NOT_NOTED, f"the images at the source will be kept: {error}")

    async def give_up(self) -> None:
        """End the mirrors of a migration that is undone: the source has its disks for itself again.

        :raise QemuError: it does not answer, or a mirror does not end.
        """
        if self.copies:
            await self._source.mirroring.give_up(MIRRORS)


def _too_late(left_bytes: int, passed: float, more: float, within: float) -> str:
    """Return why the mirrors may not be waited for any longer with the guest standing still; times in seconds."""
    most = f"{show_seconds(within)} is the most that it may stand still for them"
    if not left_bytes:
        return (
            f"QEMU had not ended the copies of the disks {show_seconds(passed)} after the guest had been stopped, "
            f"with nothing of them left, and {most}"
        )
    takes = f", which takes {show_seconds(more)} at least" if more else ""
    return (
        f"a burst of writes came too late: {show_bytes(left_bytes)} of the disks was left {show_seconds(passed)} after "
        f"the guest had been stopped{takes}, and {most}"
    )


def _beside(uri: str) -> str:
    """Return where disks are served, beside the stream."""
    kind, _, rest = uri.partition(":")
    if kind == "unix":
        return f"unix:{rest}.disks"
    if kind != "tcp":
        raise Refused(f"disks are not copied to {uri}")
    return f"tcp:{rest.rpartition(':')[0]}"
