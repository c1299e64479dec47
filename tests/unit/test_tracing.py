"""Traces without a collector: which spans there are, and that nothing waits for them to be sent."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from migrator import logs
from migrator.api.documents import DecisionDocument, MigrationDocument
from migrator.api.evacuation_documents import EvacuationGuest
from migrator.api.events import (
    DecisionTaken,
    Event,
    MigrationProgressed,
    MigrationStateChanged,
    Subject,
)
from migrator.api.queries import EventBatch
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.model import State
from migrator.engine.event_bus import EventBus
from migrator.errors import JournalError
from migrator.ports.queries import Queries
from migrator.testing.lab import until
from migrator.tracing import Collector, Tracing
from migrator.tracing.batches import MOST_WAITING, Sender
from migrator.tracing.spans import (
    MOST_DECISIONS,
    MOST_PHASES,
    MigrationTrace,
    Span,
    of_evacuation,
    recorded,
    span_id,
)
from tests.documents import a_migration, an_evacuation
from tests.fake_queries import FakeQueries
from tests.some_events import evacuation_state, host_state

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{CALLER}-01"


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def body(state: str, **fields: Any) -> MigrationDocument:
    """A migration's."""
    given = {"guest": "g", "created_at": at(0), **fields}
    return a_migration("m1", state=State(state), **given)


def ended(state: str, seconds: float, **fields: Any) -> MigrationDocument:
    return body(state, ended_at=at(seconds), **fields)


def decision(action: str = "wait", **numbers: Any) -> DecisionDocument:
    return DecisionDocument(at_seconds=0.0, action=action, reason=f"why {action}", numbers=numbers)


#: Kind, seconds after noon, and what is told.
Story = list[tuple[str, float, MigrationDocument | DecisionDocument]]


def event(kind: str, what: MigrationDocument | DecisionDocument) -> Event:
    if isinstance(what, DecisionDocument):
        return DecisionTaken(migration="m1", decision=what)
    return (
        MigrationProgressed(migration=what) if kind == "progress" else MigrationStateChanged(migration=what)
    )


def numbered(number: int, seconds: float, kind: str, what: MigrationDocument | DecisionDocument) -> Event:
    return event(kind, what).published(event_id=number, sequence=number, time=at(seconds))


WHOLE: Story = [
    ("state", 0.01, body("queued")),
    ("state", 1.0, body("preparing")),
    ("state", 3.0, body("precopy")),
    ("decision", 4.0, decision("wait", rate=3, word="x")),
    ("state", 9.0, body("switchover")),
    ("state", 9.5, body("finishing")),
    ("state", 10.001, ended("completed", 10.0)),
]


def told(story: Story, *, first: int = 1, trace: MigrationTrace | None = None) -> tuple[Span, ...]:
    trace = trace or MigrationTrace("m1", "site")
    found = None
    for number, (kind, seconds, what) in enumerate(story, start=first):
        assert found is None
        found = trace.take_in(numbered(number, seconds, kind, what))
    assert found is not None
    return found


class TestSpans:
    def test_phases_follow_each_other_and_fill_their_root(self) -> None:
        root, *phases = told(WHOLE)
        assert (root.name, root.began, root.ended, root.error) == ("migrate", at(0), at(10), "")
        assert [(each.name, each.began, each.ended) for each in phases] == [
            ("queued", at(0), at(1)),
            ("preparing", at(1), at(3)),
            ("precopy", at(3), at(9)),
            ("switchover", at(9), at(9.5)),
            ("finishing", at(9.5), at(10)),
        ]
        assert {each.parent_id for each in phases} == {root.span_id}
        assert {each.trace_id for each in phases} == {root.trace_id}
        assert len({each.span_id for each in (root, *phases)}) == 6
        assert root.parent_id is None
        (moment,) = phases[2].events
        assert (moment.name, moment.at) == ("wait", at(4))
        assert moment.attributes == {
            "migrator.reason": "why wait",
            "migrator.decision.rate": 3,
            "migrator.decision.word": "x",
        }

    def test_the_caller_is_the_parent(self) -> None:
        root, *_ = told(
            [("state", 0, body("queued")), ("state", 1, ended("completed", 1, traceparent=GIVEN))]
        )
        assert (root.trace_id, root.parent_id, root.remote) == (int(TRACE, 16), int(CALLER, 16), True)

    @pytest.mark.parametrize("given", [None, GIVEN])
    def test_migrations_of_an_evacuation_are_its_children(self, given: str | None) -> None:
        guests = [
            EvacuationGuest(guest="g", standing=GuestStanding.MOVED),
            EvacuationGuest(guest="h", standing=GuestStanding.GONE),
        ]
        whole = of_evacuation(
            an_evacuation(
                "e1",
                state=EvacuationState.COMPLETED,
                created_at=NOON,
                ended_at=at(20),
                traceparent=given,
                guests=guests,
                guests_left=0,
            ),
            "site",
        )
        root, *_ = told(
            [
                ("state", 0, body("queued")),
                ("state", 1, ended("completed", 1, evacuation="e1", traceparent=given)),
            ]
        )
        assert whole is not None
        assert (root.trace_id, root.parent_id) == (whole.trace_id, whole.span_id)
        assert whole.parent_id == (int(CALLER, 16) if given else None)
        assert whole.attributes["migrator.evacuation.guests"] == 2
        assert whole.attributes["migrator.evacuation.guests_moved"] == 1
        assert whole.attributes["migrator.evacuation.guests_left"] == 0

    def test_other_sites_and_other_migrations_have_other_ids(self) -> None:
        ids = {span_id(site, kind, of) for site in ("a", "b") for kind in ("x", "y") for of in ("1", "2")}
        assert len(ids) == 8
        assert span_id("a", "bc") != span_id("ab", "c")
        short: Story = [("state", 0, body("queued")), ("state", 1, ended("completed", 1))]
        assert told(short)[0].trace_id != told(short, trace=MigrationTrace("m2", "site"))[0].trace_id
        assert told(short)[0].trace_id == told(short)[0].trace_id

    @pytest.mark.parametrize(
        ("state", "wrong"),
        [("failed", True), ("cancelled", False), ("guest-ended", False), ("completed", False)],
    )
    def test_only_what_went_wrong_is_an_error(self, state: str, wrong: bool) -> None:
        root, queued, precopy = told(
            [
                ("state", 0, body("queued")),
                ("state", 1, body("precopy")),
                ("state", 2, ended(state, 2, error="because")),
            ]
        )
        assert (root.error, queued.error, precopy.error) == (
            ("because", "", "because") if wrong else ("", "", "")
        )
        assert root.attributes["migrator.reason"] == "because"
        assert root.attributes.get("error.type") == (state if wrong else None)

    def test_one_that_was_held_says_so_until_a_person_has_resolved_it(self) -> None:
        root, _, held = told(
            [
                ("state", 0, body("precopy")),
                ("state", 1, body("held")),
                ("state", 100, ended("completed", 100)),
            ]
        )
        assert (root.error, held.name, held.error) == ("", "held", "held for a person")
        assert (held.began, held.ended) == (at(1), at(100))

    @pytest.mark.parametrize("state", ["incomplete", "stopped", "cancelled", "completed"])
    def test_an_evacuation_that_left_guests_is_an_error(self, state: str) -> None:
        evacuation = an_evacuation("e", state=state, created_at=NOON, error="1 guest still on a")
        assert of_evacuation(evacuation, "site") is None
        whole = of_evacuation(evacuation.model_copy(update={"ended_at": at(1)}), "site")
        assert whole is not None
        assert whole.error == ("1 guest still on a" if state in ("incomplete", "stopped") else "")

    def test_a_clock_that_was_put_back_makes_no_span_end_before_it_began(self) -> None:
        root, *phases = told(
            [
                ("state", 5, body("queued")),
                ("state", 6, body("precopy")),
                ("state", -100, body("switchover")),
                ("state", -99, ended("completed", -99)),
            ]
        )
        assert root.began <= root.ended
        for each in phases:
            assert root.began <= each.began <= each.ended <= root.ended

    def test_what_is_kept_is_bounded(self) -> None:
        story: Story = []
        for number in range(MOST_PHASES):
            story += [("state", number, body("postcopy")), ("state", number, body("recovering"))]
        story += [("decision", 9999, decision())] * (MOST_DECISIONS + 50)
        story += [("state", 9999, ended("completed", 9999))]
        _, *phases = told(story)
        assert len(phases) == MOST_PHASES
        assert max(len(each.events) for each in phases) == MOST_DECISIONS

    @pytest.mark.parametrize("cut", range(1, len(WHOLE)))
    def test_read_again_after_a_crash_it_is_the_same(self, cut: int) -> None:
        trace = MigrationTrace("m1", "site")
        for number, (kind, seconds, what) in enumerate(WHOLE[:cut], start=1):
            assert trace.take_in(numbered(number, seconds, kind, what)) is None
        # What is heard twice, and progress, is nothing new.
        assert trace.take_in(numbered(cut, 99, "state", body("held"))) is None
        assert trace.take_in(numbered(cut + 1, 99, "progress", body("held"))) is None
        assert told(WHOLE[cut:], first=cut + 1, trace=trace) == told(WHOLE)

    def test_who_records_is_for_the_caller_to_say_and_else_a_share(self) -> None:
        def root(identifier: str, **fields: Any) -> Span:
            story: Story = [("state", 0, body("queued")), ("state", 1, ended("completed", 1, **fields))]
            return told(story, trace=MigrationTrace(identifier, "site"))[0]

        assert recorded(root("m", traceparent=GIVEN), 0.0)
        assert not recorded(root("m", traceparent=GIVEN[:-1] + "0"), 1.0)
        many = [root(str(number)) for number in range(1000)]
        assert all(recorded(each, 1.0) for each in many)
        assert not any(recorded(each, 0.0) for each in many)
        assert 400 < sum(recorded(each, 0.5) for each in many) < 600


@dataclass
class Taken:
    """An exporter that keeps what it gets, once it may."""

    spans: list[Span] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    may: threading.Event = field(default_factory=threading.Event)
    aborted: bool = False

    def export(self, spans: Sequence[Span]) -> str:
        self.may.wait(30)
        if self.failures:
            return self.failures.pop(0)
        self.spans += spans
        return ""

    def abort(self) -> None:
        self.aborted = True
        self.may.set()


def taken(*, waits: bool = False) -> Taken:
    made = Taken()
    if not waits:
        made.may.set()
    return made


@dataclass
class Counts:
    sent: int = 0
    dropped: int = 0

    def __call__(self, result: str, spans: int) -> None:
        setattr(self, result, getattr(self, result) + spans)


class TestSending:
    def sender(self, exporter: Taken, counts: Counts, **how: Any) -> Sender:
        return Sender(exporter, where="collector", counted=counts, **how)

    async def test_all_is_sent_before_it_closes(self) -> None:
        exporter, counts = taken(), Counts()
        sender = self.sender(exporter, counts)
        spans = told(WHOLE)
        for _ in range(500):
            sender.put(spans)
        await sender.close(10)
        assert (counts.sent, counts.dropped) == (500 * len(spans), 0)
        assert len(exporter.spans) == counts.sent

    async def test_what_nobody_takes_is_dropped_and_nobody_waits_for_it(self) -> None:
        exporter, counts = taken(waits=True), Counts()
        sender = self.sender(exporter, counts, most_waiting=10)
        spans = told(WHOLE)
        began = time.monotonic()
        for _ in range(1000):
            sender.put(spans)
        assert time.monotonic() - began < 5
        assert counts.dropped >= 900 * len(spans)
        began = time.monotonic()
        await sender.close(0.2)
        assert time.monotonic() - began < 6
        assert exporter.aborted
        # The ones in its hands are taken now: none is lost uncounted.
        await until(lambda: counts.sent + counts.dropped == 1000 * len(spans), what="the count", within=5)
        sender.put(spans)
        assert counts.sent + counts.dropped == 1001 * len(spans)

    async def test_a_collector_that_never_answers_keeps_neither_the_loop_nor_the_stop(self) -> None:
        exporter, counts = taken(waits=True), Counts()
        sender = self.sender(exporter, counts)
        spans = told(WHOLE)
        longest = 0.0
        for _ in range(3 * MOST_WAITING):
            began = time.thread_time()
            sender.put(spans)
            longest = max(longest, time.thread_time() - began)
        assert longest < 0.05
        began = time.monotonic()
        await sender.close(0.2)
        assert time.monotonic() - began < 10
        # All but what was in its hands is counted at once.
        assert counts.dropped >= (3 * MOST_WAITING - 64) * len(spans)

    async def test_of_an_outage_one_line_is_said_and_one_of_its_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[tuple[str, dict[str, Any]]] = []
        log = SimpleNamespace(
            info=lambda event, **fields: said.append((event, fields)),
            warning=lambda event, **fields: said.append((event, fields)),
        )
        monkeypatch.setattr("migrator.tracing.batches.logs.logger", lambda **fields: log)
        exporter, counts = taken(), Counts()
        exporter.failures = ["503", "503", "503"]
        sender = self.sender(exporter, counts)
        spans = told(WHOLE)
        for already in range(4):
            sender.put(spans)
            so_far = already * len(spans)
            await until(lambda so_far=so_far: counts.sent + counts.dropped > so_far, what="the count")  # type: ignore[misc]
        await sender.close(5)
        assert (counts.dropped, counts.sent) == (3 * len(spans), len(spans))
        assert said == [("traces are not taken", {"reason": "503"}), ("traces are taken again", {})]


class Journal(FakeQueries):
    """A reading whose journal may hold something, and may be slow or broken."""

    def __init__(self, bus: EventBus) -> None:
        super().__init__()
        self.bus = bus
        self.going_on: list[str] = []
        self.journalled: list[Event] = []
        self.gate = asyncio.Event()
        self.broken = False

    def active_migrations(self) -> Any:
        return [SimpleNamespace(id=each) for each in self.going_on]

    async def events(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        subject: Subject | None = None,
        subject_id: str | None = None,
    ) -> EventBatch:
        await self.gate.wait()
        if self.broken:
            raise JournalError("broken")
        assert subject is Subject.MIGRATION
        found = [each for each in self.journalled if each.event_id > after and each.subject_id == subject_id]
        last = found[-1].event_id if found else after
        return EventBatch(items=found[:limit], last=last, more=len(found) > limit)


def accepts(queries: Queries) -> Tracing:  # checked by mypy: what a service answers is what traces read
    return Tracing(
        queries=queries, collector=Collector(endpoint="http://x"), site="s", instance="i", version="1"
    )


class TestListening:
    def tracing(self, journal: Journal, exporter: Taken, **how: Any) -> Tracing:
        return Tracing(
            queries=journal,
            collector=Collector(endpoint="http://x", **how),
            site="site",
            instance="i",
            version="1",
            make=lambda: exporter,
        )

    def say(self, bus: EventBus, story: Story, clock: list[datetime]) -> None:
        for kind, seconds, what in story:
            clock[0] = at(seconds)
            bus.publish(event(kind, what))

    def saved(self, story: Story) -> list[Event]:
        return [
            numbered(number, seconds, kind, what)
            for number, (kind, seconds, what) in enumerate(story, start=1)
        ]

    async def test_what_ends_is_sent_once(self) -> None:
        clock = [NOON]
        bus = EventBus(now=lambda: clock[0])
        journal, exporter = Journal(bus), taken()
        journal.gate.set()
        async with self.tracing(journal, exporter):
            self.say(bus, WHOLE, clock)
            # Whatever is still said of it is nothing new.
            self.say(bus, [("decision", 11, decision()), ("state", 11, ended("completed", 10))], clock)
            state = EvacuationState.COMPLETED
            for ended_at in (None, at(1), at(1)):
                bus.publish(evacuation_state("e1", state=state, created_at=NOON, ended_at=ended_at))
            bus.publish(host_state())
        assert [each for each in exporter.spans if each.name != "evacuate"] == list(told(WHOLE))
        assert len(exporter.spans) == len(told(WHOLE)) + 1

    @pytest.mark.parametrize("cut", range(1, len(WHOLE)))
    async def test_what_another_controller_began_goes_on_whatever_comes_while_the_journal_is_read(
        self, cut: int
    ) -> None:
        clock = [NOON]
        bus = EventBus(last_event_id=cut, now=lambda: clock[0])
        journal, exporter = Journal(bus), taken()
        journal.going_on = ["m1"]
        # The journal is read late: it has what was said since, too.
        journal.journalled = self.saved(WHOLE)
        async with self.tracing(journal, exporter):
            self.say(bus, WHOLE[cut:], clock)
            await asyncio.sleep(0)
            journal.gate.set()
        assert exporter.spans == list(told(WHOLE))

    async def test_a_journal_that_cannot_be_read_costs_only_what_it_would_have_told(self) -> None:
        clock = [NOON]
        bus = EventBus(last_event_id=3, now=lambda: clock[0])
        journal, exporter = Journal(bus), taken()
        journal.going_on, journal.broken = ["m1"], True
        journal.gate.set()
        async with self.tracing(journal, exporter):
            self.say(bus, WHOLE[3:], clock)
        root, *phases = exporter.spans
        assert (root.began, root.ended) == (at(0), at(10))
        assert [each.name for each in phases] == ["switchover", "finishing"]

    async def test_what_is_not_recorded_is_not_sent(self) -> None:
        clock = [NOON]
        bus = EventBus(now=lambda: clock[0])
        journal, exporter = Journal(bus), taken()
        journal.gate.set()
        async with self.tracing(journal, exporter, sample_ratio=0.0):
            self.say(bus, WHOLE, clock)
        assert exporter.spans == []

    async def test_a_journal_that_does_not_answer_does_not_keep_the_service_from_stopping(self) -> None:
        bus = EventBus()
        journal, exporter = Journal(bus), taken()
        journal.going_on = ["m1"]
        began = time.monotonic()
        async with self.tracing(journal, exporter):
            pass
        assert time.monotonic() - began < 15


async def test_lines_of_a_task_say_what_it_was_begun_about(capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> None:
        logs.logger(migration="m1").warning("happened")
        with logs.about(more=1):
            await asyncio.create_task(deeper())

    async def deeper() -> None:
        logs.logger().info("deeper", more=2)

    logs.configure(verbose=True, json=True)
    try:
        with logs.about(trace_id=TRACE):
            task = asyncio.create_task(work())
        logs.logger().warning("elsewhere")
        await task
    finally:
        logs.configure()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line.get("trace_id"), line.get("more")) for line in lines] == [
        ("elsewhere", None, None),
        ("happened", TRACE, None),
        ("deeper", TRACE, 2),
    ]


def test_without_traces_in_the_configuration_nothing_of_the_library_is_loaded() -> None:
    program = (
        "import sys, migrator.service.serve, migrator.cli.app, migrator.tracing\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
