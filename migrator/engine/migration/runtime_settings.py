"""Sets at the destination what was set at the source while it ran and is not in the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from migrator import logs
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.errors import QemuError
from migrator.gathering import gather_to_end
from migrator.ports import MigrationSettings, Qemu

#: The guest has arrived, and nothing waits for this but the end of the source.
_AFTER_SECONDS = 5.0


class RuntimeSettings:
    """Gives the destination of one migration what does not travel.

    Done before the stream begins, so that the guest never runs without its limits, and once more when it has arrived,
    from a source that still answers: somebody may have changed something meanwhile.
    """

    def __init__(self, source: Qemu, destination: Qemu, *, result: MigrationOutcome) -> None:
        self._source, self._destination, self._result = source, destination, result
        self._log = logs.logger(migration=result.id)

    async def before(self) -> None:
        """Set it while the destination waits.

        :raise QemuError: an end does not answer.
        """
        await self._carry()

    async def after(self, settings: MigrationSettings | None) -> None:
        """Set it again once the guest is at the destination. Never raises: it is no reason to undo anything.

        :param settings: migration parameters and capabilities that the source had before.
        """
        try:
            async with asyncio.timeout(_AFTER_SECONDS):
                restored = [self._destination.restore(settings)] if settings is not None else []
                await gather_to_end(self._carry(), *restored)
        except (QemuError, TimeoutError) as error:
            self._tell([str(error) or f"the ends did not answer within {_AFTER_SECONDS:g} s"])

    async def _carry(self) -> None:
        present, given = await gather_to_end(
            self._destination.read_runtime_state(), self._source.read_runtime_state()
        )
        self._tell(await self._destination.restore_runtime_state(given, present))

    def _tell(self, refused: Sequence[str]) -> None:
        if not refused:
            return
        self._log.warning("not all was put back at the destination", refused=list(refused))
        self._result.warn(
            "not-put-back",
            f"not all that was set in the source while it ran could be set at the destination: {'; '.join(refused)}",
            "set it again at the target after the move",
        )
