"""Looks at what carries a guest's network before it moves, and where it has arrived."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.process.guest_network import (
    GuestTaps,
    LearnedPlaces,
    NetworkState,
    arrival_state,
    compare,
    learned_places,
)
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.errors import HostError, QemuError
from migrator.ports import GuestNetworks, Qemu

#: Seconds between looks at what bridges have learned; a tap whose process has ended is forgotten within one.
_PAUSES_SECONDS = (0.1, 0.2, 0.4, 0.8, 0.8)


class GuestNetwork:
    """The network of one migration's guest. A host whose network cannot be read is not held against it."""

    def __init__(self, carriers: GuestNetworks, *, source: str, target: str) -> None:
        self._carriers, self._source, self._target = carriers, source, target
        #: As it was at the source when it was last looked at, and the process that it was.
        self._before = GuestTaps()
        self._source_identity: Mapping[str, Any] = {}
        #: The source's host did not answer since: it is not waited for again.
        self._source_silent = False

    async def look(self, source: Mapping[str, Any], waiting: Mapping[str, Any]) -> tuple[Finding, ...]:
        """Compare what the taps of both QEMUs hang on; a start script has done its work by now.

        :param source: identity of the process that runs the guest.
        :param waiting: of the one that waits for it.
        """
        self._before, there = await asyncio.gather(
            self._carried(self._source, source), self._carried(self._target, waiting)
        )
        self._source_identity = source
        return tuple(compare(self._before, there, self._target))

    async def arrive(
        self, identity: Mapping[str, Any], result: MigrationOutcome, *, end: Qemu | None
    ) -> LearnedPlaces:
        """Note how the guest is carried where it runs now; announce it until bridges know its place.

        Takes a few seconds at most, while the guest runs; nothing where it has no tap, or its bridges cannot be asked.

        :param end: where it runs; ``None``: it does not, or cannot be told to announce itself.
        :return: what bridges know in the end.
        """
        there = await self._carried(self._target, identity)
        state, problem = arrival_state(self._before, there)
        places = LearnedPlaces()
        if state is NetworkState.UP and end is not None:
            places = await self._until_learned(there, identity, end)
        if places.lacking:
            state, problem = NetworkState.UNLEARNED, "; ".join(places.lacking)
            unlearned = finding(
                "network-unlearned", f"the guest has arrived, but is not known there: {problem}"
            )
            result.warn(unlearned.code, unlearned.message, unlearned.remedy)
        result.network_state, result.network_problem = state, problem
        if state is NetworkState.DOWN:
            down = finding("network-down", f"the guest has arrived, but its network is not up: {problem}")
            result.warn(down.code, down.message, down.remedy)
        return places

    async def _until_learned(self, there: GuestTaps, identity: Mapping[str, Any], end: Qemu) -> LearnedPlaces:
        for pause in _PAUSES_SECONDS:
            places = learned_places(self._before, await self._left(there), there, self._target)
            if not places.lacking:
                return places
            try:
                await end.announce()
            except QemuError:
                return places  # what it lacks is said
            await asyncio.sleep(pause)
            there = await self._carried(self._target, identity)
        return learned_places(self._before, await self._left(there), there, self._target)

    async def _left(self, there: GuestTaps) -> GuestTaps:
        """Read what is learned at the source on the taps that the guest had; nothing of those that it still has."""
        taps = self._before.taps or ()
        if self._source == self._target:
            taps = tuple(tap for tap in taps if tap not in (there.taps or ()))
        if self._source_silent or not any(tap in self._before.learned for tap in taps):
            return GuestTaps()
        left = await self._carried(self._source, self._source_identity, taps)
        self._source_silent = not left.links
        return left

    async def _carried(self, host: str, identity: Mapping[str, Any], taps: tuple[str, ...] = ()) -> GuestTaps:
        pid = identity.get("pid")
        if pid is None:
            return GuestTaps()
        try:
            return await self._carriers.guest_taps(host, int(pid), taps=taps)
        except HostError:
            return GuestTaps()
