"""Ports taken on each host, by strangers and by guests that are there or on their way. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from migrator.core.process.listening import ListeningPort, collides, missing_address

_Key = tuple[str, int]


class PortsTaken:
    """Ports taken on each host, a host being a number; guests come and go."""

    def __init__(self, strangers: Iterable[tuple[Collection[ListeningPort], Collection[str]]] = ()) -> None:
        """
        :param strangers: of every host, what others than its guests listen at there, and its addresses.
        """
        self._held: dict[tuple[int, _Key], Counter[ListeningPort]] = {}
        self._addresses: list[Collection[str]] = []
        for place, (ports, addresses) in enumerate(strangers):
            self._addresses.append(addresses)
            self.shift(ports, place, 1)

    def copy(self) -> PortsTaken:
        """Return a copy that changes by itself."""
        made = PortsTaken()
        made._addresses = self._addresses
        made._held = {key: counter.copy() for key, counter in self._held.items()}
        return made

    def shift(self, ports: Iterable[ListeningPort], place: int, sign: int) -> None:
        """Count a guest that listens at these ports in on a host (1), or out of it (-1)."""
        for port in ports:
            self._held.setdefault((place, (port.protocol, port.number)), Counter())[port.at(port.number)] += (
                sign
            )

    def first_conflict(self, ports: Collection[ListeningPort], place: int) -> ListeningPort | None:
        """Return the first of these ports that cannot be had there; ``None`` where all can."""
        return next(
            (
                port
                for port in ports
                if missing_address(port, self._addresses[place]) or not any(self._free(port, place))
            ),
            None,
        )

    def has_address(self, port: ListeningPort, place: int) -> bool:
        """Tell whether the host has the address that the port names."""
        return not missing_address(port, self._addresses[place])

    def _free(self, port: ListeningPort, place: int) -> Iterator[bool]:
        for number in chain((port.number,), range(port.number + 1, port.last + 1)):
            held = self._held.get((place, (port.protocol, number)), Counter[ListeningPort]())
            yield not any(count > 0 and collides(other, port.at(number)) for other, count in held.items())
