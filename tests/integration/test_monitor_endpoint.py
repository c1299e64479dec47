"""One end of a migration against a scripted QMP server: what it asks, what it tells QEMU, and in whose units."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.core.model import MigrationStatus, ProcessState, RunState, Sample
from migrator.errors import CommandFailed, MigratorError, TimedOut
from migrator.ports import MigrationSettings, Tuning
from migrator.qemu import features, status_query
from migrator.qemu.address import Address, parse
from migrator.qemu.endpoint import Endpoint
from migrator.testing.lab import until
from tests.scripted import ScriptedQmp, Session, hangs_up, never, refuses, replies, replies_when

MIB = 1 << 20
SCHEMA: list[dict[str, Any]] = [
    {"name": "migrate-incoming", "meta-type": "command", "arg-type": "1"},
    {"name": "1", "meta-type": "object", "members": [{"name": "uri"}, {"name": "exit-on-error"}]},
    {"name": "stop", "meta-type": "command", "arg-type": "0"},
    {"name": "0", "meta-type": "object", "members": []},
]


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    yield
    assert asyncio.all_tasks() - {asyncio.current_task()} == set()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "migrator"


@pytest.fixture
def path() -> Iterator[Path]:
    with TemporaryDirectory(prefix="qmp-") as directory:
        yield Path(directory) / "monitor"


@pytest.fixture
async def server(path: Path) -> AsyncIterator[ScriptedQmp]:
    async with ScriptedQmp(path) as server:
        server.on("query-status", replies({"status": "running"}))
        yield server


@pytest.fixture
async def end(server: ScriptedQmp, path: Path) -> AsyncIterator[Endpoint]:
    """Connected to :func:`server`."""
    end = Endpoint(Address(kind="unix", path=str(path)), role="source")
    await end.connect()
    yield end
    await end.close()


class TestObserving:
    async def test_says_what_both_queries_say(self, server: ScriptedQmp, end: Endpoint) -> None:
        server.on("query-status", replies({"status": "finish-migrate"}))
        server.on("query-migrate", replies({"status": "failed", "error-desc": "no route"}))
        view = await end.observe()
        assert view.answers
        assert (view.run, view.status) == (RunState.FINISH_MIGRATE, MigrationStatus.FAILED)
        assert (view.error, view.sample) == ("no route", None)

    async def test_takes_words_it_does_not_know_for_other(self, server: ScriptedQmp, end: Endpoint) -> None:
        server.on("query-status", replies({"status": "meditating"}))
        server.on("query-migrate", replies({"status": "postcopy-teleport"}))
        view = await end.observe()
        assert (view.run, view.status) == (RunState.OTHER, MigrationStatus.OTHER)

    async def test_of_one_that_does_not_answer_is_quick_and_asks_it_once(
        self, server: ScriptedQmp, end: Endpoint
    ) -> None:
        ready = asyncio.Event()
        server.on("query-status", replies_when(ready, lambda: {"status": "paused"}))
        began = time.monotonic()
        for _ in range(5):
            assert not (await end.observe(timeout=0.05)).answers
        assert time.monotonic() - began < 4
        assert sorted(server.names) == ["query-migrate", "query-status"]
        ready.set()
        view = await end.observe(timeout=5)
        assert (view.answers, view.run) == (True, RunState.PAUSED)

    async def test_does_not_take_an_old_answer_for_the_present(
        self, server: ScriptedQmp, end: Endpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ready = asyncio.Event()
        states = iter(["running", "paused"])
        server.on("query-status", replies_when(ready, lambda: {"status": next(states)}))
        assert not (await end.observe(timeout=0.05)).answers
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + 60.0)
        monkeypatch.setattr(status_query, "time", later)
        ready.set()
        assert (await end.observe(timeout=5)).run is RunState.PAUSED

    async def test_shows_what_a_command_that_timed_out_has_done_since(
        self, server: ScriptedQmp, end: Endpoint
    ) -> None:
        ready, state = asyncio.Event(), {"status": "running"}

        def stop() -> object:
            state["status"] = "paused"
            return {}

        server.on("query-status", replies_when(ready, lambda: dict(state)))
        server.on("stop", replies_when(ready, stop))
        with pytest.raises(TimedOut, match="may still be carried out"):
            await end._monitor.execute("stop", timeout=0.05)
        assert not (await end.observe(timeout=0.05)).answers
        ready.set()
        view = await end.observe(timeout=5)
        assert (view.answers, view.run) == (True, RunState.PAUSED)

    async def test_opens_a_broken_session_again_and_asks_afresh(
        self, server: ScriptedQmp, end: Endpoint
    ) -> None:
        assert (await end.observe()).run is RunState.RUNNING
        server.on("query-status", hangs_up(b'{"return": {"status": "runn'))
        assert not (await end.observe()).answers
        server.on("query-status", replies({"status": "paused"}))

        async def answers() -> bool:
            return (await end.observe()).answers

        await until(answers, what="an answer")
        assert (await end.observe()).run is RunState.PAUSED
        assert len(server.sessions) == 2

    async def test_survives_a_server_that_goes_and_comes_back(
        self, server: ScriptedQmp, end: Endpoint, path: Path
    ) -> None:
        server.hang_up()
        await server.__aexit__(None, None, None)
        path.unlink(missing_ok=True)
        for _ in range(3):
            view = await end.observe(timeout=0.1)
            assert (view.answers, view.process) == (False, ProcessState.UNKNOWN)
        async with ScriptedQmp(path) as another:
            another.on("query-status", replies({"status": "running"}))

            async def answers() -> bool:
                return (await end.observe()).answers

            await until(answers, what="an answer")
            await end.close()

    async def test_refused_by_one_of_the_queries_is_no_answer(
        self, server: ScriptedQmp, end: Endpoint
    ) -> None:
        server.on("query-migrate", refuses("GenericError", "not now"))
        assert not (await end.observe()).answers
        server.on("query-migrate", replies({}))
        assert (await end.observe()).answers

    async def test_while_the_session_is_wordy_keeps_the_newest_events_only(
        self, server: ScriptedQmp, end: Endpoint
    ) -> None:
        notified = []
        end.on_change(lambda: notified.append(1))
        for number in range(1500):
            await server.event(f"E{number}")
        await server.event("STOP")
        await until(lambda: len(notified) == 1501, what="the last event")
        taken = end.take_events()
        assert len(taken) == 1000
        assert (taken[-1].name, taken[-1].stamped) == ("STOP", 0.25)
        assert end.take_events() == ()

    async def test_tells_a_guest_that_ended_from_one_that_was_told_to(
        self, server: ScriptedQmp, end: Endpoint
    ) -> None:
        await server.event("SHUTDOWN", guest=True, reason="guest-shutdown")
        await until(end.take_events, what="the event")
        assert (await end.observe()).ended

    async def test_of_our_own_quit_is_no_end_of_the_guest(self, server: ScriptedQmp, end: Endpoint) -> None:
        server.on("quit", hangs_up(b'{"event": "SHUTDOWN", "data": {"guest": false}, "timestamp": {}}\r\n'))
        await end.quit(timeout=1)
        assert not (await end.observe(timeout=0.1)).ended


class TestProcess:
    async def test_that_is_no_qemu_is_never_killed(self, server: ScriptedQmp, end: Endpoint) -> None:
        # The server lives in this very process.
        assert end.identity == {}
        view = await end.observe()
        assert (view.process, view.can_fence) == (ProcessState.UNKNOWN, False)
        assert not await end.fence()
        server.on("quit", never)
        assert not await end.quit(timeout=0.2)
        assert end.stderr_tail() == ""

    @pytest.mark.parametrize("pid", [os.getpid(), 2**22 + 1], ids=["ours", "nobodys"])
    async def test_given_by_a_wrong_pid_is_not_believed(self, pid: int) -> None:
        async with ScriptedQmp("127.0.0.1") as server:
            end = Endpoint(parse(f"tcp:127.0.0.1:{server.port}"), role="destination", pid=pid)
            await end.connect()
            assert not (await end.observe()).can_fence
            await end.close()

    async def test_that_acknowledged_and_hung_up_is_gone(self, server: ScriptedQmp, end: Endpoint) -> None:
        async def obey(session: Session, message: dict[str, Any]) -> None:
            await session.reply(message, {})
            session.hang_up()

        server.on("quit", obey)
        assert await end.quit(timeout=1)
        assert (await end.observe()).process is ProcessState.DEAD

    @pytest.mark.parametrize(("command", "dead"), [("true", True), ("false", False)])
    async def test_is_fenced_by_a_command_that_has_to_succeed(
        self, server: ScriptedQmp, path: Path, command: str, dead: bool
    ) -> None:
        end = Endpoint(Address(kind="unix", path=str(path)), role="destination", fence_command=command)
        await end.connect()
        assert (await end.observe()).can_fence
        assert await end.fence() is dead
        assert (await end.observe()).process is (ProcessState.DEAD if dead else ProcessState.UNKNOWN)
        await end.close()

    async def test_of_a_record_that_is_gone_is_dead(self, server: ScriptedQmp, end: Endpoint) -> None:
        end.expect_process({})
        assert (await end.observe()).process is ProcessState.UNKNOWN
        end.expect_process({"pid": os.getpid(), "start_time": 1, "boot_id": "of an earlier boot"})
        assert (await end.observe()).process is ProcessState.DEAD


class TestCancelling:
    async def test_that_is_answered_needs_no_more(self, server: ScriptedQmp, end: Endpoint) -> None:
        await end.cancel()
        assert server.names == ["query-migrate-capabilities", "migrate_cancel"]

    async def test_of_channels_is_sent_once_the_stream_that_is_held_back_has_come_to_rest(
        self, server: ScriptedQmp, end: Endpoint
    ) -> None:
        server.on("query-migrate-capabilities", replies([{"capability": "multifd", "state": True}]))
        sent = itertools.chain([MIB, MIB, 2 * MIB, 2 * MIB], itertools.repeat(3 * MIB))
        status = "active"

        async def show(session: Session, message: dict[str, Any]) -> None:
            ram = {"total": 4 * MIB, "remaining": MIB, "transferred": next(sent), "mbps": 0.0}
            ram |= {"page-size": 4096, "dirty-sync-count": 1, "dirty-pages-rate": 0}
            await session.reply(message, {"status": status, "ram": ram})

        async def obey(session: Session, message: dict[str, Any]) -> None:
            nonlocal status
            status = "cancelled"
            await session.reply(message, {})

        server.on("query-migrate", show)
        server.on("migrate_cancel", obey)
        await end.cancel()
        at = server.names.index("migrate_cancel")
        looks = server.names[server.names.index("migrate-set-parameters") : at].count("query-migrate")
        assert looks == 6  # the last that showed something new, and two that did not
        assert server.arguments("migrate-set-parameters") == [{"max-bandwidth": 4096}]
        assert "yank" not in server.names

    async def test_of_channels_that_cannot_send_is_broken_off(
        self, server: ScriptedQmp, end: Endpoint
    ) -> None:
        server.on("query-migrate-capabilities", replies([{"capability": "multifd", "state": True}]))
        server.on("query-migrate", replies({"status": "cancelling"}))
        await end.cancel()
        assert server.received[-1]["exec-oob"] == "yank"

    async def test_that_is_not_answered_yanks_out_of_band(self, server: ScriptedQmp, end: Endpoint) -> None:
        server.on("migrate_cancel", never)
        await end.cancel()
        assert server.received[-1]["exec-oob"] == "yank"
        assert server.arguments("yank") == [{"instances": [{"type": "migration"}]}]


class TestUnits:
    async def test_of_a_sample_are_bytes_seconds_and_shares(self, server: ScriptedQmp, end: Endpoint) -> None:
        ram = {"total": 4 * MIB, "remaining": MIB, "transferred": 2 * MIB, "mbps": 800.0, "page-size": 4096}
        ram |= {"dirty-pages-rate": 100, "dirty-sync-count": 3, "postcopy-requests": 7}
        more = {"total-time": 1500, "expected-downtime": 250, "downtime": 12, "cpu-throttle-percentage": 20}
        server.on("query-migrate", replies({"status": "active", "ram": ram, **more}))
        assert (await end.observe()).sample == Sample(
            at_seconds=1.5,
            round=3,
            total_bytes=4 * MIB,
            remaining_bytes=MIB,
            transferred_bytes=2 * MIB,
            dirty_rate_bytes_per_second=409_600.0,
            bandwidth_bytes_per_second=100e6,
            throttle_ratio=0.2,
            expected_downtime_seconds=0.25,
            downtime_seconds=0.012,
            postcopy_requests=7,
        )

    async def test_of_larger_pages_are_theirs(self, server: ScriptedQmp, end: Endpoint) -> None:
        ram = {"total": 0, "remaining": 0, "transferred": 0, "mbps": 0.0, "page-size": 65536}
        ram |= {"dirty-pages-rate": 10, "dirty-sync-count": 1}
        server.on("query-migrate", replies({"status": "active", "ram": ram}))
        sample = (await end.observe()).sample
        assert sample is not None
        assert sample.dirty_rate_bytes_per_second == 655_360.0

    @pytest.mark.parametrize(
        ("tuning", "told"),
        [
            (Tuning(max_bandwidth_bytes_per_second=MIB), {"max-bandwidth": MIB}),
            (Tuning(downtime_limit_seconds=0.3), {"downtime-limit": 300}),
            (Tuning(downtime_limit_seconds=0.0001), {"downtime-limit": 1}),
            (Tuning(downtime_limit_seconds=0.029), {"downtime-limit": 29}),
            (Tuning(max_postcopy_bandwidth_bytes_per_second=0), {"max-postcopy-bandwidth": 0}),
        ],
        ids=["bandwidth", "downtime", "least-downtime", "no-rounding-away", "postcopy-bandwidth"],
    )
    async def test_of_parameters_are_qemus(
        self, server: ScriptedQmp, end: Endpoint, tuning: Tuning, told: dict[str, int]
    ) -> None:
        await end.tune(tuning)
        assert server.arguments("migrate-set-parameters") == [told]

    @pytest.mark.parametrize(("share", "percent"), [(0.5, 50), (0.99, 99), (1.0, 99), (0.0, 1)])
    async def test_of_a_throttle_are_percent(
        self, server: ScriptedQmp, end: Endpoint, share: float, percent: int
    ) -> None:
        await end.tune(Tuning(throttle_ratio=share))
        (told,) = server.arguments("migrate-set-parameters")
        assert told["max-cpu-throttle"] == told["cpu-throttle-initial"] == percent

    async def test_nothing_to_tune_is_not_sent(self, server: ScriptedQmp, end: Endpoint) -> None:
        await end.tune(Tuning())
        assert server.names == []


class TestSettings:
    AS_THEY_WERE = MigrationSettings(
        capabilities={"xbzrle": True, "events": False}, parameters={"max-bandwidth": 5, "tls-creds": ""}
    )

    def show(self, server: ScriptedQmp, settings: MigrationSettings) -> None:
        states = [{"capability": name, "state": state} for name, state in settings.capabilities.items()]
        server.on("query-migrate-capabilities", replies(states))
        server.on("query-migrate-parameters", replies(settings.parameters))

    async def test_are_read_as_they_are(self, server: ScriptedQmp, end: Endpoint) -> None:
        self.show(server, self.AS_THEY_WERE)
        assert await end.settings() == self.AS_THEY_WERE

    async def test_put_back_are_only_those_that_differ(self, server: ScriptedQmp, end: Endpoint) -> None:
        now = replace(
            self.AS_THEY_WERE,
            capabilities={"xbzrle": True, "events": True, "new": True},
            parameters={"max-bandwidth": 7, "tls-creds": "", "new": 1},
        )
        self.show(server, now)
        await end.restore(self.AS_THEY_WERE)
        assert server.arguments("migrate-set-parameters") == [{"max-bandwidth": 5}]
        (sent,) = server.arguments("migrate-set-capabilities")
        assert sent == {"capabilities": [{"capability": "events", "state": False}]}

    async def test_that_never_changed_are_not_sent(self, server: ScriptedQmp, end: Endpoint) -> None:
        self.show(server, self.AS_THEY_WERE)
        await end.restore(self.AS_THEY_WERE)
        assert "migrate-set-parameters" not in server.names
        assert "migrate-set-capabilities" not in server.names


class TestListening:
    @pytest.fixture(autouse=True)
    def listening(self, server: ScriptedQmp) -> None:
        server.on("query-qmp-schema", replies(SCHEMA))
        server.on("query-status", replies({"status": "inmigrate"}))
        server.on("query-version", replies({"qemu": {"major": 10, "minor": 0, "micro": 2}}))
        server.on("query-commands", replies([{"name": "stop"}]))
        address = {"type": "inet", "host": "::1", "port": "4711"}
        server.on("query-migrate", replies({"socket-address": [address]}))

    async def test_disarms_first_and_tells_where(self, server: ScriptedQmp, end: Endpoint) -> None:
        assert await end.listen("tcp:[::1]:0") == "tcp:[::1]:4711"
        assert server.names[:2] == ["query-status", "stop"]
        assert server.names.index("migrate-incoming") < server.names.index("query-migrate")

    @pytest.mark.parametrize("known", [True, False])
    async def test_asks_it_to_stay_after_an_error_where_that_is_known(
        self, server: ScriptedQmp, end: Endpoint, known: bool
    ) -> None:
        if not known:
            server.on("query-qmp-schema", replies([SCHEMA[0], SCHEMA[1] | {"members": [{"name": "uri"}]}]))
        await end.listen("tcp:[::1]:0")
        (told,) = server.arguments("migrate-incoming")
        assert told == {"uri": "tcp:[::1]:0"} | ({"exit-on-error": False} if known else {})

    async def test_that_never_begins_is_a_failure(self, server: ScriptedQmp, end: Endpoint) -> None:
        server.on("query-migrate", replies({}))
        with pytest.raises(CommandFailed, match="never listened"):
            await end.listen("tcp:[::1]:0")


class TestFeatures:
    @pytest.fixture(autouse=True)
    def schema(self, server: ScriptedQmp) -> None:
        server.on("query-qmp-schema", replies(SCHEMA))
        server.on("query-version", replies({"qemu": {"major": 10, "minor": 0, "micro": 2}}))
        server.on("query-commands", replies([{"name": "stop"}, {"name": "quit"}]))

    async def test_are_asked_for_once_a_binary(self, server: ScriptedQmp, end: Endpoint) -> None:
        for binary in ("one", "one", "another", "one"):
            found = await features.read(end._monitor, binary)
            assert found.takes("migrate-incoming", "exit-on-error")
            assert not found.takes("stop", "exit-on-error")
            assert not found.takes("fly", "high")
        assert server.names == ["query-qmp-schema"] * 2

    async def test_of_an_unknown_binary_go_by_its_version_and_commands(
        self, server: ScriptedQmp, end: Endpoint
    ) -> None:
        await features.read(end._monitor, "")
        await features.read(end._monitor, "")
        assert server.names.count("query-qmp-schema") == 1
        server.on("query-commands", replies([{"name": "stop"}]))
        await features.read(end._monitor, "")
        assert server.names.count("query-qmp-schema") == 2

    @pytest.mark.parametrize("damage", ["", "[]", "{", '{"stop": 5}', "null"])
    async def test_kept_in_a_damaged_file_are_asked_for_again(
        self, server: ScriptedQmp, end: Endpoint, cache: Path, damage: str
    ) -> None:
        await features.read(end._monitor, "one")
        (kept,) = cache.iterdir()
        kept.write_text(damage)
        assert (await features.read(end._monitor, "one")).takes("migrate-incoming", "uri")
        assert server.names.count("query-qmp-schema") == 2
        await features.read(end._monitor, "one")
        assert server.names.count("query-qmp-schema") == 2

    async def test_are_read_even_where_nothing_can_be_kept(
        self, server: ScriptedQmp, end: Endpoint, cache: Path
    ) -> None:
        cache.write_text("in the way of the directory")
        assert (await features.read(end._monitor, "one")).takes("migrate-incoming", "uri")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("tcp:host:4444", "tcp:host:4444"),
        ("tls:[fe80::1%eth0]:4444", "tls:[fe80::1%eth0]:4444"),
        ("tcp:[::1]:1", "tcp:[::1]:1"),
    ],
)
def test_address_is_read_and_shown_as_it_is_written(text: str, read: str) -> None:
    assert str(parse(text)) == read
    assert parse(read) == parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "unix:", "tcp:host", "tcp:host:0", "tcp:host:65536", "tcp:::1:44", "udp:host:1", "/run/a.sock"),
        "unix:/" + 107 * "x",
        *("tcp:10.66.0.999:1", "tls:[10.0.0.1]:1", "tcp:10.0.0.1/24:1", "tcp:a b:1", "tcp:fd00::1:4444"),
        *("tcp:[fd00::1]", "tcp:[fd00::g]:1"),
        *(
            "ssh:-oProxyCommand=x:/run/a",
            "ssh:-oProxyCommand=x@h:/run/a",
            "ssh:a b@h:/run/a",
            "ssh:$(x):/run/a",
        ),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(MigratorError, match=r"(is not an? (QMP|SSH) address|at most 107 bytes)"):
        parse(text)
