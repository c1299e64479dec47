"""Shapes the stream of one migration: the options of its sockets at the source, what is queued there, its last pace.

A help in everything: whatever the host does not allow, or does not answer in time, harms no migration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

from migrator import logs
from migrator.core.migration import traffic_shaping
from migrator.core.migration.traffic_shaping import EndPace
from migrator.core.migration.tunnel_queue import TunnelQueue
from migrator.core.model import Sample
from migrator.engine import clock
from migrator.engine.migration.intent_log import IntentLog
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.shared_path import OwnPath, SharedPath
from migrator.errors import QemuError
from migrator.ports import Qemu, StreamOptions, StreamSockets, StreamTunnel
from migrator.units import show_bytes, show_seconds

#: How often all sockets are looked for, seconds: one may have been opened anew.
_SEARCH_SECONDS = 1.0
#: What they counted is looked at so often.
_COUNT_SECONDS = 0.5
#: The sockets of a new stream are looked for so long, first so many seconds apart; where further looks do not see them
#: either, the destination is asked for its addresses, ever less often, in the end so often.
_FIND_SECONDS, _FIRST_PAUSE_SECONDS = 2.0, 0.005
_FIRST_LOOKS, _ADDRESSES_SECONDS, _FIRST_ADDRESSES_SECONDS = 10, 5.0, 0.1
#: Nearer to the end than this, seconds, what is queued is looked at with every sample.
_NEAR_SECONDS = 1.5
#: OpenSSH's window, and what the sockets before and behind its client hold of a path that is slower than they.
_TUNNEL_BYTES = 8 << 20
#: Bytes that may wait unsent in a socket that leads to a tunnel's client at the same host.
_TUNNEL_UNSENT_BYTES = 64 << 10
#: Seconds that a look may hold the steering up; over a network it goes on beside it.
_LOOK_SECONDS = 0.005
#: What waited in sockets that could not be reached is told where it cost more than this.
_WORTH_TELLING_SECONDS = 0.02
#: Seconds that lifting the pace may hold up the switch, during which the guest stands still, and a postcopy.
_SWITCH_SECONDS, _POSTCOPY_SECONDS = 0.1, 1.0


class StreamShaper:
    """Shapes one stream."""

    def __init__(
        self,
        source: Qemu,
        destination: Qemu,
        *,
        intent_log: IntentLog,
        result: MigrationOutcome,
        shared_path: SharedPath | None = None,
        tunnel: StreamTunnel | None = None,
    ) -> None:
        self._source, self._destination = source, destination
        self._shared_path: SharedPath = shared_path if shared_path is not None else OwnPath()
        self._intent_log, self._result = intent_log, result
        self._log = logs.logger(migration=result.id)
        self._peers: Sequence[str] = ()
        self._seen = StreamSockets()
        self._given = StreamOptions()
        self._searched_at = self._counted_at = -_SEARCH_SECONDS
        self._ask_addresses_at, self._addresses_pause = 0.0, _FIRST_ADDRESSES_SECONDS
        self._tasks: set[asyncio.Task[None]] = set()
        #: Of the last look that was begun, and of the one that :attr:`_seen` is of.
        self._begun, self._answered = 0, 0
        #: Nothing is paced any more: postcopy has begun, or begins.
        self._postcopy = False
        #: What QEMU may send unasked in postcopy, bytes per second; 0: no limit of its own.
        self._postcopy_limit = 0
        #: Another controller may have had it paced.
        self._may_be_paced = False
        self._end = EndPace()
        self._tunnel = tunnel
        #: Nobody can tell what waits in the tunnel that it goes through.
        self._hidden = tunnel is not None
        self._queue = TunnelQueue()
        #: The pace but for the end's; 0: none.
        self._steady = 0
        #: What the path carried before it, bytes per second.
        self._carried = 0.0
        #: Of the last sample, bytes per second.
        self._speed = 0.0
        self._fastest = 0.0

    # --- what QEMU's own limit has to be ----------------------------------------------------------------------------

    def limit(self, share: int | None) -> int | None:
        """Return the most bytes per second that QEMU itself shall send; ``None``: whatever it likes.

        :param share: what the stream was given; ``None``: no share.
        """
        limits = [limit for limit in (share, self._end.limit) if limit is not None]
        if self._given.pacing_bytes_per_second and self._shaped:
            # The kernel keeps it to its share; this holds where that ends, and makes no bursts meanwhile.
            rate = traffic_shaping.pacing(share=share, path=None) or (self._steady and self._pacing)
            limits = [int(rate * traffic_shaping.LIMIT_ABOVE_PACING)] if rate else []
        return min(limits) if limits else None

    @property
    def _shaped(self) -> bool:
        """True while all sockets that there are have the options."""
        return self._seen.count > 0 and not self._seen.refused

    @property
    def _pacing(self) -> int:
        each = self._given.pacing_bytes_per_second or 0
        return each * max(1, self._seen.count - 1) if self._seen.count > 2 else each

    # --- while memory is copied -------------------------------------------------------------------------------------

    def begin(
        self, uri: str, *, share: int | None, path: float | None, carried_bytes_per_second: float = 0.0
    ) -> None:
        """Say where the stream goes: its sockets get their options as soon as they are there.

        :param share: see :meth:`shape`.
        :param path: likewise.
        :param carried_bytes_per_second: what the path was just seen to carry of disks, which paces the first moment: a
            guest whose memory goes in that is stopped at its end, and what ends its mirrors waits for what is queued.
        """
        self._peers = [uri]
        self._carried = carried_bytes_per_second
        self._shared_path.begin()
        self._given = self._wanted(Sample(), share=share, path=path)
        self._start(self._find())

    async def _find(self) -> None:
        """Look for the sockets until they are there, ever less often: what fills them before is in the downtime."""
        pause, until = _FIRST_PAUSE_SECONDS, clock.now() + _FIND_SECONDS
        while clock.now() < until and self._seen.count == 0 and not self._seen.refused:
            await self._take(self._given, 0)
            await asyncio.sleep(pause)
            pause *= 1.2

    def take_up(self) -> None:
        """Go on after another controller, of which nobody knows what it has set."""
        self._may_be_paced = True

    async def shape(self, sample: Sample, *, share: int | None, path: float | None) -> Sample:
        """Give the sockets their options, and return the sample with what is queued in them.

        :param share: bytes per second that the stream was given; ``None``: no share.
        :param path: what the path was learned to carry; ``None``: not measured.
        """
        options = self._wanted(sample, share=share, path=path)
        now = clock.now()
        quiet = now - self._searched_at < _SEARCH_SECONDS
        if options != self._given or not quiet or self._seen.count == 0:
            self._given, self._searched_at, self._counted_at = options, now, now
            await self._look(options, within=_LOOK_SECONDS)
        elif self._is_near(sample) or self._learns or now - self._counted_at >= _COUNT_SECONDS:
            self._counted_at = now
            await self._look(None, within=_LOOK_SECONDS)
        self._speed = sample.bandwidth_bytes_per_second or self._speed
        sample = replace(sample, queued_bytes=self._seen.queued_bytes)
        held = self._seen.refused or self._hidden
        if self._tunnel is not None and not self._hidden and not self._postcopy:
            self._end = traffic_shaping.pace_tunnel(self._end, sample, self._queue.carried_bytes_per_second)
        elif not self._postcopy and (held or traffic_shaping.is_narrow(self._fastest)):
            # What waits in a tunnel that nobody can ask is always taken to be much near the end.
            hidden = replace(sample, queued_bytes=_TUNNEL_BYTES) if self._hidden else sample
            self._end = traffic_shaping.pace_end(self._end, hidden)
        elif self._end.limit is not None:
            self._end = traffic_shaping.lift_end_pace(self._end, sample)
        return sample

    def _wanted(self, sample: Sample, *, share: int | None, path: float | None) -> StreamOptions:
        # The fastest that was seen counts: a slow moment is no reason to make a stream slower.
        self._fastest = max(self._fastest, sample.bandwidth_bytes_per_second)
        near = self._is_near(sample)
        unsent = traffic_shaping.unsent_limit(self._fastest, near=near)
        if self._tunnel is not None:
            unsent = _TUNNEL_UNSENT_BYTES
        rate = self._steady = 0 if self._postcopy else traffic_shaping.pacing(share=share, path=path)
        if self._end.limit is not None and not self._seen.refused and not self._postcopy:
            rate = min(rate or self._end.limit, self._end.limit)
        if sample.at_seconds < traffic_shaping.FIRST_SECONDS:
            rate = int((rate or self._carried) * traffic_shaping.FIRST_RATIO)
        return StreamOptions(
            unsent_bytes=unsent,
            pacing_bytes_per_second=traffic_shaping.pacing_of_each(rate, self._seen.count),
        )

    @property
    def _learns(self) -> bool:
        """Return whether what the network below its tunnel carries is yet to be learned."""
        return self._tunnel is not None and not self._hidden and not self._queue.carried_bytes_per_second

    def _is_near(self, sample: Sample) -> bool:
        """Tell whether the end of the stream may be near."""
        fastest = max(self._fastest, sample.bandwidth_bytes_per_second)
        return sample.remaining_bytes < _NEAR_SECONDS * fastest

    async def _look(self, options: StreamOptions | None, *, within: float) -> None:
        """Begin one more look, and wait for it so many seconds; later it is taken in all the same."""
        if options is None and self._tasks:
            return  # the one before is not answered yet: another would tell the same
        self._begun += 1
        await asyncio.wait({self._start(self._take(options, self._begun))}, timeout=within)

    def _start(self, looking: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(looking, name=f"stream of {self._result.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _take(self, options: StreamOptions | None, number: int) -> None:
        """Look once.

        :param number: of the looks that were begun: an answer that comes after a later one's is old.
        """
        unseen = self._seen.count == 0 and number > _FIRST_LOOKS
        if (not self._peers or unseen) and clock.now() >= self._ask_addresses_at:
            self._ask_addresses_at = clock.now() + self._addresses_pause
            self._addresses_pause = min(_ADDRESSES_SECONDS, 2 * self._addresses_pause)
            try:  # another controller began it, or its stream was opened anew
                self._peers = await self._destination.stream_addresses() or self._peers
            except QemuError:
                pass  # the next look tries again
        seen = await self._source.stream_sockets(self._peers, options, again=options is None)
        if self._tunnel is not None:
            counters = await self._tunnel.keep_short(traffic_shaping.unsent_limit(self._fastest))
            self._hidden = counters is None
            if counters is not None:
                self._queue.note(counters)
                seen = replace(seen, queued_bytes=(seen.queued_bytes or 0) + self._queue.queued_bytes)
        if number < self._answered:
            return
        if seen.refused and seen.refused != self._seen.refused:
            self._log.info("the stream's sockets cannot be reached", why=seen.refused)
        self._answered, self._seen = number, seen
        if seen.count > 0:  # should they be gone once, the addresses are wanted soon
            self._ask_addresses_at, self._addresses_pause = 0.0, _FIRST_ADDRESSES_SECONDS
        if seen.counters is not None:
            self._shared_path.note(seen.counters, most=self._pacing or self._postcopy_limit)

    # --- the switch and postcopy ------------------------------------------------------------------------------------

    async def before_switch(self) -> None:
        """Lift the pace for what is left, and note what is queued; the guest stands still meanwhile."""
        paced = self._may_be_paced or self._given.pacing_bytes_per_second
        options = replace(self._given, pacing_bytes_per_second=0) if paced else None
        if options is not None:
            self._given = options
        # A host that has not answered the look before is not waited for: the guest stands still.
        await self._look(options, within=0.0 if self._tasks else _SWITCH_SECONDS)
        queued = self._result.queued_at_stop_bytes = self._seen.queued_bytes
        seconds = (queued or 0) / self._speed if self._speed > 0 else 0.0
        if self._seen.refused and seconds > _WORTH_TELLING_SECONDS:
            self._result.warn(
                "stream-not-shaped",
                f"{show_bytes(queued or 0)} waited in the stream's sockets when the guest was stopped, which took "
                f"{show_seconds(seconds)} of its downtime: they cannot be given options ({self._seen.refused})",
                "let migrator trace QEMU there (as root), or set sysctl net.ipv4.tcp_notsent_lowat=131072 on that host",
            )

    def end_pacing(self) -> None:
        """Pace nothing from now on: in postcopy QEMU would wait in a paced socket, with requested pages behind it."""
        self._postcopy, self._end = True, EndPace()

    async def before_postcopy(self) -> None:
        """Lift the pace after :meth:`end_pacing`, and note what is queued."""
        paced = self._may_be_paced or self._given.pacing_bytes_per_second
        self._given = replace(self._given, pacing_bytes_per_second=0)
        await self._look(self._given, within=_POSTCOPY_SECONDS)
        self._result.queued_at_stop_bytes = self._seen.queued_bytes
        if paced and (self._seen.refused or self._answered < self._begun):
            why = self._seen.refused or "no answer in time"
            self._intent_log.decide("pacing", f"the stream's pace could not be lifted for postcopy: {why}")

    async def tend_postcopy(self, *, limit: int) -> None:
        """See that sockets of a stream that was opened anew have their options too, and are not paced.

        :param limit: what QEMU may send unasked, bytes per second; 0: no limit of its own.
        """
        now = clock.now()
        self._postcopy_limit = limit
        if now - self._searched_at < _SEARCH_SECONDS:
            if now - self._counted_at >= _COUNT_SECONDS:
                self._counted_at = now
                await self._look(None, within=_LOOK_SECONDS)
        else:
            self._postcopy, self._searched_at, self._counted_at = True, now, now
            least = self._given.unsent_bytes or traffic_shaping.LEAST_UNSENT_BYTES
            self._given = StreamOptions(unsent_bytes=least, pacing_bytes_per_second=0)
            await self._look(self._given, within=_LOOK_SECONDS)

    async def close(self) -> None:
        """Wait for no look any more, and leave the path to others."""
        self._shared_path.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
