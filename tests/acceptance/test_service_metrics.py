"""What Prometheus is told after an evacuation of real guests is what happened."""

from __future__ import annotations

import asyncio
import math
import shutil
import subprocess
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from migrator.testing import network
from migrator.testing.lab import until
from tests.acceptance.service_site import MIB, SLOW, LiveSite, guest, served
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


async def samples(site: LiveSite) -> list[Any]:
    """Everything that is shown now."""
    status, text = await site.probe("/metrics")
    assert status == 200
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def total(found: list[Any], name: str, **labels: str) -> float:
    """The sum of all series of that name with these labels."""
    return math.fsum(
        sample.value for sample in found if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.mark.matrix
async def test_counts_downtimes_and_series_agree_with_what_happened() -> None:
    machines = [guest("calm"), guest("busy", region=64 * MIB, speed=30 * MIB)]
    async with served(machines, speed=SLOW) as site:
        with site.crawling():
            cancelled = await site.post("migrations", guest="busy", to="b")
            await site.until_state("precopy")
            during: list[Any] = []

            async def copied() -> bool:
                """What is left to copy is known a moment after it has begun."""
                during[:] = await samples(site)
                return total(during, "migrator_migration_remaining_bytes") > 0

            await until(copied, what="what is left")
            active = {sample.labels["migration"] for sample in during if "migration" in sample.labels}
            assert active == {cancelled["id"]}
            assert total(during, "migrator_migration_state", state="precopy") == 1
            await site.post(f"migrations/{cancelled['id']}/cancel")
        await site.migration_ended(cancelled["id"], "cancelled")
        run = await site.post("hosts/a/evacuate")
        await site.ended(run["id"], "completed")
        await site.everyone_at(machines, "b", "c")
        done = await site.migrations("completed")
        refused, _ = await site.try_post("migrations", guest="nobody")
        assert refused == 404

        found = await samples(site)
        assert len(done) == 2
        assert total(found, "migrator_migrations_total", result="completed") == 2
        assert total(found, "migrator_migrations_total", result="cancelled") == 1
        assert total(found, "migrator_migrations_total") == 3
        for mode in ("precopy", "postcopy", "offline"):
            of_mode = [each for each in done if each["mode"] == mode]
            count = total(found, "migrator_migration_downtime_seconds_count", mode=mode)
            assert count == len(of_mode)
            measured = sum(each["downtime_seconds"] for each in of_mode)
            shown = total(found, "migrator_migration_downtime_seconds_sum", mode=mode)
            assert shown == pytest.approx(measured)
        above = [each for each in done if each["downtime_seconds"] > each["max_downtime_seconds"]]
        assert total(found, "migrator_migration_downtime_ceiling_exceeded_total") == len(above)
        assert total(found, "migrator_evacuations_total", result="completed") == 1
        assert total(found, "migrator_evacuations_total") == 1
        commands = "migrator_commands_total"
        assert total(found, commands, verb="migrate", result="accepted", interface="http") == 1
        assert total(found, commands, verb="migrate", result="refused", interface="http") == 1
        assert total(found, commands, verb="evacuate", result="accepted", interface="http") == 1
        decisions = sum(len(each["decisions"]) for each in await site.migrations())
        assert total(found, "migrator_decisions_total") == decisions
        assert total(found, "migrator_host_state", host="a", state="maintenance") == 1
        assert total(found, "migrator_host_guests", host="a") == 0
        assert total(found, "migrator_host_guests") == 2
        assert total(found, "migrator_migrations_held") == 0
        # Nothing is shown of what has ended.
        assert [sample for sample in found if {"migration", "evacuation"} & set(sample.labels)] == []
        await asyncio.to_thread(_lint, (await site.probe("/metrics"))[1])


def _lint(text: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        missing("there is no promtool here")
    assert program
    done = subprocess.run(
        [program, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
