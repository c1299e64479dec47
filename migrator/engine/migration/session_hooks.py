"""Runs the site's hooks for one migration, and says what they answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from migrator.core.hooks import Hook, HookPlace, HookPoint, describe, judge
from migrator.core.inventory import Guest
from migrator.core.model import Finding
from migrator.ports import Hooks

#: A decision: a hook was run.
HOOK = "hook"


class SessionHooks:
    """The hooks of one migration.

    :param hosts: the hosts of the source and of the destination.
    :param document: makes what a hook is told about the migration.
    :param tell: is told in a sentence what each answered.
    """

    def __init__(
        self,
        hooks: Hooks | None,
        *,
        guest: Guest,
        hosts: Mapping[HookPlace, str],
        document: Callable[[], Mapping[str, Any]],
        tell: Callable[[str], None],
    ) -> None:
        self._hooks, self._guest, self._hosts = hooks, guest, hosts
        self._document, self._tell = document, tell
        self._told: asyncio.Task[list[Finding]] | None = None

    @property
    def any(self) -> bool:
        """Return whether there are hooks for this guest at all."""
        return self._hooks is not None and any(self._hooks.due(point, self._guest) for point in HookPoint)

    async def ask(self, point: HookPoint) -> list[Finding]:
        """Ask the hooks that may veto, one after the other; what the first that does not agree comes to."""
        return await self._run(point, first_only=True)

    def tell_switch(self) -> None:
        """Have the hooks told that the guest is about to be stopped; once, and nobody waits for them."""
        if (
            self._told is None
            and self._hooks is not None
            and self._hooks.due(HookPoint.AT_SWITCH, self._guest)
        ):
            self._told = asyncio.create_task(
                self._run(HookPoint.AT_SWITCH), name=f"hooks of {self._guest.key}"
            )

    async def end(self, point: HookPoint) -> list[Finding]:
        """Tell the hooks how the migration ended, after those of its switch; what went wrong in any of them."""
        told, self._told = self._told, None
        found: list[Finding] = []
        if told is not None:
            try:
                found += await told
            finally:
                told.cancel()  # where we were cancelled: it is killed
        return found + await self._run(point)

    def forget(self) -> None:
        """Let go of what still runs: another attempt begins, or another controller goes on."""
        if self._told is not None:
            self._told.cancel()
            self._told = None

    async def _run(self, point: HookPoint, *, first_only: bool = False) -> list[Finding]:
        found: list[Finding] = []
        for hook in self._hooks.due(point, self._guest) if self._hooks is not None else ():
            found += await self._run_one(hook)
            if found and first_only:
                break
        return found

    async def _run_one(self, hook: Hook) -> list[Finding]:
        assert self._hooks is not None
        host = self._hosts.get(hook.place, "")
        told = {
            "version": 1,
            "hook": hook.name,
            "point": str(hook.point),
            "where": str(hook.place),
            "host": host or None,
            **self._document(),
        }
        result = await self._hooks.run(hook, host, told)
        self._tell(describe(hook, host, result))
        found = judge(hook, host, result)
        return [found] if found is not None else []
