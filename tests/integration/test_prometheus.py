"""A real Prometheus scrapes, records, alerts and answers what the dashboards ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml  # type: ignore[import-untyped]

from migrator.api.evacuation_documents import EvacuationGuest
from migrator.api.events import EventKind
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.inventory import HostState
from migrator.core.migration.invariants import VIOLATED
from migrator.core.model import Mode, State
from migrator.metrics import Metrics, Probes
from migrator.metrics.catalogue import BY_NAME
from migrator.metrics.gauges import BrokerGauges
from migrator.testing.process import until
from tests.documents import a_guest, a_host, a_migration, an_evacuation
from tests.fake_queries import FakeQueries
from tests.panels import BOARDS, panel_queries
from tests.prometheus import INTERVAL_SECONDS, RULES, Prometheus, Target, running

# Prometheus takes five seconds until it scrapes for the first time, so there is one for most tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")

#: From a fault to the firing alert, as shipped; here everything is so much faster.
SHIPPED_SECONDS = 60.0
PACE = INTERVAL_SECONDS / 10.0
#: Alerts about what nearly always ends by itself within a minute.
AFTER_A_MINUTE = ("MigratorEventLoopLate", "MigratorPostcopyBroken")
#: For a machine that does much else meanwhile.
LIMIT_SECONDS = 20.0


class Site:
    """A service that empties host-1: what it shows changes all the time, as it does in life."""

    def __init__(self) -> None:
        self.queries = FakeQueries()
        self.broker = self.lease = True
        self.complaint = ""
        probes = Probes(
            broker=lambda: BrokerGauges(connected=self.broker),
            lease_held=lambda: self.lease,
            lease_ages=lambda: {"site": 0.5 if self.lease else 30.0},
            planner_present=lambda: self.lease,
            controller_migrations=lambda: {"one": 1},
            journal_complaint=lambda: self.complaint,
        )
        self.metrics = Metrics(
            queries=self.queries,
            version="1.2.3",
            probes=probes,
            page_url="https://migrator.example",
            runbook_url="https://docs.example/runbook",
        )
        self.target = Target(self.metrics)
        for name, state in (("host-1", HostState.DRAINING), ("host-2", HostState.ACTIVE)):
            self.queries.hosts_by_name[name] = a_host(
                name, state=state, guests=5, slowest_paths={"host-3": 7e6}
            )
        for number in range(5):
            self.queries.guests_by_key[f"guest-{number}"] = a_guest(f"guest-{number}")
        self.queries.put_evacuation(an_evacuation())
        tonight = datetime.now(UTC) + timedelta(hours=6)
        self.queries.put_evacuation(
            an_evacuation("tonight", state=EvacuationState.SCHEDULED, starts_at=tonight, deadline=None)
        )

    async def evacuate(self) -> None:
        """One guest after the other, until cancelled."""
        number = 0
        while True:
            number += 1
            await self.move(f"m{number}", f"guest-{number % 5}")
            ended = an_evacuation(
                f"other-{number}", state=EvacuationState.COMPLETED, ended_at=datetime.now(UTC)
            )
            self.queries.put_evacuation(ended)

    async def move(self, name: str, guest: str) -> None:
        """One guest, with everything that a service counts on the way; it ends in postcopy."""
        queries, metrics = self.queries, self.metrics
        metrics.command("mqtt", "migrate", "accepted")
        queries.put(a_migration(name, guest=guest, state=State.QUEUED))
        for state in (State.PREPARING, State.PRECOPY):
            await asyncio.sleep(0.02)
            queries.change(name, state=state)
            metrics.journal_write(0.002)
        queries.decide(name, "throttle")
        for step in range(6):
            await asyncio.sleep(0.1)
            metrics.qmp_command("query-migrate", 0.001)
            metrics.qmp_command("migrate-set-parameters", 0.002)
            queries.change(
                name,
                kind=EventKind.PROGRESS,
                progress_ratio=0.1 + step / 10,
                throttle_ratio=0.2,
                remaining_bytes=2**30 - step * 2**27,
            )
        queries.change(name, state=State.SWITCHOVER)
        await asyncio.sleep(0.02)
        queries.change(name, state=State.POSTCOPY, mode=Mode.POSTCOPY)
        await asyncio.sleep(0.02)
        queries.end(
            name,
            State.COMPLETED,
            downtime_seconds=0.05,
            standstill_seconds=0.05,
            postcopy_stall_seconds=0.03,
            duration_seconds=0.7,
            forecast_error_ratio=0.04,
            progress_ratio=1.0,
        )


@contextlib.asynccontextmanager
async def _site() -> AsyncIterator[Site]:
    site = Site()
    async with site.metrics:
        await site.target.start()
        try:
            yield site
        finally:
            await site.target.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[Site]:
    """One for all: what the tests put into it they take out again."""
    async with _site() as site:
        yield site


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def prometheus(site: Site, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Prometheus]:
    """In the middle of an evacuation: some guests have moved and others move."""
    async with running(site.target, tmp_path_factory.mktemp("prometheus")) as prometheus:
        play = asyncio.create_task(site.evacuate(), name="evacuate")
        try:

            async def enough() -> bool:
                await asyncio.sleep(INTERVAL_SECONDS / 4)
                done = 'sum(increase(migrator_migrations_total{result="completed"}[1h])) > 4'
                return bool(await prometheus.query(done)) and not play.done()

            await until(enough, what="migrations are recorded", within=LIMIT_SECONDS)
            yield prometheus
        finally:
            play.cancel()
            await asyncio.wait({play})


async def test_every_panel_and_every_rule_has_data_in_a_normal_evacuation(
    site: Site, prometheus: Prometheus
) -> None:
    missing = {
        f"{title}: {expr}"
        for title, expr in panel_queries(rate_interval="5s", host="host-1", guest="guest-.*")
    }
    assert len(missing) > 80

    async def all_there() -> bool:
        # Between two guests nothing is under way for a moment: each query has to have data once.
        for query in sorted(missing):
            if await prometheus.query(query.split(": ", 2)[2]):
                missing.discard(query)
        return not missing

    with contextlib.suppress(TimeoutError):
        await until(all_there, what="data for every panel", within=LIMIT_SECONDS)
    assert not missing

    groups = (await prometheus.get("rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert [rule["lastError"] for rule in rules if rule["health"] != "ok"] == []
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    assert len(recorded) == (RULES / "recording.yml").read_text(encoding="utf-8").count("record:")
    assert [name for name in recorded if not await prometheus.query(name)] == []
    assert await prometheus.firing() == {}


async def test_every_column_of_a_table_is_a_label_of_its_results(site: Site, prometheus: Prometheus) -> None:
    queries = dict(panel_queries(rate_interval="5s", host="host-1", guest="guest-.*"))
    checked = 0
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            if panel["type"] != "table" or "nothing" in json.dumps(panel["targets"]):
                continue  # what is wrong has no rows now; the unit tests look at its columns
            organize = panel["transformations"][-1]["options"]
            wanted = {column for column in organize["renameByName"] if not column.startswith("Value")}
            expr = queries[f"{name}: {panel['title']}"]
            seen: set[str] = set()

            async def complete(expr: str = expr, wanted: set[str] = wanted, seen: set[str] = seen) -> bool:
                for result in await prometheus.query(expr):
                    seen.update(result["metric"])
                return wanted <= seen

            await until(complete, what=f"{panel['title']} with {wanted}, not {seen}", within=LIMIT_SECONDS)
            checked += 1
    assert checked >= 3


async def test_what_is_scraped_is_what_is_documented_and_variables_find_their_values(
    site: Site, prometheus: Prometheus
) -> None:
    names = set(await prometheus.get("label/__name__/values"))
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names if name.startswith("migrator_")}
    assert ours <= set(BY_NAME)
    assert "migrator_migration_info" in ours
    described = await prometheus.get("targets/metadata", match_target='{job="migrator"}')
    for each in described:
        assert each["help"]
    for board in BOARDS.values():
        for variable in board["templating"]["list"]:
            asked = variable.get("query", "")
            if variable["type"] == "query" and asked["query"].startswith("query_result("):
                expr = asked["query"].removeprefix("query_result(")[:-1].replace("$__range", "1h")
                found = await prometheus.query(re.sub(r"\$\w+", ".*", expr))
                known = {each["metric"]["guest"]: each["metric"].get("name") for each in found}
                assert known["guest-1"] == "name of guest-1"
            elif variable["type"] == "query":
                expr, label = variable["query"]["query"].removeprefix("label_values(")[:-1].rsplit(", ", 1)
                expr = re.sub(r"\$\w+", ".*", expr)
                values = await prometheus.get(f"label/{label}/values", **{"match[]": expr})
                assert values, expr


async def test_exemplars_name_the_migration(site: Site, prometheus: Prometheus) -> None:
    now = time.time()
    found = await prometheus.get(
        "query_exemplars",
        query="migrator_migration_downtime_seconds_bucket",
        start=now - 600,
        end=now + 1,
    )
    exemplars = [each["labels"]["migration"] for series in found for each in series["exemplars"]]
    assert exemplars
    assert all(re.fullmatch(r"m\d+", name) for name in exemplars)
    assert any("application/openmetrics-text" in accept for accept in site.target.accepted)


async def test_series_of_a_migration_end_with_it(site: Site, prometheus: Prometheus) -> None:
    site.queries.put(a_migration("mine"))
    progress = 'migrator_migration_progress_ratio{migration="mine"}'

    async def shown() -> bool:
        await asyncio.sleep(INTERVAL_SECONDS / 4)
        return bool(await prometheus.query(progress))

    async def gone() -> bool:
        return not await shown()

    await until(shown, what="it is shown", within=LIMIT_SECONDS)
    site.queries.end("mine", State.COMPLETED)
    await until(gone, what="it is gone, without waiting for five minutes", within=LIMIT_SECONDS)


async def test_every_fault_fires_its_alert_in_time_and_names_who(tmp_path: Path) -> None:
    async with _site() as site, running(site.target, tmp_path) as prometheus:
        await _break_everything(site, prometheus)


async def _break_everything(site: Site, prometheus: Prometheus) -> None:
    queries = site.queries
    site.queries.put(a_migration("before", guest="guest-1"))

    async def scraped() -> bool:
        await asyncio.sleep(INTERVAL_SECONDS / 4)
        return bool(await prometheus.query('migrator_migration_state{state="precopy"}'))

    await until(scraped, what="the first scrape", within=LIMIT_SECONDS)
    assert await prometheus.firing() == {}

    began = time.monotonic()
    queries.put(a_migration("h", guest="guest-0", state=State.HELD))
    queries.change("before", state=State.RECOVERING, mode=Mode.POSTCOPY)
    queries.decide("before", "postcopy-stall-exceeded")
    for number in range(12):
        queries.put(a_migration(f"f{number}", guest="guest-2"))
        queries.end(f"f{number}", State.FAILED)
    for number in range(36):
        queries.put(a_migration(f"d{number}", guest="guest-3"))
        queries.end(f"d{number}", State.COMPLETED, downtime_seconds=0.9, forecast_error_ratio=3.0)
    stuck = EvacuationGuest(guest="guest-4", standing=GuestStanding.NO_TARGET)
    late = datetime.now(UTC) - timedelta(seconds=1)
    queries.put_evacuation(an_evacuation(at_risk=True, deadline=late, guests=[stuck]))
    queries.hosts_by_name["host-2"] = a_host(
        "host-2",
        up=False,
        guests_undriven=1,
        guests_unmonitored=2,
        guests_duplicate=["guest-1"],
        certificates_expire_at=datetime.now(UTC) + timedelta(days=7),
    )
    queries.decide("h", VIOLATED, invariant="never-two")
    site.broker = site.lease = False
    site.metrics.mqtt_sessions_taken(1)
    site.complaint = "disk full"
    time.sleep(0.5)  # the loop is late

    fired: dict[str, float] = {}
    named: dict[str, str] = {}
    leads_to: dict[str, str] = {}
    every = set(_alert_names())

    async def all_fire() -> bool:
        for name, alerts in (await prometheus.firing()).items():
            fired.setdefault(name, time.monotonic() - began)
            leads_to.setdefault(name, alerts[0]["annotations"]["runbook_url"])
            named.setdefault(name, " ".join(alert["annotations"]["summary"] for alert in alerts))
        await asyncio.sleep(INTERVAL_SECONDS / 10)
        return fired.keys() >= every - {"MigratorDown"}

    with contextlib.suppress(TimeoutError):
        await until(all_fire, what="every alert fires", within=LIMIT_SECONDS)
    assert every - {"MigratorDown"} - fired.keys() == set()
    # It runs 20 times as fast as shipped; a busy machine may take twice its time. Two wait for a minute first.
    slowest = {name: after for name, after in fired.items() if name not in AFTER_A_MINUTE}
    assert max(slowest.values()) < 2 * SHIPPED_SECONDS * PACE, slowest
    assert leads_to == {name: f"https://docs.example/runbook#{name.lower()}" for name in leads_to}
    for name, who in (
        ("MigratorMigrationHeld", "name of guest-0 (guest-0)"),
        ("MigratorPostcopyBroken", "name of guest-1 (guest-1)"),
        ("MigratorPostcopyStall", site.target.address),
        ("MigratorNobodyPlans", "site test"),
        ("MigratorMigrationFailed", "name of guest-2 (guest-2)"),
        ("MigratorDowntimeAboveCeiling", "name of guest-3 (guest-3)"),
        ("MigratorGuestCannotLeave", "name of guest-4 (guest-4)"),
        ("MigratorHostUnreachable", "host-2"),
        ("MigratorGuestUndriven", "host-2"),
        ("MigratorGuestUnmonitored", "host-2: 2 of its guests"),
        ("MigratorGuestRunsTwice", "guest-1"),
        ("MigratorEvacuationLate", "host-1"),
        ("MigratorBrokerAway", site.target.address),
    ):
        assert who in named[name]

    stopped = time.monotonic()
    await site.target.stop()

    async def down() -> bool:
        await asyncio.sleep(INTERVAL_SECONDS / 10)
        return "MigratorDown" in await prometheus.firing()

    await until(down, what="MigratorDown", within=LIMIT_SECONDS)
    assert time.monotonic() - stopped < 2 * SHIPPED_SECONDS * PACE


def _alert_names() -> list[Any]:
    groups = yaml.safe_load((RULES / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"]]
