"""Takes one migration of ``migrator direct`` to its end, whatever its two ends are, and tells how it went."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from migrator.cli import Exit
from migrator.cli.direct_records import PairRecords
from migrator.cli.recording import Recorder
from migrator.cli.show import Screen
from migrator.core.findings import accept
from migrator.core.model import Decision, State
from migrator.core.policy import Policy, from_fields
from migrator.engine.migration.guarding import GUARD
from migrator.engine.migration.outcome import MigrationOutcome, MigrationProgress
from migrator.engine.migration.services import EndLocation, MigrationSite, MovedGuest, SessionServices
from migrator.engine.migration.session import MigrationSession
from migrator.engine.migration.shared_path import SharedPath
from migrator.errors import Fault
from migrator.ports import Qemu
from migrator.store.experience import FileExperience
from migrator.store.records import Unfinished

_EXITS = {
    State.COMPLETED: Exit.DONE,
    State.FAILED: Exit.FAILED,
    State.CANCELLED: Exit.CANCELLED,
    State.HELD: Exit.HELD,
    State.GUEST_ENDED: Exit.GUEST_ENDED,
}


class DirectPair(MigrationSite, Protocol):
    """The two ends of one migration, and what a session needs of their hosts."""

    @property
    def source(self) -> Qemu:
        """Return the end that the guest leaves; after :meth:`reopen`, or once it was opened."""

    @property
    def destination(self) -> Qemu:
        """Return the end at which it arrives; likewise."""

    async def reopen(self, facts: Mapping[str, Any]) -> dict[str, EndLocation]:
        """Open what a record speaks of, as far as it can be reached; return where it is."""

    async def close(self) -> None:
        """Let both go."""


@dataclass(frozen=True, kw_only=True)
class PairCommand:
    """Request to move the guest of a pair."""

    #: Addresses as a person types them.
    source: str
    destination: str
    guest: MovedGuest
    policy: Policy
    accepted: Sequence[str]
    shared_path: Callable[[], SharedPath]
    #: The record that another run left.
    left: Unfinished | None
    #: Of the migration.
    name: str


async def drive(
    pair: DirectPair, command: PairCommand, screen: Screen, recorder: Recorder, *, json_output: bool
) -> Exit:
    """Move the guest, or go on with what another run left of that, and tell how it went; the pair is closed then.

    :raise MigratorError: nothing was changed.
    """
    records, left = PairRecords(command.left), command.left

    def show_status(status: MigrationProgress) -> None:
        screen.status(status)
        recorder.status(status)

    def show_decision(_: MigrationSession, decision: Decision) -> None:
        screen.decision(decision)
        recorder.decision(decision)

    def begin(session: MigrationSession) -> None:
        screen.findings(session.result.findings)
        recorder.begin(command.policy, session.abilities)

    async def keep(_: MigrationSession) -> None:
        """Keep nothing beside its record."""

    session = MigrationSession(
        identifier=command.name,
        guest=command.guest,
        target=command.destination,
        policy=from_fields(left.facts["policy"]) if left else command.policy,
        services=SessionServices(
            site=pair,
            records=records,
            accept=accept,
            keep=keep,
            experience=FileExperience(),
            shared_path=lambda source, target: command.shared_path(),
            claims_before_start=False,
            begins_anew=False,
        ),
        accepted=command.accepted,
        on_status=show_status,
        on_decision=show_decision,
        on_ready=begin,
    )
    session.admit()  # nobody else has the links
    _cancel_on_signals(session, screen)
    try:
        if (taken_up := await records.take_up(command.name)) is not None:
            record, facts, intent = taken_up
            session.leave()
            session.places = await pair.reopen(facts)
            await session.go_on(record, facts, intent, pair.source, pair.destination)
        else:
            await session.drive()
    finally:
        records.close()
        await pair.close()
    if session.failure is not None and not isinstance(session.failure, Fault):
        raise session.failure
    result = session.result
    _say_what_next(result, screen)
    refused = session.refused and result.state is State.FAILED
    if refused:
        result.error = "refused by preflight; nothing was changed"
    screen.result(result)
    if not refused:
        recorder.result(result)
    if json_output:
        print(json.dumps(result.document()))
    return Exit.REFUSED if refused else _EXITS[result.state]


def _say_what_next(result: MigrationOutcome, screen: Screen) -> None:
    """Say what a guest takes to move that a guard has had go on at the source."""
    if result.state is State.CANCELLED and any(each.action == GUARD for each in result.decisions):
        screen.line("to move it, start another destination and type this again")


def _cancel_on_signals(session: MigrationSession, screen: Screen) -> None:
    def asked() -> None:
        if session.cancel():
            screen.line("cancelling; the guest stays where it is")
        else:
            screen.line("too late to cancel: past the switch, the migration is being finished")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked)
