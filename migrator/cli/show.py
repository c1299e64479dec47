"""What a person sees of one migration: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from migrator.core.model import Decision, Finding, State
from migrator.engine.result import Result, Status
from migrator.units import show_bytes, show_rate, show_ratio, show_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: A plain line about progress at most this often, in seconds.
_LINE_EVERY = 2.0


class Screen:
    """Shows one migration.

    :param quiet: show nothing on standard output (``--json``).
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = not quiet and sys.stdout.isatty()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._shown: tuple[State | None, float] = (None, 0.0)

    def line(self, text: str) -> None:
        """A message that is not part of the result."""
        self._print(f"migrator: {text}", error=self._quiet)

    def _print(self, text: str, *, error: bool = False) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr if error else sys.stdout, flush=True)

    def findings(self, findings: tuple[Finding, ...] | list[Finding]) -> None:
        """What preflight found."""
        if self._quiet:
            return
        for finding in findings:
            self._print(f"{finding.severity} {finding.code}: {finding.message}")
            self._print(f"    what to do: {finding.remedy}")

    def status(self, status: Status) -> None:
        """A new sample or state."""
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
            self._draw(status)
        elif status.sample is not None:
            self._print(f"{status.state} {show_ratio(status.progress_ratio):>4}  {_figures(status)}")

    def _draw(self, status: Status) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - slow to import

        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.fields[state]:<10}"),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[figures]}"),
                auto_refresh=False,
                transient=True,
            )
            self._task = self._bar.add_task("", total=1.0, state="", figures="")
            self._bar.start()
        assert self._task is not None
        self._bar.update(
            self._task,
            completed=status.progress_ratio,
            state=str(status.state),
            figures=_figures(status),
            refresh=True,
        )

    def decision(self, decision: Decision) -> None:
        """A decision of the controller."""
        if not self._quiet:
            self._print(f"{decision.at_seconds:8.3f} s  {decision.action}: {decision.reason}")

    def result(self, result: Result) -> None:
        """The end."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._quiet:
            return
        if result.error is not None and result.duration_seconds is None:
            self.findings(result.findings)
        for text in _summary(result):
            self._print(text)


def _figures(status: Status) -> str:
    sample = status.sample
    if sample is None:
        return ""
    parts = [f"round {sample.round}", f"{show_bytes(sample.remaining_bytes)} left"]
    parts.append(f"stream {show_rate(sample.bandwidth_bytes_per_second)}")
    if sample.dirty_rate_bytes_per_second:
        parts.append(f"dirtied {show_rate(sample.dirty_rate_bytes_per_second)}")
    if sample.throttle_ratio > 0.01:
        parts.append(f"throttled {show_ratio(sample.throttle_ratio)}")
    return ", ".join(parts)


def _summary(result: Result) -> list[str]:
    lines = [str(result.state) if result.error is None else f"{result.state}: {result.error}"]
    if result.duration_seconds is not None:
        downtime = "none"
        if result.downtime_seconds is not None:
            downtime = show_seconds(result.downtime_seconds)
            if (result.downtime_uncertainty_seconds or 0) > 0.001:
                downtime += f" (give or take {show_seconds(result.downtime_uncertainty_seconds or 0)})"
        lines.append(
            f"    {result.mode}, {show_seconds(result.duration_seconds)}, downtime {downtime} "
            f"(ceiling {show_seconds(result.max_downtime_seconds)}), {result.rounds} rounds, "
            f"{show_bytes(result.transferred_bytes)} sent"
        )
    if result.state is State.HELD:
        lines += [
            f"    held ({result.held_code}): nothing was quit. Look at both QEMUs (query-status, query-migrate).",
            "    If the guest is to stay at the source: make sure the destination's process is dead, then send cont",
            "    to the source. If it is to run at the destination: make sure the source is postmigrate or dead, then",
            "    send cont to the destination. Then run this command again: it looks at both and ends the record.",
        ]
    return lines
