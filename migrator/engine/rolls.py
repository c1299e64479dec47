"""Rolling evacuations: what :mod:`migrator.core.drain.roll` says of each is carried out.

Run by whichever controller plans. What a host has come to is in the journal before anything is done about it, and what
is begun for it has a key of its own: after a restart it is found, not begun again. Hooks that were run then are run
again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from migrator import logs
from migrator.api.commands import Cancel, Command, Evacuate, Restore, Role
from migrator.api.events import EvacuationStateChanged, Event
from migrator.api.replies import Refusal
from migrator.api.requests import Caller, CommandKey
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.roll import (
    CancelRun,
    Empty,
    HostObservation,
    LookAt,
    Refill,
    RollAction,
    RollHost,
    RollProgress,
    RollStage,
    RunHooks,
    outcome,
    step,
)
from migrator.core.drain.states import EvacuationState
from migrator.core.hooks import FINE, HookResult, RollPoint, describe
from migrator.engine import clock
from migrator.engine.announcer import Announcer
from migrator.engine.evacuation_documents import evacuation_document, journalled
from migrator.engine.evacuations import Evacuations
from migrator.engine.event_bus import EventBus
from migrator.engine.inventory import Inventory
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.registry import Registry
from migrator.errors import JournalError
from migrator.ports.hooks import RollHooks

#: While a roll is under way it is looked at so often at least.
_LOOK_SECONDS = 2.0


class RollBeginner(Protocol):
    """Carries out the commands that a roll comes to."""

    async def carry_out(self, command: Command, caller: Caller, *, key: str) -> Any:
        """See :meth:`migrator.engine.commands.dispatcher.Controller.carry_out`."""


@dataclass(kw_only=True)
class _HookRun:
    """The hooks of one point, for one host of a roll."""

    task: asyncio.Task[None] | None = None
    result: HookResult | None = None
    #: Seconds since the epoch.
    ended_at: float = 0.0


@dataclass(kw_only=True)
class _Memory:
    """The part of a roll that is not in the journal: what could not be begun, and hooks that run."""

    refused: dict[str, str] = field(default_factory=dict)
    hooks: dict[tuple[str, RollPoint], _HookRun] = field(default_factory=dict)


class Rolls:
    """The rolls of a site.

    :ivar commands: carries out what a roll begins, as if somebody had asked for it.
    """

    commands: RollBeginner

    def __init__(
        self,
        *,
        registry: Registry,
        inventory: Inventory,
        evacuations: Evacuations,
        announcer: Announcer,
        journal_writer: JournalWriter,
        bus: EventBus,
        hooks: RollHooks | None,
    ) -> None:
        self._registry, self._inventory, self._evacuations = registry, inventory, evacuations
        self._announcer, self._journal_writer, self._hooks = announcer, journal_writer, hooks
        self._wake = asyncio.Event()
        self._memory: dict[str, _Memory] = {}
        self._log = logs.logger()
        bus.subscribe(self._on_event)

    def wake(self) -> None:
        """Look again at all rolls soon."""
        self._wake.set()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, EvacuationStateChanged) and event.evacuation.ended_at is not None:
            self.wake()

    def known_hooks(self, point: RollPoint) -> list[str]:
        """Return the names of the hooks that are configured for that point."""
        return [each.name for each in self._hooks.for_roll(point)] if self._hooks is not None else []

    async def run(self) -> None:
        """Carry rolls out, until cancelled."""
        try:
            while True:
                self._wake.clear()
                rolls = self._registry.rolls() if self._registry.may_begin else []
                for run in rolls:
                    await self._turn(run.id)
                # Another controller may act: it runs hooks again that were not seen to end, and must not meet ours.
                kept = set() if self._registry.suspended else {run.id for run in self._registry.rolls()}
                self._forget(kept)
                try:
                    async with asyncio.timeout(_LOOK_SECONDS if self._registry.rolls() else None):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            self._forget(set())

    def _forget(self, kept: set[str]) -> None:
        for name in self._memory.keys() - kept:
            for each in self._memory.pop(name).hooks.values():
                if each.task is not None:
                    each.task.cancel()

    # --- one turn ----------------------------------------------------------------------------------------------------

    async def _turn(self, identifier: str) -> None:
        run = self._registry.evacuations[identifier]
        if run.roll is None or run.ended:
            return
        seen = {each.host: await self._seen(identifier, each) for each in run.roll.hosts}
        cancelled = run.closing is EvacuationState.CANCELLED
        roll, actions = step(run.roll, seen, now=clock.wall(), cancelled=cancelled)
        if roll is not run.roll and not await self._keep(run, roll):
            return
        if roll.ended:
            state, error = outcome(roll, cancelled=cancelled)
            self._evacuations.end(identifier, state, error)
            return
        for action in actions:
            await self._carry_out(identifier, action)

    async def _keep(self, run: Evacuation, roll: RollProgress) -> bool:
        """Journal what its hosts have come to, and tell it; False: the journal cannot be written, or it has changed."""
        if self._registry.evacuations.get(run.id) is not run:
            self.wake()
            return False

        def now() -> Evacuation:
            return replace(self._registry.evacuations.get(run.id, run), roll=roll)

        try:
            await self._journal_writer.commit(
                ("evacuation", lambda: journalled(now())),
                then=lambda: self._registry.evacuations.update({run.id: now()}),
            )
        except JournalError as error:
            self._log.warning("roll waits", roll=run.id, error=str(error))
            return False
        self._announcer.evacuation(run.id, at_once=True)
        return True

    async def _seen(self, identifier: str, one: RollHost) -> HostObservation:
        host = self._inventory.host(one.host)
        if host is None:
            return HostObservation(
                error="there is no such host any more", refused="there is no such host any more"
            )
        looked, took = self._inventory.looked_at(one.host), self._inventory.look_seconds(one.host)
        memory = self._memory.setdefault(identifier, _Memory())
        point = RollPoint.READY if one.stage is RollStage.AWAITED else RollPoint.AFTER_DRAIN
        hooks = memory.hooks.get((one.host, point), _HookRun())
        evacuation, evacuation_error = await self._became(one.evacuation)
        restore, restore_error = await self._became(one.restore)
        return HostObservation(
            up=host.up,
            error=host.error,
            boot_id=host.facts.boot_id,
            shut_off=self._evacuations.shut_off(one.host),
            looked_at=looked.timestamp() - took if looked is not None else 0.0,
            evacuation=evacuation,
            evacuation_error=evacuation_error,
            restore=restore,
            restore_error=restore_error,
            hooks_run=hooks.task is not None,
            hooks=hooks.result,
            hooks_at=hooks.ended_at,
            refused=memory.refused.get(one.host, ""),
        )

    async def _became(self, identifier: str) -> tuple[EvacuationState | None, str]:
        """Return how an evacuation has ended, and its error; ``None``: it has not."""
        if not identifier:
            return None, ""
        run = self._registry.evacuations.get(identifier)
        if run is not None:
            return (run.state, run.error or "") if run.ended else (None, "")
        try:
            saved = await self._journal_writer.journal.find("evacuation", identifier)
        except JournalError:
            return None, ""
        if saved is None or not saved.get("ended_at"):
            return None, ""
        return EvacuationState(saved["state"]), str(saved.get("error") or "")

    # --- carrying out ------------------------------------------------------------------------------------------------

    async def _carry_out(self, identifier: str, action: RollAction) -> None:
        run = self._registry.evacuations[identifier]
        policy = run.policy or None
        match action:
            case Empty(host=host):
                empty = Evacuate(host=host, policy=policy, accept=list(run.accept))
                await self._begin(run, host, empty, "evacuation")
            case Refill(host=host):
                # Whoever else is away from it since earlier is not of this roll.
                moved = next((each.evacuation for each in _hosts(run) if each.host == host), "")
                refill = Restore(host=host, policy=policy, evacuation=moved or None)
                await self._begin(run, host, refill, "restore")
            case RunHooks(host=host, point=point):
                self._run_hooks(run, host, point)
            case LookAt(host=host):
                self._inventory.schedule.look_soon(host)
            case CancelRun(evacuation=evacuation):
                try:
                    await self.commands.carry_out(Cancel(target=evacuation), _caller(run), key="")
                except (JournalError, Refusal) as error:
                    self._log.info("not cancelled", roll=identifier, evacuation=evacuation, error=str(error))

    async def _begin(self, run: Evacuation, host: str, command: Command, what: str) -> None:
        caller = _caller(run)
        key = str(CommandKey(caller.user, f"roll.{run.id}.{host}.{what}"))
        try:
            begun = await self.commands.carry_out(command, caller, key=key)
        except JournalError as error:
            self._log.warning("roll waits", roll=run.id, host=host, error=str(error))
            return
        except Refusal as refusal:
            if refusal.code == "unavailable":
                self._log.warning("roll waits", roll=run.id, host=host, error=str(refusal))
            else:
                self._memory[run.id].refused[host] = str(refusal)
                self.wake()
            return

        def noted(now: Evacuation) -> Evacuation:
            if now.roll is None:
                return now
            hosts = tuple(
                replace(each, **{what: begun.id}) if each.host == host else each for each in now.roll.hosts
            )
            return replace(now, roll=replace(now.roll, hosts=hosts))

        self._registry.change(run.id, noted)
        self._announcer.evacuation(run.id, at_once=True)

    # --- hooks -------------------------------------------------------------------------------------------------------

    def _run_hooks(self, run: Evacuation, host: str, point: RollPoint) -> None:
        mine = self._memory[run.id].hooks.setdefault((host, point), _HookRun())
        if mine.task is not None:
            return

        async def work() -> None:
            try:
                mine.result = await self._answer(run, host, point)
                mine.ended_at = clock.wall()
            finally:
                mine.task = None
                self.wake()

        mine.task = asyncio.create_task(work(), name=f"hooks {point} of {host}")

    async def _answer(self, run: Evacuation, host: str, point: RollPoint) -> HookResult:
        """Run them one after the other, up to the first that does not end well."""
        assert run.roll is not None
        wanted = run.roll.hooks.get(point)
        result = FINE
        for hook in self._hooks.for_roll(point) if self._hooks is not None else ():
            if wanted is not None and hook.name not in wanted:
                continue
            result = await self._hooks.run(hook, host, _document(run, host, point, hook.name))  # type: ignore[union-attr] # it has hooks
            self._log.info(
                "hook", roll=run.id, host=host, hook=hook.name, point=str(point), status=result.status
            )
            if not result.agrees:
                return replace(result, output=describe(hook, host, result))
        return result


def _document(run: Evacuation, host: str, point: RollPoint, name: str) -> Mapping[str, Any]:
    attempts = {each.host: each.attempts for each in _hosts(run)}
    return {
        "version": 1,
        "hook": name,
        "point": str(point),
        "host": host,
        "attempt": attempts.get(host, 1),
        "roll": evacuation_document(run).model_dump(mode="json"),
    }


def _hosts(run: Evacuation) -> Sequence[RollHost]:
    return run.roll.hosts if run.roll is not None else ()


def _caller(run: Evacuation) -> Caller:
    return Caller(user=run.requested_by, role=Role.OPERATOR, interface="roll", origin=f"roll {run.id}")
