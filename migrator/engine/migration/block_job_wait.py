"""Waits until nothing works on the guest's disks any more: jobs and exports do not survive a move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from migrator.core.policy import BlockJobs, Policy
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.engine import clock
from migrator.errors import Occupied, Refused
from migrator.ports import Qemu

#: Between two looks.
_LOOK_SECONDS = 0.5


class BlockJobWait:
    """The source of one migration, as far as jobs and exports are concerned.

    :param unwanted: whether the migration is not wanted any more; asked at every look.
    :param tell: is told what is waited for whenever that changes; nothing (an empty text) once it is over.
    """

    def __init__(
        self, source: Qemu, policy: Policy, *, unwanted: Callable[[], bool], tell: Callable[[str], None]
    ) -> None:
        self._source, self._policy = source, policy
        self._unwanted, self._tell = unwanted, tell
        #: So long it was waited in all.
        self.waited_seconds = 0.0

    async def come(self) -> None:
        """Return once it is quiet, or the migration is unwanted, or the policy says not to wait; nothing is changed.

        :raise Refused: the policy's max_duration is over.
        :raise QemuError: the source cannot be asked.
        """
        if self._policy.block_jobs is BlockJobs.REFUSE:
            return  # preflight says why
        began, told, before = clock.now(), "", self.waited_seconds
        busy = await self._source.disk_users()
        try:
            while busy and not self._unwanted():
                if told != str(busy):
                    told = str(busy)
                    self._tell(told)
                self.waited_seconds = before + clock.now() - began
                self._check_time(busy)
                # Whoever has to end it may have no other monitor.
                await self._source.release_monitor()
                await asyncio.sleep(_LOOK_SECONDS)
                try:
                    busy = await self._source.disk_users()
                except Occupied:
                    pass  # by whoever has to end it
        finally:
            if told:
                self._tell("")

    def _check_time(self, busy: DiskUsers) -> None:
        limit = self._policy.max_duration_seconds
        if limit is not None and self.waited_seconds > limit:
            raise Refused(
                f"{busy} did not end within the policy's max_duration of {limit:g} s; nothing was changed: end it "
                "(job-cancel, block-export-del), or give it more time"
            )


def too_late(busy: DiskUsers) -> str:
    """Return why a migration ends when something began while memory was copied."""
    return f"{busy} has begun at the source meanwhile, and would not survive the switch: try again once it has ended"
