"""Looks at what carries a guest's network before it moves, and where it has arrived."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.process.guest_network import GuestTaps, NetworkState, arrival_state, compare
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.errors import HostError
from migrator.ports import GuestNetworks


class GuestNetwork:
    """The network of one migration's guest. A host whose network cannot be read is not held against it."""

    def __init__(self, carriers: GuestNetworks, *, source: str, target: str) -> None:
        self._carriers, self._source, self._target = carriers, source, target
        #: As it was at the source when it was last looked at.
        self._before = GuestTaps()

    async def look(self, source: Mapping[str, Any], waiting: Mapping[str, Any]) -> tuple[Finding, ...]:
        """Compare what the taps of both QEMUs hang on; a start script has done its work by now.

        :param source: identity of the process that runs the guest.
        :param waiting: of the one that waits for it.
        """
        self._before, there = await asyncio.gather(
            self._carried(self._source, source), self._carried(self._target, waiting)
        )
        return tuple(compare(self._before, there, self._target))

    async def arrive(self, identity: Mapping[str, Any], result: MigrationOutcome) -> None:
        """Note how the guest is carried where it runs now."""
        state, problem = arrival_state(self._before, await self._carried(self._target, identity))
        result.network_state, result.network_problem = state, problem
        if state is NetworkState.DOWN:
            said = finding("network-down", f"the guest has arrived, but its network is not up: {problem}")
            result.warn(said.code, said.message, said.remedy)

    async def _carried(self, host: str, identity: Mapping[str, Any]) -> GuestTaps:
        pid = identity.get("pid")
        if pid is None:
            return GuestTaps()
        try:
            return await self._carriers.guest_taps(host, int(pid))
        except HostError:
            return GuestTaps()
