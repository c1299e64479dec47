"""The interface to the site's hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from migrator.core.hooks import (
        Hook,
        HookPoint,
        HookResult,
        RollPoint,
    )  # what `migrator direct` does not need, nor loads
    from migrator.core.inventory import Guest


class Hooks(Protocol):
    """The hooks that are configured, and a way to run them."""

    def due(self, point: HookPoint, guest: Guest) -> Sequence[Hook]:
        """Return the hooks for a guest at one point, in the order of the configuration."""

    async def run(self, hook: Hook, host: str, document: Mapping[str, Any]) -> HookResult:
        """Run one, with a JSON document on its standard input.

        Bounded in time, a while in which it waits for others on the same machine included. Never raises for what the
        command does or for a host that cannot be reached: that is said in the result. One that does not end in time,
        or whose caller is cancelled, is killed as far as its host can be reached.

        :param host: the machine that :attr:`Hook.place` means; without a meaning for the controller.
        """


class RollHooks(Protocol):
    """The hooks that are run for whole hosts."""

    def for_roll(self, point: RollPoint) -> Sequence[Hook]:
        """Return the hooks of one point of a rolling evacuation, in the order of the configuration."""

    async def run(self, hook: Hook, host: str, document: Mapping[str, Any]) -> HookResult:
        """Run one for a host; see :meth:`Hooks.run`. It waits for no other."""
