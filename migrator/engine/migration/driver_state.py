"""The parts of one migration that is driven, what is known of it, and what may be asked of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from migrator import logs
from migrator.core.migration import lifecycle
from migrator.core.migration.convergence_state import Abilities
from migrator.core.migration.disk_copies import DiskCopy, Mirrors, as_fields
from migrator.core.migration.mirror_forecast import MirrorForecast
from migrator.core.migration.progress import Progress
from migrator.core.migration.situation import Milestone
from migrator.core.migration.stream_layout import LayoutChoice
from migrator.core.model import (
    Decision,
    Mode,
    Sample,
    State,
    View,
)
from migrator.core.policy import Policy, SourceImages, to_fields
from migrator.core.preflight.facts import Facts
from migrator.core.preflight.stream_tls import StreamTls
from migrator.engine.migration.disk_following import DiskFollowing
from migrator.engine.migration.disk_mirrors import DiskMirrors
from migrator.engine.migration.group_hold import GroupHold
from migrator.engine.migration.guarding import Guarding
from migrator.engine.migration.intent_log import IntentLog
from migrator.engine.migration.intent_updates import IntentUpdates
from migrator.engine.migration.observer import Observer
from migrator.engine.migration.outcome import MigrationOutcome, MigrationProgress
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.engine.migration.postcopy_steering import PostcopySteering
from migrator.engine.migration.prepare import UNLIMITED_BYTES_PER_SECOND
from migrator.engine.migration.requests import MigrationRequests
from migrator.engine.migration.shared_path import OwnPath, SharedPath
from migrator.engine.migration.steering import Steering
from migrator.engine.migration.steps import Steps
from migrator.engine.migration.stream_recovery import StreamRecovery
from migrator.engine.migration.stream_routing import StreamRouting
from migrator.engine.migration.stream_security import StreamSecurity
from migrator.engine.migration.stream_shaper import StreamShaper
from migrator.engine.migration.unplug_wait import UnplugWait
from migrator.ports import Experience, MigrationSettings, Qemu, Record, StreamPath, StreamTunnel

if TYPE_CHECKING:
    from migrator.core.guest_experience import GuestPrior

#: A stream that gives way sends this share of what the path carries, and so many bytes per second at the least.
_YIELDED_RATIO, _LEAST_YIELDED = 1 / 20, 64 << 10
#: Nearer to its end, seconds, no stream goes without a pace to see whether the path carries more.
_PROBE_FAR_SECONDS = 3.0


class DriverState:
    """The parts of a migration; :class:`migrator.engine.migration.driver.MigrationDriver` drives it with them.

    :param name: the migration's id.
    :param experience: what earlier migrations taught; ``None`` begins with a guess and learns nothing.
    :param prior: what the guest did before, which forecasts begin with; ``None``: nothing is known.
    :param requests: what others ask of it, now or later; whoever changes them calls :meth:`wake`.
    :param outcome: is filled; ``None`` makes one.
    :param about: what the record shall say besides, for whoever finds it without anything else.
    :param stream_speed: what the links let the stream carry, bytes per second; ``None`` where that is not known.
    :param shared_path: the path as others share it; ``None`` where nobody knows of others.
    :param spare_cpus: CPUs without work, at the host that has fewer; ``None``: not known.
    :param tunnel: what the stream goes through; ``None``: from QEMU to QEMU.
    :param tls: what the stream is encrypted with; ``None``: it is plain.
    :param path: the network that carries the stream; ``None`` where nobody can probe it.
    :param moved_with: the group whose guests are switched together; empty: it is switched when it can be.
    :param to_send_bytes: of its memory, what is not empty; ``None``: not known.
    :param new_images: disks whose images were made at the destination for this migration.
    :param listen: where the destination listens for the stream: ``tcp:ADDR:0``.
    :param return_path: see :func:`migrator.engine.migration.prepare.prepare`, as of `mapped`.
    :param look_stretch: so many times as long as usual is waited for the next look where there is nothing to decide.
    :param on_status: called with every new sample and state, on the event loop; must return at once.
    :param on_decision: called with every decision, likewise.
    """

    def __init__(
        self,
        *,
        name: str,
        source: Qemu,
        destination: Qemu,
        policy: Policy,
        listen: str,
        record: Record,
        requests: MigrationRequests | None = None,
        outcome: MigrationOutcome | None = None,
        experience: Experience | None = None,
        prior: GuestPrior | None = None,
        timeouts: PhaseTimeouts | None = None,
        stream_speed: float | None = None,
        path: StreamPath | None = None,
        new_images: Collection[str] = (),
        shared_path: SharedPath | None = None,
        tls: StreamTls | None = None,
        tunnel: StreamTunnel | None = None,
        spare_cpus: float | None = None,
        return_path: bool = True,
        mapped: bool = False,
        moved_with: str = "",
        to_send_bytes: int | None = None,
        about: Mapping[str, Any] | None = None,
        look_stretch: Callable[[], float] = lambda: 1.0,
        on_status: Callable[[MigrationProgress], None] = lambda status: None,
        on_decision: Callable[[Decision], None] = lambda decision: None,
    ) -> None:
        self._source, self._destination = source, destination
        self._policy = policy
        self._listen, self._return_path, self._mapped = listen, return_path, mapped
        self._about = dict(about or {})
        self._experience = experience
        self._stream_speed = stream_speed
        self._to_send_bytes = to_send_bytes
        self._pair = ""
        self._spare_cpus, self._prior = spare_cpus, prior
        self._layout = LayoutChoice()
        #: Once its disks are copied.
        self._mirror_forecast: MirrorForecast | None = None
        self._on_status = on_status
        self._look_stretch = look_stretch
        self._log = logs.logger(migration=name)
        self.requests = requests or MigrationRequests()
        self.result = outcome or MigrationOutcome(id=name, state=State.PREPARING)
        self.result.state = State.PREPARING
        self.result.mode = Mode.OFFLINE if policy.offline else Mode.PRECOPY
        self.result.max_downtime_seconds = policy.max_downtime_seconds
        self.result.max_postcopy_stall_seconds = policy.max_postcopy_stall_seconds
        self._intent_log = IntentLog(record, result=self.result, on_decision=on_decision)
        self._group_hold = GroupHold(moved_with, requests=self.requests, intent_log=self._intent_log)
        self._guarding = Guarding(source, migration=name, intent_log=self._intent_log)
        self._shared_path: SharedPath = shared_path if shared_path is not None else OwnPath()
        self._shared_path.on_change(self.wake)
        #: It goes without a pace for a moment, and it gives way for a moment at so many bytes per second.
        self._probes = False
        self._yielded: int | None = None
        self._route = StreamRouting(tunnel, tell=self._intent_log.decide)
        self._security = StreamSecurity(source, destination, tls=tls, result=self.result)
        self._shaper = StreamShaper(
            source,
            destination,
            intent_log=self._intent_log,
            result=self.result,
            shared_path=self._shared_path,
            tunnel=tunnel,
        )
        self._steering = Steering(
            source,
            policy=policy,
            intent_log=self._intent_log,
            result=self.result,
            shaper=self._shaper,
            guarding=self._guarding,
            group_hold=self._group_hold,
            path=path,
            prior=prior,
        )
        self._postcopy_steering = PostcopySteering(source, result=self.result)
        self._postcopy_steering.expect(stream_speed or self._shared_path.bytes_per_second or 0.0)
        self._observer = Observer(
            source, destination, timeouts=timeouts or PhaseTimeouts(), result=self.result
        )
        self._recovery = StreamRecovery(
            source,
            destination,
            path=path,
            route=self._route,
            intent_log=self._intent_log,
            observer=self._observer,
            result=self.result,
        )
        self._new_images = frozenset(new_images)
        self._mirrors = DiskMirrors(
            source,
            destination,
            migration=name,
            tls=tls,
            lead=self._route.lead,
            tell=self._intent_log.decide,
            note_writes=lambda: self._policy.source_images is SourceImages.REMOVE,
        )
        self._disk_following = DiskFollowing(
            source,
            policy=policy,
            mirrors=self._mirrors,
            steering=self._steering,
            intent_log=self._intent_log,
        )
        self._unplug_wait = UnplugWait(tell=self._intent_log.decide)
        self._steps = Steps(
            source,
            destination,
            intent_log=self._intent_log,
            observer=self._observer,
            shaper=self._shaper,
            guarding=self._guarding,
            mirrors=self._mirrors,
            result=self.result,
            recovery=self._recovery,
            security=self._security,
            postcopy_steering=self._postcopy_steering,
        )
        self._intent_updates = IntentUpdates(
            destination, intent_log=self._intent_log, observer=self._observer, result=self.result
        )
        self._facts: Facts | None = None
        self._settings_there: MigrationSettings | None = None
        self._abilities = Abilities(postcopy=False, throttle=False)
        self._progress = Progress()
        #: A cancel came too late, and that was said.
        self._too_late = False
        #: The bandwidth that QEMU was last given; ``None`` where another controller gave it one.
        self._given_bandwidth: int | None = None
        #: ... and a limit that keeps it from its switch.
        self._held = False
        #: When a stream that may have been parked was last let go on.
        self._let_go_at = -math.inf
        self._parked = False
        self._disk_users_at = -math.inf
        self._last_source: View | None = None
        self._last: tuple[View, View] | None = None
        self._suspect: tuple[str, int] = ("", 0)
        #: It is held, and the host of an end could not be asked: once that answers, :meth:`take_up` may tell more.
        self.unreachable = False

    def govern(self, policy: Policy) -> None:
        """Take this policy instead; before :meth:`run`."""
        if policy != self._policy:
            self._policy = policy
            self._steering.govern(policy)
            self._disk_following.govern(policy)

    # --- what is known of it ----------------------------------------------------------------------------------------

    @property
    def views(self) -> tuple[View, View] | None:
        """Return what both ends showed when they were last looked at."""
        return self._last

    @property
    def postponed(self) -> bool:
        """Return whether it may begin anew: it was undone only because a controller went before anything was sent."""
        return self._intent_log.intent.postponed

    @property
    def new_copies(self) -> tuple[DiskCopy, ...]:
        """Return the disks that are copied into images which were made for this migration."""
        return tuple(copy for copy in self._mirrors.copies if copy.new)

    @property
    def guest_runs(self) -> bool:
        """Return whether the guest is one that runs, and was not stopped by somebody else."""
        return self._intent_log.intent.guest_runs

    @property
    def handed_over(self) -> bool:
        """Return whether the guest may have run at the destination, and written to its disks there."""
        return self._intent_log.intent.milestone >= Milestone.HANDED_OVER

    @property
    def uuid(self) -> str:
        """Return the uuid of the guest in the source, as :meth:`check` found it; empty where it has none."""
        return self._facts.uuid if self._facts is not None else ""

    @property
    def abilities(self) -> Abilities:
        """Return what both ends support, as far as :meth:`check` could see."""
        return self._abilities

    # --- what may be asked of it ------------------------------------------------------------------------------------

    @property
    def can_cancel(self) -> bool:
        """Return whether it is not too late for :meth:`cancel`, by the last look."""
        return self._last_source is None or lifecycle.can_cancel(self._intent_log.intent, self._last_source)

    def cancel(self) -> bool:
        """Ask for the guest to stay where it is; False when it is too late, and then nothing changes."""
        if not self.can_cancel:
            return False
        self.requests.cancel = True
        self.wake()
        return True

    @property
    def can_postcopy(self) -> bool:
        """Return whether policy and QEMUs allow postcopy, and it is not too late for it."""
        intent = self._intent_log.intent
        return self._abilities.postcopy and intent.undo is None and intent.milestone <= Milestone.MIGRATING

    def postcopy(self) -> bool:
        """Ask for postcopy now; False where :attr:`can_postcopy` is."""
        if not self.can_postcopy:
            return False
        self.requests.postcopy = True
        self.wake()
        return True

    def park(self) -> None:
        """Ask to be left alone for a while: the controller stops.

        :meth:`run` then returns with a state that is not final, the source copying so slowly that it cannot reach the
        switch, for :meth:`take_up`. What is past the guest's STOP is brought to its end; what has not begun is undone.
        """
        self.requests.park = True
        self.wake()

    def wake(self) -> None:
        """Have the requests looked at now."""
        self._observer.wake()

    @property
    def _share(self) -> int | None:
        """Return what its stream was given of the links, in bytes per second; ``None``: no share."""
        # The others have left the path to it for a moment: its share is less then, as it has little left to send.
        share = None if self._probes or self._shared_path.has_turn else self.requests.share
        beside_disks = self._disk_following.memory_bytes_per_second
        given = [self._policy.max_bandwidth_bytes_per_second, share, self._yielded, beside_disks]
        return min((ceiling for ceiling in given if ceiling is not None), default=None)

    @property
    def _bandwidth(self) -> int:
        # The pace of one that is held is QEMU's alone: what a socket is paced to would outlast it.
        limits = [self._shaper.limit(self._share), self._group_hold.bytes_per_second]
        return min((limit for limit in limits if limit is not None), default=UNLIMITED_BYTES_PER_SECOND)

    def _heed_path(self, sample: Sample) -> Sample:
        """Take into account who shares the path; the sample with what that tells."""
        path = self._shared_path
        carries = path.bytes_per_second or 0.0
        far = sample.remaining_bytes > _PROBE_FAR_SECONDS * max(carries, sample.bandwidth_bytes_per_second)
        yields = path.yields and carries > 0
        self._probes = far and not yields and path.probes
        self._yielded = max(_LEAST_YIELDED, int(carries * _YIELDED_RATIO)) if yields else None
        return replace(sample, attainable_bytes_per_second=path.attainable_bytes_per_second, gives_way=yields)

    @property
    def _path_speed(self) -> float | None:
        """Return what the path carries, as far as the stream is paced by that now; bytes per second."""
        return None if self._probes else self._shared_path.bytes_per_second

    def _what_was(self, facts: Facts, settings: MigrationSettings) -> dict[str, Any]:
        return {
            "source": {"address": self._source.address_text, "identity": dict(self._source.identity)},
            "destination": {
                "address": self._destination.address_text,
                "identity": dict(self._destination.identity),
            },
            "uuid": facts.uuid,
            "guest": facts.guest_name,
            "run_state": facts.run,
            "status": facts.status,
            "policy": to_fields(self._policy),
            "settings": plain(settings),
            "abilities": asdict(self._abilities),
            "tls": self._security.tls is not None,
            "layout": asdict(self._layout.layout),
            "disks": as_fields(self._mirrors.copies),
            **self._about,
        }

    async def _tend_mirrors(self, mirrors: Mirrors) -> None:
        self._report_mirrors(mirrors)
        await self._disk_following.tend_copy(mirrors)

    def _report_mirrors(self, mirrors: Mirrors) -> None:
        if self._mirror_forecast is None:
            memory = self._facts.memory_bytes if self._facts is not None else 0
            disks = self._mirrors.total_bytes or mirrors.total_bytes
            self._mirror_forecast = MirrorForecast(disk_bytes=disks, memory_bytes=memory)
        forecast = self._mirror_forecast.forecast(mirrors, at_seconds=self._intent_log.elapsed)
        self.result.disk_bytes = max(self.result.disk_bytes, mirrors.done_bytes)
        self._progress.update_disks(mirrors.done_bytes, mirrors.total_bytes)
        self._on_status(
            MigrationProgress(
                state=State.MIRRORING,
                progress_ratio=self._progress.ratio,
                disk_total_bytes=mirrors.total_bytes,
                disk_remaining_bytes=mirrors.remaining_bytes,
                disk_left_bytes=self._mirror_forecast.left_bytes(mirrors),
                forecast=forecast,
                at_seconds=self._intent_log.elapsed,
            )
        )

    def _report(self, state: State, sample: Sample | None = None) -> None:
        if sample is not None:
            self._progress.update(sample)
        copies = sample is not None and state is State.PRECOPY
        self._on_status(
            MigrationProgress(
                state=state,
                progress_ratio=self._progress.ratio,
                sample=sample,
                forecast=self._disk_following.forecast or self._steering.forecast if copies else None,
                limit_seconds=self._steering.limit_seconds if copies else None,
                switch_in_seconds=self._group_hold.switch_in_seconds
                if copies or state is State.WAITING
                else None,
                at_seconds=self._intent_log.elapsed,
                waiting_for=self._recovery.waiting_for
                if state is State.RECOVERING
                else self._unplug_wait.waiting_for,
            )
        )


def plain(settings: MigrationSettings) -> dict[str, Any]:
    """Return the settings as plain JSON, for the record and the mark."""
    return {"capabilities": dict(settings.capabilities), "parameters": dict(settings.parameters)}
