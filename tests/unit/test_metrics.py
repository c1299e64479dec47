"""What is counted and shown, and that the list of metrics, the text of a scrape and Prometheus agree on it."""

from __future__ import annotations

import asyncio
import math
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from migrator.api.commands import COMMANDS
from migrator.api.evacuation_documents import EvacuationGuest
from migrator.api.events import EventKind
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.migration.convergence_state import ActionKind
from migrator.core.migration.invariants import VIOLATED
from migrator.core.migration.lifecycle import Step
from migrator.core.model import Mode, State
from migrator.metrics import Metrics, catalogue, document, label_values
from migrator.metrics.catalogue import BY_NAME, CATALOGUE
from migrator.metrics.definition import Kind
from migrator.ports.queries import Queries
from tests.documents import a_guest, a_host, a_migration, an_evacuation
from tests.fake_queries import FakeQueries
from tests.metered import Service

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def service() -> Service:
    return Service()


def _busy(service: Service) -> None:
    """Something of everything."""
    queries = service.queries
    for name in ("host-1", "host-2"):
        queries.hosts_by_name[name] = a_host(
            name, guests_duplicate=["guest-1"], slowest_paths={"host-3": 7e6}
        )
    queries.guests_by_key["guest-1"] = a_guest("guest-1")
    queries.put(a_migration("m1", state=State.PREPARING))
    queries.change("m1", state=State.PRECOPY)
    queries.decide("m1", "throttle")
    queries.put(a_migration("m2"))
    queries.end("m2", State.COMPLETED, downtime_seconds=0.1, duration_seconds=3.0, forecast_error_ratio=-0.1)
    queries.put(a_migration("m3"))
    queries.end("m3", State.FAILED)
    stuck = EvacuationGuest(guest="guest-1", standing=GuestStanding.NO_TARGET)
    queries.put_evacuation(an_evacuation("e1", guests=[stuck]))
    window = {"state": EvacuationState.SCHEDULED, "starts_at": datetime(2026, 12, 1, 2, 30, tzinfo=UTC)}
    queries.put_evacuation(an_evacuation("e2", **window))
    service.metrics.qmp_command("query-status", 0.001)
    service.metrics.journal_write(0.002)


def _decided() -> set[str]:
    """Actions of decisions as they are written in the engine."""
    engine = Path(__file__).parent.parent.parent / "migrator" / "engine"
    found = {str(act) for act in ActionKind} | {str(step) for step in Step} | {VIOLATED}
    for path in engine.rglob("*.py"):
        found |= set(re.findall(r'(?:\.decide|tell)\(\s*"([a-z-]+)"', path.read_text(encoding="utf-8")))
    assert {"take-up", "held", "wait", "no-postcopy"} <= found
    return found


# The list, the text and Prometheus ------------------------------------------------------------------------------


def test_the_engines_reading_is_what_metrics_read() -> None:
    def accepts(queries: Queries) -> Metrics:  # checked by mypy
        return Metrics(queries=queries, version="")

    assert isinstance(accepts(FakeQueries()), Metrics)


async def test_a_busy_service_shows_every_metric_of_the_list_and_no_other(service: Service) -> None:
    _busy(service)
    text, _ = await service.metrics.scrape(None)
    shown = {}
    for family in read_text(text.decode()):
        kind = family.type
        name = f"{family.name}_total" if kind == "counter" else family.name
        labels = set()
        for sample in family.samples:
            labels |= set(sample.labels)
        assert family.samples, f"{name} has no data"
        shown[name] = (kind, labels - {"le"})
    assert shown == {each.name: (each.kind, set(each.labels)) for each in CATALOGUE}


def test_words_of_the_engine_are_all_in_the_lists() -> None:
    ended = {EvacuationState.COMPLETED, EvacuationState.INCOMPLETE, EvacuationState.CANCELLED}
    assert set(label_values.EVACUATION_RESULTS) == ended | {EvacuationState.STOPPED}
    assert set(label_values.EVACUATION_RESULTS) == set(EvacuationState) - {
        EvacuationState.RUNNING,
        EvacuationState.SCHEDULED,
    }
    assert set(label_values.VERBS) == set(COMMANDS) | {"unknown"}
    assert set(label_values.STUCK) < set(GuestStanding)
    assert _decided() <= set(label_values.ACTIONS)
    assert set(label_values.PHASES) | set(label_values.RESULTS) == set(State)


async def test_promtool_finds_nothing_to_say(service: Service) -> None:
    _busy(service)
    text, _ = await service.metrics.scrape(None)
    command = ["promtool", "check", "metrics"]
    checked = subprocess.run(command, input=text, capture_output=True, timeout=20, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


async def test_nothing_but_results_and_the_like_is_there_before_anything_happens(service: Service) -> None:
    values = await service.values()
    results = values["migrator_migrations_total"]
    assert len(results) == len(label_values.RESULTS) * len(Mode)
    assert set(results.values()) == {0.0}
    assert set(values["migrator_evacuations_total"].values()) == {0.0}
    assert (("interface", "mqtt"), ("result", "repeated"), ("verb", "migrate")) in values[
        "migrator_commands_total"
    ]
    assert "migrator_migration_info" not in values
    assert "migrator_host_up" not in values


async def test_openmetrics_carries_the_migrations_id_as_exemplar(service: Service) -> None:
    service.queries.put(a_migration("m7"))
    service.queries.end("m7", State.COMPLETED, downtime_seconds=0.25, duration_seconds=3.0)
    text, content_type = await service.metrics.scrape(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    exemplars = {
        sample.name: sample.exemplar.labels
        for family in read_openmetrics(text.decode())
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert exemplars["migrator_migrations_total"] == {"migration": "m7"}
    assert exemplars["migrator_migration_downtime_seconds_bucket"] == {"migration": "m7"}
    plain, content_type = await service.metrics.scrape("text/plain")
    assert content_type.startswith("text/plain; version=0.0.4")
    assert b"# {" not in plain


async def test_names_may_be_anything(service: Service) -> None:
    name = 'a "quoted" \\ name\nwith \udcff and {braces}'
    service.queries.guests_by_key["g"] = a_guest("g", name="plain").model_copy(update={"name": name})
    service.queries.put(a_migration("m1", guest='host-1/b\nad"'))
    values = await service.values()
    [labels] = values["migrator_guest_info"]
    assert dict(labels)["name"] == name.replace("\udcff", r"\udcff")
    assert (("guest", 'host-1/b\nad"'), ("migration", "m1")) in values["migrator_migration_round"]
    assert list(read_openmetrics((await service.metrics.scrape(OPENMETRICS))[0].decode()))


# Counting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", label_values.RESULTS)
@pytest.mark.parametrize("mode", list(Mode))
async def test_a_migration_is_counted_once_by_how_it_ended(service: Service, result: str, mode: Mode) -> None:
    service.queries.put(a_migration("m1", mode=mode))
    body = service.queries.end("m1", State(result))
    service.queries.put(body)  # said again
    assert body.mode is mode
    results = (await service.values())["migrator_migrations_total"]
    assert {labels: value for labels, value in results.items() if value} == {
        (("mode", mode), ("result", result)): 1.0
    }


async def test_a_held_migration_stays_until_it_is_resolved_and_counts_as_held(service: Service) -> None:
    service.queries.put(a_migration("m1"))
    service.queries.change("m1", state=State.HELD)
    assert await service.value("migrations_held") == 1
    assert await service.value("migrations_total", result="held", mode="precopy") == 1
    assert await service.value("migration_state", migration="m1", guest="guest-of-m1", state="held") == 1
    service.queries.end("m1", State.FAILED)
    assert await service.value("migrations_held") == 0
    assert await service.value("migrations_total", result="failed", mode="precopy") == 0
    assert await service.value("guest_last_failure_timestamp_seconds", guest="guest-of-m1", host="host-1")
    assert await service.value("migration_info") is None


async def test_one_that_was_held_before_the_start_is_not_counted_again(service: Service) -> None:
    service.queries.by_id["m1"] = a_migration("m1", state=State.HELD)
    service.queries.put(a_migration("m2", state=State.HELD))  # said as it is read from the journal
    async with service.metrics:
        service.queries.end("m2", State.FAILED)
        service.queries.end("m1", State.COMPLETED)
        assert set((await service.values())["migrator_migrations_total"].values()) == {0.0}


@pytest.mark.parametrize(
    ("downtime", "mode", "exceeded"),
    [(0.3, Mode.PRECOPY, 0), (0.301, Mode.PRECOPY, 1), (0.5, Mode.POSTCOPY, 1), (9.0, Mode.OFFLINE, 0)],
)
async def test_downtime_is_held_against_its_ceiling(
    service: Service, downtime: float, mode: Mode, exceeded: int
) -> None:
    service.queries.put(a_migration("m1", mode=mode))
    service.queries.end("m1", State.COMPLETED, downtime_seconds=downtime)
    assert await service.value("migration_downtime_ceiling_exceeded_total") == exceeded
    assert await service.value("migration_downtime_seconds_sum", mode=mode) == downtime
    ratio = await service.value("migration_downtime_ceiling_ratio_sum", mode=mode)
    assert ratio == (0 if mode is Mode.OFFLINE else pytest.approx(downtime / 0.3))
    last = await service.value("guest_last_downtime_seconds", guest="guest-of-m1", host="host-2")
    assert last == (None if mode is Mode.OFFLINE else downtime)


async def test_duration_is_that_of_completed_migrations_alone(service: Service) -> None:
    for name, state in (("m1", State.COMPLETED), ("m2", State.CANCELLED), ("m3", State.FAILED)):
        service.queries.put(a_migration(name))
        service.queries.end(name, state, duration_seconds=5.0)
    assert await service.value("migration_duration_seconds_count", mode="precopy") == 1


async def test_time_in_each_phase_is_added_up(service: Service) -> None:
    service.queries.put(a_migration("m1", state=State.QUEUED))
    for after, state in ((10, State.PREPARING), (2, State.PRECOPY), (30, State.SWITCHOVER)):
        service.clock.seconds += after
        service.queries.change("m1", state=state)
    service.clock.seconds += 0.05
    service.queries.change("m1", state=State.FINISHING, kind=EventKind.PROGRESS)  # tells nothing of states
    service.queries.end("m1", State.COMPLETED)
    spent = {
        dict(labels)["phase"]: value
        for labels, value in (await service.values())["migrator_migration_phase_duration_seconds_sum"].items()
        if value
    }
    assert spent == {
        "queued": 10,
        "preparing": 2,
        "precopy": 30,
        "switchover": pytest.approx(0.05),
    }
    assert await service.value("migration_preparation_seconds_sum") == 2


async def test_the_phase_that_was_under_way_at_the_start_is_not_timed(service: Service) -> None:
    service.queries.put(a_migration("m1"), kind=EventKind.PROGRESS)
    service.clock.seconds += 5
    service.queries.change("m1", state=State.FINISHING)
    assert await service.value("migration_phase_duration_seconds_count", phase="precopy") == 0


async def test_work_lost_to_throttling_is_share_times_time(service: Service) -> None:
    service.queries.put(a_migration("m1"))
    for ratio, after in ((0.5, 10), (0.8, 4), (0.8, 6)):
        service.queries.change("m1", throttle_ratio=ratio, kind=EventKind.PROGRESS)
        service.clock.seconds += after
    service.queries.end("m1", State.COMPLETED, throttle_ratio=0.8)
    assert await service.value("migration_throttled_seconds_total") == pytest.approx(5 + 3.2 + 4.8)


async def test_no_work_is_lost_after_the_switch(service: Service) -> None:
    service.queries.put(a_migration("m1", throttle_ratio=0.5, state=State.POSTCOPY))
    service.clock.seconds += 10
    service.queries.end("m1", State.COMPLETED, throttle_ratio=0.5)
    assert await service.value("migration_throttled_seconds_total") == 0


async def test_words_that_nobody_knows_make_no_new_series(service: Service) -> None:
    before = sum(len(samples) for samples in (await service.values()).values())
    for number in range(200):
        service.queries.decide("m1", f"action {number}")
        service.metrics.qmp_error(f"kind {number}")
        service.metrics.journal_error(f"operation {number}")
        service.metrics.command("http", f"verb {number}", "accepted")
    values = await service.values()
    assert sum(len(samples) for samples in values.values()) == before
    assert values["migrator_decisions_total"][("action", "other"),] == 200
    for number in range(200):
        service.metrics.qmp_command(f"command-{number}", 0.1)
    values = await service.values()
    assert len(values["migrator_qmp_command_duration_seconds_count"]) == label_values.MOST_COMMANDS
    assert sum(values["migrator_qmp_command_duration_seconds_count"].values()) == 200


async def test_an_invariant_that_is_broken_is_counted_by_its_name(service: Service) -> None:
    assert await service.value("invariant_violations_total", invariant="never-two") == 0
    service.queries.decide("m1", VIOLATED, invariant="never-two")
    service.queries.decide("m1", VIOLATED, invariant="of a later version")
    assert await service.value("invariant_violations_total", invariant="never-two") == 1
    assert await service.value("invariant_violations_total", invariant="other") == 1


async def test_evacuations_are_counted_at_their_end_once(service: Service) -> None:
    service.queries.put_evacuation(an_evacuation("e1"))
    done = an_evacuation("e1", state=EvacuationState.COMPLETED, ended_at=datetime.now(UTC))
    service.queries.put_evacuation(done)
    service.queries.put_evacuation(done)
    values = (await service.values())["migrator_evacuations_total"]
    assert {labels: value for labels, value in values.items() if value} == {(("result", "completed"),): 1.0}


async def test_commands_and_errors_are_counted(service: Service) -> None:
    service.metrics.command("mqtt", "evacuate", "refused")
    service.metrics.qmp_error("timed-out")
    assert await service.value("commands_total", interface="mqtt", verb="evacuate", result="refused") == 1
    assert await service.value("qmp_errors_total", kind="timed-out") == 1


# Cost ----------------------------------------------------------------------------------------------------------


async def test_the_loops_lag_is_measured() -> None:
    service = Service()
    async with service.metrics:
        await asyncio.sleep(0.15)
        time.sleep(0.3)
        blocked = await service.value("event_loop_lag_seconds")
        assert blocked is not None
        assert 0.15 < blocked < 2
    assert all(task.get_name() != "event loop lag" for task in asyncio.all_tasks())


async def test_a_scrape_is_made_into_text_in_another_thread(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def texts(self: Any) -> Iterator[Any]:
        threads.append(threading.current_thread())
        return iter(())

    monkeypatch.setattr("migrator.metrics.gauges.Gauges.texts", texts)
    await service.metrics.scrape(None)
    assert threads
    assert threads[0] is not threading.main_thread()


async def test_a_thousand_migrations_cost_under_200_ms(service: Service) -> None:
    for number in range(1000):
        service.queries.put(a_migration(f"m{number}"))
    best, text = math.inf, b""
    for _ in range(3):
        began = time.perf_counter()
        text, _ = await service.metrics.scrape(OPENMETRICS)
        best = min(best, time.perf_counter() - began)
    assert text.count(b'migration="m999"') >= len(catalogue.MIGRATIONS) - 1
    assert best < 1.0, "far beyond 200 ms even for a machine that does much else"


# The document --------------------------------------------------------------------------------------------------


def test_every_metric_is_well_described() -> None:
    assert len(BY_NAME) == len(CATALOGUE)
    for each in CATALOGUE:
        assert each.help.endswith("."), each.name
        assert (each.kind is Kind.COUNTER) == each.name.endswith("_total")
        assert bool(each.buckets) == (each.kind is Kind.HISTOGRAM) == bool(each.why)
        assert list(each.buckets) == sorted(set(each.buckets))


def test_the_document_is_up_to_date() -> None:
    path = Path(__file__).parent.parent.parent / "docs" / "metrics.md"
    assert path.read_text(encoding="utf-8") == document(), "run make docs"


@pytest.mark.parametrize("use", ["save", "load"])
async def test_hours_on_a_disk_are_no_downtime_of_a_migration(service: Service, use: str) -> None:
    service.queries.put(a_migration("m1", file="/srv/saved/vm.state", file_use=use, mode=Mode.OFFLINE))
    service.queries.end("m1", State.COMPLETED, downtime_seconds=7200.0, duration_seconds=7200.0)
    assert await service.value("migrations_total", result="completed", mode="offline") == 1
    assert await service.value("migration_downtime_seconds_count", mode="offline") == 0
    assert await service.value("migration_duration_seconds_count", mode="offline") == 0


@pytest.mark.parametrize(
    ("standstill", "around", "exceeded"), [(8.7, 0.001, 1), (0.2, 0.0, 0), (5.0, 4.9, 0)]
)
async def test_standstill_that_nobody_watched_counts_by_what_is_certain(
    service: Service, standstill: float, around: float, exceeded: int
) -> None:
    service.queries.put(a_migration("m1"))
    service.queries.end(
        "m1",
        State.COMPLETED,
        downtime_seconds=standstill,
        standstill_seconds=standstill,
        standstill_uncertainty_seconds=around,
    )
    assert await service.value("migration_downtime_ceiling_exceeded_total") == exceeded
    assert await service.value("migration_standstill_seconds_sum") == standstill
    last = await service.value("guest_last_downtime_seconds", guest="guest-of-m1", host="host-2")
    assert last == pytest.approx(standstill - around)
