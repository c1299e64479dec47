"""The interface to the network that carries a migration's stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class PathHealth:
    """The result of a probe of the network between two hosts."""

    #: Packets as large as the stream's come through in both directions; ``None``: nothing there can tell.
    carries: bool | None
    #: For a person, where they do not or nobody can tell.
    why: str = ""


class StreamPath(Protocol):
    """The network between the hosts of one migration."""

    @property
    def addresses(self) -> Sequence[str]:
        """Return the addresses where the destination's host may take the stream, the usual one first."""

    async def probe(self, address: str, /) -> PathHealth:
        """Send a burst from the source's host to that address of the destination's, and one back; bounded in time.

        Never raises: hosts that cannot be asked are a health that nobody can tell.
        """


@dataclass(frozen=True, kw_only=True)
class UnprobedPath:
    """Implements :class:`StreamPath` where neither host can be asked."""

    addresses: Sequence[str]

    async def probe(self, _: str) -> PathHealth:
        """Return that nobody can tell."""
        return PathHealth(carries=None, why="neither host can be asked about the network between them")
