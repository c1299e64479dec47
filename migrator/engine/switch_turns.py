"""Turns of guests that are switched over the same links: while one is, the streams of the others give way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

#: ``out`` or ``into``, and a host.
_Link = tuple[str, str]


class SwitchingStream(Protocol):
    """The stream of a guest that may be switched, by the hosts between which it goes."""

    @property
    def source(self) -> str: ...

    @property
    def target(self) -> str: ...


class SwitchTurns:
    """The turns on each link; at most one stream has that of a link at a time."""

    def __init__(self) -> None:
        self._holders: dict[_Link, SwitchingStream] = {}

    def take(self, stream: SwitchingStream) -> bool:
        """Give it the turn on both of its links; False: another one has it on one of them."""
        if self.gives_way(stream):
            return False
        for link in _links(stream):
            self._holders[link] = stream
        return True

    def end(self, stream: SwitchingStream) -> bool:
        """Take the turn back; False: it had none."""
        held = [link for link, holder in self._holders.items() if holder is stream]
        for link in held:
            del self._holders[link]
        return bool(held)

    def has(self, stream: SwitchingStream) -> bool:
        """Tell whether others give way to it."""
        return any(holder is stream for holder in self._holders.values())

    def gives_way(self, stream: SwitchingStream) -> bool:
        """Tell whether another one has the turn on one of its links."""
        holders = (self._holders.get(link) for link in _links(stream))
        return any(holder is not None and holder is not stream for holder in holders)


def _links(stream: SwitchingStream) -> Iterable[_Link]:
    return (("out", stream.source), ("into", stream.target))
