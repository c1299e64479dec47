"""The parts of a migration that the guest's manager carries out, and what may be asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from migrator.addresses import bracketed, stream_host
from migrator.core.migration import managed_lifecycle
from migrator.core.migration.situation import Milestone
from migrator.core.migration.switch_timing import PARKED_LIMIT_SECONDS
from migrator.engine.migration.driver_state import DriverState
from migrator.engine.migration.managed_postcopy import ManagedRecovery, ManagedSteering
from migrator.engine.migration.stop_interval import TimeBounds
from migrator.errors import Refused
from migrator.ports import StreamPath, UnprobedPath
from migrator.ports.managed import ManagedGuestState, ManagedMigration, ManagedOptions

#: Code of the finding that two hosts may cache a disk differently; who accepts it has the manager leave out its check.
UNSAFE_CACHE = "libvirt-unsafe-cache"


class ManagedState(DriverState):
    """The parts of a migration; :class:`migrator.engine.migration.managed_driver.ManagedDriver` drives it with them."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        path: StreamPath | None = parts.get("path")
        self._steering = ManagedSteering(
            self._source,
            policy=self._policy,
            intent_log=self._intent_log,
            result=self.result,
            shaper=self._shaper,
            guarding=self._guarding,
            group_hold=self._group_hold,
            path=path,
            prior=self._prior,
        )
        self._recovery = ManagedRecovery(
            self._source,
            self._destination,
            resume=self._resume_postcopy,
            path=path or UnprobedPath(addresses=[stream_host(self._listen)]),
            route=self._route,
            intent_log=self._intent_log,
            observer=self._observer,
            result=self.result,
        )
        #: The managers end a half-arrived guest by themselves: that it is not there says nothing.
        self._observer.destination_fenced = True
        self._observer.switches = False
        self._was: ManagedGuestState | None = None
        tls = self._security.tls
        #: See :attr:`migrator.ports.managed.ManagedOptions.tls_name`.
        self._tls_name: str | None = tls.hostname if tls is not None else None
        self._acted_at = 0.0
        #: What of its disks was copied by the last look.
        self._copied: tuple[int, int] | None = None
        #: The stop of the guest for which both ends were left alone for a moment.
        self._stood_aside: TimeBounds | None = None
        #: The manager's own figures, once the guest has arrived.
        self._figures: Mapping[str, Any] = {}
        #: It has ended, and the guest is at its source.
        self._stayed = False
        #: It was given its share, and its limit, by this controller.
        self._tuned = False

    @property
    def _managed(self) -> ManagedMigration:
        return cast(ManagedMigration, self._source)

    @property
    def can_cancel(self) -> bool:
        """Return whether it is not too late for :meth:`cancel`, by the last look."""
        return self._last_source is None or managed_lifecycle.can_cancel(
            self._intent_log.intent, self._last_source
        )

    @property
    def handed_over(self) -> bool:
        """Return whether the guest may have run at the destination, and written to its disks there."""
        return self._intent_log.intent.milestone >= Milestone.SWITCHING and not self._stayed

    def _options(self, was: ManagedGuestState) -> ManagedOptions:
        return ManagedOptions(
            listen=self._listen,
            persistent=was.persistent,
            live=not self._policy.offline,
            postcopy=self._abilities.postcopy,
            tls_name=self._tls_name,
            channels=self._layout.layout.channels,
            delta_cache_bytes=self._layout.delta_cache_bytes,
            disks=[copy.device for copy in self._mirrors.copies],
            bandwidth_bytes_per_second=self._share,
            unsafe=any(each.code == UNSAFE_CACHE for each in self.result.findings),  # which were accepted
        )

    @property
    def _limit_seconds(self) -> float:
        return max(PARKED_LIMIT_SECONDS, self._steering.limit_seconds)

    async def _resume_postcopy(self, address: str) -> None:
        """Have both managers take up the broken stream over this address of the target's host.

        :raise QemuError, Refused: it was not begun.
        """
        if self._was is None:
            raise Refused("what the guest was like is not on record")
        listen = f"tcp:{bracketed(address)}:0"
        options = replace(self._options(self._was), listen=listen, postcopy=True)
        await self._managed.begin_managed(self._destination, options, resume=True)
