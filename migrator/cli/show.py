"""Display of one migration to a person: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, TextIO

from migrator.cli import remedies
from migrator.core.model import STOPPED_MODES, Decision, Finding, Mode, State
from migrator.engine.migration.outcome import MigrationOutcome, MigrationProgress
from migrator.text import clean
from migrator.units import show_bytes, show_rate, show_ratio, show_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: A plain line about progress at most this often, in seconds.
_LINE_EVERY = 2.0


class Bars:
    """One bar a migration on a terminal, drawn only when asked; made at the first use, as rich is slow to import.

    :param keep: the bars stay when they are finished.
    """

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def draw(self, label: str, status: MigrationProgress, figures: str) -> None:
        """Show `status` in the bar of `label`."""
        if self._progress is None:
            self._progress = self._start()
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=1.0, state="", figures="")
        task = self._tasks[label]
        self._progress.update(task, completed=status.progress_ratio, state=str(status.state), figures=figures)
        if status.state.final:
            self._progress.stop_task(task)
        self._progress.refresh()

    def _start(self) -> Progress:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - slow

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]:<10} {task.fields[figures]}"),
        )
        progress = Progress(*columns, auto_refresh=False, transient=not self._keep)
        progress.start()
        return progress

    def print(self, text: str) -> bool:
        """Print above the bars; return False when there are none."""
        if self._progress is None:
            return False
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        return True

    def stop(self) -> None:
        """Remove the bars."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Screen:
    """Shows one migration to a person.

    :param quiet: show nothing on standard output (``--json``).
    :param label: names it where several share `bars`.
    :param bars: where to draw on a terminal; its own by default.
    """

    def __init__(self, *, quiet: bool = False, label: str = "", bars: Bars | None = None) -> None:
        self._quiet = quiet
        self._label = label
        self._terminal = not quiet and sys.stdout.isatty()
        self._bars = bars or Bars(keep=False)
        self._shown: tuple[State | None, float] = (None, 0.0)

    def line(self, text: str) -> None:
        """Print a message that is not part of the result."""
        self._print(f"migrator: {text}", error=self._quiet)

    def _print(self, text: str, *, error: bool = False) -> None:
        text = clean(f"{self._label:<8} {text}" if self._label else text)
        if not self._bars.print(text):
            print_line(text, file=sys.stderr if error else sys.stdout)

    def findings(self, findings: tuple[Finding, ...] | list[Finding]) -> None:
        """Print the findings of preflight."""
        if self._quiet:
            return
        for finding in findings:
            self._print(f"{finding.severity} {finding.code}: {finding.message}")
            self._print(f"    what to do: {finding.remedy}")

    def status(self, status: MigrationProgress) -> None:
        """Show a new sample or state."""
        if self._quiet:
            return
        now = time.monotonic()
        state, at = self._shown
        if status.state is state and now - at < (0.1 if self._terminal else _LINE_EVERY):
            return
        if status.state is State.SWITCHOVER:
            return  # the guest stands still: drawing can wait
        self._shown = (status.state, now)
        if self._terminal:
            self._bars.draw(self._label, status, _figures(status))
        elif status.sample is not None:
            self._print(f"{status.state} {show_ratio(status.progress_ratio):>4}  {_figures(status)}")

    def decision(self, decision: Decision) -> None:
        """Print a decision of the controller."""
        if not self._quiet:
            self._print(f"{decision.at_seconds:8.3f} s  {decision.action}: {decision.reason}")

    def result(self, result: MigrationOutcome) -> None:
        """Print the result."""
        self._bars.stop()
        if self._quiet:
            return
        if result.duration_seconds is None:
            self.findings(result.findings)
        for text in _summary(result):
            self._print(text)


def _figures(status: MigrationProgress) -> str:
    sample = status.sample
    if status.waiting_for:
        return f"waits for {status.waiting_for}"
    if status.disk_total_bytes:
        return (
            f"disks, {show_bytes(status.disk_remaining_bytes)} of {show_bytes(status.disk_total_bytes)} left"
        )
    if sample is None:
        return ""
    parts = [f"round {sample.round}", f"{show_bytes(sample.remaining_bytes)} left"]
    parts.append(f"stream {show_rate(sample.bandwidth_bytes_per_second)}")
    if sample.dirty_rate_bytes_per_second:
        parts.append(f"dirtied {show_rate(sample.dirty_rate_bytes_per_second)}")
    if sample.throttle_ratio > 0.01:
        parts.append(f"throttled {show_ratio(sample.throttle_ratio)}")
    return ", ".join(parts)


def _summary(result: MigrationOutcome) -> list[str]:
    lines = [str(result.state) if result.error is None else f"{result.state}: {result.error}"]
    if result.duration_seconds is not None:
        downtime = "none"
        if result.downtime_seconds is not None:
            downtime = show_seconds(result.downtime_seconds)
            if (result.downtime_uncertainty_seconds or 0) > 0.001:
                downtime += f" (give or take {show_seconds(result.downtime_uncertainty_seconds or 0)})"
        downtime += stood_still(result.downtime_seconds, result.standstill_seconds)
        lines.append(
            f"    {result.mode}, {took(result.mode, result.state, result.duration_seconds, whole_seconds=None)}, "
            f"downtime {downtime} "
            f"({ceiling(result.max_downtime_seconds, exceeded=result.ceiling_exceeded, mode=result.mode)}), "
            f"{result.rounds} rounds, "
            f"{sent(result.transferred_bytes, disk_bytes=result.disk_bytes, tls=result.tls)}"
        )
    if result.network_problem:
        lines.append(f"    network {result.network_state}: {result.network_problem}")
    lines += remedies.failed(result.error, another_policy=True)
    if result.state is State.HELD:
        lines += [
            f"    held ({result.held_code}): nothing was quit. Run this command again: it looks at both ends anew.",
            "    If that does not end it, add --rescue: it says what can be done, and asks.",
        ]
    return lines


def sent(memory_bytes: int, *, disk_bytes: int, tls: bool) -> str:
    """Return the words on what went from one end to the other."""
    disks = f" and {show_bytes(disk_bytes)} of disks" if disk_bytes else ""
    return f"{show_bytes(memory_bytes)}{disks} sent{', encrypted' if tls else ''}"


_ABOVE = "above its ceiling of"
#: In a line about a guest that stood still for longer than its policy allows.
_ALARMING = (_ABOVE, "longer than its policy allows")


def took(mode: str, state: str, seconds: float, *, whole_seconds: float | None) -> str:
    """Return the words on how long a migration took: in postcopy a guest runs at its destination long before the end.

    :param whole_seconds: until all of its memory was there; ``None``: that is not known.
    """
    if mode != Mode.POSTCOPY or state != State.COMPLETED:
        return f"took {show_seconds(seconds)}"
    whole = "" if whole_seconds is None else f", had all of its memory after {show_seconds(whole_seconds)}"
    return f"ran there after {show_seconds(seconds)}{whole}"


def ceiling(seconds: float, *, exceeded: bool, mode: str = Mode.PRECOPY) -> str:
    """Return the words on the ceiling that stand beside a downtime; a guest that is stopped for all of it has none."""
    if mode in STOPPED_MODES and not exceeded:
        return "no ceiling"
    return f"{_ABOVE} {show_seconds(seconds)}" if exceeded else f"ceiling {show_seconds(seconds)}"


def print_line(line: str, *, file: TextIO | None = None) -> None:
    """Print a line: on a terminal without a break within a word, and red if it says that a ceiling was exceeded."""
    file = file or sys.stdout
    if not file.isatty():
        print(line, file=file, flush=True)
        return
    import shutil  # noqa: PLC0415 - slow, and of no use to a pipe

    from migrator.cli.tables import hanging  # noqa: PLC0415 - likewise

    red = any(words in line for words in _ALARMING) and not os.environ.get("NO_COLOR")
    for part in hanging(line, shutil.get_terminal_size().columns):
        print(f"\x1b[31m{part}\x1b[0m" if red else part, file=file, flush=True)


def stood_still(downtime: float | None, standstill: float | None) -> str:
    """Return the words that stand beside a downtime where the guest stood still for longer in all."""
    if standstill is None or standstill - (downtime or 0.0) < 0.001:
        return ""
    return f", stood still for {show_seconds(standstill)} in all"
