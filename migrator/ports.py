"""The interfaces between the engine and what it drives, with their contracts.

The engine never sees QMP, a file or a socket. Whatever implements these converts units and wraps errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from migrator.core.facts import Facts
from migrator.core.model import Finding, View
from migrator.core.situation import Intent
from migrator.core.under_way import Busy

if TYPE_CHECKING:
    from migrator.core.carriers import Carried  # of what `migrator direct` does not need, nor loads
    from migrator.core.inventory import Guest, HostFacts
    from migrator.core.policy import Policy
    from migrator.core.thinning import Point


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something a QEMU announced. A hint: the truth is what a fresh query says."""

    name: str
    #: Seconds on the controller's monotonic clock when it arrived.
    arrived: float
    #: Seconds since the epoch on the clock of the host that QEMU runs on.
    stamped: float
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Capabilities and parameters of one end, read so that they can be put back. Opaque to the engine."""

    capabilities: Mapping[str, bool]
    parameters: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Parameters of a migration, in base units; ``None`` leaves one alone."""

    max_bandwidth_bytes_per_second: int | None = None
    #: In whole milliseconds, 1 at the least; 0 is nothing at all, so that only an idle stream would switch.
    downtime_limit_seconds: float | None = None
    #: 0 is no limit of its own. It caps the postcopy switch too, so it stays 0 until the destination runs.
    max_postcopy_bandwidth_bytes_per_second: int | None = None
    #: Share of CPU time that auto-converge may take from the guest; 0 lets it sleep.
    throttle_ratio: float | None = None


class Qemu(Protocol):
    """One QEMU process, seen by its QMP monitor.

    Every call is bounded in time. Those that change something raise
    :class:`~migrator.errors.CommandFailed` when QEMU refused (it did nothing),
    :class:`~migrator.errors.TimedOut` when it did not answer (it MAY still do it), and
    :class:`~migrator.errors.Unreachable` when there is no session.
    """

    @property
    def name(self) -> str:
        """For people: ``source unix:/run/a.sock``."""

    @property
    def address_text(self) -> str:
        """As a person would type it again: ``unix:/run/a.sock``."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells this process from another at the same address (pid and its start time), where known."""

    @property
    def shares_clock(self) -> bool:
        """Its events are stamped by the clock of the machine the controller runs on."""

    @property
    def round_trip_seconds(self) -> float:
        """The last round trip of a query."""

    async def observe(self, *, timeout: float = 1.0) -> View:
        """A fresh view of it. Never raises: what cannot be asked is said in the view.

        A session that broke is opened again. A query that was not answered in time is not sent twice: the next
        call goes on waiting for it.
        """

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever an event arrives or the session breaks."""

    def take_events(self) -> Sequence[Event]:
        """The events since the last call, oldest first."""

    async def facts(self) -> Facts:
        """What preflight compares; changes nothing."""

    async def busy(self) -> Busy:
        """Jobs and exports of the guest's disks that are at work now: they do not survive a move.

        Opens the session again after :meth:`rest`.
        """

    async def was_set(self) -> Any:
        """What somebody set in it while it ran and no migration carries; only :meth:`put_back` looks into it."""

    async def put_back(self, given: Any) -> Sequence[str]:
        """Set the same in this one, where it differs; what could not be, each in a few words."""

    async def rest(self) -> None:
        """Let others have the monitor for a while; the process stays held."""

    async def claim(self, migration: str, *, was: Mapping[str, Any] | None = None) -> None:
        """Mark it as driven by this controller, before anything of it is changed; what is ours already stays ours.

        Every call that changes something does so by itself where it was not done before, and sees that the mark is
        still there where the controller may have slept.

        :param migration: what it is claimed for.
        :param was: how things were, plain JSON, for whoever finds it left standing and no record of it.
        :raise Driven: another controller drives it, or did and may wake up.
        """

    async def release(self) -> None:
        """Remove the mark; one that cannot be removed now hinders nobody once this controller has ended."""

    async def settings(self) -> Settings:
        """Capabilities and parameters as they are now."""

    async def enable(self, capabilities: Mapping[str, bool]) -> None:
        """Set migration capabilities."""

    async def tune(self, tuning: Tuning) -> None:
        """Set migration parameters; may be called while migrating."""

    async def restore(self, settings: Settings) -> None:
        """Put capabilities and parameters back; only what differs is sent."""

    async def listen(self, uri: str) -> str:
        """Destination: disarm (it must not run by itself), then listen at `uri`; the address to migrate to."""

    async def migrate(self, uri: str) -> None:
        """Source: begin. The reply means nothing; the status does."""

    async def start_dirty_rate(self, period_seconds: float, *, exact: bool = False) -> None:
        """Begin to measure how many distinct pages the guest dirties in `period_seconds` (at least 1).

        Bounded in cost: it looks at a sample of the pages, twice. It does not disturb a migration.

        :param exact: look at every page where that is safe, and at a sample where it is not: for the time before a
            migration. It then costs the guest what keeping a log of dirty pages costs it in a migration.
        """

    async def dirty_rate(self) -> float | None:
        """Bytes of distinct pages dirtied per second over that period; ``None`` until it is measured."""

    async def start_postcopy(self) -> None:
        """Source: switch to postcopy at once."""

    async def switch(self) -> None:
        """Source: migrate-continue, the end of every blind cancel."""

    async def cancel(self) -> None:
        """Source: migrate_cancel, and ``yank`` out of band where that is not answered."""

    async def cont(self) -> None:
        """Let the guest run; at a destination :meth:`was_run` is true from then on, whoever asks."""

    async def was_run(self) -> bool:
        """Destination: it was told to run its guest, and did: if that stands still now, somebody wanted it."""

    async def stop(self) -> None:
        """Let the guest stand still."""

    async def announce(self) -> None:
        """Make the guest's network addresses known where it is now."""

    async def quit(self, *, timeout: float = 5.0) -> bool:
        """End it, by force if it does not go; True when it was seen dead.

        Only for a process that holds nothing worth keeping.
        """

    async def fence(self) -> bool:
        """Kill the process and see it dead; True only with proof. A closed socket is no proof."""

    def last_words(self) -> str:
        """The end of what it wrote to its standard error, where that can be read; else empty."""

    async def close(self) -> None:
        """Let go of the monitor; the process is left alone."""


class Experience(Protocol):
    """What earlier migrations of the same kind of pair taught."""

    def overhead_seconds(self, pair: str) -> float | None:
        """The part of downtime that is not memory over the network, at its 90th percentile; ``None`` if unknown."""

    def learn(self, pair: str, overhead_seconds: float) -> None:
        """Add one. What cannot be kept is lost without a word: it is a help, not a promise."""


class Samples(Protocol):
    """The figures of migrations, for the curves that people look at. A help, not a promise.

    Bounded for each migration, however long it takes; they go when the journal forgets the migration.
    """

    def add(self, migration: str, point: Point) -> None:
        """Keep it if it tells enough. Returns at once; what cannot be kept is lost without a word."""

    async def of(self, migration: str) -> Sequence[Point]:
        """Those that are kept, by time, those of other controllers among them."""


class Record(Protocol):
    """The durable record of one migration: intent first.

    What :meth:`begin` wrote is on disk when it returns. :meth:`note` survives the death of the controller's process
    at once; after the death of its machine :attr:`exact` of the reader is false and the record is read as if the
    point of no return had been passed.
    """

    @property
    def noted_at(self) -> float | None:
        """Of one that was taken up: when the last intent was noted, in seconds since the epoch."""

    async def begin(self, facts: Mapping[str, Any], intent: Intent) -> None:
        """Write what is about to be done and how things were; returns once it is on disk.

        :raise RecordError: when it cannot be written; nothing may be changed then.
        """

    def note(self, intent: Intent) -> None:
        """Add what is about to be done next.

        :raise RecordError: when it cannot be written; the step must not be taken then.
        """

    async def end(self, outcome: Mapping[str, Any]) -> None:
        """The migration has ended for good; the record is put away."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the record of a migration says that has been put away."""

    #: Which of the migration's attempts it was of: one that begins anew has the same id.
    attempt: int
    #: It was undone only because its controller stopped, or had gone: it begins anew.
    postponed: bool
    #: :data:`migrator.engine.ledger.OUTCOME`, as far as it was written.
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stray:
    """A record of a migration that the journal does not know as one that is under way."""

    migration: str
    #: Where the record is.
    path: str
    #: What it was begun with; ``None`` where it cannot be read.
    facts: Mapping[str, Any] | None


class GuestProcess(Protocol):
    """A QEMU process on some host, held so that a pid used again is never mistaken for it."""

    pid: int

    @property
    def identity(self) -> dict[str, Any]:
        """pid, start time, and the boot they belong to: tells this process from any other, for ever."""

    @property
    def is_qemu(self) -> bool:
        """Its program is a QEMU. A passed socket names its creator, which must never be killed."""

    @property
    def alive(self) -> bool | None:
        """False is proof of its death; ``None``: its host cannot be asked now."""

    def binary_identity(self) -> str:
        """Tells one build of its program from another; empty when that is unknown."""

    def arguments(self) -> list[str]:
        """Its command line; empty when that cannot be read."""

    def last_words(self) -> str:
        """The end of what it wrote to its standard error, where that can be read; else empty."""

    async def wait_dead(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for its end; True only with proof of it."""

    async def kill(self, timeout: float) -> bool:
        """SIGKILL; True only when it was seen dead within `timeout` seconds."""

    def close(self) -> None:
        """Let go of it; the process is left alone."""


@dataclass(frozen=True, kw_only=True)
class HostLook:
    """What one look at a host showed."""

    facts: HostFacts
    guests: tuple[Guest, ...]


class Waiting(Protocol):
    """A QEMU that was started, or found, at a target, and waits for a guest."""

    @property
    def qemu(self) -> Qemu:
        """Connected; ``inmigrate``."""

    @property
    def listen(self) -> str:
        """Where it shall take the stream: ``tcp:ADDR:0``."""

    @property
    def notes(self) -> tuple[Finding, ...]:
        """What is not there as it is at the source, and does not keep the guest from moving."""

    @property
    def socket(self) -> str:
        """Path of its QMP socket on its host, where the guest will be found after it has arrived."""

    async def discard(self) -> None:
        """End the process if it still waits and remove everything that was made for it but its log.

        Never touches a process that the guest has arrived in: that one is not waiting any more.
        """


class Carriers(Protocol):
    """What carries the networks of guests."""

    async def carried(self, host: str, pid: int) -> Carried:
        """The taps that a process of a host has open, and what they hang on; changes nothing.

        :raise HostError: the host cannot be asked.
        """


class Site(Carriers, Protocol):
    """The hosts, as the engine uses them. A host that cannot be reached harms nothing else.

    Every call is bounded in time and raises :class:`~migrator.errors.HostError` when the host cannot be asked, and
    :class:`~migrator.errors.QemuError` when the QEMU cannot.
    """

    async def look(self, host: str) -> HostLook:
        """Facts and guests, read afresh; nothing is held afterwards."""

    async def watch(self, host: str, changed: Callable[[], None]) -> None:
        """Call `changed` whenever guests may have come to that host, or gone; runs until cancelled.

        A help, not a promise: what it does not see, the next look does.

        :raise HostError: the host cannot be watched any more.
        """

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> Qemu:
        """Connect to the QEMU behind a QMP socket of a host.

        :param role: ``source`` or ``destination``.
        :param identity: of the process that is meant, where that is known: another one at the same socket is refused,
            and one that has died is opened all the same, as a QEMU that is dead.
        :param absent: one of a host that cannot be asked is opened too, as a QEMU of which nothing is known.
        """

    async def check(self, guest: Guest, source: Qemu, target: str, policy: Policy) -> tuple[Finding, ...]:
        """What speaks against `target` for this guest, as far as hosts tell it; changes nothing, starts nothing.

        :param policy: what it would be moved under.
        """

    async def start_destination(
        self, guest: Guest, source: Qemu, target: str, *, migration: str, accepted: Sequence[str] = ()
    ) -> Waiting:
        """Start the QEMU that the guest moves into, everything hot-plugged since its start included.

        After a failure nothing is left behind; the error carries QEMU's own words.

        :param source: as :meth:`open` gave it.
        :param accepted: codes of findings that shall not keep it from being started.
        :raise migrator.core.findings.Objected: something that only shows now keeps the guest from moving there.
        """

    async def hold_off(self, guest: Guest) -> None:
        """Tell who manages a guest not to start it again when it has left; nothing where that cannot be told.

        May be called again. :meth:`let_be` undoes it.
        """

    async def let_be(self, guest: Guest) -> None:
        """The guest stays: who manages it may do as before."""

    async def abandon(self, host: str, *, migration: str) -> None:
        """Remove what :meth:`start_destination` may have begun there for a migration that nobody drives any more; a
        process that does not wait any more is left alone."""

    async def settle(self, guest: Guest) -> Sequence[str]:
        """Have the paths that the operator knows lead to a guest that has arrived; what could not be, in sentences.

        Those of its source are gone (:meth:`clear`). May be called again.

        :param guest: as it is found at its new host.
        """

    async def clear(self, guest: Guest) -> None:
        """Remove what is left of the source once its process has ended: sockets and files that we made."""

    async def close(self) -> None:
        """Let go of every host."""


@dataclass(frozen=True, kw_only=True)
class Grant:
    """By what somebody may use the service over TCP: a token, or a session of the page that was begun with one."""

    #: Stable; tells it from every other, and opens nothing.
    id: str
    #: Of the token.
    name: str
    #: ``viewer`` or ``operator``.
    role: str
    #: ``None``: it does not end by itself.
    ends_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class EventTexts:
    """A page of journalled events as they are kept."""

    #: ``event_id`` and JSON of each, in order.
    items: Sequence[tuple[int, str]]
    #: There are later ones.
    more: bool


class Journal(Protocol):
    """What the service must not forget. Whatever returned is on disk; documents are plain JSON.

    Every call raises :class:`~migrator.errors.JournalError` when it cannot be done: nothing was written then.
    """

    async def save(
        self, *documents: tuple[str, Mapping[str, Any]], events: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Write documents, all or none, each with its kind: ``migration``, ``evacuation``, ``host``.

        A document has the key ``id`` (of a host: its name) and replaces the one before; ``ended_at`` is empty or
        ``None`` until nothing more will happen to it. What the engine alone needs is in it under ``_private``.

        :param events: :class:`~migrator.engine.documents.EventDocument` as JSON, written with them or not at all. An
            event that is there already, the same in all, is let pass; another one of its number is refused.
        """

    async def unfinished(self, kind: str) -> list[dict[str, Any]]:
        """Every document of that kind that has not ended (of hosts: all), oldest first."""

    async def find(self, kind: str, identifier: str) -> dict[str, Any] | None:
        """One document, ended or not."""

    async def page(
        self, kind: str, *, limit: int, before: str | None = None, where: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Newest first; `before` is the id of the last one seen.

        :param where: equal values of ``state``, ``guest``, ``host`` (source or destination, or the evacuation's),
            ``evacuation``, ``command`` (the key of the command that began it).
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
        """As :meth:`events`, each as the JSON it is kept as: for those who hand them on.

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
