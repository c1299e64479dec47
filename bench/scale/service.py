"""``python -m bench.scale.service CONFIG SPEC``: the service, whose hosts' QEMUs are in farms; and a client of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from bench import simulated_service
from bench.lateness import children, lines, measure_lateness, processor_seconds, read_lateness, resident_bytes
from bench.scale.farm import Farm
from bench.scale.site import FarmSite, GuestSpec

_FARMS = 2
_START_SECONDS, _END_SECONDS = 180.0, 600.0


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Processor time and memory that the service used in a while."""

    seconds: float
    #: Of a core: the process that steers, that and all it started.
    steering: float
    all_processes: float
    resident_bytes: int
    #: How late timers of the loop that steers were.
    late: Sequence[float]


class Service:
    """A service that runs, and its farms."""

    def __init__(self, directory: Path, pid: int, http: httpx2.AsyncClient, farms: Sequence[Farm]) -> None:
        self.directory, self.pid, self.http, self.farms = directory, pid, http, farms

    @asynccontextmanager
    async def used(self) -> AsyncIterator[list[Usage]]:
        """Measure while the block lasts; the one of the list is there after it."""
        found: list[Usage] = []
        late, began = lines(self.directory / "late"), time.monotonic()
        steering, everything = self._processor()
        yield found
        now = self._processor()
        found.append(
            Usage(
                seconds=time.monotonic() - began,
                steering=now[0] - steering,
                all_processes=now[1] - everything,
                resident_bytes=sum(map(resident_bytes, [self.pid, *children(self.pid)])),
                late=read_lateness(self.directory / "late", after=late) or [0.0],
            )
        )

    def _processor(self) -> tuple[float, float]:
        own = processor_seconds(self.pid)
        return own, own + sum(map(processor_seconds, children(self.pid)))

    async def reactions(self) -> list[float]:
        """Return what the farms have measured since they were last asked."""
        return [seconds for farm in self.farms for seconds in await farm.ask(do="reactions")]

    async def migrate(self, name: str, target: str) -> str:
        """Begin a migration; its id."""
        got = await self.http.post("migrations", json={"guest": name, "to": target})
        if got.status_code != 202:
            raise RuntimeError(f"{name} to {target}: {got.text}")
        identifier: str = got.json()["id"]
        return identifier

    async def active(self) -> list[dict[str, Any]]:
        """Return the migrations that have not ended."""
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            query = {"active": "true", "limit": "500"} | ({"before": cursor} if cursor else {})
            page = (await self.http.get("migrations", params=query)).json()["items"]
            found += page
            if len(page) < 500:
                return found
            cursor = page[-1]["id"]

    async def until_ended(self) -> None:
        """Wait until no migration is under way.

        :raise TimeoutError: some still are.
        """
        async with asyncio.timeout(_END_SECONDS):
            while (await self.http.get("migrations", params={"active": "true", "limit": 1})).json()["items"]:
                await asyncio.sleep(0.5)

    async def places(self) -> dict[str, str]:
        """Return the host of each guest, by the guests' names."""
        found = (await self.http.get("guests")).json()["items"]
        return {each["name"]: each["host"] for each in found}


@asynccontextmanager
async def serving(
    hosts: Sequence[str], guests: Sequence[GuestSpec], *, store: str = 'path = "state/journal.db"'
) -> AsyncIterator[Service]:
    """Run the service and its farms while the block lasts.

    :param store: lines of the configuration's section of that name.
    """
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        farms = []
        for number in range(_FARMS):
            place = directory / f"f{number}"
            place.mkdir()
            farm = _process(stack, "bench.scale.farm", str(place), stdout=subprocess.PIPE)
            assert farm.stdout is not None
            farm.stdout.readline()
            farms.append(Farm(place))
        spec = {"hosts": list(hosts), "guests": [asdict(guest) for guest in guests], "farms": _FARMS}
        (directory / "spec").write_text(json.dumps(spec), encoding="utf-8")
        config = _configuration(directory, hosts, len(guests), store)
        log = stack.enter_context((directory / "log").open("wb"))
        process = _process(stack, "bench.scale.service", str(config), stdout=log, stderr=log)
        transport = httpx2.AsyncHTTPTransport(uds=str(directory / "api.sock"))
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://migrator/api/v1/", timeout=120
        ) as http:
            service = Service(directory, process.pid, http, farms)
            await _until_known(service, process, len(guests))
            yield service


def _process(stack: contextlib.ExitStack, module: str, *words: str, **how: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-m", module, *words], **how)

    def end() -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()

    stack.callback(end)
    return process


def _configuration(directory: Path, hosts: Sequence[str], guests: int, store: str) -> Path:
    sections = "".join(
        f'[[hosts]]\nname = "{name}"\nssh = "{name}"\nlink_speed = "1GB/s"\n' for name in hosts
    )
    path = directory / "migrator.toml"
    path.write_text(
        '[site]\nname = "site"\ninstance = "one"\ndefault_policy = "gentle"\nlog_level = "error"\n'
        '[http]\nsocket = "api.sock"\nmetrics_listen = ""\n'
        "requests_per_second = 100000\nburst = 100000\naddress_requests_per_second = 100000\n"
        f"[limits]\nmigrations_at_a_time = {max(100, 2 * guests)}\n"
        f"[store]\n{store}\n{sections}",
        encoding="utf-8",
    )
    return path


async def _until_known(service: Service, process: subprocess.Popen[bytes], guests: int) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError((service.directory / "log").read_text(encoding="utf-8")[-3000:])
        with contextlib.suppress(httpx2.TransportError):
            if len(await service.places()) == guests:
                return
        await asyncio.sleep(0.5)
    raise TimeoutError("the service did not find its guests")


def main(arguments: list[str]) -> None:
    """Serve until killed."""
    config = Path(arguments[0])
    spec = json.loads((config.parent / "spec").read_text(encoding="utf-8"))
    farms = [Farm(config.parent / f"f{number}") for number in range(spec["farms"])]
    site = FarmSite(spec["hosts"], [GuestSpec(**each) for each in spec["guests"]], farms)
    os.environ.setdefault("XDG_STATE_HOME", str(config.parent / "own"))
    late = config.parent / "late"
    late.touch()
    simulated_service.serve(config, site.in_place, first=site.fill, beside=lambda: measure_lateness(late))


if __name__ == "__main__":
    main(sys.argv[1:])
