"""The interface that entrances give commands to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from migrator.api.replies import Reply
from migrator.api.requests import CommandKey, Envelope


class CommandExecutor(Protocol):
    """Carries commands out, perhaps by asking another process."""

    async def execute(self, envelope: Envelope) -> Reply:
        """Carry a command out, once, and return its reply: what is wrong with it is said there.

        One that changes something is carried out to its end, also when whoever asked goes away meanwhile.
        """


class Commands(CommandExecutor, Protocol):
    """Takes commands and their outcomes from an entrance; the engine's dispatcher is one."""

    @property
    def count(self) -> Callable[[str, str, str], None]:
        """Count a command: its interface, its verb, and ``accepted``, ``refused`` or ``repeated``."""

    async def keep_outcome(self, *, key: CommandKey, reply: Reply, told: bool = True) -> None:
        """Keep the outcome of what a command began: from now on the same command again gets this.

        :param told: whoever asked knows it; until it was kept as told the command is among the unsettled ones.
        :raise JournalError: it could not be written.
        :raise Unavailable: there is nobody to write it.
        """
