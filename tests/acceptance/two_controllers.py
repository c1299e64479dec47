"""Two controllers of one real site on one PostgreSQL, killed and frozen, and the guests watched from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import httpx2
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from migrator.errors import JournalError
from migrator.store.step_records import controller_id
from migrator.testing.guest_watch import GuestWatch
from migrator.testing.lab import GuestMachine
from migrator.testing.postgresql import Postgres
from tests.acceptance.service_site import ANSWER_SECONDS, MIB, LiveSite, eventually, guest, made

#: Which of their guests moves how.
POLICIES = {"pre": "default", "post": "postcopy-first", "off": "offline"}
#: What befalls one of them.
HOWS = ("killed", "frozen")
#: For both; another takes over after it, and the time that looking at migrations takes.
LEASE_SECONDS = 3.0
_SPEED = 60 * MIB


def machines() -> list[GuestMachine]:
    """Return six guests, two for each policy."""
    return [guest(f"{kind}-{number}", region=32 * MIB) for kind in POLICIES for number in (1, 2)]


@dataclass(frozen=True)
class Fate:
    """The end of one of the controllers, or its sleep until the evacuation has ended or the next is to befall them.

    :param how: ``killed`` or ``frozen``.
    :param after: seconds from the command on, or from when the one before was followed and is back.
    :param plans: it is the one that acts; else the other one.
    """

    how: str
    after: float
    plans: bool = True


class Standstills:
    """Looks at guests from outside, again and again: where each runs, and for how long it runs nowhere.

    :param interval_seconds: between two looks.
    """

    def __init__(
        self, site: LiveSite, guests: Sequence[GuestMachine], *, interval_seconds: float = 0.02
    ) -> None:
        self._guests, self._watch = guests, GuestWatch(site, guests)
        self._interval_seconds = interval_seconds
        self._ran_at = {machine.name: time.monotonic() for machine in guests}
        #: Seconds, by the guest: the longest time between two looks that showed it running.
        self.longest: dict[str, float] = {}

    @property
    def doubled(self) -> list[str]:
        """Guests that were seen to run twice."""
        return self._watch.doubled

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look(), name="watch guests")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled() and (error := self._task.exception()):
            raise error
        await self._watch.settle()

    async def settle(self) -> None:
        """Wait until all that was seen is judged."""
        await self._watch.settle()

    def begin(self) -> None:
        """Forget what was seen so far."""
        self.longest.clear()

    async def _look(self) -> None:
        while True:
            ran = self._watch.look()
            now = time.monotonic()
            for machine in self._guests:
                if ran[machine.uuid]:
                    gap, self._ran_at[machine.name] = now - self._ran_at[machine.name], now
                    self.longest[machine.name] = max(gap, self.longest.get(machine.name, 0.0))
            self._watch.judge(ran)
            await asyncio.sleep(self._interval_seconds)


@dataclass
class Measured:
    """Figures of many take-overs, in seconds."""

    rounds: int = 0
    #: Until another had the lease, and until it had begun to go on with what was left, by what befell the one before.
    leased: dict[str, list[float]] = field(default_factory=lambda: {how: [] for how in HOWS})
    went_on: dict[str, list[float]] = field(default_factory=lambda: {how: [] for how in HOWS})
    #: The longest that each guest was not seen running, in rounds in which it moved, by its kind.
    stood: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in POLICIES})

    def add_up(self, path: Path) -> None:
        """Add the figures of earlier portions, which are kept there, and keep all of them."""
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            self.rounds += before["rounds"]
            for name in ("leased", "went_on", "stood"):
                for kind, seconds in before[name].items():
                    getattr(self, name)[kind][:0] = seconds
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    def table(self) -> str:
        """Return the distribution as a table of a document."""
        rows = {
            **{f"{how}: until another has the lease": self.leased[how] for how in HOWS},
            **{f"{how}: until it goes on with what was left": self.went_on[how] for how in HOWS},
            **{f"standstill, {POLICIES[kind]}": stood for kind, stood in self.stood.items()},
        }
        lines = [
            "| seconds | count | median | p90 | p99 | longest |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name, found in rows.items():
            if found:
                cuts = (
                    statistics.quantiles(found, n=100, method="inclusive") if len(found) > 1 else found * 99
                )
                lines.append(
                    f"| {name} | {len(found)} | {statistics.median(found):.2f} | {cuts[89]:.2f} | {cuts[98]:.2f} | "
                    f"{max(found):.2f} |"
                )
        return "\n".join(lines)


class TwoControllers:
    """A site whose host is emptied again and again, by whichever controller acts."""

    def __init__(
        self,
        site: LiveSite,
        engine: AsyncEngine,
        guests: Sequence[GuestMachine],
        *,
        trees: Mapping[str, Path],
    ) -> None:
        self.site, self.guests = site, guests
        self._trees = trees
        self._engine = engine
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.measured = Measured()

    async def start(self, name: str, *, stands_by: bool = True) -> None:
        """Start one of the two; returns once it stands by, where another acts."""
        before = len(self.site.said("answers while it stands by")) if stands_by else 0
        tree = self._trees.get(name)
        with (self.site.directory / "service.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [
                    sys.executable,
                    # Another tree's is started as anybody would: with an option it is not forked from what is loaded.
                    *(["-B"] if tree is not None else []),
                    "-m",
                    "migrator",
                    "serve",
                    "--config",
                    str(self.site.directory / f"{name}.toml"),
                ],
                cwd=tree,
                env=None if tree is None else {**os.environ, "PYTHONPATH": str(tree)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if stands_by:

            async def said() -> bool:
                return len(self.site.said("answers while it stands by")) > before

            await eventually(said, f"controller {name} stands by", self.site, within=60)

    def end(self) -> None:
        """End both."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=10)

    async def _found(self, query: str, **values: Any) -> list[Any]:
        async with self._engine.connect() as connection:
            return list(await connection.execute(text(query), values))

    async def acting(self) -> str:
        """Return which of the two has the lease; empty where none has."""
        try:
            rows = await self._found("SELECT owner FROM leases WHERE name = 'site'")
        except ProgrammingError:
            return ""  # the first of them has not made the tables yet
        for name in self._processes:
            with contextlib.suppress(JournalError, OSError):
                if rows and rows[0].owner == controller_id(self.site.directory / name):
                    return name
        return ""

    async def ask_acting(self) -> str:
        """Ask the site through the one that acts from now on; which that is."""
        found = ""

        async def answers() -> bool:
            nonlocal found
            found = await self.acting()
            return bool(found) and await self._acts(found)

        # The first to start makes the tables, too.
        await eventually(answers, "a controller that acts", self.site, within=120)
        return found

    async def _acts(self, name: str) -> bool:
        """Ask the site through this one from now on; whether it acts."""
        await self.site.disconnect()
        transport = httpx2.AsyncHTTPTransport(uds=str(self.site.directory / f"{name}.sock"), verify=False)
        self.site._http = httpx2.AsyncClient(
            transport=transport, base_url="http://migrator", timeout=ANSWER_SECONDS
        )
        try:
            return (await self.site.probe("/readyz?role=acting"))[0] == 200
        except httpx2.TransportError:
            return False

    def kill(self, name: str) -> None:
        """Kill one of the two."""
        os.killpg(self._processes[name].pid, signal.SIGKILL)

    async def round(self, number: int, *fates: Fate, watch: Standstills) -> None:
        """Empty the host that the guests are on, which both drive, and have these befall them one after the other."""
        site, (here, there) = self.site, ("a", "b") if number % 2 == 0 else ("b", "a")
        await self.ask_acting()
        await site.known(len(self.guests))
        watch.begin()
        run = await site.post(f"hosts/{here}/evacuate", key=f"round-{number}")
        for fate in fates:
            acting = await self.ask_acting()
            gone = acting if fate.plans else next(name for name in self._processes if name != acting)
            await asyncio.sleep(fate.after)  # the instant is what is tested
            [(last,)] = await self._found("SELECT coalesce(max(event_id), 0) FROM events")
            process = self._processes[gone]
            os.killpg(process.pid, signal.SIGKILL if fate.how == "killed" else signal.SIGSTOP)
            at = time.monotonic()
            if fate.plans:
                await self._taken_over(gone, last, at, fate.how)
            again = await self._ask_again(f"hosts/{here}/evacuate", key=f"round-{number}", gone=gone)
            assert again["id"] == run["id"]
            if fate is fates[-1]:
                await site.ended(run["id"], "completed", within=120)
            await self._bring_back(gone, fate.how, ends=fate.plans)
        await site.everyone_at(self.guests, there)
        await watch.settle()
        assert watch.doubled == [], watch.doubled
        await self._moved_once(run["id"])
        for machine in self.guests:
            self.measured.stood[machine.name.partition("-")[0]].append(watch.longest[machine.name])
        self.measured.rounds += 1
        await site.post(f"hosts/{here}/activate", key=f"activate-{number}")

    async def evacuation(
        self, number: int, *, watch: Standstills, meanwhile: Callable[[], Awaitable[None]]
    ) -> None:
        """Empty the host that the guests are on, and have something happen in the middle of it that ends no controller
        for good: one that was replaced, and ended itself, is started again.
        """
        site, (here, there) = self.site, ("a", "b") if number % 2 == 0 else ("b", "a")
        await self.ask_acting()
        await site.known(len(self.guests))
        with site.crawling():
            run = await site.post(f"hosts/{here}/evacuate", key=f"round-{number}")
            await site.until_state("precopy")
        await meanwhile()

        async def ended() -> bool:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    await self.start(name, stands_by=False)
            with contextlib.suppress(DBAPIError, httpx2.TransportError, OSError):
                if (acting := await self.acting()) and await self._acts(acting):
                    status, document = await site.try_post(f"hosts/{here}/evacuate", key=f"round-{number}")
                    assert status == 503 or document["id"] == run["id"], (
                        "the command is known to whoever acts"
                    )
                    return status < 300 and document["state"] == "completed"
            return False

        await eventually(ended, "the evacuation is completed", site, within=150)
        await site.everyone_at(self.guests, there)
        await watch.settle()
        assert watch.doubled == [], watch.doubled
        await self._moved_once(run["id"])

    async def stop(self, name: str) -> None:
        """Stop one in order, as for an upgrade, and start it again."""
        process = self._processes[name]
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0
        await self.start(name, stands_by=False)

    async def _ask_again(self, path: str, *, key: str, gone: str) -> Any:
        """Repeat a command, as often as it is refused because none acts at the moment: its document."""
        taken: Any = None

        async def is_taken() -> bool:
            nonlocal taken
            assert await self.ask_acting() != gone
            status, document = await self.site.try_post(path, key=key)
            taken = document if status < 300 else None
            assert taken or status == 503, (status, document, self.site.log()[-2000:])
            return taken is not None

        await eventually(is_taken, f"{path} is taken", self.site, within=30)
        return taken

    async def _taken_over(self, gone: str, last: int, at: float, how: str) -> None:
        while await self.acting() in ("", gone):
            assert time.monotonic() - at < 20, self.site.log()[-8000:]
            await asyncio.sleep(0.05)
        self.measured.leased[how].append(time.monotonic() - at)
        while not await self._found("SELECT 1 FROM events WHERE event_id > :last LIMIT 1", last=last):
            if not await self._found(
                "SELECT 1 FROM documents WHERE kind = 'evacuation' AND ended_at IS NULL"
            ):
                return  # all was done before
            assert time.monotonic() - at < 30, self.site.log()[-8000:]
            await asyncio.sleep(0.05)
        self.measured.went_on[how].append(time.monotonic() - at)

    async def _bring_back(self, gone: str, how: str, *, ends: bool) -> None:
        process = self._processes[gone]
        if how == "frozen":
            os.killpg(process.pid, signal.SIGCONT)
            if not ends:
                return  # one that only drives lets go of what it had, and stands by
        assert await asyncio.to_thread(process.wait, 30) == -signal.SIGKILL, "it ends itself when it wakes up"
        await self.start(gone)

    async def _moved_once(self, run: str) -> None:
        listed = await self.site.get("migrations", evacuation=run, limit=100)
        completed = [each["guest_name"] for each in listed["items"] if each["state"] == "completed"]
        assert sorted(completed) == sorted(machine.name for machine in self.guests), listed


@asynccontextmanager
async def two_controllers(
    server: Postgres,
    *,
    url: str = "",
    guests: Sequence[GuestMachine] = (),
    rules: str = "",
    trees: Mapping[str, Path] = MappingProxyType({}),
) -> AsyncIterator[TwoControllers]:
    """Both run, and one of them acts, on a site of two hosts with six guests on the first, or with these.

    :param url: of the journal; by default one on that server.
    :param rules: of these guests, for the configuration.
    :param trees: where the program of ``one`` or ``two`` is, if it is another than this one.
    """
    guests = guests or machines()
    url = url or server.place(server.create()).url
    engine = create_async_engine(url)
    rules = rules or "".join(
        f'[[guests]]\nmatch = "{kind}-*"\npolicy = "{policy}"\n\n' for kind, policy in POLICIES.items()
    )
    async with made(guests, "a", "b", speed=_SPEED) as site:
        site.change_config(
            ("[store]\n", f'{rules}[controller]\nlease = "{LEASE_SECONDS:g}s"\n\n[store]\nurl = "{url}"\n')
        )
        _configure_both(site.config, site.directory)
        both = TwoControllers(site, engine, guests, trees=trees)
        try:
            await both.start("one", stands_by=False)
            await both.ask_acting()
            await both.start("two")
            yield both
        finally:
            both.end()
            await engine.dispose()


def _configure_both(config: Path, directory: Path) -> None:
    config_text = config.read_text(encoding="utf-8")
    for name in ("one", "two"):
        own = config_text.replace('socket = "api.sock"', f'socket = "{name}.sock"')
        own = own.replace('path = "state/', f'path = "{name}/')
        (directory / name).mkdir()
        (directory / f"{name}.toml").write_text(own, encoding="utf-8")
