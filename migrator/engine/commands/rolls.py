"""The command that rolls through hosts; what it begins is carried out by :mod:`migrator.engine.rolls`."""

from __future__ import annotations

from migrator.api.commands import Roll
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.replies import Refusal
from migrator.api.requests import Caller
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.roll import RollHost, RollProgress
from migrator.core.hooks import RollPoint
from migrator.engine.commands.lookups import Lookups
from migrator.engine.evacuation_documents import evacuation_document, journalled
from migrator.engine.evacuations import Evacuations
from migrator.engine.registry import Registry, new_id
from migrator.engine.reservations import Reservations
from migrator.engine.rolls import Rolls


class RollCommands:
    """Begins rolls."""

    def __init__(
        self,
        *,
        lookups: Lookups,
        registry: Registry,
        reservations: Reservations,
        evacuations: Evacuations,
        rolls: Rolls,
    ) -> None:
        self._lookups, self._registry, self._reservations = lookups, registry, reservations
        self._evacuations, self._rolls = evacuations, rolls

    async def roll(self, command: Roll, caller: Caller, key: str) -> EvacuationDocument:
        """Begin to roll through hosts."""
        names = [self._lookups.host(name).name for name in command.hosts]
        self._lookups.known_codes(command.accept)
        if command.policy is not None:
            self._lookups.policy(command.policy)
        for point, wanted in command.hooks.items():
            known = self._rolls.known_hooks(RollPoint(point))
            if strange := [name for name in wanted if name not in known]:
                there = f"there are {', '.join(known)}" if known else "there are none"
                raise Refusal(
                    "invalid", f"no hook of the point {point} has the name {strange[0]}; {there}: [[hooks]]"
                )
        async with self._reservations.hold(*(("host", name) for name in names)):
            for name in names:
                self._lookups.unoccupied(self._lookups.host(name))
            for other in self._registry.rolls():
                if other.roll is not None and (both := {each.host for each in other.roll.hosts} & set(names)):
                    raise Refusal(
                        "conflict",
                        f"{min(both)} is in the roll {other.id} already: migrator cancel {other.id} first",
                    )
            run = Evacuation(
                id=new_id(),
                host="",
                kind="roll",
                policy=command.policy or "",
                accept=tuple(command.accept),
                key=key,
                requested_by=caller.user,
                traceparent=caller.trace.parent if caller.trace else None,
                tracestate=(caller.trace.state or None) if caller.trace else None,
                roll=RollProgress(
                    hosts=tuple(RollHost(host=name) for name in names),
                    max_unavailable=command.max_unavailable,
                    hooks={point: tuple(wanted) for point, wanted in command.hooks.items()},
                    reboots=command.reboots,
                    ready_timeout_seconds=command.ready_timeout_seconds,
                ),
            )
            await self._lookups.commit(
                ("evacuation", lambda: journalled(run)), then=lambda: self._evacuations.begin_roll(run)
            )
            self._rolls.wake()
            return evacuation_document(self._registry.evacuations[run.id])
