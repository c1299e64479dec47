"""Guests of libvirt that are shut down and started anew, between two daemons in memory: one guest, whatever happens."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest

from migrator.core.cold_start import without_live
from migrator.core.migration import lifecycle
from migrator.core.migration.cold_situation import (
    ColdPhase,
    GuestIs,
    destination_view,
    is_off,
    source_view,
)
from migrator.core.migration.rules import Next, Step
from migrator.core.migration.situation import Intent, Milestone
from migrator.core.model import State
from migrator.core.policy import builtin
from migrator.engine.migration.driver import MigrationDriver
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.errors import CommandFailed, HostError
from migrator.libvirt.binding import is_installed, load
from migrator.libvirt.cold_destination import ColdDomainDestination
from migrator.libvirt.cold_end import KEY
from migrator.libvirt.cold_guest import ColdGuest
from migrator.libvirt.cold_source import ColdDomainSource
from migrator.libvirt.connection import LibvirtConnection
from migrator.libvirt.migration import DomainDestination, DomainSource
from migrator.store.records import FileRecord
from migrator.store.step_records import StepRecords

UUID = "6f5e3c1a-0000-4000-8000-000000000001"
_XML = f"""<domain type='qemu'><name>web</name><uuid>{UUID}</uuid><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
<devices><graphics type='vnc' passwd='sesame'/></devices></domain>"""

# --- the table -------------------------------------------------------------------------------------------------------

_PHASES = (ColdPhase.IDLE, ColdPhase.ASKED, ColdPhase.LATE, ColdPhase.PUT_AWAY)
_INTENTS = [
    Intent(milestone=milestone, live=live, undo=undo)
    for milestone, live, undo in itertools.product(Milestone, (True, False), (None, State.FAILED))
]


@cache
def _situations() -> tuple[tuple[Intent, ColdPhase, GuestIs, GuestIs, Next], ...]:
    """Return everything that both ends can show, with what the table answers."""
    return tuple(_explored())


def _explored() -> Iterator[tuple[Intent, ColdPhase, GuestIs, GuestIs, Next]]:
    for intent, phase, here in itertools.product(_INTENTS, _PHASES, GuestIs):
        if phase is ColdPhase.IDLE and (is_off(here) or here is GuestIs.TAKEN or not intent.live):
            continue  # nothing was begun; and whoever takes it up finds out how far it is
        if phase in (ColdPhase.ASKED, ColdPhase.LATE) and intent.milestone >= Milestone.HANDED_OVER:
            continue  # who has switched has put it away
        source = source_view(phase, here)
        for there, waits, overdue in itertools.product(GuestIs, (True, False), (True, False)):
            if waits and intent.milestone >= Milestone.SWITCHING:
                continue
            destination = destination_view(there, waits=waits)
            yield intent, phase, here, there, lifecycle.decide(intent, source, destination, overdue=overdue)


def test_guest_is_let_run_at_the_target_only_where_it_is_off_at_the_source_and_stands_still_there() -> None:
    answered = 0
    for _, phase, here, there, answer in _situations():
        if answer.step is Step.HAND_OVER:
            assert is_off(here), (phase, here, there)
            assert there is GuestIs.PAUSED
            answered += 1
    assert answered


def test_guest_is_started_again_at_the_source_only_where_the_target_has_no_qemu_for_it() -> None:
    answered = 0
    for intent, phase, here, there, answer in _situations():
        if is_off(here) and answer.step in (Step.CANCEL, Step.REVIVE):
            may_come = there in (GuestIs.PAUSED, GuestIs.RUNS, GuestIs.SILENT)
            assert not may_come or phase is not ColdPhase.PUT_AWAY, (intent, there)
            assert intent.milestone < Milestone.HANDED_OVER
            answered += 1
    assert answered


def test_source_forgets_the_guest_only_once_it_is_at_the_target() -> None:
    answered = 0
    for intent, _, here, there, answer in _situations():
        if answer.step is Step.RETIRE:
            assert there not in (GuestIs.SILENT, GuestIs.UNKNOWN, GuestIs.OFF, GuestIs.ENDED), (
                intent,
                here,
                there,
            )
            assert here not in (GuestIs.RUNS, GuestIs.TAKEN)
            answered += 1
    assert answered


# --- two daemons -----------------------------------------------------------------------------------------------------


class _Killed(BaseException):
    """The controller is killed here."""


@dataclass
class _Daemon:
    """A libvirtd with at most one guest."""

    name: str
    persistent: bool = False
    state: int | None = None  # of a guest that has a QEMU
    reason: int = 0
    defined: bool = False
    autostart: bool = False
    #: The migration for which it was asked to shut down.
    marked: str = ""
    refuses: str = ""
    deaf: bool = False
    #: Called before and after each change, and what each is.
    step: Callable[[], None] = field(default=lambda: None)

    def _error(self, code: int, text: str) -> Exception:
        error = load().libvirtError(text)
        error.err = (code, 10, text, 2, text, None, None, -1, -1)
        return cast(Exception, error)

    # libvirt's own names follow: of a connection, and of its one guest
    def lookupByUUIDString(self, uuid: str) -> _Daemon:  # noqa: N802
        assert uuid == UUID
        if not self.defined and self.state is None:
            raise self._error(load().VIR_ERR_NO_DOMAIN, "no domain with matching uuid")
        return self

    def getVersion(self) -> int:  # noqa: N802
        return 7_002_000

    def connect(self) -> _Daemon:
        return self

    def defineXML(self, xml: str) -> _Daemon:  # noqa: N802
        assert xml == _XML
        self.defined = self.persistent = True
        if self.state is None:
            self.reason = load().VIR_DOMAIN_SHUTOFF_UNKNOWN
        self.step()
        return self

    def createXML(self, xml: str, flags: int) -> None:  # noqa: N802
        assert xml == _XML
        assert not self.defined
        self.persistent = False
        self.createWithFlags(flags)

    def create(self) -> None:
        self.createWithFlags(0)

    def createWithFlags(self, flags: int) -> None:  # noqa: N802
        module = load()
        assert self.state is None
        if self.refuses:
            self.reason = module.VIR_DOMAIN_SHUTOFF_FAILED
            raise self._error(module.VIR_ERR_INTERNAL_ERROR, self.refuses)
        paused = flags & module.VIR_DOMAIN_START_PAUSED
        self.state = module.VIR_DOMAIN_PAUSED if paused else module.VIR_DOMAIN_RUNNING
        self.step()

    def resume(self) -> None:
        self.state = load().VIR_DOMAIN_RUNNING
        self.step()

    def shutdown(self) -> None:
        if not self.deaf:
            self.end(load().VIR_DOMAIN_SHUTOFF_SHUTDOWN)
        self.step()

    def shutdownFlags(self, _: int) -> None:  # noqa: N802
        self.shutdown()

    def destroy(self) -> None:
        self.end(load().VIR_DOMAIN_SHUTOFF_DESTROYED)

    def end(self, reason: int) -> None:
        self.state, self.reason, self.marked = None, reason, ""

    def undefineFlags(self, flags: int) -> None:  # noqa: N802
        assert flags == load().VIR_DOMAIN_UNDEFINE_KEEP_NVRAM  # libvirt before 8.9 knows no more
        self.defined = self.autostart = False
        self.step()

    def setAutostart(self, value: int) -> None:  # noqa: N802
        self.autostart = bool(value)
        self.step()

    def setMetadata(self, _kind: int, text: str | None, *_: Any) -> None:  # noqa: N802
        self.marked = text.split("'")[1] if text is not None else ""
        self.step()

    def metadata(self, *_: Any) -> str:
        if not self.marked:
            raise self._error(load().VIR_ERR_NO_DOMAIN_METADATA, "no metadata")
        return f'<migrator:shutdown xmlns:migrator="urn:migrator:shutdown" migration="{self.marked}"/>'

    def isActive(self) -> bool:  # noqa: N802
        return self.state is not None

    def isPersistent(self) -> bool:  # noqa: N802
        return self.defined

    def jobStats(self) -> Mapping[str, Any]:  # noqa: N802
        return {"type": load().VIR_DOMAIN_JOB_NONE}

    def jobInfo(self) -> list[int]:  # noqa: N802
        return [load().VIR_DOMAIN_JOB_UNBOUNDED]

    def XMLDesc(self, _: int = 0) -> str:  # noqa: N802
        return _XML

    def __getattr__(self, name: str) -> Any:
        if name == "state":
            raise AttributeError(name)
        raise AssertionError(f"libvirt is asked for {name}")


class _Domain:
    """The guest as libvirt's binding has it: `state` is a method there."""

    def __init__(self, daemon: _Daemon) -> None:
        self._daemon = daemon

    def state(self) -> tuple[int, int]:
        daemon = self._daemon
        if daemon.state is None:
            return load().VIR_DOMAIN_SHUTOFF, daemon.reason
        return daemon.state, 0

    def autostart(self) -> int:
        return int(self._daemon.autostart)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._daemon, name)


class _Connection:
    """A connection to one of them; stands in for :class:`LibvirtConnection`."""

    connected = True

    def __init__(self, daemon: _Daemon) -> None:
        self.daemon, self.host, self.away = daemon, daemon.name, False

    def lookupByUUIDString(self, uuid: str) -> _Domain:  # noqa: N802
        self.daemon.lookupByUUIDString(uuid)
        return _Domain(self.daemon)

    def defineXML(self, xml: str) -> _Domain:  # noqa: N802
        self.daemon.defineXML(xml)
        return _Domain(self.daemon)

    def createXML(self, xml: str, flags: int) -> None:  # noqa: N802
        self.daemon.createXML(xml, flags)

    def subscribe(self, _: Any) -> Callable[[], None]:
        return lambda: None

    async def open(self) -> None:
        """It is."""

    async def call(self, function: Callable[[Any], Any], *, what: str, timeout: float = 1.0) -> Any:
        if self.away:
            raise HostError(self.host, "libvirt does not answer")
        try:
            return function(self)
        except load().libvirtError as error:
            raise CommandFailed(self.host, what, "", str(error)) from error

    async def begin(
        self, function: Callable[[Any, Any], Any], *, what: str, other: Any
    ) -> asyncio.Future[Any]:
        begun: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            begun.set_result(await self.call(lambda connection: function(connection, other), what=what))
        except CommandFailed as error:
            begun.set_exception(error)
        return begun


@dataclass
class _TwoDaemons:
    """Two daemons, the guest at the first, and a controller that may be killed."""

    alpha: _Daemon
    beta: _Daemon
    directory: Path
    changes: int = 0
    #: The change after which the controller is killed; 0: it is not.
    kill_after: int = 0
    driver: MigrationDriver | None = None

    def step(self) -> None:
        running = [each.name for each in (self.alpha, self.beta) if each.state == load().VIR_DOMAIN_RUNNING]
        assert len(running) < 2, "the guest runs twice"
        self.changes += 1
        if self.changes == self.kill_after:
            raise _Killed

    @property
    def runs(self) -> list[str]:
        return [each.name for each in (self.alpha, self.beta) if each.state == load().VIR_DOMAIN_RUNNING]

    def _driver(
        self, record: FileRecord, source: ColdDomainSource, destination: ColdDomainDestination
    ) -> MigrationDriver:
        return MigrationDriver(
            name="m-1",
            source=source,
            destination=destination,
            policy=builtin("cold").but(max_throttle_ratio=0.0),
            listen="tcp:192.0.2.1:0",
            record=record,
            timeouts=PhaseTimeouts(copying=5.0, at_switch=0.3, switching=0.3),
        )

    async def move(self, *, seconds: float = 5.0, by_force: bool = False) -> MigrationOutcome:
        """Move the guest to beta.

        :raise _Killed: the controller was killed.
        """
        ends = [cast(LibvirtConnection, _Connection(each)) for each in (self.alpha, self.beta)]
        guest = ColdGuest(definition=_XML, persistent=self.alpha.defined, autostart=self.alpha.autostart)
        source = ColdDomainSource(
            DomainSource(ends[0], UUID), guest=guest, migration="m-1", seconds=seconds, by_force=by_force
        )
        destination = ColdDomainDestination(
            DomainDestination(ends[1], UUID), guest=guest, like=source.facts, autostart=guest.autostart
        )
        source.begin_there = destination.begin
        record = FileRecord("m-1", directory=self.directory)
        try:
            driver = self.driver = self._driver(record, source, destination)
            assert without_live(await driver.check()) == []
            return await driver.run()
        finally:
            record.close()

    async def take_up(self, *, seconds: float = 0.1) -> MigrationOutcome:
        """Have another controller go on."""
        records = StepRecords(self.directory)
        left = await records.take_up("m-1")
        assert left is not None
        record, facts, intent = left
        known = {side: facts[side]["identity"][KEY] for side in ("source", "destination")}
        ends = [cast(LibvirtConnection, _Connection(each)) for each in (self.alpha, self.beta)]
        guest = ColdGuest(
            definition="",
            persistent=known["source"]["persistent"],
            autostart=known["source"]["autostart"],
        )
        source = ColdDomainSource(
            DomainSource(ends[0], UUID), guest=guest, migration="m-1", seconds=seconds, left=True
        )
        destination = ColdDomainDestination(
            DomainDestination(ends[1], UUID),
            guest=None,
            like=None,
            autostart=known["destination"]["autostart"],
        )
        try:
            driver = self._driver(cast(FileRecord, record), source, destination)
            return await driver.take_up(facts, intent)
        finally:
            records.release(record)

    def as_it_was(self, at: _Daemon, *, persistent: bool, autostart: bool) -> None:
        """Assert that it runs there alone, and is as it was."""
        other = self.beta if at is self.alpha else self.alpha
        assert self.runs == [at.name]
        assert (other.state, other.defined) == (None, False)
        assert (at.defined, at.autostart) == (persistent, autostart)
        assert not at.marked


@pytest.fixture(params=[True, False], ids=["persistent", "transient"])
def daemons(request: pytest.FixtureRequest, tmp_path: Path) -> _TwoDaemons:
    if not is_installed():
        pytest.skip("there is no libvirt-python: make test installs it")
    persistent = bool(request.param)
    alpha = _Daemon("alpha", defined=persistent, autostart=persistent)
    alpha.state = load().VIR_DOMAIN_RUNNING
    daemons = _TwoDaemons(alpha, _Daemon("beta"), tmp_path)
    daemons.alpha.step = daemons.beta.step = daemons.step
    return daemons


async def test_guest_is_started_at_the_target_and_forgotten_at_the_source(daemons: _TwoDaemons) -> None:
    persistent = daemons.alpha.defined
    outcome = await daemons.move()
    assert outcome.state is State.COMPLETED, outcome.error
    daemons.as_it_was(daemons.beta, persistent=persistent, autostart=persistent)


async def test_guest_that_the_target_does_not_start_goes_on_at_its_source(daemons: _TwoDaemons) -> None:
    persistent = daemons.alpha.defined
    daemons.beta.refuses = "internal error: no such device"
    outcome = await daemons.move()
    assert outcome.state is State.FAILED
    assert "no such device" in str(outcome.error)
    daemons.as_it_was(daemons.alpha, persistent=persistent, autostart=persistent)


async def test_guest_that_starts_nowhere_any_more_is_held(daemons: _TwoDaemons) -> None:
    daemons.beta.refuses = "no such device"
    shut_down = daemons.alpha.shutdown

    def shut_down_for_good() -> None:
        daemons.alpha.refuses = "no memory left"
        shut_down()

    daemons.alpha.shutdown = shut_down_for_good  # type: ignore[method-assign]  # of that one
    outcome = await daemons.move()
    assert outcome.state is State.HELD
    assert "no memory left" in str(outcome.error)
    assert daemons.runs == []


async def test_guest_that_does_not_shut_down_stays(daemons: _TwoDaemons) -> None:
    persistent, daemons.alpha.deaf = daemons.alpha.defined, True
    outcome = await daemons.move(seconds=0.1)
    assert outcome.state is State.FAILED
    assert "has not within" in str(outcome.error)
    daemons.as_it_was(daemons.alpha, persistent=persistent, autostart=persistent)


async def test_guest_that_does_not_shut_down_is_ended_where_that_was_accepted(daemons: _TwoDaemons) -> None:
    persistent, daemons.alpha.deaf = daemons.alpha.defined, True
    outcome = await daemons.move(seconds=0.1, by_force=True)
    assert outcome.state is State.COMPLETED, outcome.error
    daemons.as_it_was(daemons.beta, persistent=persistent, autostart=persistent)


async def test_guest_that_somebody_starts_at_the_source_meanwhile_is_not_started_at_the_target(
    daemons: _TwoDaemons,
) -> None:
    create = daemons.beta.createWithFlags

    def somebody_is_quicker(flags: int) -> None:
        create(flags)
        daemons.alpha.defined, daemons.alpha.state = True, load().VIR_DOMAIN_RUNNING

    daemons.beta.createWithFlags = somebody_is_quicker  # type: ignore[method-assign]  # of that one
    outcome = await daemons.move()
    assert outcome.state is State.FAILED
    assert daemons.runs == ["alpha"]
    assert (daemons.beta.state, daemons.beta.defined) == (None, False)


async def test_guest_that_is_cancelled_is_not_ended_by_force(daemons: _TwoDaemons) -> None:
    persistent, daemons.alpha.deaf = daemons.alpha.defined, True

    def hear_nothing() -> None:
        assert daemons.driver is not None
        daemons.driver.requests.cancel = True

    daemons.alpha.shutdown = hear_nothing  # type: ignore[method-assign]  # of that one
    daemons.alpha.destroy = lambda: pytest.fail("it is ended")  # type: ignore[method-assign]  # likewise
    outcome = await daemons.move(seconds=0.3, by_force=True)
    assert outcome.state is State.CANCELLED, outcome.error
    daemons.as_it_was(daemons.alpha, persistent=persistent, autostart=persistent)


async def test_guest_that_somebody_starts_at_once_is_not_ended_by_force(daemons: _TwoDaemons) -> None:
    persistent = daemons.alpha.defined

    def end_and_begin_anew() -> None:
        daemons.alpha.end(load().VIR_DOMAIN_SHUTOFF_SHUTDOWN)
        daemons.alpha.state, daemons.alpha.deaf = load().VIR_DOMAIN_RUNNING, True

    daemons.alpha.shutdown = end_and_begin_anew  # type: ignore[method-assign]  # of that one
    daemons.alpha.destroy = lambda: pytest.fail("it is ended")  # type: ignore[method-assign]  # likewise
    outcome = await daemons.move(seconds=0.3, by_force=True)
    assert outcome.state is State.FAILED
    assert "started the guest again" in str(outcome.error)
    daemons.as_it_was(daemons.alpha, persistent=persistent, autostart=persistent)


async def test_guest_that_another_controller_shuts_down_is_left_to_it(daemons: _TwoDaemons) -> None:
    daemons.alpha.marked = "m-2"
    daemons.alpha.shutdown = lambda: pytest.fail("it is asked")  # type: ignore[method-assign]  # of that one
    outcome = await daemons.move()
    assert outcome.state is State.FAILED
    assert "for migration m-2, of another controller" in str(outcome.error)
    assert (daemons.runs, daemons.alpha.marked) == (["alpha"], "m-2")
    assert (daemons.beta.state, daemons.beta.defined) == (None, False)


async def test_guest_that_another_controller_asks_at_the_same_time_is_left_to_it(
    daemons: _TwoDaemons,
) -> None:
    def hear_two() -> None:
        daemons.alpha.marked, daemons.alpha.deaf = "m-2", True

    daemons.alpha.shutdown = hear_two  # type: ignore[method-assign]  # of that one
    outcome = await daemons.move(seconds=0.3, by_force=True)
    assert outcome.state is State.FAILED
    assert "for migration m-2, of another controller" in str(outcome.error)
    assert (daemons.runs, daemons.alpha.marked) == (["alpha"], "m-2")
    assert (daemons.alpha.defined, daemons.beta.defined) == (True, False)  # it is off in a moment


@pytest.mark.parametrize("how", ["SAVED", "MIGRATED", "undefined"])
async def test_guest_whose_memory_somebody_takes_meanwhile_is_started_nowhere(
    daemons: _TwoDaemons, how: str
) -> None:
    autostart = daemons.alpha.autostart

    def take() -> None:
        daemons.alpha.end(getattr(load(), f"VIR_DOMAIN_SHUTOFF_{how}", 0))
        daemons.alpha.defined = how != "undefined"

    daemons.alpha.shutdown = take  # type: ignore[method-assign]  # of that one
    outcome = await daemons.move()
    assert outcome.state is State.GUEST_ENDED
    assert daemons.runs == []
    assert daemons.alpha.autostart is autostart
    assert (daemons.beta.state, daemons.beta.defined) == (None, False)


async def test_definition_that_somebody_gives_the_target_meanwhile_stays(daemons: _TwoDaemons) -> None:
    persistent, shut_down = daemons.alpha.defined, daemons.alpha.shutdown

    def somebody_defines() -> None:
        daemons.beta.defined = True
        shut_down()

    daemons.alpha.shutdown = somebody_defines  # type: ignore[method-assign]  # of that one
    outcome = await daemons.move()
    assert outcome.state is State.FAILED
    assert "a definition of the guest meanwhile" in str(outcome.error)
    assert daemons.beta.defined
    daemons.beta.defined = False
    daemons.as_it_was(daemons.alpha, persistent=persistent, autostart=persistent)


async def test_guest_that_is_ended_at_the_target_before_it_ran_leaves_nothing_there(
    daemons: _TwoDaemons,
) -> None:
    persistent, create = daemons.alpha.defined, daemons.beta.createWithFlags

    def somebody_ends(flags: int) -> None:
        create(flags)
        daemons.beta.end(load().VIR_DOMAIN_SHUTOFF_DESTROYED)

    daemons.beta.createWithFlags = somebody_ends  # type: ignore[method-assign]  # of that one
    outcome = await daemons.move()
    assert outcome.state is State.FAILED
    daemons.as_it_was(daemons.alpha, persistent=persistent, autostart=persistent)


@pytest.mark.parametrize("kill_after", range(1, 15))
async def test_controller_that_is_killed_after_any_change_leaves_the_guest_in_one_place(
    daemons: _TwoDaemons, kill_after: int
) -> None:
    persistent, daemons.kill_after = daemons.alpha.defined, kill_after
    with suppress(_Killed):
        outcome = await daemons.move()
        assert outcome.state is State.COMPLETED  # it has fewer changes
        return
    assert not any("sesame" in each.read_text() for each in daemons.directory.rglob("*") if each.is_file())
    outcome = await daemons.take_up()
    at = daemons.beta if outcome.state is State.COMPLETED else daemons.alpha
    assert outcome.state in (State.COMPLETED, State.FAILED, State.CANCELLED), outcome.error
    daemons.as_it_was(at, persistent=persistent, autostart=persistent)
