"""The interface to the store: records of migrations, the journal, leases, and what earlier migrations taught."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from migrator.core.migration.situation import Intent

if TYPE_CHECKING:
    # Of what `migrator direct` does not need, nor loads.
    from migrator.api.queries import EventTexts
    from migrator.core.migration.downsampling import Point


class Record(Protocol):
    """The durable record of one migration: intent first.

    What :meth:`begin` and :meth:`note` wrote is kept when they return, so that whoever takes the migration over can see
    it. They are for steps that are taken while the guest runs: what allows a switch is noted so before it is allowed.
    :meth:`note_behind` never waits, as a guest may stand still meanwhile. In a file it survives the death of a process
    at once; to a database it follows. Where the last ones may be missing (a file after the death of its machine, a
    database whenever the switch was allowed) the record is read as if the point of no return had been passed. That a
    postcopy was to begin is never missing.
    """

    @property
    def noted_at(self) -> float | None:
        """When the last intent was noted, in seconds since the epoch; of a record that was taken up."""

    async def begin(self, facts: Mapping[str, Any], intent: Intent) -> None:
        """Write what is about to be done and how things were; returns once it is on disk.

        :raise RecordError: when it cannot be written; nothing may be changed then.
        """

    async def note(self, intent: Intent) -> None:
        """Add what is about to be done next; returns once it is kept.

        :raise RecordError: when it cannot be written; the step must not be taken then.
        """

    def note_behind(self, intent: Intent) -> None:
        """Add what is about to be done next, without waiting for anything.

        :raise RecordError: when it is known that it cannot be written; the step must not be taken then.
        """

    async def end(self, outcome: Mapping[str, Any]) -> None:
        """The migration has ended for good; the record is put away."""


@dataclass(frozen=True, kw_only=True)
class EndedRecord:
    """The end of a migration, from its record that has been put away."""

    #: Which of the migration's attempts it was of: one that begins anew has the same id.
    attempt: int
    #: It was undone only because its controller stopped, or had gone: it begins anew.
    postponed: bool
    #: :data:`migrator.engine.migration.intent_log.OUTCOME`, as far as it was written.
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StrayRecord:
    """A record of a migration that the journal does not know as one that is under way."""

    migration: str
    #: Where the record is.
    path: str
    #: What it was begun with; ``None`` where it cannot be read.
    facts: Mapping[str, Any] | None


#: No lease is longer: the configuration allows none that is.
LONGEST_LEASE_SECONDS = 60.0


def lease_margin(seconds: float) -> float:
    """How long before the end of a lease of `seconds` its holder stops acting.

    By then what it began last has been answered; and two clocks differ by far less in the length of a lease.
    """
    return max(0.25, seconds / 6)


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to do something alone, for a while: to plan the site (``site``), to drive a migration
    (``migration/<id>``).

    A write that is given one is refused once it does not hold, whatever its holder believes
    (:class:`~migrator.errors.LeaseLost`). What is not a write is bound by :attr:`may_act`.
    """

    name: str
    #: One process: a controller's id, which no other that lives may have.
    owner: str
    #: Larger than that of everyone who had it before.
    token: int
    #: By :attr:`clock`: a margin (:func:`lease_margin`) before it can end for others, counted from before it was asked
    #: for.
    until: float
    #: Of the holder's machine; nobody sets it, and it goes on while the machine is suspended.
    clock: Callable[[], float] = field(repr=False, compare=False)
    #: Who had it before, and let it end without giving it back; empty: nobody else did.
    taken_from: str = field(default="", compare=False)

    @property
    def may_act(self) -> bool:
        """Nobody else has it yet. Asked before each step that changes anything outside the journal."""
        return self.clock() < self.until


@dataclass(frozen=True, kw_only=True)
class HeldLease:
    """A lease that somebody took and has not given back; for those who look."""

    name: str
    owner: str
    token: int
    #: By the database's clock.
    taken_at: datetime
    #: Until it ends unless it is renewed; of one that has ended less than 0.
    left_seconds: float


class Leases(Protocol):
    """Leases: each lets one owner do something alone. Time is the database's: an end is compared with nothing else.

    Each call is a transaction; :class:`~migrator.errors.JournalError` as of the :class:`Journal`: of one that may have
    been carried out all the same the lease ends by itself.
    """

    async def acquire(
        self, name: str, *, owner: str, seconds: float, known: int | None = None
    ) -> Lease | None:
        """Take it, if it is free, has ended, or is `owner`'s already (who began anew); ``None``: another has it.

        Its token is larger than any before.

        :param known: the token under which this owner had it last: under another one another process has it that uses
            the same name. ``None``: that is not known.
        """

    async def renew(self, held: Sequence[Lease], *, seconds: float) -> list[Lease | None]:
        """The same, each for another `seconds` from now on; ``None`` in place of one that does not hold any more.

        One that has ended is not renewed, though nobody may have taken it: what it forbade others may have been done.
        """

    async def release(self, lease: Lease) -> None:
        """Give it back, so that nobody has to wait for its end; one that is another's by now stays theirs."""

    async def all(self) -> list[HeldLease]:
        """Return the leases that were taken and not given back, by name, but not the assignments of migrations."""

    async def end_stuck(self) -> None:
        """End those that :meth:`all` has shown for long enough with an end that cannot be.

        The clock that all share was set back, or a server whose clock is behind took the place of another: a lease
        that nobody renews any more would keep everybody away for as long. One that ends later than the longest there is
        could, and that was not renewed for so long by this machine's own clock, is no holder's any more.
        """


@dataclass(frozen=True, kw_only=True)
class Signal:
    """There may be something to look at."""

    channel: str
    #: Which; empty where nobody knows: one may have been missed, or it is only time to look again.
    payload: str = ""


class Signals(Protocol):
    """Tells whoever uses the same journal, in this process or another, that there is something to look at.

    A hint: it may be missed, told twice, or told of what is seen already. What is true is in the journal.
    """

    async def notify(self, channel: str, payload: str = "") -> None:
        """Tell those who listen, this process among them.

        :param payload: at most some 7000 bytes; an id, not a document.
        :raise JournalError: it cannot be told; they will look by themselves before long.
        """

    def listen(
        self, *channels: str, poll_seconds: float = 5.0
    ) -> AbstractAsyncContextManager[AsyncIterator[Signal]]:
        """Within it the signals of these channels, in the order in which they were told.

        One without a payload of each comes first where a connection is made for it, after each that was lost, and
        whenever there was none for `poll_seconds`.
        """


class Journal(Protocol):
    """Documents, events and commands that the service must not forget. They are on disk when a call returns, as JSON.

    Every call raises :class:`~migrator.errors.JournalError` when it cannot be done: nothing was written then.
    """

    async def save(
        self,
        *documents: tuple[str, Mapping[str, Any]],
        events: Sequence[Mapping[str, Any]] = (),
        lease: Lease | None = None,
    ) -> list[int]:
        """Write documents, all or none, each with its kind: ``migration``, ``evacuation``, ``host``.

        A document has the key ``id`` (of a host: its name) and replaces the one before; ``ended_at`` is empty or
        ``None`` until nothing more will happen to it. What the engine alone needs is in it under ``_private``.

        :param events: :class:`~migrator.api.events.EventDocument` as JSON, written with them or not at all. An
            event that is there already, the same in all, is let pass; another one of its number is refused. One
            whose ``event_id`` is 0 gets the next number: whoever has seen that has seen, or finds in the journal,
            every event of a smaller one, whichever of several controllers wrote it. Given once more after this call
            has failed it keeps the number that it may have got.
        :param lease: what gives the right to write this.
        :return: the numbers of `events`.
        :raise LeaseLost: it does not hold any more; nothing was written.
        """

    async def unfinished(self, kind: str) -> list[dict[str, Any]]:
        """Every document of that kind that has not ended (of hosts: all), oldest first."""

    async def find(self, kind: str, identifier: str) -> dict[str, Any] | None:
        """One document, ended or not."""

    async def page(
        self,
        kind: str,
        *,
        limit: int,
        before: str | None = None,
        where: Mapping[str, str | Sequence[str]] | None = None,
    ) -> list[dict[str, Any]]:
        """Newest first; `before` is the id of the last one seen.

        :param where: equal values, or one of several, of ``state``, ``guest``, ``host`` (source or destination, or the
            evacuation's), ``evacuation``, ``command`` (the key of the command that began it).
        """

    async def events(
        self, *, after: int = 0, limit: int = 1000, subject: str | None = None, subject_id: str | None = None
    ) -> list[dict[str, Any]]:
        """Events with a larger ``event_id``, in order."""

    async def event_texts(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        most_bytes: int = 1 << 20,
        subject: str | None = None,
        subject_id: str | None = None,
    ) -> EventTexts:
        """Return events like :meth:`events`, each as the JSON it is kept as, for those who hand them on.

        :param most_bytes: fewer than `limit` where they would be more than this together; one at least.
        """

    async def positions(self) -> tuple[int, dict[tuple[str, str], int]]:
        """The last event's id or a larger one, and the last sequence of every subject that has not ended.

        The id is as large as any that may have been given: numbers are reserved ahead, so that those of events that
        were told though they could not be written are not given again.
        """

    @property
    def complaint(self) -> str:
        """Why it cannot be written now, in one line; empty while it can."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Answer of the journal when a command's key is claimed."""

    #: It was not there before: the command is the caller's to carry out.
    new: bool
    #: Another command was given that key before.
    other_body: bool = False
    #: What the command got, as :meth:`~migrator.api.replies.Reply.model_dump`; ``None`` while it is carried out.
    reply: Mapping[str, Any] | None = None


class CommandLog(Protocol):
    """Commands and their replies. Every call raises :class:`~migrator.errors.JournalError` when it cannot be done."""

    async def claim_command(
        self,
        *documents: tuple[str, Mapping[str, Any]],
        key: str,
        verb: str,
        body_hash: str,
        body: Mapping[str, Any],
        caller: Mapping[str, str],
        lease: Lease | None = None,
    ) -> Claim:
        """Write a command down, once: committed and on disk when this returns. Else nothing may be begun.

        :param documents: what it changes at once, as for :meth:`Journal.save`: in the same transaction, and only if the
            claim is new.
        :param lease: what gives the right to change them.
        :raise LeaseLost: it does not hold any more; nothing was written, the claim neither.
        :param key: :class:`~migrator.api.requests.CommandKey` as text.
        """

    async def answer_command(self, *, key: str, reply: Mapping[str, Any], told: bool = True) -> None:
        """Write down the reply to a command, or what has become of it; one that was not claimed is let pass.

        :param told: an outcome needs not be told to whoever asked any more; until then the command is unsettled.
        """


@dataclass(frozen=True, kw_only=True)
class Grant:
    """Permission to use the service over TCP: a token, or a session of the page that was begun with one."""

    #: Stable; tells it from every other, and opens nothing.
    id: str
    #: Of the token.
    name: str
    #: ``viewer`` or ``operator``.
    role: str
    #: ``None``: it does not end by itself.
    ends_at: datetime | None = None
    #: Patterns of the hosts that it ends at; ``None``: it is for all.
    hosts: tuple[str, ...] | None = None


class Experience(Protocol):
    """Experience from earlier migrations of the same kind of pair."""

    def overhead_seconds(self, pair: str) -> float | None:
        """The part of downtime that is not memory over the network, at its 90th percentile; ``None`` if unknown."""

    def learn(self, pair: str, overhead_seconds: float) -> None:
        """Add one. What cannot be kept is lost without a word: it is a help, not a promise."""

    def known(self) -> Mapping[str, float]:
        """Return :meth:`overhead_seconds` of all pairs of which there is one."""


class Samples(Protocol):
    """The figures of migrations, for the curves that people look at. A help, not a promise.

    Bounded for each migration, however long it takes; they go when the journal forgets the migration.
    """

    def add(self, migration: str, point: Point) -> None:
        """Keep it if it tells enough. Returns at once; what cannot be kept is lost without a word."""

    async def of(self, migration: str) -> Sequence[Point]:
        """Return the kept points by time, those of other controllers among them."""
