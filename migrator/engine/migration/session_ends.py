"""Both ends of one migration: opened, checked, brought to rest, compared, and let go."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from migrator.core.findings import errors_first
from migrator.core.hooks import HookPoint
from migrator.core.migration.downtime_floor import CEILING_CODES
from migrator.core.migration.guest_clock import LONG_STANDSTILL_SECONDS
from migrator.core.model import Decision, Finding, State
from migrator.core.policy import Backing, Start
from migrator.core.preflight.stream_tls import StreamTls
from migrator.engine import clock
from migrator.engine.migration import cleanup, preflight
from migrator.engine.migration.block_job_wait import BlockJobWait
from migrator.engine.migration.guest_network import GuestNetwork
from migrator.engine.migration.outcome import MigrationProgress
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.engine.migration.services import EndLocation
from migrator.engine.migration.session_state import SessionState
from migrator.engine.migration.shared_path import OwnPath
from migrator.engine.migration.slow_step import SlowStep
from migrator.errors import MigratorError
from migrator.ports import IncomingDestination, Qemu, Record, StreamPath, StreamTunnel
from migrator.ports.managed import ManagedMigration

if TYPE_CHECKING:
    from migrator.core.guest_experience import GuestPrior
    from migrator.engine.migration.driver import MigrationDriver
    from migrator.engine.migration.managed_driver import ManagedDriver

#: A decision: a guest that waited, or might have, for a moment in which it writes little begins to move.
QUIET_START = "quiet-start"

#: A decision: what became of the clock of a guest that stood still for long.
GUEST_CLOCK = "guest-clock"

#: A decision: bridges that know where a guest is that has arrived.
NETWORK_LEARNED = "network-learned"


class SessionEnds(SessionState):
    """Holds both ends of a migration; what is done with them is for whoever derives from it to say."""

    _source: Qemu | None = None
    _destination: Qemu | None = None
    #: What was started at the target and has not got its guest yet.
    _incoming: IncomingDestination | None = None
    _driver: MigrationDriver | ManagedDriver | None = None
    #: What its stream is encrypted with; ``None``: it is plain.
    _tls: StreamTls | None = None
    #: What its stream goes through; ``None``: nothing.
    _tunnel: StreamTunnel | None = None
    #: CPUs without work at the host that has fewer; ``None``: not known, or of no interest.
    _spare_cpus: float | None = None
    #: The group whose guests are switched together; empty: it is switched when it can be.
    moved_with = ""
    #: What was found before there was a destination to compare with.
    _found: Sequence[Finding] = ()

    @cached_property
    def _slow_step(self) -> SlowStep:
        return SlowStep(lambda: self._on_progress(self))

    def _at_source(self) -> Qemu | None:
        return self._source

    def _at_destination(self) -> Qemu | None:
        return self._destination

    @cached_property
    def _network(self) -> GuestNetwork:
        return GuestNetwork(self.services.site, source=self.guest.host, target=self.target)

    async def _open_source(self) -> Sequence[Finding]:
        """Open the source, and ask what is against it before anything is started; the same as a check asks."""
        try:
            self._source = await self.services.site.open(self.guest.host, self.guest.socket, role="source")
        except MigratorError as error:
            self.failure = error
            return [preflight.unchecked(error)]
        self.places["source"] = EndLocation(
            host=self.guest.host,
            socket=self.guest.socket,
            identity=dict(self._source.identity),
        )
        return await self._check(self._source)

    async def _check(self, source: Qemu) -> Sequence[Finding]:
        found = await preflight.check(
            self.services.site,
            self.guest,
            source,
            self.target,
            self.policy,
            stream_speed=self._stream_speed(),
        )
        found = tuple(self.services.judge_room(self, found))
        chosen = await preflight.choose_tls(self.services.site, self.guest, self.target, self.policy)
        self._tls = chosen.tls
        self._spare_cpus = await preflight.spare_cpus(
            self.services.site, self.guest, self.target, self.policy
        )
        self._tunnel = preflight.tunnel_for(self.services.site, self.guest, source, self.target, self.policy)
        tunnelled: Sequence[Finding] = ()
        if self._tunnel is not None:
            tunnelled = await preflight.check_tunnel(self._tunnel, self.policy, self._stream_speed())
        return errors_first((*found, *chosen.findings, *tunnelled))

    def _stream_speed(self) -> float | None:
        return self.services.stream_speed(self.guest.host, self.target)

    async def _come_to_rest(self) -> bool:
        """Wait for jobs and exports on the guest's disks as the policy says; whether there was something to wait for.

        :raise Refused: they do not end in time.
        """
        if self._source is None:
            return False
        wait = BlockJobWait(
            self._source, self.policy, unwanted=self.requests.unwanted, tell=self._tell_waiting
        )
        try:
            await wait.come()
        finally:
            self.policy = self.policy.after(wait.waited_seconds)
            if self._driver is not None:
                self._driver.govern(self.policy)
        return wait.waited_seconds > 0

    async def _await_quiet(self) -> bool:
        """Wait until the guest writes little, where the policy says so; whether there was anything to wait for."""
        if self.policy.start is not Start.QUIET or self._source is None:
            return False
        from migrator.engine.migration.quiet_wait import QuietWait  # noqa: PLC0415 - seldom needed

        memory_bytes = await self._memory_bytes()
        wait = QuietWait(
            self._source,
            guest=self._history_key,
            since=self.created_at.timestamp(),
            last_start=lambda: self._last_start(memory_bytes),
            history=self.services.history,
            unwanted=self.requests.unwanted,
            tell=self._tell_waiting,
        )
        await wait.come()
        self.policy = self.policy.after(wait.waited_seconds)
        if wait.reason:
            at = clock.now() - self.preparing_since
            self._decide(Decision(at_seconds=round(at, 6), action=QUIET_START, reason=wait.reason))
        return wait.waited_seconds > 0

    def _last_start(self, memory_bytes: int) -> float:
        """Return when the guest has to begin to move at the latest, seconds since the epoch."""
        from migrator.core.migration import quiet_start  # noqa: PLC0415 - seldom needed

        asked, limit, history = (
            self.created_at.timestamp(),
            self.policy.max_duration_seconds,
            self.services.history,
        )
        until = self._deadline
        deadlines = [asked + quiet_start.LONGEST_SECONDS]
        deadlines += [asked + limit] if limit is not None else []
        deadlines += [until] if until is not None else []
        return quiet_start.last_safe_start(
            min(deadlines),
            memory_bytes=memory_bytes,
            bytes_per_second=self._stream_speed(),
            experience=history.of(self._history_key) if history is not None else None,
        )

    @property
    def _history_key(self) -> str:
        """Return the guest's key in what is known of guests from before."""
        return ""

    @property
    def _deadline(self) -> float | None:
        """Return when it has to be over, apart from what its policy says, seconds since the epoch; ``None``: never."""
        return None

    async def _memory_bytes(self) -> int:
        """Return the size of the guest's memory, once its source is open.

        :raise QemuError: the source does not answer.
        """
        return (await self._source.facts()).memory_bytes if self._source is not None else 0

    async def _mend_clock(self) -> None:
        """Have the clock of a guest set that has arrived and stood still for long; bounded, and nothing of it fails."""
        stood = self._stood_seconds()
        if self._destination is None or stood <= LONG_STANDSTILL_SECONDS:
            return
        what = await self.services.site.mend_clock(self.target, self._destination, stood_seconds=stood)
        if what:
            self._decide(Decision(at_seconds=round(self.began_ago(), 6), action=GUEST_CLOCK, reason=what))

    async def _note_network(self) -> None:
        """Note how a guest that has arrived is connected, once bridges know where it is; bounded, and nothing fails."""
        runs = self._driver is not None and self._driver.guest_runs
        places = await self._network.arrive(
            self.places["destination"].identity, self.result, end=self._destination if runs else None
        )
        if places.known:
            reason = "; ".join(places.known)
            at = round(self.began_ago(), 6)
            self._decide(Decision(at_seconds=at, action=NETWORK_LEARNED, reason=reason))

    async def _ask_hooks(self, point: HookPoint) -> Sequence[Finding]:  # noqa: ARG002 - for those that have hooks
        """Ask the site's hooks whether the guest may move; what speaks against it."""
        return ()

    async def _tell_end(self, state: State) -> None:
        """Tell the site's hooks how it ends; nothing of it can fail."""

    def _tell_waiting(self, what: str) -> None:
        self.waiting_for = what
        at = clock.now() - self.preparing_since
        if what:
            reason = f"waits for {what} to end: nothing is changed before"
            self._decide(Decision(at_seconds=round(at, 6), action="wait", reason=reason))
        state = State.WAITING if what else State.PREPARING
        self._show(MigrationProgress(state=state, progress_ratio=0.0, at_seconds=at))

    async def _start_destination(self, source: Qemu) -> None:
        self._incoming = await self._start_incoming(source)
        self._destination = self._incoming.qemu
        self.places["destination"] = EndLocation(
            host=self.target,
            socket=self._incoming.socket,
            identity=dict(self._destination.identity),
        )
        self._found = preflight.started(self._found, self._incoming.notes)
        self.record = self.services.records.create(self.id)
        self._driver = self._make_driver(
            source,
            self._destination,
            self.record,
            self._listen(self._incoming),
            new_images=self._incoming.new_images,
        )

    async def _start_incoming(self, source: Qemu) -> IncomingDestination:
        return await self.services.site.start_destination(
            self.guest,
            source,
            self.target,
            migration=self.id,
            accepted=self.accepted,
            keep_backing=self.policy.backing is Backing.KEEP,
        )

    def _listen(self, incoming: IncomingDestination) -> str:
        return incoming.listen if self._tunnel is None else f"tcp:{self._tunnel.addresses[0]}:0"

    @property
    def _return_path(self) -> bool:
        """Return whether the destination answers over the stream."""
        return True

    @property
    def _mapped(self) -> bool:
        """Return whether one end is a file in which each page has a place of its own."""
        return False

    def _stood_seconds(self) -> float:
        """Return for how long the guest stood still."""
        return max(self.result.standstill_seconds or 0.0, self.result.downtime_seconds or 0.0)

    async def _settle_file(self) -> None:
        """Say of a file that the guest was saved into that it is nowhere else."""

    async def _compare(self) -> list[Finding]:
        """Compare both QEMUs, and what carries their networks; the destination's start is over.

        What was found before stays, but for the ceiling, which is judged anew now that both ends answer.
        """
        if self._driver is None:
            raise RuntimeError("there is nothing to compare yet")
        places = (self.places["source"], self.places["destination"])
        return [
            *(each for each in self._found if each.code not in CEILING_CODES),
            *await self._driver.check(),
            *await self._network.look(*(place.identity for place in places)),
        ]

    def _other_guest(self) -> str | None:
        """Return the error where another guest is at the source: what is known may be as old as a journal's backup."""
        uuid = self._driver.uuid if self._driver is not None else ""
        if not self.guest.uuid or uuid in ("", self.guest.uuid):
            return None
        where = f"at {self.guest.socket} on {self.guest.host}"
        return f"another guest ({uuid}) is {where} by now; see: migrator guests"

    @property
    def _timeouts(self) -> PhaseTimeouts:
        """Return how long nothing may change in each phase."""
        return PhaseTimeouts(recovery=self.services.recovery_seconds())

    def _make_driver(
        self,
        source: Qemu,
        destination: Qemu,
        record: Record,
        listen: str,
        *,
        new_images: Sequence[str] = (),
    ) -> MigrationDriver | ManagedDriver:
        if self._tunnel is None:  # another controller may have begun it
            self._tunnel = preflight.tunnel_for(
                self.services.site, self.guest, source, self.target, self.policy
            )
        shared_path = self.services.shared_path(self.guest.host, self.target)
        return self._driver_class(source)(
            name=self.id,
            source=source,
            destination=destination,
            policy=self.policy,
            listen=listen,
            record=record,
            requests=self.requests,
            outcome=self.result,
            experience=self.services.experience,
            prior=self.prior(),
            stream_speed=self._stream_speed(),
            new_images=new_images,
            timeouts=self._timeouts,
            path=self.stream_path(),
            # What goes through a tunnel says nothing of what the path would carry without.
            shared_path=shared_path if self._tunnel is None else OwnPath(),
            tunnel=self._tunnel,
            tls=self._tls,
            spare_cpus=self._spare_cpus,
            about=self.about(),
            return_path=self._return_path,
            mapped=self._mapped,
            moved_with=self.moved_with,
            to_send_bytes=self._to_send_bytes,
            look_stretch=self.services.look_stretch,
            on_status=self._show,
            on_decision=self._note_decision,
        )

    def _driver_class(self, source: Qemu) -> type[MigrationDriver | ManagedDriver]:
        """Return who drives it; loaded when it is first needed, as one command needs one of them."""
        if isinstance(source, ManagedMigration):
            from migrator.engine.migration.managed_driver import ManagedDriver  # noqa: PLC0415 - see above

            return ManagedDriver
        from migrator.engine.migration.driver import MigrationDriver  # noqa: PLC0415 - see above

        return MigrationDriver

    @property
    def _to_send_bytes(self) -> int | None:
        """Return what of the guest's memory is not empty; ``None``: not known."""
        return None

    def prior(self) -> GuestPrior | None:
        """Return what the guest did before; ``None`` where nothing is known of it."""
        return None

    def stream_path(self) -> StreamPath:
        """Return the network that carries its stream, or the tunnel."""
        if self._tunnel is not None:
            return self._tunnel
        source, destination = self.places["source"], self.places["destination"]
        pids = source.identity.get("pid"), destination.identity.get("pid")
        return self.services.site.stream_path(source.host, destination.host, processes=pids)

    async def let_go(self) -> None:
        """Keep nothing open or locked while it is held, so that a person's look finds both ends and its record."""
        record, self.record = self.record, None
        if record is not None:
            self.services.records.release(record)
        await self._let_go(discard=False)

    @property
    def _never_ran_there(self) -> bool:
        """Return whether the guest never ran at the destination, so that its new images hold nothing.

        Without a driver nothing was begun yet.
        """
        return self._driver is None or not self._driver.handed_over

    async def _let_go(self, *, discard: bool = True) -> None:
        if self._tunnel is not None:
            self._tunnel.close()
        incoming, self._incoming = self._incoming, None
        if incoming is not None and discard:
            try:
                await incoming.discard(images=self._never_ran_there)
            except MigratorError as error:
                cleanup.note_left_over(self, error, images=self._never_ran_there)
        for end in (self._source, self._destination):
            if end is not None:
                await end.close()
        self._source = self._destination = self._driver = None
