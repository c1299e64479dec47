"""Carries commands out: each checked against what is known, journalled, and begun."""

from __future__ import annotations

import asyncio

from migrator.api.commands import (
    Activate,
    Cancel,
    Check,
    Command,
    Cordon,
    Discard,
    Evacuate,
    ListHooks,
    ListPolicies,
    Load,
    Migrate,
    Plan,
    Postcopy,
    Resolve,
    Restore,
    Roll,
    Save,
    Saved,
    Uncordon,
)
from migrator.api.documents import MigrationDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.replies import Answer, Refusal
from migrator.api.requests import Caller
from migrator.engine.commands.discarding import DiscardCommand
from migrator.engine.commands.evacuations import EvacuationCommands
from migrator.engine.commands.migrations import MigrationCommands
from migrator.engine.commands.rolls import RollCommands
from migrator.engine.commands.saved_list import SavedList
from migrator.engine.commands.saving import SavingCommands
from migrator.engine.commands.site_rules import SiteRules
from migrator.engine.evacuation_documents import evacuation_document
from migrator.engine.inventory import Inventory
from migrator.engine.registry import Registry
from migrator.ports import Journal
from migrator.ports.journal_queries import public

#: A command that needs to know every host waits so long for the first look at them after a start.
_FIRST_LOOK_SECONDS = 15.0


class CommandHandlers:
    """See :class:`migrator.engine.commands.dispatcher.Controller`."""

    def __init__(
        self,
        *,
        migrations: MigrationCommands,
        evacuations: EvacuationCommands,
        saving: SavingCommands,
        discarding: DiscardCommand,
        rolls: RollCommands,
        saved_list: SavedList,
        site_rules: SiteRules,
        registry: Registry,
        inventory: Inventory,
        journal: Journal,
    ) -> None:
        self._migrations, self._evacuations, self._saving = migrations, evacuations, saving
        self._saved_list, self._site_rules = saved_list, site_rules
        self._rolls, self._discarding = rolls, discarding
        self._registry, self._inventory, self._journal = registry, inventory, journal

    async def carry_out(self, command: Command, caller: Caller, *, key: str) -> Answer:
        """Begin it; see :meth:`migrator.engine.commands.dispatcher.Controller.carry_out`."""
        if key and (begun := await self._begun_by(key)) is not None:
            return begun
        self._require_hosts(command, caller)
        if isinstance(command, Migrate | Save | Load | Discard | Restore | Plan | Check | Saved):
            await self._inventory.first_look(_FIRST_LOOK_SECONDS)
        match command:
            case Plan():
                return await self._evacuations.plan(command)
            case Check():
                return await self._migrations.check(command, caller)
            case Saved():
                return await self._saved_list.read(command.host, caller)
            case ListPolicies():
                return self._site_rules.policies()
            case ListHooks():
                return self._site_rules.hooks()
        if self._registry.stopping:
            raise Refusal("unavailable", "the service is stopping; ask again once it runs")
        if self._registry.suspended:
            raise Refusal("unavailable", "another controller may act by now; ask again in a moment")
        if complaint := self._journal.complaint:
            raise Refusal("unavailable", f"no new work is taken: {complaint}")
        return await self._change(command, caller, key)

    def _require_hosts(self, command: Command, caller: Caller) -> None:
        """Refuse a host that is not there to a caller who is limited, without naming those beyond his limits to him."""
        if caller.hosts is None:
            return
        to = [command.to] if isinstance(command, Migrate | Check) and command.to is not None else []
        for name in (*command.hosts_named, *to):
            if self._inventory.host(name) is None:
                own = ", ".join(each.name for each in self._inventory.hosts() if caller.covers(each.name))
                there = f"of those that {caller.user} is limited to there is {own or 'none'}"
                raise Refusal("not-found", f"there is no host {name}; {there}")

    async def _change(self, command: Command, caller: Caller, key: str) -> Answer:
        match command:
            case Roll():
                return await self._rolls.roll(command, caller, key)
            case Evacuate() | Restore() | Activate() | Cordon() | Uncordon():
                return await self._change_host(command, caller, key)
            case Migrate(group=str() as group):
                return await self._evacuations.move_group(group, command, caller, key)
            case Migrate():
                return await self._migrations.migrate(command, caller, key)
            case Save():
                return await self._saving.save(command, caller, key)
            case Load():
                return await self._saving.load(command, caller, key)
            case Discard():
                return await self._discarding.discard(command, caller)
            case Cancel(target=target) if target in self._registry.migrations:
                return await self._migrations.cancel(target, caller)
            case Cancel(target=target):
                return await self._evacuations.cancel(target, caller)
            case Postcopy():
                return await self._migrations.postcopy(command, caller)
            case Resolve():
                return await self._migrations.resolve(command, caller)
        raise Refusal("invalid", f"there is no command {command.verb}")

    async def _change_host(
        self, command: Evacuate | Restore | Activate | Cordon | Uncordon, caller: Caller, key: str
    ) -> Answer:
        match command:
            case Evacuate():
                return await self._evacuations.evacuate(command, caller, key)
            case Restore():
                return await self._evacuations.restore(command, caller, key)
            case Activate():
                return await self._evacuations.activate(command)
            case Cordon() | Uncordon():
                return await self._evacuations.cordon(command.host, cordoned=isinstance(command, Cordon))

    async def _begun_by(self, key: str) -> Answer | None:
        """Return what a command of that key began, if it was carried out before."""
        for session in self._registry.migrations.values():
            if session.key == key:
                return session.document()
        for run in self._registry.evacuations.values():
            if run.key == key:
                return evacuation_document(run)
        migrations, evacuations = await asyncio.gather(
            *(
                self._journal.page(kind, limit=1, where={"command": key})
                for kind in ("migration", "evacuation")
            )
        )
        for saved in migrations:
            return MigrationDocument.model_validate(public(saved))
        for saved in evacuations:
            return EvacuationDocument.model_validate(public(saved))
        return None
