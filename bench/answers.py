"""``python -m bench.answers``: how long a command waits for its answer, by HTTP and MQTT, while 100 migrations run.

The whole service as it is, with its journal on disk and a real broker; only the hosts and their QEMUs are simulated, in
real time. So it is the controller that is measured, not what hosts take.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2

from bench import simulated_service
from bench.figures import ms, paragraphs, table
from bench.libvirt import Unavailable
from bench.machine import Quiet, describe
from bench.options import Options
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.workload import MIB, steady
from tests.broker import USERS, Broker, mosquitto
from tests.mqtt_peer import Peer, peer

_PAIRS = 100
COMMANDS = 200
_MEDIAN_SECONDS, _P99_SECONDS = 0.020, 0.100
_TIMEOUT_SECONDS = 60.0
#: Between two commands: what is measured is an answer, not a queue.
_PAUSE_SECONDS = 0.02

_Ask = Callable[[int], Awaitable[None]]


def main(arguments: list[str]) -> int:
    """Measure and print; the exit status is 1 when an aim was not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.answers", description=__doc__)
    parser.add_argument("--commands", type=int, default=COMMANDS, help="of each kind (default: %(default)s)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve is not None:
        simulated_service.run(given.serve, _populate)
        return 0
    text, met = asyncio.run(measure(given.commands))
    print(f"{describe()}\n\n{text}")
    return 0 if met else 1


async def run(_: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text.

    :raise Unavailable: where there is no broker.
    """
    if mosquitto() is None:
        raise Unavailable("there is no mosquitto here")
    await quiet.wait()
    text, _met = await measure(COMMANDS)
    return paragraphs(f"{describe()} · {COMMANDS} commands of each kind · {quiet}", text)


def _populate(site: SimulatedSite) -> None:
    """Pairs of hosts with a guest each that never comes to rest."""
    for n in range(_PAIRS):
        site.add_host(f"s{n}", link=100 * MIB)
        site.add_host(f"t{n}", link=100 * MIB)
        site.add_guest(
            f"vm-{n}", host=f"s{n}", workload=steady(4096 * MIB, 90 * MIB), memory_bytes=8192 * MIB
        )


def _configuration(directory: Path, broker: Broker) -> Path:
    hosts = "".join(
        f'[[hosts]]\nname = "{side}{n}"\nssh = "{side}{n}"\nlink_speed = "100MiB/s"\n'
        for n in range(_PAIRS)
        for side in "st"
    )
    path = directory / "migrator.toml"
    path.write_text(
        '[site]\nname = "site"\ninstance = "one"\ndefault_policy = "gentle"\nlog_level = "warning"\n'
        '[http]\nsocket = "api.sock"\nmetrics_listen = ""\nrequests_per_second = 1000\nburst = 1000\n'
        '[store]\npath = "state/journal.db"\n'
        f'[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\nusername = "migrator"\n'
        f'password = "{USERS["migrator"]}"\noperators = ["scheduler"]\n{hosts}'
    )
    return path


async def measure(commands: int) -> tuple[str, bool]:
    """Return the section's text, and whether the aims were met."""
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        directory = Path(temporary)
        with Broker(directory / "broker") as broker:
            path = _configuration(directory, broker)
            with (directory / "log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "bench.answers", "--serve", str(path)], stderr=log, stdout=log
                )
            try:
                async with (
                    httpx2.AsyncClient(
                        transport=httpx2.AsyncHTTPTransport(uds=str(directory / "api.sock"), verify=False),
                        base_url="http://migrator/api/v1",
                        timeout=30,
                    ) as http,
                    peer(broker, topics=("migrator/v1/site/reply/scheduler/#",)) as scheduler,
                ):
                    return await _figures(http, scheduler, commands)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()


async def _figures(http: httpx2.AsyncClient, scheduler: Peer, commands: int) -> tuple[str, bool]:
    await _until(lambda: _known(http))
    kinds = _kinds(http, scheduler)
    quiet = {kind: await _timed(ask, commands) for kind, ask in kinds.items()}
    for n in range(_PAIRS):
        got = await http.post("/migrations", json={"guest": f"vm-{n}", "to": f"t{n}"})
        got.raise_for_status()
    await _until(lambda: _under_way(http))
    busy = {kind: await _timed(ask, commands) for kind, ask in kinds.items()}
    still = await _under_way(http)
    rows, met = [], still
    for kind in kinds:
        for under_way, values in (("0", quiet[kind]), (str(_PAIRS), busy[kind])):
            median, p99 = statistics.median(values), statistics.quantiles(values, n=100)[98]
            good = median <= _MEDIAN_SECONDS and p99 <= _P99_SECONDS
            met = met and (good or under_way == "0")
            against = f"{median / statistics.median(quiet[kind]):.2f} ×"
            rows.append(
                [kind, under_way, ms(median), ms(p99), against, "aim met" if good else "**aim not met**"]
            )
    header = ["command", "migrations", "median ms", "p99 ms", "median beside none", "verdict"]
    text = paragraphs(
        "The service with its journal on disk and a real broker; only hosts and QEMUs are simulated. "
        f"From sending a command until its answer is there. Aim: {ms(_MEDIAN_SECONDS)} ms in the median, "
        f"{ms(_P99_SECONDS)} ms at p99, with {_PAIRS} migrations under way"
        + ("." if still else "; **fewer were at the end**."),
        table(header, rows),
    )
    return text, met


def _kinds(http: httpx2.AsyncClient, scheduler: Peer) -> dict[str, _Ask]:
    run = f"{os.getpid()}-{time.time_ns()}"
    count = 0

    def fresh() -> str:
        nonlocal count
        count += 1
        return f"{run}-{count}"

    async def http_accepted(n: int) -> None:
        got = await http.post(f"/hosts/t{n % _PAIRS}/activate", json={}, headers={"Idempotency-Key": fresh()})
        assert got.status_code == 200, got.text

    async def http_refused(_: int) -> None:
        got = await http.post("/hosts/nobody/activate", json={}, headers={"Idempotency-Key": fresh()})
        assert got.status_code == 404, got.text

    async def by_mqtt(verb: str, kind: str, **fields: Any) -> None:
        identifier = fresh()
        await scheduler.command(verb, id=identifier, **fields)
        while not scheduler.replies(identifier):
            await asyncio.sleep(0.0005)
        [reply] = scheduler.replies(identifier)
        assert reply["kind"] == kind, json.dumps(reply)
        scheduler.got.clear()

    async def mqtt_accepted(n: int) -> None:
        await by_mqtt("activate", "accepted", host=f"t{n % _PAIRS}")

    async def mqtt_refused(_: int) -> None:
        await by_mqtt("activate", "refused", host="nobody")

    return {
        "HTTP, accepted": http_accepted,
        "HTTP, refused": http_refused,
        "MQTT, accepted": mqtt_accepted,
        "MQTT, refused": mqtt_refused,
    }


async def _timed(ask: _Ask, commands: int) -> list[float]:
    values = []
    for n in range(commands):
        began = time.perf_counter()
        await ask(n)
        values.append(time.perf_counter() - began)
        await asyncio.sleep(_PAUSE_SECONDS)
    return values


async def _until(probe: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        while not await probe():
            await asyncio.sleep(0.2)


async def _known(http: httpx2.AsyncClient) -> bool:
    try:
        got = await http.get("/guests")
    except httpx2.TransportError:
        return False
    return got.status_code == 200 and len(got.json()["items"]) == _PAIRS


async def _under_way(http: httpx2.AsyncClient) -> bool:
    items = (await http.get("/migrations", params={"limit": _PAIRS})).json()["items"]
    return len([each for each in items if each["state"] == "precopy"]) == _PAIRS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
