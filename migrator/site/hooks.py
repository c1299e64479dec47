"""Runs the hooks of the configuration: on the controller's machine, or on a host as everything else is run there."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from migrator.core.hooks import Hook, HookPlace, HookPoint, HookResult, RollPoint, shown_output
from migrator.core.inventory import Guest
from migrator.errors import HostError
from migrator.hosts.local import LocalAccess
from migrator.settings import LiveSettings
from migrator.settings.hooks import HookSettings
from migrator.site.connections import HostConnections
from migrator.text import clean

#: Hooks at a time on one machine: a host runs few commands at a time, and others must not wait for hooks.
_AT_A_TIME = 2
#: So many times its own time-out a hook may wait for its turn.
_WAITS = 3


class SiteHooks:
    """Implements :class:`migrator.ports.Hooks`, and :class:`migrator.ports.hooks.RollHooks`.

    :param connections: the hosts.
    :param hooks: as they are configured.
    """

    def __init__(self, connections: HostConnections, hooks: Sequence[HookSettings]) -> None:
        self._connections, self._hooks = connections, tuple(hooks)
        self._controller = LocalAccess("controller")
        self._turns: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_AT_A_TIME))

    @classmethod
    def following(cls, live: LiveSettings, connections: HostConnections) -> SiteHooks:
        """Return the hooks of a configuration that may be reloaded."""
        made = cls(connections, live.settings.hooks)
        live.subscribe(lambda new: new.hooks, made.prepare)
        return made

    def prepare(self, hooks: Sequence[HookSettings]) -> Callable[[], None]:
        """Make ready to take other hooks over: what it returns does it, and cannot fail."""

        def take_over() -> None:
            self._hooks = tuple(hooks)

        return take_over

    def due(self, point: HookPoint, guest: Guest) -> Sequence[Hook]:
        """See :meth:`migrator.ports.Hooks.due`."""
        return [each.as_hook() for each in self._hooks if each.point is point and each.wants(guest)]

    def for_roll(self, point: RollPoint) -> Sequence[Hook]:
        """See :meth:`migrator.ports.hooks.RollHooks.for_roll`."""
        return [each.as_hook() for each in self._hooks if each.point is point]

    async def run(self, hook: Hook, host: str, document: Mapping[str, Any]) -> HookResult:
        """See :meth:`migrator.ports.Hooks.run`."""
        on_controller = hook.place is HookPlace.CONTROLLER
        if isinstance(hook.point, RollPoint):  # it may take hours: guests' hooks do not wait for it
            return await self._run(hook, host, document)
        turns = self._turns["" if on_controller else host]
        try:
            async with asyncio.timeout(_WAITS * hook.timeout_seconds):
                await turns.acquire()
        except TimeoutError:
            return HookResult(status=None, output="other hooks took too long on that machine")
        try:
            return await self._run(hook, host, document)
        finally:
            turns.release()

    async def _run(self, hook: Hook, host: str, document: Mapping[str, Any]) -> HookResult:
        on_controller = hook.place is HookPlace.CONTROLLER
        try:
            access = self._controller if on_controller else self._connections.access(host)
            stdin = json.dumps(document).encode()
            done = await access.run(hook.command, timeout=hook.timeout_seconds, stdin=stdin)
        except HostError as error:
            return HookResult(status=None, output=clean(str(error).replace("\n", " ")))
        if done.status == 127:
            return HookResult(
                status=None, output=shown_output("", done.complaint) or "there is no such program"
            )
        return HookResult(
            status=done.status,
            output=shown_output(done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")),
        )
