"""A table of the CPU time that tests take, with all processes they start: a pytest plugin, ``-p tests.cpu``.

As root, on a machine with control groups of version 2: each process of the tests counts in a group of its own, and what
it starts counts there too, whoever it becomes a child of.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

_USER, _SYSTEM = "user_seconds", "system_seconds"
_ROWS = 60


@pytest.hookimpl(tryfirst=True)  # what the tests' own configuration starts counts too
def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that gets the reports of all
        config.pluginmanager.register(CpuTable(), "cpu-table")
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.register(CpuMeter(), "cpu-meter")


class CpuMeter:
    """Measures the tests of this process."""

    def __init__(self) -> None:
        mounts = (line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines())
        root = next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)
        if root is None:
            raise pytest.UsageError("tests.cpu: this machine has no control groups of version 2")
        self._root, self._group = root, root / f"migrator-tests-{os.getpid()}"
        self._group.mkdir()
        (self._group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        self._before = (0.0, 0.0)

    def _seconds(self) -> tuple[float, float]:
        """Return what all processes of the group have used so far: of their own, and of the system's for them."""
        lines = (self._group / "cpu.stat").read_text(encoding="ascii").splitlines()
        used = {name: int(value) / 1e6 for name, value in map(str.split, lines)}
        return used["user_usec"], used["system_usec"]

    def pytest_runtest_logstart(self) -> None:
        self._before = self._seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "teardown":
            for name, now, before in zip((_USER, _SYSTEM), self._seconds(), self._before, strict=True):
                report.user_properties.append((name, now - before))
        return report

    def pytest_unconfigure(self) -> None:
        (self._root / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        with contextlib.suppress(OSError):  # a process of a test is still there
            self._group.rmdir()


class CpuTable:
    """Adds up what all processes of the tests report."""

    def __init__(self) -> None:
        self._files: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._tests: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties if report.when == "teardown" else ():
            if name in (_USER, _SYSTEM) and isinstance(value, float):
                self._files[report.nodeid.partition("::")[0]][name] += value  # type: ignore[assignment]
                self._tests[report.nodeid][name] += value  # type: ignore[assignment]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("CPU seconds, and how many of them the system's")
        for found in (self._files, self._tests):
            for name, seconds in sorted(found.items(), key=lambda each: -each[1].total())[:_ROWS]:
                terminalreporter.write_line(f"{seconds.total():8.1f} {seconds[_SYSTEM]:6.1f} {name}")
            every = [seconds.total() for seconds in found.values()]
            terminalreporter.write_line(f"{sum(every):8.1f} all {len(every)}")
