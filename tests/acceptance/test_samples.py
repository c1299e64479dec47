"""The curve of a migration: kept by the service, given over HTTP, drawn by id, one though the service is killed."""

from __future__ import annotations

import itertools
import re
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from migrator.core.migration.downsampling import MOST
from migrator.testing import network
from tests.acceptance.service_site import MIB, SLOW, LiveSite, eventually, guest, served
from tests.conftest import missing

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


async def _samples(site: LiveSite, identifier: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await site.get(f"migrations/{identifier}/samples"))["items"]
    return items


def _curve(svg: str, name: str) -> list[tuple[float, float]]:
    """The points of one of a picture's curves."""
    for path in ET.fromstring(svg).iter(f"{SVG}path"):
        if path.findtext(f"{SVG}title") == name:
            return [
                (float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path.get("d") or "")
            ]
    return []


@pytest.mark.matrix
async def test_a_curve_is_kept_and_drawn_and_outlives_a_kill(tmp_path: Path) -> None:
    machine = guest("busy", region=96 * MIB, speed=26 * MIB)
    async with served([machine], "a", "b", speed=SLOW) as site:
        asked = await site.post("migrations", guest="busy", policy="default", to="b")
        identifier = asked["id"]
        before: list[dict[str, Any]] = []

        async def under_way() -> bool:
            before[:] = await _samples(site, identifier)
            return len(before) > 8 and before[-1]["at_seconds"] > 1.6

        await eventually(under_way, "samples of the copying", site)
        decided = (await site.get(f"migrations/{identifier}"))["decisions"]
        # The document of a while ago has been written too; what a kill may cost is the last second.
        await site.restart()
        document = await site.migration_ended(identifier, "completed")
        after = await _samples(site, identifier)
        await site.runs_once(machine)

        times = [each["at_seconds"] for each in after]
        assert 10 <= len(after) <= MOST
        assert times == sorted(set(times))
        # Its duration is until the guest runs at its destination; in postcopy more memory follows.
        began, ended = (datetime.fromisoformat(document[each]) for each in ("started_at", "ended_at"))
        assert times[-1] <= (ended - began).total_seconds() + 1
        written = [each for each in before if each["at_seconds"] < before[-1]["at_seconds"] - 1.3]
        assert written
        assert [each for each in after if each["at_seconds"] <= written[-1]["at_seconds"]] == written
        # One axis: nothing began anew, and the gap is the kill's.
        sent = [each["transferred_bytes"] for each in after]
        assert all(one <= two for one, two in itertools.pairwise(sent)), sent
        assert sum(each["at_seconds"] > before[-1]["at_seconds"] for each in after) >= 5
        states = [state for state, _ in itertools.groupby(each["state"] for each in after)]
        assert states[0] == "precopy"
        assert len({each["round"] for each in after}) >= 3
        assert document["duration_seconds"] > before[-1]["at_seconds"]
        actions = [(each["action"], each["at_seconds"]) for each in document["decisions"]]
        assert "take-up" in dict(actions), actions
        assert document["decisions"][: len(decided)] == decided, (
            "what was decided before the kill is still there"
        )
        assert [at for _, at in actions] == sorted(at for _, at in actions)

        output = tmp_path / "run.svg"
        drawn = await site.cli("report", identifier, "--output", str(output))
        assert drawn.returncode == 0, drawn.stderr
        svg = output.read_text(encoding="utf-8")
        remaining, stream = _curve(svg, "remaining memory"), _curve(svg, "bandwidth")
        assert len(stream) == len(after)
        # The picture and the service say the same: the same times but for scale, the same heights but for direction.
        first, last = (0, stream[0][0]), (len(after) - 1, stream[-1][0])
        scale = (last[1] - first[1]) / (times[-1] - times[0])
        for (x, y), each in zip(remaining, after, strict=False):
            assert x == pytest.approx(first[1] + (each["at_seconds"] - times[0]) * scale, abs=0.3)
            share = (max(y for _, y in remaining) - y) / (max(y for _, y in remaining) - remaining[0][1])
            assert share == pytest.approx(each["remaining_bytes"] / after[0]["remaining_bytes"], abs=0.02)

        # Kept for as long as the migration is.
        await site.restart()
        assert await _samples(site, identifier) == after


async def test_there_are_none_of_what_there_is_not() -> None:
    machine = guest("calm")
    async with served([machine], "a", "b") as site:
        got = await site._http.get("/api/v1/migrations/none/samples")
        assert (got.status_code, got.json()["type"]) == (404, got.json()["type"])
        assert "there is no migration none" in got.text
