"""The session of a migration whose guest may have to be shut down and started anew, as it cannot move live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from migrator.core.cold_start import BY_FORCE, COLD_START, instead, is_cold, without_live
from migrator.core.findings import PreflightRefused, errors_first
from migrator.core.inventory import Guest
from migrator.core.model import Decision, Finding, Mode, State
from migrator.core.policy import Compression, Policy, PostcopyMode, Start, StreamRoute
from migrator.engine import clock
from migrator.engine.migration.driver import MigrationDriver
from migrator.engine.migration.managed_driver import ManagedDriver
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.engine.migration.services import EndLocation
from migrator.engine.migration.session import MigrationSession
from migrator.errors import MigratorError
from migrator.ports import ColdArrival, ColdSourceEnd, IncomingDestination, Qemu, Record, SourceQemu

#: Key of the identity of an end of such a migration.
_COLD = "cold"
#: Seconds that a guest may take longer to shut down than its policy says, before its session is overdue.
_SLACK_SECONDS = 30.0


class ColdSession(MigrationSession):
    """Moves its guest live where it can be, else has it shut down and started anew where its policy says so."""

    guest: Guest
    #: Finding that says so.
    _cold_because: Finding | None = None

    @property
    def cold(self) -> bool:
        """Return whether the guest is shut down and started anew."""
        return _COLD in self.places["source"].identity

    def or_cold(self, found: Sequence[Finding]) -> Sequence[Finding]:
        """Return what was found against a live move, or what is said of a guest that is started anew instead."""
        if self.services.cold is None:
            return found
        judged = self.services.accept(found, self.accepted)
        return instead(judged, self.policy, guest=self.guest.label, target=self.target)

    async def _check(self, source: Qemu) -> Sequence[Finding]:
        """See :class:`SessionEnds`; a guest that cannot move live is shut down where its policy says so."""
        if self._cold_because is not None:
            found = await super()._check(cast(ColdSourceEnd, source).end)
            rest = without_live([each for each in found if each.code != COLD_START])
            return errors_first([*rest, self._cold_because])
        found = self.or_cold(await super()._check(source))
        if not is_cold(found) or self.services.cold is None:
            return found
        try:
            cold = await self.services.cold.source(
                self.guest,
                cast(SourceQemu, source),
                target=self.target,
                migration=self.id,
                policy=self.policy,
                by_force=BY_FORCE in self.accepted,
            )
        except PreflightRefused as error:
            return errors_first([*found, *error.findings])
        self._source = cold
        self._cold_because = next(each for each in found if each.code == COLD_START)
        self.places["source"] = replace(self.places["source"], identity=dict(cold.identity))
        self.policy, self._tunnel = _without_stream(self.policy), None
        at = clock.now() - self.preparing_since
        self._decide(Decision(at_seconds=round(at, 6), action=COLD_START, reason=self._cold_because.message))
        return errors_first(without_live(found))

    async def _start_incoming(self, source: Qemu) -> IncomingDestination:
        if not self.cold or self.services.cold is None:
            return await super()._start_incoming(source)
        shut_down = cast(ColdSourceEnd, source)
        incoming = await super()._start_incoming(shut_down.end)
        try:
            return self.services.cold.incoming(incoming, shut_down)
        except MigratorError:
            await incoming.discard(images=True)
            raise

    async def _compare(self) -> list[Finding]:
        found = await super()._compare()
        return without_live(found) if self.cold else found

    def _make_driver(
        self,
        source: Qemu,
        destination: Qemu,
        record: Record,
        listen: str,
        *,
        new_images: Sequence[str] = (),
    ) -> MigrationDriver | ManagedDriver:
        driver = super()._make_driver(source, destination, record, listen, new_images=new_images)
        if self.cold:
            self.result.mode = Mode.COLD
        return driver

    @property
    def _timeouts(self) -> PhaseTimeouts:
        own = super()._timeouts
        return replace(own, copying=self.policy.max_shutdown_seconds + _SLACK_SECONDS) if self.cold else own

    async def close(self, *, lost: bool = False, ended: Mapping[str, Any] | None = None) -> None:
        """See :meth:`MigrationSession.close`; the process that the guest is in is another than the one that waited."""
        there = self._destination
        if self.cold and there is not None and self.result.state is State.COMPLETED:
            place = self.places["destination"]
            self.places["destination"] = EndLocation(
                host=place.host, socket=place.socket, identity=dict(there.identity)
            )
            if isinstance(there, ColdArrival) and (why := await there.settle()):
                self.result.warn("autostart-lost", why, "virsh autostart GUEST there")
        await super().close(lost=lost, ended=ended)

    def begin_anew(self) -> None:
        super().begin_anew()
        self._cold_because = None


def _without_stream(policy: Policy) -> Policy:
    """Return the policy without what it says of a stream: there is none."""
    return replace(
        policy,
        postcopy=PostcopyMode.NEVER,
        max_throttle_ratio=0.0,
        start=Start.NOW,
        stream=StreamRoute.DIRECT,
        streams=None,
        compress=Compression.NEVER,
    )
