"""Leases whose end cannot be, as the clock that all share was set back: for how long nobody has renewed them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from migrator.ports import LONGEST_LEASE_SECONDS


class StuckLeases:
    """The stuck leases that one controller has seen, by their names and tokens, with the ends that they had.

    Seconds are those of the controller's own clock, which nobody sets.
    """

    def __init__(self) -> None:
        self._since: dict[tuple[str, int], tuple[float, float]] = {}

    def note(self, ends: Mapping[tuple[str, int], float], now: float) -> None:
        """Take in all that end later than the longest lease could; one that was renewed is seen for the first time."""
        before = self._since
        self._since = {}
        for lease, ends_at in ends.items():
            then, since = before.get(lease, (ends_at, now))
            self._since[lease] = (ends_at, since if then == ends_at else now)

    def due(self, now: float) -> dict[tuple[str, int], float]:
        """Return those that nobody has renewed for so long that their holders have stopped, with their ends."""
        return {
            lease: ends_at
            for lease, (ends_at, since) in self._since.items()
            if now - since >= LONGEST_LEASE_SECONDS
        }
