"""Fixtures with real QEMUs and real networks; the fakes have theirs beside the tests that use them."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import shutil
import signal
import tempfile
import types
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import hypothesis
import pytest
from looptime._internal import loops as looptime_loops
from looptime._internal import plugin as looptime_plugin

from migrator.store.backend import Place, Server
from migrator.testing import network
from migrator.testing.lab import IDLE, GuestMachine, Habit, Lab, Pair, binaries
from migrator.testing.libvirtd import LibvirtHosts
from migrator.testing.network import LabHosts
from migrator.testing.postgresql import Postgres
from tests import journals, prestarted
from tests import libvirt_hosts as libvirt_hosts_of_tests

# Before the first test pytest-asyncio asks for the present event loop. Where none was ever set Python makes one, which
# nobody closes, and the warning about that fails whichever test is running when it is collected.
asyncio.set_event_loop(None)

# Whoever runs the tests in the background has them ignore Ctrl-C, and every command that they start with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The stand-ins that a manager of Python versions puts before it take ten times as long to start as python3 itself.
_path = os.pathsep.join(each for each in os.environ["PATH"].split(os.pathsep) if Path(each).name != "shims")
if shutil.which("python3", path=_path):
    os.environ["PATH"] = _path

prestarted.install()


def _find_loops_once() -> None:
    """Have looptime look once for the fixtures that make loops: for each fixture of each test it goes through all that
    pytest-asyncio has, which was a good part of what short tests computed.
    """
    found: dict[tuple[str, str], bool] = {}
    look = looptime_plugin._should_patch

    def makes_loop(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> bool:
        key = fixturedef.func.__module__, fixturedef.argname
        if key not in found:
            found[key] = look(fixturedef, request)
        return found[key]

    looptime_plugin._should_patch = makes_loop


_find_loops_once()


class _Unfinished(set[asyncio.Future[Any]]):
    """What threads still compute for a loop. looptime goes through it in each turn of the loop, and a set of weak
    references, which it has for that, takes ten times as long.
    """

    def add(self, future: asyncio.Future[Any]) -> None:
        super().add(future)
        future.add_done_callback(self.discard)


looptime_loops.weakref = types.SimpleNamespace(WeakSet=_Unfinished)  # type: ignore[attr-defined,assignment]

#: The versions that are promised to work.
VERSIONS = ("7.2", "10.0")
CROSSINGS = [(source, destination) for source in VERSIONS for destination in VERSIONS]

_UNIT, _ACCEPTANCE = (Path(__file__).parent / name for name in ("unit", "acceptance"))
#: Files there whose tests take a moment each; those of the others have a whole service.
_SHORT = ("test_cli", "test_direct", "test_operations.", "test_replay")
#: Of the unit tests that share a process with those that wait, how many stand between long ones, and between files of
#: those that wait less; the others are for whoever has nothing left to do.
_AMONG_LONG, _AMONG_FILES = 0.15, 0.2
#: With so many processes the last one has unit tests alone.
_MANY = 3
#: Numbers of directories for records.
_RECORDS = itertools.count(1)
_PRIORITY = os.getpriority(os.PRIO_PROCESS, 0)
_GIVES_WAY = min(19, _PRIORITY + 5)

#: Where time is the loop's, it goes on once nothing is left to run. The library turns the loop 42 times more before,
#: which is a good part of what such a test computes, and nothing comes of it.
_SOON = pytest.mark.looptime(noop_cycles=3)

# The same examples in every run of the gates: a new one belongs to whoever looks for it, not to who happens to push.
hypothesis.settings.register_profile("gates", derandomize=True, deadline=None)
hypothesis.settings.load_profile("gates")


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # nothing that is collected is garbage
    if hasattr(config, "workerinput"):  # one of several processes; else it begins with the first command
        prestarted.prepare()


def pytest_collection_finish() -> None:
    gc.freeze()
    # Seldom: most of what tests make is gone without it.
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


def missing(reason: str) -> None:
    """Skip the test, saying why; where all is meant to be there, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and nothing is skipped in CI")
    pytest.skip(reason)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put short tests, which compute, beside and between long ones, which wait.

    A run in several processes uses the processor all the while then, and no long test is all that still runs at its
    end. ``--dist worksteal`` gives each process a block of the list, and whoever has done its own takes from the end of
    another's: so the last process has unit tests alone, which take what the others leave of the processor; those that
    wait are dealt out over the other blocks, the longest first and the others by their files, and unit tests stand at
    the end of each.
    """
    for item in items:
        if item.get_closest_marker("looptime"):
            item.add_marker(_SOON)
    processes: int = getattr(config, "workerinput", {}).get("workercount", 1)
    if processes < 2:
        return
    usual = float(config.getini("timeout"))
    waits = [_length(item, usual) for item in items]
    long = [n for n, wait in enumerate(waits) if wait]
    long.sort(key=lambda n: -waits[n])
    rest = [item for item, wait in zip(items, waits, strict=True) if not wait]
    files = [list(each) for _, each in itertools.groupby(rest, key=lambda item: item.path)]
    units = iter([item for each in files if each[0].path.parent == _UNIT for item in each])
    files = [each for each in files if each[0].path.parent != _UNIT]
    ordered: list[pytest.Item] = []
    players = processes - 1 if processes >= _MANY else processes
    for number in range(processes):  # the blocks that are one longer come last, as there
        size = (len(items) - len(ordered)) // (processes - number)
        waiting: list[list[pytest.Item]] = []
        dealt: list[list[pytest.Item]] = []
        if number < players:
            # What a file has of its own is made once: its tests stay together.
            waiting = [[items[n]] for n in long[players - 1 - number :: players]]
            dealt = files[number::players]
        short = list(itertools.islice(units, max(0, size - len(waiting) - sum(map(len, dealt)))))
        first = int(len(short) * _AMONG_LONG)
        second = first + int(len(short) * _AMONG_FILES)
        ordered += [*_mixed(waiting, short[:first]), *_mixed(dealt, short[first:second]), *short[second:]]
    items[:] = [*ordered, *units]


def _mixed(waiting: Sequence[Sequence[pytest.Item]], short: Sequence[pytest.Item]) -> Iterator[pytest.Item]:
    """Yield what waits, with as many of the short ones behind each."""
    given = 0
    for number, each in enumerate(waiting, 1):
        yield from each
        until = len(short) * number // len(waiting)
        yield from short[given:until]
        given = until
    yield from short[given:]


def _length(item: pytest.Item, usual: float) -> float:
    """Seconds that a test may take if it is a long one, 0 if it is not."""
    mark = item.get_closest_marker("timeout")
    allowed = float(mark.args[0]) if mark and mark.args else usual
    whole_service = item.path.parent == _ACCEPTANCE and not item.path.name.startswith(_SHORT)
    return allowed if allowed > usual or whole_service else 0.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Have tests that only compute give way to the guests and services of others; root alone can take that back."""
    gives_way = item.path.parent == _UNIT and os.geteuid() == 0
    if gives_way:
        os.setpriority(os.PRIO_PROCESS, 0, _GIVES_WAY)
    try:
        return (yield)
    finally:
        if gives_way:
            os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)


@pytest.fixture
def qemu_binary() -> Callable[[str], Path]:
    """The QEMU of a version, as ``7.2``; the test is skipped where there is none."""

    def find(version: str) -> Path:
        if version not in binaries():
            missing(f"there is no QEMU {version} here (there are: {', '.join(binaries()) or 'none'})")
        return binaries()[version]

    return find


@pytest.fixture(params=VERSIONS)
def each_qemu(request: pytest.FixtureRequest, qemu_binary: Callable[[str], Path]) -> Path:
    """Runs the test on every version."""
    return qemu_binary(request.param)


@pytest.fixture(
    params=[
        version if not n else pytest.param(version, marks=pytest.mark.matrix)
        for n, version in enumerate(VERSIONS)
    ]
)
def one_version(request: pytest.FixtureRequest, qemu_binary: Callable[[str], Path]) -> Path:
    """As :func:`each_qemu`, but only the first outside ``make test-all``."""
    return qemu_binary(request.param)


@pytest.fixture(params=CROSSINGS, ids="-to-".join)
def each_crossing(request: pytest.FixtureRequest, qemu_binary: Callable[[str], Path]) -> tuple[Path, Path]:
    """Runs the test on every pair of versions: binaries of the source and of the destination."""
    return qemu_binary(request.param[0]), qemu_binary(request.param[1])


@pytest.fixture(
    params=[
        crossing if not n else pytest.param(crossing, marks=pytest.mark.matrix)
        for n, crossing in enumerate(CROSSINGS)
    ],
    ids="-to-".join,
)
def one_crossing(request: pytest.FixtureRequest, qemu_binary: Callable[[str], Path]) -> tuple[Path, Path]:
    """As :func:`each_crossing`, but only the first outside ``make test-all``."""
    return qemu_binary(request.param[0]), qemu_binary(request.param[1])


@pytest.fixture(
    params=[
        crossing if crossing == ("7.2", "10.0") else pytest.param(crossing, marks=pytest.mark.matrix)
        for crossing in CROSSINGS
    ],
    ids="-to-".join,
)
def across(request: pytest.FixtureRequest, qemu_binary: Callable[[str], Path]) -> tuple[Path, Path]:
    """As :func:`each_crossing`, but only from the first to the last version outside ``make test-all``."""
    return qemu_binary(request.param[0]), qemu_binary(request.param[1])


@pytest.fixture
def lab() -> Iterator[Lab]:
    """QEMUs for one test. What they said is shown if it fails."""
    if not binaries():
        missing("there is no QEMU here")
    with Lab() as lab:
        yield lab
        print(lab.report())  # noqa: T201 - pytest shows it with a failed test


class MakePair(Protocol):
    """See :func:`pair`."""

    def __call__(
        self,
        crossing: tuple[Path, Path] | None = None,
        *,
        habit: Habit = IDLE,
        machine: GuestMachine | None = None,
        destination_machine: GuestMachine | None = None,
        source_prefix: Sequence[str] = (),
        destination_prefix: Sequence[str] = (),
    ) -> Awaitable[Pair]: ...


@pytest.fixture
def pair(lab: Lab) -> MakePair:
    """``await pair(crossing, habit=...)``: a guest that runs, and a QEMU that waits for it."""

    async def make(
        crossing: tuple[Path, Path] | None = None,
        *,
        habit: Habit = IDLE,
        machine: GuestMachine | None = None,
        destination_machine: GuestMachine | None = None,
        source_prefix: Sequence[str] = (),
        destination_prefix: Sequence[str] = (),
    ) -> Pair:
        source, destination = crossing or (None, None)
        return await lab.pair(
            machine or GuestMachine(habit=habit),
            source=source,
            destination=destination,
            destination_machine=destination_machine,
            source_prefix=source_prefix,
            destination_prefix=destination_prefix,
        )

    return make


@pytest.fixture
def hosts() -> Iterator[LabHosts]:
    """Two hosts, ``alpha`` and ``beta``, whose link can be slowed and broken. Ask for it before ``lab``."""
    if reason := network.possible():
        missing(reason)
    with LabHosts("alpha", "beta", isolated=True) as hosts:
        yield hosts


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgres]:
    """The server that all tests of this process share."""
    if reason := journals.postgresql_missing():
        missing(reason)
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def shared_database(postgresql: Postgres) -> str:
    """The name of one with the schema of this version."""
    name = postgresql.create()
    journals.make_schema(postgresql.place(name))
    return name


@pytest.fixture
def postgresql_place(postgresql: Postgres, shared_database: str) -> Iterator[Server]:
    """A journal there with nothing in it. Whoever opens it closes it."""
    journals.empty(postgresql, shared_database)
    yield postgresql.place(shared_database)
    journals.all_closed(postgresql, shared_database)


@pytest.fixture(scope="session")
def libvirt_daemons() -> Iterator[LibvirtHosts]:
    """Three hosts with a libvirtd each, for all tests of this process: what a test makes there it removes.

    Here, and in no module that tests import: each that imports a fixture has one of its own.
    """
    if reason := libvirt_hosts_of_tests.reason():
        missing(reason)
    with tempfile.TemporaryDirectory(prefix="migrator-libvirt-") as directory:
        hosts = LibvirtHosts(*libvirt_hosts_of_tests.NAMES, directory=Path(directory))
        asyncio.run(hosts.__aenter__())
        try:
            yield hosts
        finally:
            asyncio.run(hosts.__aexit__(None, None, None))


@pytest.fixture
def libvirt_hosts(libvirt_daemons: LibvirtHosts) -> Iterator[LibvirtHosts]:
    """The hosts without a guest, each with its daemon at work, and the network whole; so they are afterwards."""
    asyncio.run(libvirt_daemons.restore())
    yield libvirt_daemons
    asyncio.run(libvirt_daemons.restore())


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Runs the test with a journal in either database; it is empty."""
    if request.param == "sqlite":
        return tmp_path / "journal.db"
    server: Server = request.getfixturevalue("postgresql_place")
    return server


@pytest.fixture(scope="session", autouse=True)
def private_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or leaves what is kept of binaries where a user has it; tests share it."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "cache"))
        patch.setenv("XDG_STATE_HOME", str(base / "records"))
        yield base


@pytest.fixture(autouse=True)
def private_records(private_directory: Path) -> None:
    """No test reads or leaves records where a user's are. Their directory is made by whoever needs it: few do."""
    os.environ["XDG_STATE_HOME"] = str(private_directory / f"records-{next(_RECORDS)}")
