"""Model of ``[[hooks]]``: commands of the site that are run while guests move."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from migrator.core.hooks import Hook, HookPlace, HookPoint
from migrator.core.inventory import Guest
from migrator.settings.matching import matches
from migrator.settings.models import Section
from migrator.settings.values import Seconds, Text, wrong
from migrator.text import shortened


class HookSettings(Section):
    """One of ``[[hooks]]``."""

    point: HookPoint
    #: The program and its arguments; no shell reads them.
    command: Annotated[tuple[Text, ...], Field(min_length=1)]
    #: As messages call it; empty: as its program is called.
    name: Annotated[str, Field(max_length=64)] = ""
    where: HookPlace = HookPlace.CONTROLLER
    #: Seconds; then it is killed. What waits for it waits no longer than that.
    timeout: Annotated[Seconds, Field(gt=0, le=300)] = 10.0
    #: Guests that it is run for: patterns as those of ``[[guests]]``.
    match: Annotated[tuple[Text, ...], Field(min_length=1)] = ("*",)

    @field_validator("command")
    @classmethod
    def _absolute(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        if not command[0].startswith("/"):
            raise wrong(f"{shortened(command[0])} is no absolute path of a program")
        if any("\0" in word for word in command):
            raise wrong("no argument may contain a NUL")
        return command

    def wants(self, guest: Guest) -> bool:
        """Return whether it is to be run for this guest."""
        return any(matches(guest, pattern) for pattern in self.match)

    def as_hook(self) -> Hook:
        """Return the hook as the engine knows it."""
        return Hook(
            name=self.name or self.command[0].rpartition("/")[2],
            point=self.point,
            command=self.command,
            place=self.where,
            timeout_seconds=self.timeout,
        )
