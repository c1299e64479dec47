"""The session of one migration: its phases, and what becomes of it where something cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from migrator.core.findings import finding
from migrator.core.inventory import Guest
from migrator.core.model import Decision, State
from migrator.core.policy import builtin
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.services import SessionServices
from migrator.engine.migration.session_phase import FOLLOWING, Phase
from migrator.errors import HostError, JournalError
from migrator.store.step_records import StepRecords
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.workload import MIB, steady

pytestmark = pytest.mark.looptime


@dataclass
class Scene:
    """A guest on one of two simulated hosts, and the sessions that are made for it."""

    directory: Path
    site: Any = field(default_factory=SimulatedSite)
    journal_writable: bool = True
    phases: list[Phase] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            self.site.add_host(name, link=100 * MIB)
        self.site.add_guest("vm", host="a", workload=steady(16 * MIB, MIB), memory_bytes=256 * MIB)

    async def guest(self) -> Guest:
        guest: Guest
        (guest,) = (await self.site.look("a")).guests
        return guest

    async def shown_while_prepared(self) -> list[str]:
        """Return what the document said that the preparation waits for, whenever it was told."""
        session = await self.session()
        told: list[str] = []
        session._on_progress = lambda one: told.append(one.document().waiting_for)
        await session.prepare()
        assert session.document().waiting_for == ""
        return told

    async def session(
        self, *, on_ready: Callable[[Any], object] = JournalledSession.admit
    ) -> JournalledSession:
        async def keep(session: JournalledSession) -> None:
            session.journalled()
            if not self.journal_writable:
                raise JournalError("the journal cannot be written")

        def seen(session: JournalledSession, *_: Decision) -> None:
            if session.phase not in self.phases[-1:]:
                self.phases.append(session.phase)

        def ready(session: JournalledSession) -> None:
            seen(session)
            on_ready(session)

        session = JournalledSession(
            identifier="m1",
            guest=await self.guest(),
            target="b",
            policy=builtin("default"),
            services=SessionServices(
                site=self.site,
                records=StepRecords(self.directory),
                accept=lambda findings, codes: findings,
                keep=keep,
            ),
            on_state=seen,
            on_progress=seen,
            on_decision=seen,
            on_ready=ready,
        )
        seen(session)
        return session


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


class TestPhases:
    def test_each_says_what_may_follow_and_nothing_follows_the_end(self) -> None:
        assert set(FOLLOWING) == set(Phase)
        assert {phase for phase, following in FOLLOWING.items() if not following} == {Phase.ENDED}
        assert set().union(*FOLLOWING.values()) == set(Phase)

    async def test_one_that_may_not_follow_is_refused_and_nothing_changes(self, scene: Scene) -> None:
        session = await scene.session()
        with pytest.raises(RuntimeError, match="from queued to driven"):
            session._go(Phase.DRIVEN)
        assert session.phase is Phase.QUEUED

    async def test_are_gone_through_one_after_the_other(self, scene: Scene) -> None:
        session = await scene.session()
        await session.drive()
        assert (session.state, session.refused, session.failure) == (State.COMPLETED, False, None)
        assert scene.phases == [Phase.QUEUED, Phase.PREPARING, Phase.READY, Phase.DRIVEN, Phase.ENDED]
        assert scene.site.running("vm") == ["b"]


class TestNothingIsChanged:
    async def test_where_the_source_cannot_be_opened(self, scene: Scene) -> None:
        session = await scene.session()
        scene.site.hosts["a"].down = True
        await session.drive()
        assert (session.state, session.phase) == (State.FAILED, Phase.ENDED)
        assert session.may_pass
        assert isinstance(session.failure, HostError)

    async def test_where_preflight_refuses_it(self, scene: Scene) -> None:
        async def check(*_: object) -> tuple[object, ...]:
            return (finding("disk-missing", "there is no disk"),)

        scene.site.check = check
        session = await scene.session()
        await session.drive()
        assert (session.state, session.refused, session.failure) == (State.FAILED, True, None)
        assert not session.attempt.recorded

    async def test_where_the_journal_cannot_take_that_it_begins(self, scene: Scene) -> None:
        session = await scene.session()
        scene.journal_writable = False
        await session.drive()
        assert isinstance(session.failure, JournalError)
        assert (session.state, session.attempt.recorded) == (State.FAILED, False)
        assert scene.site.running("vm") == ["a"]

    async def test_where_it_is_cancelled_while_it_waits(self, scene: Scene) -> None:
        session = await scene.session(on_ready=JournalledSession.cancel)
        await session.drive()
        assert (session.state, session.result.error) == (State.CANCELLED, "cancelled before it began")
        assert scene.site.running("vm") == ["a"]

    async def test_where_the_controller_stops_while_it_waits_and_it_begins_anew(self, scene: Scene) -> None:
        session = await scene.session(on_ready=JournalledSession.park)
        await session.drive()
        assert (session.state, session.phase, session.attempt.number) == (State.QUEUED, Phase.QUEUED, 2)
        assert scene.site.running("vm") == ["a"]


async def test_what_the_journal_has_of_it_is_what_it_was(scene: Scene) -> None:
    session = await scene.session()
    session.cancel()
    again = JournalledSession.from_journal(session.journalled(), services=session.services)
    assert again.journalled() == session.journalled()
    assert (again.phase, again.requests.cancel) == (Phase.QUEUED, True)


async def test_preparation_that_takes_long_says_what_it_waits_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.site.hosts["b"].start_seconds = 0.5
    assert await scene.shown_while_prepared() == []
    scene = Scene(tmp_path / "far")
    scene.site.hosts["b"].start_seconds = 5.0
    assert await scene.shown_while_prepared() == ["its QEMU on b to start"]
