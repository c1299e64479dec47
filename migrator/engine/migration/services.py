"""What jobs share, and where their ends are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from migrator.core.migration.situation import Intent
from migrator.core.model import Finding
from migrator.ports import Experience, Outcome, Record, Samples, Site, Stray

if TYPE_CHECKING:
    from migrator.engine.migration.session import MigrationSession


class StepRecordStore(Protocol):
    """Where the steps of migrations are recorded."""

    def create(self, migration: str) -> Record:
        """A new record; nothing is written before :meth:`migrator.ports.Record.begin`."""

    @property
    def whole(self) -> bool:
        """They are the ones that belong to the journal: what neither knows to have begun has not."""

    def take_up(self, migration: str) -> tuple[Record, Mapping[str, Any], Intent] | None:
        """The record another controller left, locked, with its facts and its last intent; ``None`` without one.

        :raise RecordInUse: a living controller holds it.
        :raise RecordError: it cannot be read.
        """

    def outcome(self, migration: str) -> Outcome | None:
        """How a migration ended whose record has been put away; ``None`` without such a record."""

    def strays(self, known: Container[str]) -> Sequence[Stray]:
        """Records that have not been put away, of other migrations than these."""

    def release(self, record: Record) -> None:
        """Let go of a record that has not ended."""

    async def put_away(self, migration: str, outcome: Mapping[str, Any]) -> None:
        """A person, or the journal, says that it has ended: its record is put away, if there is one.

        :raise RecordError: it cannot be, or a living controller holds it.
        """


@dataclass(frozen=True, kw_only=True)
class SessionServices:
    """What every job of a service shares."""

    site: Site
    records: StepRecordStore
    experience: Experience | None = None
    samples: Samples | None = None
    #: Writes the job down: on disk when it returns; raises JournalError.
    keep: Callable[[MigrationSession], Awaitable[None]]
    #: Makes findings into what they are once those codes are accepted; raises UsageError for what cannot be.
    accept: Callable[[Sequence[Finding], Sequence[str]], Sequence[Finding]]


@dataclass(frozen=True, kw_only=True)
class EndLocation:
    """Where one end of a migration is found again."""

    host: str
    socket: str
    identity: Mapping[str, Any] = field(default_factory=dict)
