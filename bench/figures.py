"""Measured values as people read them: median, minimum and maximum, in tables of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Durations of several runs, in seconds."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Figures:
        """From any order; at least one."""
        return cls(tuple(values))

    @property
    def median(self) -> float:
        """The one in the middle."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return ms(self.median)
        return f"{ms(self.median)} ({ms(min(self.values))} – {ms(max(self.values))})"


def ms(seconds: float) -> str:
    """In milliseconds, without the unit."""
    return f"{seconds * 1e3:.1f}"


def verdict(figures: Figures, limit_seconds: float, rule: str) -> tuple[str, str]:
    """Two cells of a table: what the median should be at most and why, and whether it is."""
    met = figures.median <= limit_seconds
    return f"≤ {ms(limit_seconds)} ({rule})", "aim met" if met else "**aim not met**"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def paragraphs(*texts: str) -> str:
    """A section's text."""
    return "\n\n".join(texts)


def runs_in_words(count: int) -> str:
    """Say how many runs there were."""
    return "1 run" if count == 1 else f"{count} runs"
