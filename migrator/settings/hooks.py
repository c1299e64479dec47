"""Model of ``[[hooks]]``: commands of the site that are run while guests move."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from migrator.core.hooks import Hook, HookPlace, HookPoint, RollPoint
from migrator.core.inventory import Guest
from migrator.settings.matching import matches
from migrator.settings.section import Section
from migrator.settings.values import Seconds, Text, wrong
from migrator.text import shortened

#: While a guest moves nobody waits for a hook for longer.
_LONGEST_SECONDS = 300.0


class HookSettings(Section):
    """One of ``[[hooks]]``."""

    point: HookPoint | RollPoint
    #: The program and its arguments; no shell reads them.
    command: Annotated[tuple[Text, ...], Field(min_length=1)]
    #: As messages call it; empty: as its program is called.
    name: Annotated[str, Field(max_length=64)] = ""
    where: HookPlace = HookPlace.CONTROLLER
    #: Seconds; then it is killed; at most 5 minutes, but for the points of a roll. Nobody waits for it for longer.
    timeout: Annotated[Seconds, Field(gt=0, le=14_400)] = 10.0
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

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if isinstance(self.point, RollPoint):
            if self.where not in (HookPlace.CONTROLLER, HookPlace.HOST):
                raise wrong(f"where must be controller or host at the point {self.point}")
            return self
        if self.where is HookPlace.HOST:
            raise wrong(f"where must be controller, source or destination at the point {self.point}")
        if self.timeout > _LONGEST_SECONDS:
            raise wrong(f"timeout must be at most 5m at the point {self.point}")
        return self

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
