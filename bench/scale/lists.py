"""Measure how long lists of a large site take to be read: a first picture, and a page of guests again and again.

The service is whole, in its two processes; its hosts and their QEMUs are simulated in the one that steers.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from bench.lateness import lines, measure_lateness, p99, read_lateness, resident_bytes
from bench.scale.progress import say
from migrator.testing.simulated_site import SimulatedSite
from migrator.testing.workload import MIB, steady

_HOSTS, _GUESTS = 1000, 20_000
#: Of each kind of request, so many, with so long between two: it is an answer that is measured, not a queue.
_ASKED, _PAUSE_SECONDS = 100, 0.02
_START_SECONDS, _SETTLE_SECONDS, _SAID_SECONDS = 240.0, 10.0, 1.2
#: Aims: all that a first picture needs, and one answer that brings it up to date.
_FIRST_SECONDS, _AGAIN_SECONDS = 1.0, 0.100
#: What the page asks for before it shows anything, at the same time.
_FIRST = (
    "service",
    "hosts",
    "migrations?active=true",
    "evacuations?active=true",
    "guests?limit=0",
    "guests?limit=100",
)
_AGAIN = {
    "guests, a page": "guests?limit=100",
    "guests, the last page": f"guests?limit=100&offset={_GUESTS - 100}",
    "guests, words": "guests?search=vm-1+h7&limit=100",
    "guests, by what they write": "guests?sort=-dirty_rate_bytes_per_second&limit=100",
    "guests, of a state, by name": "guests?state=running&sort=name&limit=100",
    "guests, counts": "guests?limit=0",
    "guests of a host": "guests?host=h500",
    "hosts, a page": "hosts?limit=100",
    "hosts, words, by guests": "hosts?search=h7&sort=-guests&limit=100",
    "one guest": "guests/h500/vm-500-3",
}
#: What no page needs, but a program may ask for.
_WHOLE = {"guests, all": "guests", "hosts, all": "hosts"}


async def reading() -> str:
    """Return how long it takes to read of many guests, and what that costs the loop that steers."""
    async with _serving() as (http, late):
        await asyncio.sleep(_SETTLE_SECONDS)
        since = lines(late)
        await asyncio.sleep(_SETTLE_SECONDS)
        alone, since = read_lateness(late, after=since), lines(late)
        first = [await _timed(http, *_FIRST) for _ in range(_ASKED // 5)]
        found = {what: [await _timed(http, path) for _ in range(_ASKED)] for what, path in _AGAIN.items()}
        tag = (await http.get("guests?limit=0")).headers["etag"]
        found["guests, counts, as before"] = [
            await _timed(http, "guests?limit=0", headers={"If-None-Match": tag}) for _ in range(_ASKED)
        ]
        await asyncio.sleep(_SAID_SECONDS)
        beside = read_lateness(late, after=since)
        whole = {
            what: [await _timed(http, path) for _ in range(_ASKED // 10)] for what, path in _WHOLE.items()
        }
    rows = [
        [what, f"{ms(statistics.median(values))}", f"{ms(p99(values))}"]
        for what, values in {"all of a first picture, at once": first, **found, **whole}.items()
    ]
    met = max(first) <= _FIRST_SECONDS and max(p99(values) for values in found.values()) <= _AGAIN_SECONDS
    return paragraphs(
        f"{_GUESTS:,} guests on {_HOSTS:,} hosts, which are looked at all the while; {_ASKED} requests of each kind, "
        "one after the other, over the Unix socket, until the last byte is read. A first picture is "
        f"{len(_FIRST)} answers: controllers, all hosts, what is under way, counts, and a page of guests.",
        table(["what is asked for", "median ms", "p99 ms"], rows),
        f"Timers of the loop that steers are late by {ms(p99(beside))} ms at p99 meanwhile, and by {ms(p99(alone))} ms "
        f"when nobody asks. Aims: a first picture in {_FIRST_SECONDS:g} s, and each answer after it but those of whole "
        f"lists within {ms(_AGAIN_SECONDS)} ms at p99. {'Aims met.' if met else '**Aims not met.**'}",
    )


async def _timed(http: httpx2.AsyncClient, *paths: str, headers: dict[str, str] | None = None) -> float:
    await asyncio.sleep(_PAUSE_SECONDS)
    began = time.monotonic()
    for got in await asyncio.gather(*(http.get(path, headers=headers) for path in paths)):
        if got.status_code not in (200, 304):
            raise RuntimeError(got.text)
    return time.monotonic() - began


@asynccontextmanager
async def _serving() -> AsyncIterator[tuple[httpx2.AsyncClient, Path]]:
    with tempfile.TemporaryDirectory(prefix="bench-lists-") as temporary:
        directory = Path(temporary)
        path = _configuration(directory)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.scale.lists", str(path)], stderr=log, stdout=log
            )
        try:
            transport = httpx2.AsyncHTTPTransport(uds=str(directory / "api.sock"), verify=False)
            url = "http://migrator/api/v1/"
            async with httpx2.AsyncClient(transport=transport, base_url=url, timeout=60) as http:
                await _until_known(http, process, directory / "log")
                say(f"{_GUESTS} guests are known; {resident_bytes(process.pid) / MIB:.0f} MiB")
                yield http, directory / "late"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


async def _until_known(http: httpx2.AsyncClient, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(log.read_text(encoding="utf-8")[-3000:])
        with contextlib.suppress(httpx2.TransportError):
            if (await http.get("guests?limit=0")).json().get("total") == _GUESTS:
                return
        await asyncio.sleep(0.5)
    raise TimeoutError("the service did not find its guests")


def _configuration(directory: Path) -> Path:
    sections = "".join(
        f'[[hosts]]\nname = "h{number}"\nssh = "h{number}"\nlink_speed = "1GB/s"\n'
        for number in range(_HOSTS)
    )
    path = directory / "migrator.toml"
    path.write_text(
        '[site]\nname = "site"\ndefault_policy = "gentle"\nlog_level = "error"\n'
        '[http]\nsocket = "api.sock"\nmetrics_listen = ""\nrequests_per_second = 100000\nburst = 100000\n'
        f'[store]\npath = "state/journal.db"\n{sections}',
        encoding="utf-8",
    )
    return path


def _populate(site: SimulatedSite) -> None:
    for number in range(_HOSTS):
        site.add_host(f"h{number}", link=1000 * MIB)
        for each in range(_GUESTS // _HOSTS):
            site.add_guest(
                f"vm-{number}-{each}",
                host=f"h{number}",
                workload=steady(64 * MIB, (1 + each) * MIB),
                memory_bytes=(1 + each % 8) * 256 * MIB,
                obstacle="a disk is a file of its host" if each == 19 and number % 10 == 0 else "",
            )


if __name__ == "__main__":
    own = Path(sys.argv[1])
    late = own.parent / "late"
    late.touch()
    simulated_service.run(own, _populate, beside=lambda: measure_lateness(late))
