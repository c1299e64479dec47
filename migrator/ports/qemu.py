"""The interface to one QEMU and to its process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, Self

from migrator.core.link_speeds import StreamCounters
from migrator.core.model import Finding, View
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.non_migrated_state import DiskUsers
from migrator.core.preflight.stream_tls import StreamTls
from migrator.core.process.image_paths import TargetImage
from migrator.ports.disk_mirrors import DiskMirroring
from migrator.ports.source_guard import SourceGuard

if TYPE_CHECKING:
    from migrator.core.process.command_line import ImageUse  # what `migrator direct` does not need, nor loads
    from migrator.core.process.replica import Replica, TargetEnvironment


@dataclass(frozen=True, kw_only=True)
class QemuEvent:
    """Something a QEMU announced. A hint: the truth is what a fresh query says."""

    name: str
    #: Seconds on the controller's monotonic clock when it arrived.
    arrived: float
    #: Seconds since the epoch on the clock of the host that QEMU runs on.
    stamped: float
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MigrationSettings:
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
    #: Channels that memory has of its own, and how it is compressed in them: before it begins, and at both ends.
    channels: int | None = None
    compression: str | None = None
    #: Memory that the source keeps of pages as it has sent them, to send only what changed of them: a power of two.
    delta_cache_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """Options of each socket of a stream; ``None`` leaves one alone."""

    #: Bytes that may wait unsent.
    unsent_bytes: int | None = None
    #: Bytes per second that it sends at the most; 0 lifts it.
    pacing_bytes_per_second: int | None = None


@dataclass(frozen=True, kw_only=True)
class StreamSockets:
    """The sockets of a stream at its source, as they were seen."""

    count: int = 0
    #: Written and not acknowledged by the destination's kernel, in all of them; ``None`` where that cannot be told.
    queued_bytes: int | None = None
    #: Why options could not be set; empty where nothing speaks against it.
    refused: str = ""
    #: What the kernel counted of them; ``None`` where it does not tell.
    counters: StreamCounters | None = None


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
        """The address in the form that a person types: ``unix:/run/a.sock``."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Identity that tells this process from another at the same address (pid and its start time), where known."""

    @property
    def shares_clock(self) -> bool:
        """Return whether events are stamped by the clock of the machine that the controller runs on."""

    @property
    def guard(self) -> SourceGuard:
        """The guard at the host of a source; at a destination it does nothing."""

    @property
    def mirroring(self) -> DiskMirroring:
        """Return how disks are copied at this end."""

    @property
    def round_trip_seconds(self) -> float:
        """The last round trip of a query."""

    @property
    def least_round_trip_seconds(self) -> float:
        """The shortest round trip so far: what the way to it takes when nobody is busy; 0 before there was one."""

    async def observe(self, *, timeout: float = 1.0) -> View:
        """A fresh view of it. Never raises: what cannot be asked is said in the view.

        A session that broke is opened again. A query that was not answered in time is not sent twice: the next
        call goes on waiting for it.
        """

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever an event arrives or the session breaks."""

    def take_events(self) -> Sequence[QemuEvent]:
        """The events since the last call, oldest first."""

    async def facts(self) -> Facts:
        """Read the facts that preflight compares; changes nothing."""

    async def disk_users(self) -> DiskUsers:
        """Jobs and exports of the guest's disks that are at work now: they do not survive a move.

        Opens the session again after :meth:`release_monitor`.
        """

    async def read_runtime_state(self) -> Any:
        """Read what somebody set in it while it ran and no migration carries.

        Only :meth:`restore_runtime_state` looks into it.
        """

    async def restore_runtime_state(self, given: Any, present: Any) -> Sequence[str]:
        """Set the same in this one, where it differs; what could not be, each in a few words.

        :param given: what :meth:`read_runtime_state` returned of the other end.
        :param present: what it returned of this one, a moment ago.
        """

    async def release_monitor(self) -> None:
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

    async def settings(self) -> MigrationSettings:
        """Capabilities and parameters as they are now."""

    async def enable(self, capabilities: Mapping[str, bool]) -> None:
        """Set migration capabilities."""

    async def tune(self, tuning: Tuning) -> None:
        """Set migration parameters; may be called while migrating."""

    async def restore(self, settings: MigrationSettings) -> None:
        """Put capabilities and parameters back; only what differs is sent."""

    async def encrypt(self, migration: str, tls: StreamTls) -> None:
        """Have what goes between the ends of a migration encrypted, both sides verified, before it listens or begins.

        What other migrations left for that is removed. Where this fails nothing is used of it.
        """

    async def do_not_encrypt(self) -> None:
        """Have it sent plainly, whatever somebody has set."""

    async def forget_encryption(self) -> None:
        """Remove what :meth:`encrypt` made, in this migration or another; nothing where there is nothing."""

    async def listen(self, uri: str) -> str:
        """Destination: disarm (it must not run by itself), then listen at `uri`; the address to migrate to."""

    async def migrate(self, uri: str) -> None:
        """Source: begin. The reply means nothing; the status does."""

    async def stream_addresses(self) -> Sequence[str]:
        """Destination: the addresses at which it takes, or took, a stream: ``tcp:ADDR:PORT``.

        Those of a stream that was opened anew are among them.
        """

    async def stream_sockets(
        self, peers: Sequence[str], options: StreamOptions | None = None, *, again: bool = False
    ) -> StreamSockets:
        """Source: look at the sockets of its process that lead to one of these addresses, and give them options.

        Only of this process, and of no other stream of it. Never raises: what cannot be done is said in the answer.

        :param peers: as :meth:`listen` and :meth:`stream_addresses` give them; what is no TCP address has no options.
        :param again: those that were seen the last time, for a look that has to be cheap.
        """

    async def start_dirty_rate(self, period_seconds: float, *, exact: bool = False) -> None:
        """Begin to measure how many distinct pages the guest dirties in `period_seconds` (at least 1).

        Bounded in cost: it looks at a sample of the pages, twice. It does not disturb a migration.

        :param exact: look at every page where that is safe, and at a sample where it is not: for the time before a
            migration. It then costs the guest what keeping a log of dirty pages costs it in a migration, and opens the
            session again after :meth:`release_monitor`.
        """

    async def dirty_rate(self) -> float | None:
        """Bytes of distinct pages dirtied per second over that period; ``None`` until it is measured."""

    async def start_postcopy(self) -> None:
        """Source: switch to postcopy at once."""

    async def switch(self) -> None:
        """Source: migrate-continue, the end of every blind cancel."""

    async def pause_stream(self) -> None:
        """Close the stream of a postcopy, so that this end knows that it carries nothing; refused where there is none.

        Never at a source that has sent all of the guest: QEMU 10.0 takes that for a migration that failed.
        """

    async def listen_again(self, address: str) -> str:
        """Destination whose stream is paused: listen at that address for a new one; the address to resume to."""

    async def resume_stream(self, uri: str) -> None:
        """Source whose stream is paused: connect to there and go on. The reply means nothing; the status does."""

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

    def stderr_tail(self) -> str:
        """The end of what it wrote to its standard error, where that can be read; else empty."""

    async def close(self) -> None:
        """Let go of the monitor; the process is left alone."""


@dataclass(frozen=True, kw_only=True)
class OpenImages:
    """The images of a guest's disks as its QEMU has them open; empty where QEMU is too old to tell."""

    #: Those that it writes to, by path.
    opened: Mapping[str, ImageUse] = field(default_factory=dict)
    #: The paths of each image's backing chain, the image itself first, by its path.
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class GuestConfiguration(Protocol):
    """The present configuration of a guest, with what was plugged and unplugged since its QEMU was started; pure."""

    def current(self) -> list[str]:
        """Return the command line, its program first, that would start the guest as it is now."""

    def current_with_networks(self) -> list[str]:
        """Return :meth:`current` with an option for each network that was plugged in over QMP as well."""

    def replicate(self, target: TargetEnvironment) -> Replica:
        """Return the command line of a second QEMU that the guest can move into."""


class SourceQemu(Qemu, Protocol):
    """A QEMU whose guest may move: beside what :class:`Qemu` says, what a second QEMU for it is made from.

    Both ends are of one kind: what is done to a destination takes one that the same site opened or started.
    """

    @property
    def process(self) -> GuestProcess | None:
        """The process behind the monitor, once it is known."""

    async def images(self) -> OpenImages:
        """Read how it has the images of its disks open; changes nothing."""

    async def configuration(self, arguments: Sequence[str]) -> GuestConfiguration:
        """Read what the guest has now; changes nothing.

        :param arguments: command line of its process, the program first.
        """

    async def naming_options(self) -> Sequence[str]:
        """Return the options that name the guest at a QEMU that is started for it; empty where its uuid does."""

    async def threads(self) -> Mapping[str, int]:
        """Return thread ids by what they are for a person: ``vCPU 0``, ``iothread io0``."""

    async def replicate_devices(
        self,
        destination: Self,
        *,
        run_directory: str,
        same_files: bool = True,
        images: Mapping[str, TargetImage] = MappingProxyType({}),
        made: Collection[str] = (),
    ) -> Sequence[Finding]:
        """Plug into the destination, which does not listen yet, all that this one has and it lacks.

        :param run_directory: where the destination's sockets are.
        :param same_files: disks have the same names on both sides, but for these.
        :param images: those that have another path there, by their paths here.
        :param made: disks whose images were made there, and are based on nothing yet, or on what was asked for.
        :returns: what is not the same even so.
        :raise Refused: QEMU does not show enough of something to make it again.
        :raise CommandFailed: the destination refused one of them; some may have been added.
        """

    async def pass_on_name(self, destination: Self) -> None:
        """Mark the destination with the name of the guest, where that has no uuid."""

    async def carry_traces(self, destination: Self) -> Sequence[str]:
        """Enable at the destination the trace events that are enabled here; what could not be, in sentences."""


class GuestProcess(Protocol):
    """A QEMU process on some host, held so that a pid used again is never mistaken for it."""

    pid: int

    @property
    def identity(self) -> dict[str, Any]:
        """pid, start time, and the boot they belong to: tells this process from any other, for ever."""

    @property
    def is_qemu(self) -> bool:
        """Return whether its program is a QEMU. A passed socket names its creator, which must never be killed."""

    @property
    def alive(self) -> bool | None:
        """False is proof of its death; ``None``: its host cannot be asked now."""

    def binary_identity(self) -> str:
        """Tells one build of its program from another; empty when that is unknown."""

    def arguments(self) -> list[str]:
        """Return the command line; empty when that cannot be read."""

    def stderr_tail(self) -> str:
        """The end of what it wrote to its standard error, where that can be read; else empty."""

    async def wait_dead(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for its end; True only with proof of it."""

    async def ask_sockets(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have a request about its sockets answered: see :func:`migrator.process_sockets.answer`.

        :raise HostError: its host cannot be asked. What the rights there do not allow stands in the answer.
        """

    async def kill(self, timeout: float) -> bool:
        """SIGKILL; True only when it was seen dead within `timeout` seconds."""

    def close(self) -> None:
        """Let go of it; the process is left alone."""
