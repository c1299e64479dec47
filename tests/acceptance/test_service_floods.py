"""Floods on every entrance while real guests are moved: they cost the guests nothing, and no memory is kept."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from migrator.testing import network
from migrator.testing.lab import until
from tests.acceptance.service_site import FAST, MIB, LiveSite, Witness, at_broker, guest, served
from tests.broker import USERS, Broker, mosquitto
from tests.conftest import missing


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if (why := network.possible()) is not None:
        missing(why)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    if mosquitto() is None:
        missing("there is no mosquitto here")
    with Broker(tmp_path / "broker") as broker:
        yield broker


def resident_bytes(process: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096


@dataclass(frozen=True)
class Size:
    """Of the floods, and of what goes on beside them."""

    #: Of each flood.
    connections: int
    #: Seconds between two requests of one connection.
    pause: float
    #: How often all guests are moved there and back.
    times: int
    #: Connections that the service takes from one address: fewer than come.
    taken: int = 128


SHORT = Size(connections=8, pause=0.2, times=1, taken=12)
LONG = Size(connections=100, pause=0.0, times=10)


@contextlib.contextmanager
def flood(size: Size, kind: str, where: str, what: str = "") -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.flood", str(size.connections), str(size.pause), kind, where, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def flooded(size: Size, broker: Broker, api: str, token: str) -> Iterator[None]:
    """Every entrance at once: connections, requests with and without a token, streams, commands."""
    with contextlib.ExitStack() as stack:
        for kind, what in (
            ("silent", ""),
            ("asks", "/healthz"),
            ("asks", "/openapi.json"),
            ("streams", token),
        ):
            stack.enter_context(flood(size, kind, api, what))
        stack.enter_context(flood(size, "commands", f"127.0.0.1:{broker.port}", f"other {USERS['other']}"))
        yield


async def moved(site: LiveSite, times: int) -> list[dict[str, Any]]:
    """Evacuate and restore so many times; the documents of all migrations."""
    before = {each["id"] for each in await site.migrations()}
    for _ in range(times):
        for verb in ("evacuate", "restore"):
            run = await site.post(f"hosts/a/{verb}")
            await site.ended(run["id"], "completed", within=120)
    return [each for each in await site.migrations() if each["id"] not in before]


@pytest.mark.matrix
@pytest.mark.parametrize("size", [SHORT, pytest.param(LONG, marks=pytest.mark.soak)], ids=["short", "long"])
async def test_floods_on_every_entrance_cost_the_guests_nothing(broker: Broker, size: Size) -> None:
    """What they cost in time is measured by the long one alone, on a machine that does nothing else."""
    machines = [guest("calm", region=4 * MIB, speed=1 * MIB), guest("busy")]

    def prepare(site: LiveSite) -> None:
        site.change_config(("[http]\n", f"[http]\nconnections_per_address = {size.taken}\n"))

    async with (
        served(machines, speed=FAST, extra=at_broker(broker), page=True, prepare=prepare) as site,
        Witness(site, machines),
    ):
        assert site.service is not None
        ready = (await asyncio.to_thread(site.said, "ready"))[-1]
        api = next(where for where in ready["listening"] if where.startswith("http://"))
        token = (await site.cli("token", "create", "reader", "--role", "viewer")).stdout.strip()
        quiet = await moved(site, size.times) if size is LONG else []
        at_first = resident_bytes(site.service)
        with flooded(size, broker, api.removeprefix("http://"), token):
            await until(
                lambda: bool(site.said("connections refused")),
                what="the floods to be under way",
            )
            loud = await moved(site, size.times)
        assert {each["state"] for each in (*quiet, *loud)} == {"completed"}
        assert len(loud) == 2 * len(machines) * size.times
        await site.everyone_at(machines, "a")
        status, _ = await site.probe("/healthz")
        assert status == 200
        if size is LONG:
            for each in loud:
                assert each["downtime_seconds"] <= each["max_downtime_seconds"], (each, site.log()[-4000:])
            gone = [statistics.median(each["downtime_seconds"] for each in some) for some in (quiet, loud)]
            print(f"median downtime: quiet {gone[0]:.4f} s, under the floods {gone[1]:.4f} s")  # noqa: T201
            assert gone[1] - gone[0] <= 0.010
            await until(
                lambda: resident_bytes(site.service) <= 1.2 * at_first,  # type: ignore[arg-type]
                what="the memory back",
                within=120,
            )
        refused = site.said("connections refused")
        assert len(refused) <= 6 * size.times, "one line a minute and entrance"
