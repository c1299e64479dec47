"""The interface between controllers that share a journal: which are there, and the documents that all of them show."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from migrator.ports.store import Claim, Lease

#: Signals (:class:`~migrator.ports.Signals`) that live documents were written.
LIVE_CHANNEL = "live"
#: Events were journalled.
EVENTS_CHANNEL = "events"
#: A command waits for whoever acts; the payload is its key.
COMMANDS_CHANNEL = "commands"
#: A command that waited was answered; the payload is its key. Where the reply is short it is told on the other channel,
#: with the reply: JSON of both, ``[key, reply]``.
ANSWERS_CHANNEL, REPLIES_CHANNEL = "answers", "replies"


@dataclass(frozen=True, kw_only=True)
class LiveDocument:
    """A document that is not journalled at every change: the progress of a migration, a host with its guests.

    Written by whoever has it, and read by every other controller.
    """

    #: ``migration``, ``evacuation``, ``host``, ``service``.
    kind: str
    id: str
    #: As JSON; ``None``: there is no such document any more.
    text: str | None
    #: Of the last event of its subject that it takes into account.
    sequence: int = 0
    #: Controller that wrote it; given when it is written.
    writer: str = ""
    #: Grows with every write, whoever writes; given when it is written.
    version: int = 0


class LiveDocuments(Protocol):
    """See :class:`LiveDocument`. Every call raises :class:`~migrator.errors.JournalError` when it cannot be done."""

    async def write(
        self, documents: Sequence[LiveDocument], *, writer: str, lease: Lease | None = None
    ) -> int:
        """Write them, all or none, and tell those who listen to :data:`LIVE_CHANNEL`.

        :param writer: the controller's name.
        :param lease: what gives the right to it.
        :return: their version.
        :raise LeaseLost: it does not hold any more; nothing was written.
        """

    async def since(self, version: int, kinds: Collection[str] = ()) -> list[LiveDocument]:
        """Return what was written after that version, in order: whoever has read up to one misses nothing before it.

        After a server has lost what it had written last, versions are given again: where the last one
        (:meth:`version`) is smaller than what was read, all of it has to be read anew.

        :param kinds: all where empty.
        """

    async def version(self) -> int:
        """Return the last version that was written."""


@dataclass(frozen=True, kw_only=True)
class ControllerInfo:
    """A controller as it describes itself."""

    #: Stays the same for as long as its state directory; no other that lives has it.
    name: str
    #: As ``[site] instance`` has it.
    instance: str
    #: Of migrator.
    version: str
    #: Where it answers; empty where nobody else can reach it.
    url: str = ""
    #: ``acting``, ``standby``, ``stopping``, or ``waiting`` for older controllers to go.
    role: str = "standby"
    #: What it waits for, or complains of; in one line.
    detail: str = ""
    #: Names in its ``[[hosts]]``; ``None``: it does not say.
    hosts: tuple[str, ...] | None = None
    #: How many it drives.
    migrations: int = 0


@dataclass(frozen=True, kw_only=True)
class PresentController:
    """A controller as the others see it; times are by the database's clock."""

    info: ControllerInfo
    #: Revision of the journal's tables that it is written for.
    schema: str
    #: Of its lease; 0 where that was given back.
    token: int
    started_at: datetime
    #: Its last heartbeat.
    seen_at: datetime
    #: Since its last heartbeat.
    age_seconds: float
    #: Its lease holds.
    present: bool
    #: How long its leases hold without being renewed; ``None``: it does not say.
    lease_seconds: float | None = None


class Controllers(Protocol):
    """The controllers that share a journal, each with a lease ``controller/<name>``.

    Every call raises :class:`~migrator.errors.JournalError` when it cannot be done.

    :ivar complaint: why what a controller said of itself last could not be written, though it has its lease; empty
        where it was.
    """

    complaint: str

    async def join(self, info: ControllerInfo, *, seconds: float, known: int | None = None) -> Lease | None:
        """Take the lease and say that it is there; ``None`` where another process has that name and lives.

        :param known: see :meth:`migrator.ports.Leases.acquire`.
        """

    async def beat(self, info: ControllerInfo, lease: Lease, *, seconds: float) -> Lease | None:
        """Renew the lease, and say what is new; ``None``: it had ended, or another process of that name has it."""

    async def leave(self, lease: Lease) -> None:
        """Give the lease back, and say that it has gone."""

    async def all(self) -> list[PresentController]:
        """Return those that are there and those that went without a word, a day ago at most, by name."""


@dataclass(frozen=True, kw_only=True)
class WaitingCommand:
    """A command that a controller has received which does not act."""

    #: :class:`~migrator.api.requests.CommandKey` as text.
    key: str
    #: As it was received, as JSON.
    envelope: str
    #: A controller that acted had begun to carry it out.
    taken: bool
    #: How long it has waited, by the clock that all share.
    age_seconds: float = 0.0


class WaitingCommands(Protocol):
    """Commands on their way to the controller that acts, and their replies on the way back.

    Every call raises :class:`~migrator.errors.JournalError` when it cannot be done.
    """

    async def leave(
        self,
        *,
        key: str,
        verb: str,
        body_hash: str,
        body: Mapping[str, Any],
        caller: Mapping[str, str],
        envelope: str,
    ) -> Claim:
        """Claim a command like :meth:`migrator.ports.CommandLog.claim_command`, for whoever acts to carry out.

        Tells those who listen to :data:`COMMANDS_CHANNEL`.
        """

    async def waiting(self) -> list[WaitingCommand]:
        """Return those that nobody has answered, the oldest first."""

    async def take(self, key: str, *, by: str) -> WaitingCommand | None:
        """Begin to carry one out: nobody takes it back from here on. ``None``: it does not wait any more."""

    async def take_back(self, key: str) -> bool:
        """Remove one that nobody has begun to carry out; ``False``: somebody has, or it was answered."""

    async def replies(self, keys: Collection[str]) -> dict[str, Mapping[str, Any]]:
        """Return the replies of those that were answered."""

    async def forget(self, key: str) -> None:
        """Remove one that was answered, and whose caller gave it no id to ask with again."""


def controller_lease(name: str) -> str:
    """Return the name of a controller's lease."""
    return f"controller/{name}"
