"""Requests of others to a migration that is under way: plain data, written by them and read by whoever drives it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class MigrationRequests:
    """The requests to one migration; each stays until it is carried out or its migration ends."""

    #: Its turn has come: the links are its own from now on, though it may be looked at and written down first.
    admit: bool = False
    #: Somebody wants the guest to stay where it is, and it was not too late then.
    cancel: bool = False
    #: The controller stops: whatever is not past the guest's STOP is left to the next one.
    park: bool = False
    #: Somebody wants postcopy now, and why.
    postcopy: bool = False
    postcopy_reason: str = "somebody asked for postcopy now"
    #: With a group: why it may be switched now; empty: it waits for the others.
    switch: str = ""
    #: The stream's share of the links, in bytes per second; ``None``: whatever it gets.
    share: int | None = None

    def unwanted(self) -> bool:
        """Return whether it shall not go on: it was cancelled, or the controller stops."""
        return self.cancel or self.park
