"""A real Prometheus scrapes a live service that empties a host of real guests."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from migrator.testing import network
from migrator.testing.lab import GuestMachine, Habit, until
from migrator.testing.site import LabSite
from tests.conftest import missing
from tests.panels import panel_queries
from tests.prometheus import Prometheus, running

MIB = 1 << 20
#: Neither a broker nor a shared journal is configured here, and no maintenance window is planned; the panels say so.
ABSENT = (
    "migrator_window_start_timestamp_seconds",
    *("migrator_mqtt_connected", "migrator_mqtt_waiting_messages"),
    *("migrator_lease_age_seconds", "migrator_controller_migrations"),
)


@dataclass(frozen=True)
class Served:
    """Where the service shows its metrics."""

    address: str


def _machines() -> list[GuestMachine]:
    # Some rest, some write about as fast as the link carries.
    speeds = {"idle": 0, "quiet": 4 * MIB, "busy": 24 * MIB, "busier": 120 * MIB}
    return [
        GuestMachine(
            name=name,
            memory_bytes=160 * MIB,
            habit=Habit(region_bytes=96 * MIB, bytes_per_second=speed),
            image_locking="off",
        )
        for name, speed in speeds.items()
    ]


@asynccontextmanager
async def _service() -> AsyncIterator[tuple[LabSite, Served]]:
    with LabSite("a", "b", "c", bytes_per_second=64 * MIB) as site:
        await asyncio.gather(*(site.boot(machine, "a") for machine in _machines()))
        site.serve()
        await site.until_served()
        found: list[str] = []

        def listening() -> bool:
            for line in site.log().splitlines():
                with suppress(ValueError):
                    said = json.loads(line)
                    found.extend(each for each in said.get("listening", ()) if each.startswith("http"))
            return bool(found)

        await until(listening, what="the address of the metrics", within=20)
        yield site, Served(found[-1].removeprefix("http://").rstrip("/"))


@pytest.mark.matrix
@pytest.mark.timeout(180)
async def test_every_panel_has_data_while_real_guests_leave_a_host(tmp_path: Path) -> None:
    if (why := network.possible()) is not None:
        missing(why)
    asked = panel_queries(rate_interval="20s", host="a", guest=".+")
    without = {(title, expr) for title, expr in asked if not any(name in expr for name in ABSENT)}
    assert len(without) > 80
    async with _service() as (site, served), running(served, tmp_path) as prometheus:

        async def scraped() -> bool:
            return len(await prometheus.query('migrator_guest_info{host="a"}')) == 4

        await until(scraped, what="the guests are found and scraped", within=30)
        began = time.time()
        evacuated = await asyncio.to_thread(site.command, "evacuate", "a", "--deadline", "+10m", "--wait")
        assert evacuated.returncode == 0, (evacuated, site.log())

        async def shown() -> bool:
            """Ask what each panel has shown since the evacuation began: some show what is for as long as it is."""
            for title, expr in sorted(without):
                if await prometheus.had_data(expr, since=began):
                    without.discard((title, expr))
            return not without

        with suppress(TimeoutError):
            await until(shown, what="data for every panel", within=20)
        assert not without, "\n".join(f"{title}: {expr}" for title, expr in sorted(without))

        await _agrees(site, prometheus)
        await asyncio.to_thread(_report, site, tmp_path)
        groups = (await prometheus.get("rules"))["groups"]
        assert [
            rule["lastError"] for group in groups for rule in group["rules"] if rule["health"] != "ok"
        ] == []
        # Whoever stood still or waited for pages for too long on this busy machine is told of; nothing else is wrong.
        slow = {"MigratorDowntimeAboveCeiling", "MigratorPostcopyStall", "MigratorEventLoopLate"}
        assert set(await prometheus.firing()) <= slow


async def _agrees(site: LabSite, prometheus: Prometheus) -> None:
    """What is counted is what the journal says."""
    moved = [
        each
        for name in ("idle", "quiet", "busy", "busier")
        for each in json.loads(site.command("guests", "--json").stdout)["items"]
        if each["name"] == name and each["host"] != "a"
    ]
    assert len(moved) == 4

    wanted = {
        'sum(migrator_migrations_total{result="completed"})': [4],
        "sum(migrator_migration_downtime_seconds_count)": [4],
        "sum(migrator_migration_duration_seconds_count)": [4],
        'migrator_evacuations_total{result="completed"}': [1],
        'migrator_commands_total{interface="http", verb="evacuate", result="accepted"}': [1],
        "migrator_migration_info": [],
        'migrator_host_state{host="a", state="maintenance"}': [1],
    }
    found: dict[str, list[float]] = {}

    async def scraped() -> bool:
        for query in wanted:
            found[query] = [each["number"] for each in await prometheus.query(query)]
        return found == wanted

    with suppress(TimeoutError):
        await until(scraped, what="the end of the evacuation is scraped", within=20)
    assert found == wanted


def _report(site: LabSite, folder: Path) -> None:
    """Any of these runs can be drawn from what the service keeps."""
    transport = httpx2.HTTPTransport(uds=site.server.removeprefix("unix:"), verify=False)
    with httpx2.Client(transport=transport, base_url="http://migrator/api/v1/", timeout=20) as client:
        migrations = client.get("migrations").json()["items"]
    assert len(migrations) == 4
    for migration in migrations[:2]:
        assert _draw(site, migration["id"], folder / "run.svg") == 0
        drawn = (folder / "run.svg").read_text(encoding="utf-8")
        assert migration["guest_name"] in drawn
        assert "took" in drawn
    assert _draw(site, "no-such-id", folder / "none.svg") != 0
    assert not (folder / "none.svg").exists()


def _draw(site: LabSite, which: str, output: Path) -> int:
    code = "import sys, pathlib; from migrator.cli.report import main; "
    code += "main(sys.argv[1], pathlib.Path(sys.argv[2]), server=sys.argv[3])"
    command = [sys.executable, "-c", code, which, str(output), site.server]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode
