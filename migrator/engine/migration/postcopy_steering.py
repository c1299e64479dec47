"""Steers a postcopy whose guest runs at the destination: what is sent unasked gives way to what the guest waits for."""

from __future__ import annotations

from dataclasses import replace

from migrator import logs
from migrator.core.migration.postcopy_bandwidth import PostcopyBandwidth, begin, step
from migrator.core.model import RUNNING_STATES, MigrationStatus, View
from migrator.engine import clock
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.errors import Driven, QemuError
from migrator.ports import Qemu, Tuning


class PostcopySteering:
    """Steers one postcopy."""

    def __init__(self, source: Qemu, *, result: MigrationOutcome) -> None:
        self._source = source
        self._result = result
        self._state = PostcopyBandwidth()
        #: What QEMU was told; ``None``: not by this controller, and one before may have held it back.
        self._told: int | None = None
        self._log = logs.logger(migration=result.id)

    def expect(self, path_bytes_per_second: float) -> None:
        """Say what the path was seen to carry; 0 says nothing."""
        if path_bytes_per_second > 0:
            self._state = replace(self._state, path_bytes_per_second=path_bytes_per_second)

    @property
    def limit(self) -> int:
        """Return what QEMU may send unasked, bytes per second; 0 is no limit of its own."""
        return self._state.limit

    async def begin(self) -> None:
        """Hold back what is sent unasked from now on: the guest is told to run.

        :raise Driven: another controller has taken the source over.
        """
        self._told = self._told or 0  # as every migration is prepared
        await self._become(begin(self._state))

    async def step(self, source: View, destination: View, *, handed_over: bool) -> None:
        """Take one more look into account; a source that refuses or does not answer goes on as it is.

        :param handed_over: the guest was told to run at the destination, which may be silent as it waits for a page.
        :raise Driven: another controller has taken the source over.
        """
        runs = destination.run in RUNNING_STATES if destination.answers else handed_over
        sample = source.sample
        if source.status is not MigrationStatus.POSTCOPY_ACTIVE or sample is None or not runs:
            return
        if self._told is None:
            # Another controller began it. What the path carries cannot be seen below a limit of its making.
            await self._become(replace(self._state, limit=0, until=clock.now()))
            return
        await self._become(
            step(
                self._state,
                at_seconds=clock.now(),
                requests=sample.postcopy_requests,
                stall_seconds=destination.postcopy_stall_seconds,
                remaining_bytes=sample.remaining_bytes,
                bandwidth_bytes_per_second=sample.bandwidth_bytes_per_second,
            )
        )

    async def _become(self, state: PostcopyBandwidth) -> None:
        before, self._state = self._state.limit, state
        if state.limit == self._told:
            return
        try:
            await self._source.tune(Tuning(max_postcopy_bandwidth_bytes_per_second=state.limit))
            self._told = state.limit
        except Driven:
            raise
        except QemuError as error:
            self._state = replace(state, limit=before)
            self._log.info("the bandwidth of postcopy could not be set", error=str(error))
