"""When each host is looked at: from time to time, more often while it is down, and soon after something happened."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable

from migrator.engine.known_hosts import KnownHosts
from migrator.errors import MigratorError
from migrator.faults import keep_going
from migrator.ports import Site

#: A host that did not answer is asked again after so long, doubled up to the second, or to a shorter interval.
_RETRY_SECONDS = (1.0, 15.0)
#: A host that cannot be watched is tried again after so long.
_WATCH_AGAIN_SECONDS = 5.0
#: What was noticed at a host is looked at after the first, and not sooner than the second after the last look; nor
#: sooner than so many times as long as that took, up to the fourth: where much happens, looking stays a small part.
_NOTICE_SECONDS, _NOTICE_PAUSE_SECONDS, _NOTICE_RATIO, _NOTICE_MOST_SECONDS = 0.2, 1.0, 10.0, 30.0
#: ... nor sooner than so long for each guest there: a look goes through all of them, and each that leaves is noticed.
_NOTICE_SECONDS_A_GUEST = 0.02


class LookSchedule:
    """Has every host looked at when it is time.

    :param look: looks at a host; raises nothing where that cannot be reached.
    :param looks_now: whether a look at a host is under way.
    :param interval: seconds between two looks at a host on which nothing happens.
    """

    def __init__(
        self,
        known: KnownHosts,
        *,
        site: Site,
        look: Callable[[str], Awaitable[object]],
        looks_now: Callable[[str], bool],
        interval: float,
    ) -> None:
        self._known, self._site, self._look, self._looks_now = known, site, look, looks_now
        self.interval = interval
        self._wake: dict[str, asyncio.Event] = {}
        #: Hosts at which something was noticed that the next look will show.
        self._noticed: set[str] = set()

    def _woken(self, name: str) -> asyncio.Event:
        return self._wake.setdefault(name, asyncio.Event())

    def begun(self, name: str) -> None:
        """Note that a look at a host has begun: it shows what was noticed before."""
        self._noticed.discard(name)

    def look_soon(self, *names: str) -> None:
        """Look at these hosts as soon as possible."""
        for name in names:
            if name in self._known:
                self._woken(name).set()

    async def run(self) -> None:
        """Look at every host again and again, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name in self._known:
                for what, work in (("look at", self._watch), ("watch", self._attend)):
                    task = f"{what} host {name}"
                    group.create_task(keep_going(task, functools.partial(work, name)), name=task)

    async def _attend(self, name: str) -> None:
        """Notice guests that come to a host and go, for as long as it is configured and can be watched."""
        first = True
        while name in self._known:
            if first or self._known[name].host.up:
                first = False
                self.notice(name)  # what happened before it was watched
                try:
                    await self._site.watch(name, lambda: self.notice(name))
                except MigratorError:
                    pass  # looks from time to time have to do until it can be watched again
            await asyncio.sleep(_WATCH_AGAIN_SECONDS)

    def notice(self, name: str) -> None:
        """Look soon at a host where something may have happened, though for a small part of the time at most."""
        known = self._known.get(name)
        if known is None or name in self._noticed:
            return
        many = _NOTICE_SECONDS_A_GUEST * len(known.by_key)
        pause = min(_NOTICE_MOST_SECONDS, max(_NOTICE_PAUSE_SECONDS, _NOTICE_RATIO * known.took, many))
        loop = asyncio.get_running_loop()
        since = loop.time() if self._looks_now(name) else known.ended
        self._noticed.add(name)
        loop.call_at(max(loop.time() + _NOTICE_SECONDS, since + pause), self.look_soon, name)

    async def _watch(self, name: str) -> None:
        pause = 0.0
        while name in self._known:
            host = self._known[name].host
            if host.up:
                pause = 0.0
            else:
                first, longest = _RETRY_SECONDS
                pause = min(self.interval, longest, max(first, 2 * pause))
            wake = self._woken(name)
            try:
                # Spread, so that not all hosts are looked at together.
                async with asyncio.timeout(pause or self.interval * random.uniform(0.9, 1.1)):  # noqa: S311
                    await wake.wait()
            except TimeoutError:
                pass  # its time has come
            wake.clear()
            await self._look(name)
