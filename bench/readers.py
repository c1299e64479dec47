"""``python -m bench.readers``: how long requests take beside many streams, on a site of a thousand guests.

The whole service as it is; only the hosts and their QEMUs are simulated, in real time. Ten guests move all along, so
that there is something to tell.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from bench import simulated_service
from bench.figures import ms, paragraphs, table
from bench.machine import Quiet, describe
from bench.options import Options
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.workload import MIB, steady

_HOSTS, _GUESTS_EACH, _MOVING = 100, 10, 10
_STREAMS, _RATE, _SECONDS = 200, 50.0, 20.0
#: Aims: of a request, and of what is kept of memory once everybody has gone.
_P99_SECONDS, _KEPT_RATIO = 0.250, 0.20
_TIMEOUT_SECONDS = 60.0
#: What a client asks for by turns: what the page and the command line ask for.
_PATHS = (
    "guests",
    "hosts",
    "migrations?active=true",
    "guests?host=h1",
    "events?after=0&limit=500",
    "evacuations",
)


def main(arguments: list[str]) -> int:
    """Measure and print; the exit status is 1 when an aim was not met."""
    parser = argparse.ArgumentParser(prog="python -m bench.readers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=_SECONDS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve is not None:
        simulated_service.run(given.serve, _populate)
        return 0
    text, met = asyncio.run(_measure(given.seconds))
    print(f"{describe()}\n\n{text}")
    return 0 if met else 1


async def run(_: Options, quiet: Quiet) -> str:
    """Measure it; returns the section's text."""
    await quiet.wait()
    text, _met = await _measure(_SECONDS)
    return paragraphs(f"{describe()} · 1 run · {quiet}", text)


def _populate(site: SimulatedSite) -> None:
    for number in range(_HOSTS):
        site.add_host(f"h{number}", link=100 * MIB)
        for each in range(_GUESTS_EACH):
            site.add_guest(
                f"vm-{number}-{each}",
                host=f"h{number}",
                workload=steady(2048 * MIB, 90 * MIB),
                memory_bytes=4096 * MIB,
            )


def _configuration(directory: Path) -> Path:
    hosts = "".join(
        f'[[hosts]]\nname = "h{number}"\nssh = "h{number}"\nlink_speed = "100MiB/s"\n'
        for number in range(_HOSTS)
    )
    path = directory / "migrator.toml"
    path.write_text(
        '[site]\nname = "site"\ndefault_policy = "gentle"\nlog_level = "error"\n'
        f'[http]\nsocket = "api.sock"\nmetrics_listen = ""\nstreams_per_caller = {_STREAMS + 1}\n'
        f"connections_per_address = {2 * _STREAMS + 100}\nrequests_per_second = 1000\nburst = 1000\n"
        f'[store]\npath = "state/journal.db"\n{hosts}'
    )
    return path


async def _measure(seconds: float) -> tuple[str, bool]:
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        directory = Path(temporary)
        path = _configuration(directory)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.readers", "--serve", str(path)], stderr=log, stdout=log
            )
        try:
            return await _figures(directory / "api.sock", process.pid, seconds)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _client(socket: Path) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=None)
    transport = httpx2.AsyncHTTPTransport(uds=str(socket), limits=limits, verify=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://migrator/api/v1/", timeout=30)


async def _figures(socket: Path, pid: int, seconds: float) -> tuple[str, bool]:
    async with _client(socket) as http:
        await _ready(http)
        for number in range(_MOVING):
            body = {"guest": f"vm-{number}-0", "to": f"h{number + _MOVING}"}
            got = await http.post("migrations", json=body)
            assert got.status_code == 202, got.text
        rows = []
        before = _resident(pid)
        alone, _ = await _asked(http, seconds)
        async with _streams(socket, read=True):
            beside, failed = await _asked(http, seconds)
        async with _streams(socket, read=False):
            await asyncio.sleep(seconds / 2)
            most = _resident(pid)
        await asyncio.sleep(5.0)
        kept = _resident(pid) / before - 1
    for streams, values in (("0", alone), (f"{_STREAMS}", beside)):
        rows.append([streams, f"{len(values)}", ms(statistics.median(values)), ms(_p99(values))])
    met = _p99(beside) <= _P99_SECONDS and not failed and kept <= _KEPT_RATIO
    text = paragraphs(
        f"{_HOSTS * _GUESTS_EACH} guests on {_HOSTS} hosts, {_MOVING} of them on their way; {_RATE:g} requests a "
        f"second for {seconds:g} s: guests, hosts, migrations, evacuations, a page of events.",
        table(["streams", "requests", "median ms", "p99 ms"], rows),
        f"Aim: p99 at most {ms(_P99_SECONDS)} ms beside {_STREAMS} streams, none failed; {failed} failed. {_STREAMS} "
        f"streams from the journal's beginning that nobody reads: {most / MIB:.0f} MiB resident instead of "
        f"{before / MIB:.0f} MiB, and {kept:+.0%} once they have gone (aim: {_KEPT_RATIO:+.0%}). "
        + ("Aims met." if met else "**Aims not met.**"),
    )
    return text, met


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


async def _asked(http: httpx2.AsyncClient, seconds: float) -> tuple[list[float], int]:
    """Ask at a steady rate, whether or not the answers come; seconds of each, and how many failed."""
    values: list[float] = []
    failed = 0

    async def ask(path: str) -> None:
        nonlocal failed
        began = time.perf_counter()
        try:
            got = await http.get(path, headers={"Accept": "application/json"})
            good = got.status_code == 200
        except httpx2.TransportError:
            good = False
        values.append(time.perf_counter() - began)
        failed += not good

    async with asyncio.TaskGroup() as group:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(int(seconds * _RATE)):
            await asyncio.sleep(max(0.0, began + number / _RATE - loop.time()))
            group.create_task(ask(_PATHS[number % len(_PATHS)]), name=f"request {number}")
    return values, failed


@asynccontextmanager
async def _streams(socket: Path, *, read: bool) -> AsyncIterator[None]:
    """Many streams of everything, in a process of their own as long as the block lasts."""
    how = "read" if read else "ignore"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _READER,
        str(socket),
        str(_STREAMS),
        how,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await child.stdout.readline()
        yield
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


_READER = """
import socket, sys, threading, time
path, count, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
head = b"GET /api/v1/events%s HTTP/1.1\\r\\nHost: x\\r\\nAccept: text/event-stream\\r\\n\\r\\n"
there = []
for _ in range(count):
    one = socket.socket(socket.AF_UNIX)
    one.connect(path)
    one.sendall(head % (b"" if how == "read" else b"?after=0"))
    one.recv(15)
    there.append(one)
def read(one):
    while one.recv(65536):
        pass
if how == "read":
    for one in there:
        threading.Thread(target=read, args=(one,), daemon=True).start()
print("there", flush=True)
sys.stdin.read()
"""


def _resident(pid: int) -> int:
    """Memory of the service and of the process that answers for it, in bytes."""
    own = Path(f"/proc/{pid}")
    found = re.search(r"VmRSS:\s+(\d+)", (own / "status").read_text(encoding="utf-8"))
    children = [int(child) for file in own.glob("task/*/children") for child in file.read_text().split()]
    return sum(map(_resident, children)) + (int(found[1]) * 1024 if found else 0)


async def _ready(http: httpx2.AsyncClient) -> None:
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        while True:
            try:
                got = await http.get("guests")
                if got.status_code == 200 and len(got.json()["items"]) == _HOSTS * _GUESTS_EACH:
                    return
            except httpx2.TransportError:
                pass  # it has only begun
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
