"""Recovers the broken stream of a postcopy: again and again, with growing pauses, over any address that carries it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from migrator import logs
from migrator.core.migration.rules import recovers
from migrator.core.model import MigrationStatus, ProcessState, View
from migrator.engine.migration.intent_log import IntentLog
from migrator.engine.migration.observer import Observer
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.stream_routing import StreamRouting
from migrator.errors import CommandFailed, Driven, QemuError, Refused
from migrator.ports import PathHealth, Qemu, StreamPath, UnprobedPath

#: Pauses between two tries grow by half from the first to the longest, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.5, 5.0, 1.5
#: A connection that was just asked for shows in QEMU's status after so many seconds at the latest, where the network
#: carries it; 7.2 would take a second request for one more connection.
_CONNECT_SECONDS = 3.0
#: So long the usual address is waited for where another one is known to carry the stream.
_USUAL_FIRST_SECONDS = 0.5
#: The driver looks at both ends at least so often.
_LOOK_SECONDS = 0.2

_GOES_ON = (MigrationStatus.POSTCOPY_ACTIVE, MigrationStatus.COMPLETED)


class StreamRecovery:
    """The recovery of one migration's stream, as often as it breaks.

    :param route: leads to the destination's address.
    :param path: the network that carries it; without one it is not probed, and tried where it was.
    :ivar waiting_for: what keeps it from going on, for a person; empty while it is whole.
    """

    def __init__(
        self,
        source: Qemu,
        destination: Qemu,
        *,
        path: StreamPath | None,
        route: StreamRouting,
        intent_log: IntentLog,
        observer: Observer,
        result: MigrationOutcome,
    ) -> None:
        self._source, self._destination = source, destination
        self._path, self._route = path, route
        self._intent_log, self._observer, self._result = intent_log, observer, result
        self._log = logs.logger(migration=result.id)
        self.waiting_for = ""
        self._broke_at: float | None = None
        self._pause = _FIRST_PAUSE
        self._next_at = 0.0
        self._tries = 0
        self._last_source = View(process=ProcessState.UNKNOWN)
        self._told = ""

    def note(self, source: View, destination: View) -> None:
        """Note what both ends show: that the stream broke, or goes on again."""
        self._last_source = source
        broken = MigrationStatus.POSTCOPY_PAUSED in (source.status, destination.status)
        if broken and self._broke_at is None:
            self._broke_at = self._intent_log.elapsed
            self._pause, self._next_at, self._tries, self._told = _FIRST_PAUSE, 0.0, 0, ""
            self.waiting_for = "both ends to notice that the stream broke"
            self._intent_log.decide("stream-broken", "the postcopy stream broke: it is recovered")
        if self._broke_at is None:
            return
        has_left = source.process is ProcessState.DEAD and destination.status is MigrationStatus.COMPLETED
        if has_left or (source.status in _GOES_ON and destination.status in _GOES_ON):
            seconds = self._intent_log.elapsed - self._broke_at
            self._result.recoveries += 1
            self._broke_at, self.waiting_for = None, ""
            self._intent_log.decide(
                "stream-recovered",
                f"the postcopy stream goes on again after {seconds:.1f} s",
                {"seconds": seconds, "tries": self._tries},
            )

    async def pause(self) -> None:
        """Have both ends close the stream; the destination only where the source is not in the midst of a recovery.

        :raise QemuError: an end cannot be told.
        """
        joined = recovers(self._last_source)
        try:
            await self._source.pause_stream()
        except CommandFailed as error:
            self._log.info("source keeps its stream", error=str(error))
            if joined:
                # Before 9.1 it can only be waited for: a destination that lost it now could not be recovered again.
                self.waiting_for = "the recovery that is under way: this QEMU cannot break it off"
                await self._observer.pause(1.0)
                return
        try:
            await self._destination.pause_stream()
        except CommandFailed as error:
            self._log.info("destination has no stream to pause", error=str(error))
        await self._observer.pause(_LOOK_SECONDS)

    async def recover(self) -> None:
        """Try once where it is time to, and return soon in any case.

        :raise QemuError: an end cannot be told.
        """
        wait = self._next_at - self._intent_log.elapsed
        if wait > 0:
            await self._observer.pause(min(wait, _LOOK_SECONDS))
            return
        tried = await self._try_each()
        pause, self._pause = self._pause, min(self._pause * _GROWTH, _LONGEST_PAUSE)
        self._next_at = self._intent_log.elapsed + (max(pause, _CONNECT_SECONDS) if tried else pause)

    async def _try_each(self) -> bool:
        """Ask both ends to take the stream up over the first address that carries it; False where none does."""
        whys: list[str] = []
        path = self._path or UnprobedPath(addresses=())
        async with contextlib.aclosing(_probed(path)) as probed:
            async for address, health in probed:
                if health.carries is False:
                    whys.append(f"the network: {health.why}")
                    continue
                self._tries += 1
                try:
                    await self._resume_over(address)
                except Driven:
                    raise
                except (QemuError, Refused) as error:
                    whys.append(str(error))
                    continue
                self._say(f"both ends to go on over {address}")
                return True
        self._say(
            "; ".join(whys) or "a network that is known: nobody says where the destination can be reached"
        )
        return False

    async def _resume_over(self, address: str) -> None:
        """Ask both ends to take the stream up over an address that carries it, or may.

        :raise QemuError, Refused: an end refused, or cannot be told.
        """
        uri = await self._destination.listen_again(address)
        await self._source.resume_stream(await self._route.lead_anew(uri))

    def _say(self, what: str) -> None:
        self.waiting_for = what
        if what != self._told:
            self._told = what
            self._intent_log.decide("recover", f"waits for {what}")


async def _probed(path: StreamPath) -> AsyncGenerator[tuple[str, PathHealth], None]:
    """Yield the addresses with their health, those of which nobody can tell last; the usual one comes first where it
    carries the stream, but no other waits for it long: a probe of a dead one may take its time.
    """
    probes = {
        asyncio.create_task(path.probe(address), name=f"probe of {address}"): address
        for address in path.addresses
    }
    left, unknown = [*probes], []
    try:
        while left:
            await asyncio.wait(left[:1], timeout=_USUAL_FIRST_SECONDS)
            done, _ = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for probe in [each for each in left if each in done]:
                left.remove(probe)
                found = probes[probe], probe.result()
                if found[1].carries is None:
                    unknown.append(found)
                else:
                    yield found
        for found in unknown:
            yield found
    finally:
        for probe in left:
            probe.cancel()
        if left:
            await asyncio.wait(left)
