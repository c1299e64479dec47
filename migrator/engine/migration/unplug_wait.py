"""Wait for a guest to let go of the cards that QEMU unplugs for a migration; their standby cards take over."""

from __future__ import annotations

from collections.abc import Callable

from migrator.core.model import MigrationStatus, View
from migrator.core.preflight.facts import Facts


class UnplugWait:
    """The wait for a card, as looks at the source show it.

    QEMU asks the guest before it copies memory, waits for as long as that takes, and plugs the cards in again: at the
    destination once the guest runs there, at the source where the migration fails.

    :param tell: is given the decision that says so.
    """

    def __init__(self, *, tell: Callable[[str, str], None]) -> None:
        self._tell = tell
        self._cards = "a card"
        self._told = False
        #: What it waits for, for a person; empty while it does not.
        self.waiting_for = ""

    def expect(self, facts: Facts) -> None:
        """Take in the cards that preflight has read of the source."""
        named = [f"{card.name} ({card.standby} takes over)" for card in facts.unplugged_to_move]
        self._cards = ", ".join(named) or self._cards

    def note(self, source: View) -> None:
        """Note what a look has shown."""
        if not source.answers:
            return
        if (
            source.status is not MigrationStatus.CANCELLING
        ):  # QEMU goes on waiting where it is cancelled meanwhile
            self.waiting_for = ""
        if source.status is MigrationStatus.WAIT_UNPLUG:
            self.waiting_for = f"the guest to let go of {self._cards}"
            if not self._told:
                self._told = True
                self._tell("unplug", f"QEMU waits for {self.waiting_for}")
