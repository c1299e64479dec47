"""A QEMU that answers nonsense while its guest is moved costs that migration alone, and never the guest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator import logs
from migrator.core.model import State
from migrator.core.policy import builtin
from migrator.engine.migration.driver import MigrationDriver
from migrator.engine.migration.observer import Observer
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.phase_timeouts import PhaseTimeouts
from migrator.engine.migration.steering import Steering
from migrator.errors import MigratorError
from migrator.qemu.address import Address
from migrator.qemu.endpoint import Endpoint
from migrator.qemu.identify import identify
from migrator.qemu.monitor import Monitor
from migrator.qemu.replies import REPLIES
from migrator.store.records import FileRecord
from migrator.testing.fake_qemu import FakeQemu
from migrator.testing.simulator import Link
from migrator.testing.workload import MIB, steady

POLICY = builtin("gentle").but(max_downtime_seconds=0.3)
IMPATIENT = PhaseTimeouts(copying=1.0, at_switch=1.0, switching=1.0, cancelling=2.0)
#: Copied in a third of a second, so that there are some looks at it.
FAST = {"time_factor": 2.0, "memory_bytes": 64 * MIB}


class Pair:
    """Two fakes and a controller of this process between them."""

    def __init__(self, source: FakeQemu, destination: FakeQemu) -> None:
        self.source, self.destination = source, destination
        self._ends = [
            Endpoint(
                Address(kind="tcp", host="127.0.0.1", port=qemu.tcp_port),
                role=role,
                fence_command=qemu.fence_command,
            )
            for qemu, role in ((source, "source"), (destination, "destination"))
        ]
        self.record = FileRecord(uuid4().hex)
        self.migration = MigrationDriver(
            name="under-test",
            source=self._ends[0],
            destination=self._ends[1],
            policy=POLICY,
            listen="tcp:127.0.0.1:0",
            record=self.record,
            timeouts=IMPATIENT,
        )

    async def move(self) -> MigrationOutcome | None:
        """The whole way; ``None`` where it was refused before anything was changed."""
        try:
            for end in self._ends:
                await end.connect()
            await self.migration.check()
            return await self.migration.run()
        except MigratorError:
            return None

    async def close(self) -> None:
        for end in self._ends:
            await end.close()
        self.record.close()

    @property
    def running(self) -> int:
        return self.source.running + self.destination.running


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    source = FakeQemu(workload=steady(16 * MIB, MIB), link=Link(100.0 * MIB), **FAST)  # type: ignore[arg-type]
    destination = FakeQemu(incoming=True, **FAST)  # type: ignore[arg-type]
    await source.start(tcp=True)
    await destination.start(tcp=True)
    both = Pair(source, destination)
    try:
        yield both
    finally:
        await both.close()
        await source.close()
        await destination.close()


# --- errors of our own -----------------------------------------------------------------------------------------------


async def test_an_error_of_ours_before_the_switch_leaves_the_guest_where_it_is_with_an_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(*told: object) -> None:
        raise KeyError("remaining")

    monkeypatch.setattr(Steering, "step", step)
    async with pair() as both:
        result = await both.move()
        assert result is not None
        assert result.state is State.FAILED, result
        assert "an error of migrator itself (KeyError: 'remaining'); its log has it under " in str(
            result.error
        )
        assert both.source.running


async def test_an_error_of_ours_after_the_switch_is_outlived(monkeypatch: pytest.MonkeyPatch) -> None:
    look, failed = Observer.look, 0

    async def broken(self: Observer, intent: Any) -> Any:
        nonlocal failed
        if intent.milestone.name in ("SWITCHING", "HANDED_OVER") and failed < 2:
            failed += 1
            raise ZeroDivisionError
        return await look(self, intent)

    monkeypatch.setattr(Observer, "look", broken)
    async with pair() as both:
        result = await both.move()
        assert result is not None
        assert (failed, result.state) == (2, State.COMPLETED), result
        assert both.destination.running
        assert not both.source.running


async def test_one_that_always_fails_is_held_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(*told: object) -> Any:
        raise TypeError("never")

    async with pair() as both:
        for end in both._ends:
            await end.connect()
        await both.migration.check()
        monkeypatch.setattr(Observer, "look", look)
        result = await both.migration.run()
        assert (result.state, result.held_code) == (State.HELD, "controller-failed")
        assert "TypeError: never" in str(result.error)
        assert both.running == 1


# --- what QEMUs say --------------------------------------------------------------------------------------------------

#: JSON of every kind, and what is none.
STRANGE = st.one_of(
    st.sampled_from(
        [
            *(
                "5",
                "-1",
                "1.5",
                "true",
                "null",
                '""',
                '"x"',
                "[]",
                "[1]",
                "[null]",
                "[{}]",
                "{}",
                '[{"a": 1}]',
            ),
            *('{"status": 7}', '{"status": null}', '{"status": "running"}', '{"ram": 5}', '{"ram": {}}'),
            *('{"name": 7}', '{"UUID": "x"}', '{"status": "completed"}', '{"blocked-reasons": 1}'),
            *(
                "NaN",
                "1e999",
                "9" * 5000,
                '"\\ud800"',
                "[" * 20_000 + "]" * 20_000,
                '"' + "x" * 3_000_000 + '"',
            ),
            *('{"base-memory": 1.5}', '{"base-memory": -1}', '{"base-memory": 1e400}', "", "}", "\0"),
        ]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ).map(json.dumps),
)
#: Whole lines instead of an answer.
LINES = st.sampled_from(
    [
        b'{"return": {}, "id": [1]}\r\n',
        b'{"return": {}, "id": 7}\r\n',
        b"\xff\xfe\r\n",
        b"[]\r\n",
        b'{"error": 5}\r\n',
        b'{"event": 5}\r\n',
        b'{"error": {"class": [], "desc": {}}}\r\n',
        b"{}\r\n" * 100,
    ]
)
COMMANDS = st.sampled_from(sorted(REPLIES))


def distorted(wanted: str, strange: str | bytes, *, from_the: int) -> Callable[[str, Any], bytes | None]:
    """Answers to one command are replaced from the so-many-th on."""
    seen = 0

    def distort(command: str, identity: Any) -> bytes | None:
        nonlocal seen
        if command != wanted:
            return None
        seen += 1
        if seen < from_the:
            return None
        if isinstance(strange, bytes):
            return strange
        answer, name = strange.encode("utf-8", "replace"), json.dumps(identity).encode()
        return b'{"return": ' + answer + b', "id": ' + name + b"}\r\n"

    return distort


async def one_beside_an_honest_one(distort: Callable[[str, Any], bytes | None], at_source: bool) -> None:
    async with pair() as honest, pair() as strange:
        (strange.source if at_source else strange.destination).answer_with(distort)
        moved, result = await asyncio.gather(honest.move(), strange.move())
        assert moved is not None
        assert moved.state is State.COMPLETED, moved.error
        assert honest.destination.running
        assert strange.running <= 1
        if result is not None:
            assert result.error is None or "an error of migrator itself" not in result.error, result.error
            if result.state is not State.HELD:
                assert strange.running == 1
                assert strange.destination.running is (result.state is State.COMPLETED)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


fuzzed = given(command=COMMANDS, strange=STRANGE | LINES, at_source=st.booleans(), from_the=st.integers(1, 8))
UNHURRIED = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def beside(command: str, strange: str | bytes, at_source: bool, from_the: int) -> None:
    distort = distorted(command, strange, from_the=from_the)
    asyncio.run(asyncio.wait_for(one_beside_an_honest_one(distort, at_source), 60))


@settings(UNHURRIED, max_examples=6)
@fuzzed
def test_nonsense_from_one_never_reaches_an_honest_one(
    state: Path, command: str, strange: str | bytes, at_source: bool, from_the: int
) -> None:
    beside(command, strange, at_source, from_the)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(UNHURRIED, max_examples=400)
@fuzzed
def test_nonsense_of_every_kind_never_reaches_an_honest_one(
    state: Path, command: str, strange: str | bytes, at_source: bool, from_the: int
) -> None:
    beside(command, strange, at_source, from_the)


@pytest.mark.parametrize(
    ("command", "strange"),
    [
        ("query-status", "5"),
        pytest.param(
            "query-migrate", '{"status": "active", "ram": {"total": "x"}}', marks=pytest.mark.matrix
        ),
        ("query-migrate", "[" * 20_000),
        ("migrate-continue", "null"),
        pytest.param("cont", "[1]", marks=pytest.mark.matrix),
    ],
)
@pytest.mark.parametrize("at_source", [True, False], ids=["source", "destination"])
async def test_nonsense_in_the_middle_costs_no_guest(command: str, strange: str, at_source: bool) -> None:
    await one_beside_an_honest_one(distorted(command, strange, from_the=3), at_source)


async def test_no_answer_ends_a_look_otherwise_than_in_words() -> None:
    async with FakeQemu() as qemu:
        for command in (
            "query-name",
            "query-uuid",
            "query-status",
            "query-memory-size-summary",
            "query-cpus-fast",
        ):
            for strange in ("5", "[1]", '"x"', "null", "[[[[]]]]", '{"name": 7}', "1.5", "x", '{"a": 1e400}'):
                qemu.answer_with(distorted(command, strange, from_the=1))
                monitor = Monitor(
                    Address(kind="unix", path=str(qemu.qmp)),
                    name="guest",
                    on_event=lambda event: None,
                    on_break=lambda: None,
                )
                await monitor.connect()
                with contextlib.suppress(MigratorError):
                    await identify(monitor)
                await monitor.close()


async def test_memory_and_log_grow_by_a_bound(capsys: pytest.CaptureFixture[str]) -> None:
    big = '{"name": "' + "x" * 3_000_000 + '"}'
    logs.configure(verbose=True, json=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        async with FakeQemu() as qemu:
            qemu.answer_with(distorted("query-name", big, from_the=1))
            monitor = Monitor(
                Address(kind="unix", path=str(qemu.qmp)),
                name="guest",
                on_event=lambda event: None,
                on_break=lambda: None,
            )
            for _ in range(10):
                await monitor.connect()
                with pytest.raises(MigratorError) as caught:
                    await identify(monitor, timeout=5.0)
                assert len(str(caught.value)) < 1000
            await monitor.close()
    finally:
        logs.configure(verbose=False, json=False)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024
    assert len(capsys.readouterr().err) < 10_000
