"""Normal evacuations raise no alert: simulated ones, scraped as they run, put to a real Prometheus afterwards."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import looptime
import pytest
import yaml  # type: ignore[import-untyped]

from migrator.api.commands import Evacuate, Role
from migrator.api.requests import Caller
from migrator.core.inventory import HostState
from migrator.metrics import Metrics, Probes
from migrator.metrics.gauges import BrokerGauges
from migrator.testing.simulated_service import SimulatedService
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.workload import MIB, idle, on_off, steady
from tests.conftest import missing
from tests.prometheus import RULES, serving

OPERATOR = Caller(user="unix:0", role=Role.OPERATOR, interface="http")
#: As shipped.
INTERVAL_SECONDS = 10
FOR_SECONDS = 15
#: Where the simulated time lies: long ago, and at a full block of Prometheus.
EPOCH = 1_600_000_000 // 7200 * 7200


def _rules(name: str, key: str) -> dict[str, str]:
    groups = yaml.safe_load((RULES / f"{name}.yml").read_text(encoding="utf-8"))["groups"]
    return {rule[key]: rule["expr"] for group in groups for rule in group["rules"]}


def _alerts() -> dict[str, str]:
    """What each alert asks, with what is recorded put in: there is nobody who records the past."""
    recorded = _rules("recording", "record")
    found = {}
    for name, expr in _rules("alerts", "alert").items():
        for record, text in recorded.items():
            expr = expr.replace(record, f"({text})")
        found[name] = expr
    return found


def _wanted(exprs: list[str]) -> set[str]:
    """The metrics that these name."""
    return {name for expr in exprs for name in re.findall(r"\bmigrator_\w+", expr)}


class Scrapes:
    """What Prometheus would have stored."""

    def __init__(self, wanted: set[str]) -> None:
        self._wanted = wanted
        self.lines: list[str] = []
        self.last = 0

    def add(self, text: str, labels: str, at: int) -> None:
        """One scrape, at that moment, with the labels of its target."""
        self.last = max(self.last, at)
        for line in text.splitlines():
            name = re.match(r"\w+", line)
            if name is not None and name[0] in self._wanted:
                series, _, value = line.rpartition(" ")
                inside = series[len(name[0]) + 1 : -1]
                self.lines.append(f"{name[0]}{{{','.join(filter(None, (inside, labels)))}}} {value} {at}")

    def text(self) -> str:
        """As promtool reads it."""
        return "\n".join([*self.lines, "# EOF", ""])


def _site(rng: random.Random) -> SimulatedSite:
    """Four hosts; on the first, guests of the habits that most have."""
    site = SimulatedSite()
    for name in ("a", "b", "c", "d"):
        site.add_host(name, link=1000 * MIB)
    for number in range(rng.randint(4, 10)):
        region = rng.choice((64, 128, 256)) * MIB
        habit = rng.choice(
            (
                idle(),
                steady(region, rng.uniform(1, 60) * MIB),
                on_off(region, rng.uniform(50, 300) * MIB, on_seconds=5, off_seconds=10),
            )
        )
        memory = rng.choice((512, 1024, 4096)) * MIB
        site.add_guest(f"vm-{number}", host="a", workload=habit, memory_bytes=memory)
    return site


async def _evacuate(number: int, directory: Path, scrapes: Scrapes, broken: str) -> int:
    """One evacuation, scraped every 10 s of its own time; how many guests it moved.

    :param broken: a host that does not answer.
    """
    loop = asyncio.get_running_loop()
    site = _site(random.Random(number))
    if broken:
        site.hosts[broken].down = True
    start = EPOCH + number * 900
    began = loop.time()

    def now() -> float:
        return start + loop.time() - began

    probes = Probes(broker=lambda: BrokerGauges(connected=True))
    labels = f'job="migrator",instance="run-{number}",site="simulated"'

    service = SimulatedService(directory / str(number), site)
    async with service.running() as running:
        metrics = Metrics(queries=running.queries, version="1", probes=probes, clock=loop.time, now=now)

        async def prometheus() -> None:
            while True:
                text, _ = metrics.render(metrics.snapshot(), None)
                scrapes.add(text.decode(), labels, int(now()))
                await asyncio.sleep(INTERVAL_SECONDS)

        scraping = asyncio.create_task(prometheus(), name="scrape")
        deadline = datetime.now(UTC) + timedelta(minutes=10)
        await asyncio.sleep(INTERVAL_SECONDS)
        await running.ask(Evacuate(host="a", deadline=deadline))
        await running.until(lambda: running.queries.host("a").state is HostState.MAINTENANCE, 600)
        await asyncio.sleep(3 * INTERVAL_SECONDS)
        scraping.cancel()
        await asyncio.wait({scraping})
    completed = re.search(r'migrations_total\{mode="precopy",result="completed"\} (\d+)', _final(metrics))
    return int(completed[1]) if completed else 0


def _final(metrics: Metrics) -> str:
    text, _ = metrics.render(metrics.snapshot(), None)
    return text.decode()


def _simulate(count: int, directory: Path, scrapes: Scrapes, *, broken: str = "") -> int:
    loop = looptime.new_event_loop(start=0.0, _enabled=True)
    try:
        moved = 0
        for number in range(count):
            moved += loop.run_until_complete(_evacuate(number, directory, scrapes, broken))
        return moved
    finally:
        loop.close()


def _longest_seconds(values: list[list[Any]]) -> float:
    """The longest that an expression held, by its values at every evaluation."""
    longest = begun = before = float("-inf")
    for at, _ in values:
        if at - before > INTERVAL_SECONDS:
            begun = at
        before = at
        longest = max(longest, at - begun)
    return longest


def _fired(alerts: dict[str, str], scrapes: Scrapes, folder: Path, *, hosts: int) -> dict[str, str]:
    """Alerts that would have fired, with the labels of one."""
    (folder / "scrapes").write_text(scrapes.text(), encoding="utf-8")
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "-q"]
    made = subprocess.run(
        [*command, str(folder / "scrapes"), str(folder / "data")],
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert made.returncode == 0, made.stderr.decode()
    fired = {}
    with serving(folder / "data", folder) as get:
        whole = f"count(last_over_time(migrator_host_up[{scrapes.last - EPOCH + 1}s]))"
        seen = get("query", query=whole, time=scrapes.last)["result"]
        assert float(seen[0]["value"][1]) == hosts, "not all of it was stored"
        for name, expr in alerts.items():
            # A query has at most 11,000 steps.
            for begin in range(EPOCH, scrapes.last, 10_000 * INTERVAL_SECONDS):
                end = min(begin + 10_000 * INTERVAL_SECONDS, scrapes.last)
                span = {"start": begin, "end": end, "step": INTERVAL_SECONDS}
                for series in get("query_range", query=expr, **span)["result"]:
                    if _longest_seconds(series["values"]) >= FOR_SECONDS:
                        fired[name] = json.dumps(series["metric"])
    return fired


@pytest.fixture
def tools() -> None:
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        missing("there is no prometheus here")


@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.matrix)])
@pytest.mark.timeout(900)
def test_no_alert_fires_in_normal_evacuations(count: int, tools: None, tmp_path: Path) -> None:
    alerts = _alerts()
    scrapes = Scrapes(_wanted(list(alerts.values())))
    moved = _simulate(count, tmp_path / "steps", scrapes)
    assert moved >= 4 * count
    assert _fired(alerts, scrapes, tmp_path, hosts=4 * count) == {}


def test_looked_at_in_the_same_way_a_fault_is_found(tools: None, tmp_path: Path) -> None:
    alerts = _alerts()
    scrapes = Scrapes(_wanted(list(alerts.values())))
    assert _simulate(2, tmp_path / "steps", scrapes, broken="d") >= 8
    fired = _fired(alerts, scrapes, tmp_path, hosts=8)
    assert set(fired) == {"MigratorHostUnreachable"}
    assert json.loads(fired["MigratorHostUnreachable"])["host"] == "d"
