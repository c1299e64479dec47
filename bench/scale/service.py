"""``python -m bench.scale.service CONFIG SPEC``: the service, whose hosts' QEMUs are in farms; and a client of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
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
from bench.scale.progress import say
from bench.scale.sampling import Sampler, watch_stalls
from bench.scale.site import FarmSite, GuestSpec, fill

_FARMS = 2
#: Names a file that gets a profile of the process that steers, every five seconds anew, and another for what it did
#: when its loop stood still; their ends are the controller.
_PROFILE = "BENCH_PROFILE"
_START_SECONDS, _END_SECONDS, _SAY_SECONDS = 180.0, 600.0, 10.0
#: What was counted, and how late timers were, is told each second.
_SAID_SECONDS = 1.2
_GOING = frozenset({"queued", "preparing", "waiting", "precopy"})


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


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Commands and writes of the first controller so far, as its metrics count them."""

    commands: float
    writes: float

    def since(self, before: Counts, each_of: float) -> Counts:
        """Return what was done since, for each of so many."""
        return Counts(
            commands=(self.commands - before.commands) / each_of,
            writes=(self.writes - before.writes) / each_of,
        )


class Service:
    """A service that runs, of one or more controllers, and its farms."""

    def __init__(
        self, directory: Path, pids: Sequence[int], http: httpx2.AsyncClient, farms: Sequence[Farm]
    ) -> None:
        self.directory, self.pids, self.http, self.farms = directory, pids, http, farms

    def farm_seconds(self) -> float:
        """Return the processor time that the farms have used so far."""
        return sum(processor_seconds(farm.pid) for farm in self.farms)

    @asynccontextmanager
    async def used(self) -> AsyncIterator[list[Usage]]:
        """Measure while the block lasts; what each controller used is in the list after it."""
        found: list[Usage] = []
        files = [self.directory / f"c{number}" / "late" for number in range(len(self.pids))]
        late, began = [lines(file) for file in files], time.monotonic()
        before = [_processor(pid) for pid in self.pids]
        yield found
        after, seconds = [_processor(pid) for pid in self.pids], time.monotonic() - began
        await asyncio.sleep(_SAID_SECONDS)
        for pid, file, since, then, now in zip(self.pids, files, late, before, after, strict=True):
            found.append(
                Usage(
                    seconds=seconds,
                    steering=now[0] - then[0],
                    all_processes=now[1] - then[1],
                    resident_bytes=sum(map(resident_bytes, [pid, *children(pid)])),
                    late=read_lateness(file, after=since) or [0.0],
                )
            )

    async def reactions(self) -> list[float]:
        """Return what the farms have measured since they were last asked."""
        return [seconds for farm in self.farms for seconds in await farm.ask(do="reactions")]

    async def counts(self) -> Counts:
        """Return how many QMP commands were sent and how often the journal was written, until now."""
        await asyncio.sleep(_SAID_SECONDS)  # it would be what was counted before
        text = (await self.http.get("http://migrator/metrics")).text

        def total(metric: str) -> float:
            return sum(float(value) for value in re.findall(rf"(?m)^{metric}_count(?:{{.*}})? (\S+)$", text))

        return Counts(
            commands=total("migrator_qmp_command_duration_seconds"),
            writes=total("migrator_journal_write_duration_seconds"),
        )

    async def why_ended(self) -> str:
        """Return how the last of them ended that did, and why."""
        items = (await self.http.get("migrations", params={"limit": "500"})).json()["items"]
        ended = [each for each in items if each["state"] not in _GOING]
        return f"{ended[0]['state']}: {ended[0]['error']}" if ended else "none has ended"

    async def migrate(self, name: str, target: str) -> str:
        """Begin a migration; its id."""
        got = await self.http.post("migrations", json={"guest": name, "to": target})
        if got.status_code != 202:
            raise RuntimeError(f"{name} to {target}: {got.text}")
        identifier: str = got.json()["id"]
        return identifier

    async def active(self) -> list[dict[str, Any]]:
        """Return the migrations that have not ended."""
        got = await self.http.get("migrations", params={"active": "true"})
        items: list[dict[str, Any]] = got.json()["items"]
        return items

    async def until_ended(self) -> None:
        """Wait until no migration is under way.

        :raise TimeoutError: some still are.
        """
        async with asyncio.timeout(_END_SECONDS):
            said_at = time.monotonic()
            while left := len(await self.active()):
                if time.monotonic() - said_at > _SAY_SECONDS:
                    said_at = time.monotonic()
                    say(f"{left} migrations have not ended")
                # Asking costs the service something, too.
                await asyncio.sleep(min(2.0, max(0.2, left / 250)))

    async def places(self) -> dict[str, str]:
        """Return the host of each guest, by the guests' names."""
        found = (await self.http.get("guests")).json()["items"]
        return {each["name"]: each["host"] for each in found}


def _processor(pid: int) -> tuple[float, float]:
    own = processor_seconds(pid)
    return own, own + sum(map(processor_seconds, children(pid)))


@asynccontextmanager
async def serving(
    hosts: Sequence[str], guests: Sequence[GuestSpec], *, controllers: int = 1, store: str = ""
) -> AsyncIterator[Service]:
    """Run the service and its farms while the block lasts; requests go to the first controller.

    :param controllers: more than one share a journal on a server.
    :param store: where that is, as a line of the configuration; else each has a file.
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
            farms.append(Farm(place, pid=farm.pid))
        await fill(guests, farms)
        spec = {"hosts": list(hosts), "guests": [asdict(guest) for guest in guests], "farms": _FARMS}
        (directory / "spec").write_text(json.dumps(spec), encoding="utf-8")
        processes: list[subprocess.Popen[bytes]] = []

        def start(number: int) -> None:
            own = directory / f"c{number}"
            own.mkdir()
            (own / "late").touch()
            config = _configuration(own, hosts, len(guests), f'{store}\npath = "state/journal.db"')
            log = stack.enter_context((own / "log").open("wb"))
            processes.append(_process(stack, "bench.scale.service", str(config), stdout=log, stderr=log))

        transport = httpx2.AsyncHTTPTransport(uds=str(directory / "c0" / "api.sock"), verify=False)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://migrator/api/v1/", timeout=600
        ) as http:
            # The first one acts; the others find that it does.
            start(0)
            await _until_known(Service(directory, [processes[0].pid], http, farms), processes[0], len(guests))
            for number in range(1, controllers):
                start(number)
            for number in range(1, controllers):
                await _until_answers(directory / f"c{number}" / "api.sock", processes[number])
            yield Service(directory, [process.pid for process in processes], http, farms)


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
        f'[site]\nname = "site"\ninstance = "{directory.name}"\ndefault_policy = "bench"\nlog_level = "error"\n'
        # Its ceiling is high: on a machine that is busy with all this, round trips alone may take some of it.
        '[policies.bench]\nextends = "gentle"\nmax_downtime = "5s"\n'
        '[http]\nsocket = "api.sock"\nmetrics_listen = ""\nrequest_timeout = "10min"\n'
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
            raise RuntimeError((service.directory / "c0" / "log").read_text(encoding="utf-8")[-3000:])
        with contextlib.suppress(httpx2.TransportError):
            if len(await service.places()) == guests:
                return
        await asyncio.sleep(0.5)
    raise TimeoutError("the service did not find its guests")


async def _until_answers(path: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError((path.parent / "log").read_text(encoding="utf-8")[-3000:])
        with contextlib.suppress(httpx2.TransportError):
            transport = httpx2.AsyncHTTPTransport(uds=str(path), verify=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://migrator/") as http:
                if (await http.get("readyz")).status_code == 200:
                    return
        await asyncio.sleep(0.5)
    raise TimeoutError(f"{path} does not answer")


def main(arguments: list[str]) -> None:
    """Serve until killed."""
    config = Path(arguments[0])
    everything = config.parents[1]
    spec = json.loads((everything / "spec").read_text(encoding="utf-8"))
    farms = [Farm(everything / f"f{number}") for number in range(spec["farms"])]
    site = FarmSite(spec["hosts"], [GuestSpec(**each) for each in spec["guests"]], farms)
    os.environ["XDG_STATE_HOME"] = str(config.parent / "own")
    late = config.parent / "late"

    async def beside() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(measure_lateness(late), name="lateness")
            if (file := os.environ.get(_PROFILE)) is not None:
                own = f"{file}.{config.parent.name}"
                with watch_stalls(Path(f"{own}.stalls")):
                    await Sampler().write(Path(own))

    simulated_service.serve(config, site.in_place, beside=beside)


if __name__ == "__main__":
    main(sys.argv[1:])
