"""Ports of a command line that are taken at the target: said, or given others where that is allowed. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.process import listening
from migrator.core.process.listening import ListeningOption, ListeningPort
from migrator.core.process.options import FIRST, Value
from migrator.core.process.replica import TargetNetwork


@dataclass
class PortAssignment:
    """One pass over a command line that gives each listening option a port; see :meth:`assign`."""

    there: TargetNetwork
    #: The target's network is the source's own: what the guest has cannot be had twice.
    same: bool = False
    #: Ports taken there, and those assigned in this pass.
    taken: set[ListeningPort] = field(init=False)

    def __post_init__(self) -> None:
        self.taken = set(self.there.taken)

    def assign(self, name: str, text: str) -> tuple[str, list[Finding]]:
        """An option's value with the ports that it can have, and what is to be said of them."""
        found: list[Finding] = []
        first = FIRST.get(name, "")
        for each in listening.of_option(name, text, Value(text, first=first)):
            said = list(self._against(each))
            if said and said[0].code == "port-in-use" and self.there.spare:
                free = listening.next_free_number(each.port, self.taken)
                if free:
                    text = listening.with_number(each, text, Value(text, first=first), free)
                    self.taken.add(each.port.at(free))
                    said = [
                        finding(
                            "port-moved", f"{each.what} listens at port {free} there, as {said[0].message}"
                        )
                    ]
            found += said
        return text, found

    def _against(self, each: ListeningOption) -> Iterator[Finding]:
        port = each.port
        if listening.missing_address(port, self.there.addresses):
            yield finding(
                "address-missing", f"{each.what} listens at {port}, an address that the target has not"
            )
            return
        taken = listening.port_taken(port, self.taken)
        if self.same and (taken is not None or not port.last):
            text = f"{each.what} listens at port {port.number}, which the source has already: both are on one machine"
            yield finding("port-in-use", text)
        elif taken is not None:
            yield finding("port-in-use", f"{each.what} listens at {port}, which is taken at the target")
