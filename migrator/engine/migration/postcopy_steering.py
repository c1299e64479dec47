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
        await self._become(begin(self._state))

    async def step(self, source: View, destination: View) -> None:
        """Take one more look into account; a source that refuses or does not answer goes on as it is.

        :raise Driven: another controller has taken the source over.
        """
        stall = destination.postcopy_stall_seconds
        sample = source.sample
        if (
            source.status is not MigrationStatus.POSTCOPY_ACTIVE
            or sample is None
            or not destination.answers
            or destination.run not in RUNNING_STATES
        ):
            return
        await self._become(
            step(
                self._state,
                at_seconds=clock.now(),
                requests=sample.postcopy_requests,
                stall_seconds=stall,
                remaining_bytes=sample.remaining_bytes,
                bandwidth_bytes_per_second=sample.bandwidth_bytes_per_second,
            )
        )

    async def _become(self, state: PostcopyBandwidth) -> None:
        before, self._state = self._state.limit, state
        if self._state.limit == before:
            return
        try:
            await self._source.tune(Tuning(max_postcopy_bandwidth_bytes_per_second=self._state.limit))
        except Driven:
            raise
        except QemuError as error:
            self._state = replace(self._state, limit=before)
            self._log.info("the bandwidth of postcopy could not be set", error=str(error))
