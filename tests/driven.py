"""A migration in this process, caught at the step a test wants: between a decision and what is done about it.

::

    async with driven(pair) as drive:
        drive.source.before("switch", pair.destination.kill)
        result = await drive.run()
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import os
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from migrator.core.findings import accept
from migrator.core.migration.answer_review import AnswerReview, review_answer, with_answer
from migrator.core.migration.drivers import Driver
from migrator.core.migration.situation import Intent, OperatorAnswer
from migrator.core.model import MigrationStatus, ProcessState, Severity, View
from migrator.core.policy import Policy, builtin
from migrator.core.preflight.stream_tls import StreamTls
from migrator.engine.migration.driver import MigrationDriver
from migrator.engine.migration.outcome import MigrationOutcome, MigrationProgress
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.engine.migration.requests import MigrationRequests
from migrator.engine.migration.shared_path import SharedPath
from migrator.errors import QemuError, TimedOut
from migrator.ports import MigrationSettings, StreamOptions, StreamPath, StreamSockets, Tuning
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.qemu.monitor import Monitor
from migrator.store.records import FileRecord, unfinished
from migrator.testing.lab import LabQemu, Pair, until
from tests.command import ACCEPTED_CODES

MIB = 1 << 20
#: Precopy only, and no throttling.
PLAIN = builtin("gentle").but(max_downtime_seconds=0.3)
#: The guest stays in precopy, until its memory of at least 16 MiB is copied or :func:`hurry` is called.
SLOW = PLAIN.but(max_bandwidth_bytes_per_second=MIB)
#: For what shall be given up, as a test waits for it: from a hook's call on, if a test has one, until an end is fenced
#: and none is frozen. What takes its time before and after that on a busy machine has :data:`LONG`.
SHORT = PhaseTimeouts(copying=0.6, at_switch=0.6, switching=0.8)
#: What freezes for a while is not given up.
LONG = PhaseTimeouts(copying=15.0, at_switch=15.0, switching=15.0)

_AS_FAST_AS_IT_GOES = 1 << 40
#: Sources that are not kept to the bandwidth of their policy any more.
_HURRIED: weakref.WeakSet[LabQemu] = weakref.WeakSet()

#: Seconds that an answer of a frozen QEMU is waited for; the command waits for 1 to 5.
_ANSWER_SECONDS = 0.4

Hook = Callable[[], Awaitable[object] | object]


@dataclass(frozen=True, kw_only=True)
class _ShortOnceCaught(PhaseTimeouts):
    """:data:`SHORT` while it is true that an end is `caught`, else :data:`LONG`."""

    caught: Callable[[], bool]

    def of(self, intent: Intent, source: View, *, waits_for_disks: bool = False) -> float:
        """For the phase that `intent` and the source are in."""
        short_or_long = SHORT if self.caught() else LONG
        return short_or_long.of(intent, source, waits_for_disks=waits_for_disks)


async def _call(hook: Hook | None) -> None:
    if hook is not None and inspect.isawaitable(answer := hook()):
        await answer


class ImpatientMonitor(Monitor):
    """A session that does not wait as long for a QEMU that is frozen, so that a test need not either."""

    def __init__(self, address: Address, *, frozen: Callable[[], bool], **how: Any) -> None:
        super().__init__(address, **how)
        self._frozen = frozen

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float = 5.0,
        oob: bool = False,
    ) -> Any:
        answer = asyncio.create_task(
            super().execute(command, arguments, timeout=timeout, oob=oob), name=f"test {command}"
        )
        try:
            while not answer.done():
                await asyncio.wait({answer}, timeout=_ANSWER_SECONDS)
                if not answer.done() and timeout < 3600 and self._frozen():  # a look waits for ever
                    raise TimedOut(self.name, command, _ANSWER_SECONDS)
            return answer.result()
        finally:
            answer.cancel()
            await asyncio.wait({answer})


class CaughtEnd(Endpoint):
    """An end that lets a test do something before a command is passed on, or once it is answered.

    :param address: of its monitor, where that is not the usual one.
    """

    def __init__(
        self,
        qemu: LabQemu,
        *,
        role: str,
        address: Address | None = None,
        pid: int | None = None,
        fence_command: str | None = None,
    ) -> None:
        address = address or Address(kind="unix", path=str(qemu.qmp))
        driver = Driver(token=os.urandom(6).hex(), controller="under-test", who="a test")
        super().__init__(
            address,
            role=role,
            pid=pid,
            fence_command=fence_command,
            driver=driver,
            # A busy machine is not taken for a controller that slept.
            asleep_after_seconds=math.inf,
            make_monitor=functools.partial(ImpatientMonitor, frozen=lambda: qemu.frozen),
        )
        self._qemu = qemu
        self._hooks: dict[str, Hook] = {}
        #: A test will do something at a step, and has done it; and the process was seen dead.
        self.awaits_hook = self.hooked = self.fenced = False
        self._last = View(process=ProcessState.ALIVE)
        #: How often each command was given.
        self.given: Counter[str] = Counter()
        #: How many looks there were, and how many of them were not answered.
        self.looks = self.unanswered = 0

    def before(self, command: str, hook: Hook) -> None:
        """Call it once, when the decision has been made and recorded, and nothing of it sent."""
        self._have(f"before {command}", hook)

    def after(self, command: str, hook: Hook) -> None:
        """Call it once, when QEMU has answered."""
        self._have(f"after {command}", hook)

    def when_seen(self, status: MigrationStatus, hook: Hook) -> None:
        """Call it once, when a look would show this status for the first time, and nothing was decided on it."""
        self._have(f"see {status}", hook)

    def _have(self, step: str, hook: Hook) -> None:
        self._hooks[step] = hook
        self.awaits_hook = True

    async def _reached(self, step: str) -> None:
        if (hook := self._hooks.pop(step, None)) is not None:
            self.hooked = True
            await _call(hook)

    @property
    def frozen(self) -> bool:
        """Its process is stopped."""
        return self._qemu.frozen

    async def _pass(self, command: str, answer: Callable[[], Awaitable[Any]]) -> Any:
        self.given[command] += 1
        await self._reached(f"before {command}")
        try:
            return await answer()
        finally:
            await self._reached(f"after {command}")

    def before_look(self, hook: Hook) -> None:
        """Call it once, before the next look."""
        self._hooks["before look"] = hook

    async def observe(self, *, timeout: float = 1.0) -> View:
        await _call(self._hooks.pop("before look", None))
        view = await super().observe(timeout=_ANSWER_SECONDS if self._qemu.frozen else timeout)
        self.looks += 1
        if not view.answers:
            self.unanswered += 1
        elif f"see {view.status}" in self._hooks:
            await self._reached(f"see {view.status}")
            if self._last.status is MigrationStatus.NONE:  # the first look since it was begun
                return replace(view, run=self._last.run, status=MigrationStatus.ACTIVE)
            return self._last  # as if the look had been a moment earlier
        self._last = view
        return view

    async def tune(self, tuning: Tuning) -> None:
        if self._qemu in _HURRIED and tuning.max_bandwidth_bytes_per_second is not None:
            tuning = replace(tuning, max_bandwidth_bytes_per_second=_AS_FAST_AS_IT_GOES)
        await super().tune(tuning)

    async def stream_sockets(
        self, peers: Sequence[str], options: StreamOptions | None = None, *, again: bool = False
    ) -> StreamSockets:
        if self._qemu in _HURRIED:
            options = replace(options or StreamOptions(), pacing_bytes_per_second=0)
        return await super().stream_sockets(peers, options, again=again)

    async def listen(self, uri: str) -> str:
        return str(await self._pass("listen", lambda: super(CaughtEnd, self).listen(uri)))

    async def migrate(self, uri: str) -> None:
        await self._pass("migrate", lambda: super(CaughtEnd, self).migrate(uri))

    async def switch(self) -> None:
        await self._pass("switch", super().switch)

    async def cont(self) -> None:
        await self._pass("cont", super().cont)

    async def cancel(self) -> None:
        await self._pass("cancel", super().cancel)

    async def restore(self, settings: MigrationSettings) -> None:
        await self._pass("restore", lambda: super(CaughtEnd, self).restore(settings))

    async def announce(self) -> None:
        await self._pass("announce", super().announce)

    async def quit(self, *, timeout: float = 5.0) -> bool:
        if self._qemu.frozen:
            timeout = 2 * _ANSWER_SECONDS
        return bool(await self._pass("quit", lambda: super(CaughtEnd, self).quit(timeout=timeout)))

    async def fence(self) -> bool:
        self.fenced = bool(await self._pass("fence", super().fence))
        return self.fenced


class Drive:
    """One controller with its two ends."""

    def __init__(
        self,
        pair: Pair,
        *,
        policy: Policy = PLAIN,
        timeouts: PhaseTimeouts = LONG,
        listen: str = "tcp:127.0.0.1:0",
        path: StreamPath | None = None,
        shared_path: SharedPath | None = None,
        tls: StreamTls | None = None,
    ) -> None:
        self.pair, self._shared_path, self._tls = pair, shared_path, tls
        self.source = CaughtEnd(pair.source, role="source")
        self.destination = CaughtEnd(pair.destination, role="destination")
        self._policy, self._listen, self._path = policy, listen, path
        self._timeouts = _ShortOnceCaught(caught=self._caught) if timeouts is SHORT else timeouts
        self._record: FileRecord | None = None
        #: What others ask of it.
        self.requests = MigrationRequests()
        #: What a person watching would have been shown.
        self.shown: list[MigrationProgress] = []

    def _caught(self) -> bool:
        ends = self.source, self.destination  # a test may have given others than at first
        if any(end.fenced for end in ends) and not any(end.frozen for end in ends):
            return False
        return any(end.hooked for end in ends) or not any(end.awaits_hook for end in ends)

    def _migration(self, record: FileRecord, policy: Policy) -> MigrationDriver:
        self._record = record
        return MigrationDriver(
            name=record.path.stem,
            source=self.source,
            destination=self.destination,
            policy=policy,
            listen=self._listen,
            record=record,
            requests=self.requests,
            timeouts=self._timeouts,
            path=self._path,
            shared_path=self._shared_path,
            tls=self._tls,
            on_status=self.shown.append,
        )

    async def run(self, *, record: FileRecord | None = None) -> MigrationOutcome:
        """Preflight and the whole migration."""
        await asyncio.gather(self.source.connect(), self.destination.connect())
        migration = self._migration(record or FileRecord("under-test"), self._policy)
        findings = accept(await migration.check(), ACCEPTED_CODES)
        errors = [finding for finding in findings if finding.severity is Severity.ERROR]
        assert not errors, errors
        return await migration.run()

    async def take_up(self) -> MigrationOutcome:
        """What the command does with the one record that is there."""
        (left,) = unfinished()
        for end, side in ((self.source, "source"), (self.destination, "destination")):
            try:
                await end.connect(timeout=1.0)
            except QemuError:
                pass  # it is silent or gone; hold() and the looks find out
            end.expect_process(left.facts[side]["identity"])
        return await self._migration(left.claim(), self._policy).take_up(left.facts, left.intent)

    async def say(
        self, word: OperatorAnswer, held: MigrationOutcome
    ) -> tuple[AnswerReview, MigrationOutcome | None]:
        """What the service does with a person's word on what `held` says; no result where it is refused."""
        (left,) = unfinished()
        for end, side in ((self.source, "source"), (self.destination, "destination")):
            try:
                await end.connect(timeout=1.0)
            except QemuError:
                pass
            end.expect_process(left.facts[side]["identity"])
        here, there = await self.source.observe(), await self.destination.observe()
        answer = review_answer(word, left.intent, here, there, held_code=held.held_code)
        if not answer.accepted:
            return answer, None
        migration = self._migration(left.claim(), self._policy)
        return answer, await migration.take_up(left.facts, with_answer(left.intent, word))

    async def close(self) -> None:
        """Let go of the record and of both ends."""
        if self._record is not None:
            self._record.close()
        await asyncio.gather(self.source.close(), self.destination.close())


@asynccontextmanager
async def driven(pair: Pair, **how: Any) -> AsyncIterator[Drive]:
    """A controller of this process; see :class:`Drive` for the arguments."""
    drive = Drive(pair, **how)
    try:
        yield drive
    finally:
        await drive.close()


class Phase(StrEnum):
    """Where in its migration a guest is caught."""

    #: Both ends are set up, and ``migrate`` is not decided.
    PREPARED = "prepared"
    #: ``migrate`` is decided and recorded, not yet sent.
    SETUP = "setup"
    #: Memory is being copied.
    ACTIVE = "active"
    #: The guest stands still; a look has shown it, nothing was decided on it.
    PRE_SWITCHOVER = "pre-switchover"
    #: migrate-continue is decided and recorded, not yet sent.
    CONTINUE = "continue"
    #: It is sent, and the source waits in ``device`` for a destination that is frozen.
    DEVICE = "device"
    #: Both ends are complete and ``cont`` is decided and recorded, not yet sent.
    LOADED = "loaded"
    #: ``cont`` is answered.
    HANDED_OVER = "handed-over"


async def reaches(qemu: LabQemu, status: str) -> None:
    """Wait until its query-migrate says so."""

    async def shows() -> bool:
        return await qemu.migration_status() == status

    await until(shows, what=f"{status} at {qemu!r}")


def catch(drive: Drive, phase: Phase, hook: Hook) -> None:
    """Call it once, when the migration is in this phase. Use a :data:`SLOW` policy to be in ``ACTIVE`` for long."""
    source, destination = drive.pair.source, drive.pair.destination

    async def when_active() -> None:
        await reaches(source, "active")
        await _call(hook)

    async def when_in_device() -> None:
        await reaches(source, "device")
        await _call(hook)

    match phase:
        case Phase.PREPARED:
            # Both ends are set up at the same time; the source is looked at when both are.
            drive.destination.after("listen", lambda: drive.source.before_look(hook))
        case Phase.SETUP:
            drive.source.before("migrate", hook)
        case Phase.ACTIVE:
            drive.source.after("migrate", when_active)
        case Phase.PRE_SWITCHOVER:
            drive.source.when_seen(MigrationStatus.PRE_SWITCHOVER, hook)
        case Phase.CONTINUE:
            drive.source.before("switch", hook)
        case Phase.DEVICE:
            drive.source.before("switch", destination.sigstop)
            drive.source.after("switch", when_in_device)
        case Phase.LOADED:
            drive.destination.before("cont", hook)
        case Phase.HANDED_OVER:
            drive.destination.after("cont", hook)


async def hurry(pair: Pair) -> None:
    """Lift the limit of a :data:`SLOW` migration: QEMU's at once, and that of its sockets at the next look at them."""
    _HURRIED.add(pair.source)
    await pair.source.query("migrate-set-parameters", max_bandwidth=_AS_FAST_AS_IT_GOES)
