"""A timeline as SVG: panels over one axis of time, with numbered marks that are explained below."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape, quoteattr

_WIDTH = 960
_LEFT, _RIGHT = 92, 24
_PLOT = _WIDTH - _LEFT - _RIGHT
_GAP = 40
#: More than two points a pixel only make the file longer.
_MOST_POINTS = 2 * _PLOT
#: Characters of a line of explanations that fit at the size they have.
_COLUMNS = 128
#: A downtime of milliseconds in a run of minutes is still to be seen.
_LEAST_SPAN = 2.0
#: A line is broken where nothing was seen for so long, and for so many times the usual pause.
_BREAK_SECONDS, _BREAK_TIMES = 1.5, 8.0
#: A value so many times that of nearly all others does not set the scale.
_FAR = 3.0

_FORM = """
text { font: 12px system-ui, sans-serif; } .title { font-size: 17px; font-weight: 600; } .head { font-weight: 600; }
.grid { stroke-width: 1; } .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.area { fill-opacity: .15; stroke: none; } .b { stroke-dasharray: 6 3; }
.mark { stroke-width: 1; stroke-dasharray: 2 3; } .number { font-size: 11px; font-weight: 600; }
.span { fill-opacity: .35; } .span-text { font-weight: 600; }
.number, .span-text { paint-order: stroke; stroke-width: 4px; stroke-linejoin: round; }
"""
#: What has which colour, on light and on dark ground. Not by CSS variables: few programs but browsers know them.
_COLOURS = (
    (".ground", "fill", "#ffffff", "#0d1117"),
    (".number, .span-text", "stroke", "#ffffff", "#0d1117"),
    ("text", "fill", "#1f2328", "#e6edf3"),
    (".dim", "fill", "#59636e", "#9198a1"),
    (".grid", "stroke", "#d8dee4", "#30363d"),
    (".a", "stroke", "#0969da", "#58a6ff"),
    (".b", "stroke", "#bc4c00", "#f0883e"),
    (".c", "stroke", "#8250df", "#bc8cff"),
    (".fill-a", "fill", "#0969da", "#58a6ff"),
    (".mark", "stroke", "#9a6700", "#d29922"),
    (".number", "fill", "#9a6700", "#d29922"),
    (".span, .span-text", "fill", "#1a7f37", "#3fb950"),
    (".span.bad, .span-text.bad, .bad", "fill", "#cf222e", "#f85149"),
)
_LIGHT = "\n".join(f"{what} {{ {how}: {light}; }}" for what, how, light, _ in _COLOURS)
_DARK = "\n".join(f"  {what} {{ {how}: {dark}; }}" for what, how, _, dark in _COLOURS)
_STYLE = f"{_FORM}{_LIGHT}\n@media (prefers-color-scheme: dark) {{\n{_DARK}\n}}\n"


@dataclass(kw_only=True)
class Curve:
    """One line of a panel."""

    name: str
    #: ``a``, ``b`` (broken) or ``c``.
    style: str
    #: Seconds and value, by time.
    points: list[tuple[float, float]]
    area: bool = False
    #: A value holds until the next one.
    steps: bool = False


@dataclass(kw_only=True)
class Panel:
    """Curves over one scale."""

    title: str
    curves: list[Curve]
    show: Callable[[float], str]
    #: 1024 or 1000: what round numbers are made of.
    base: int
    height: int
    #: The end of the scale; ``None`` is chosen by the curves.
    top: float | None = None


@dataclass(frozen=True, kw_only=True)
class Mark:
    """An event at one moment."""

    number: int
    at_seconds: float
    text: str


@dataclass(frozen=True, kw_only=True)
class TimeSpan:
    """A phase that lasted."""

    begin: float
    end: float
    text: str
    #: Not as it should be.
    bad: bool = False


def picture(
    *,
    title: str,
    facts: Sequence[str],
    panels: Sequence[Panel],
    marks: Sequence[Mark],
    spans: Sequence[TimeSpan],
    end_seconds: float,
    alarm: bool = False,
) -> str:
    """Return the SVG; any text may be in any argument.

    :param alarm: the first of the facts is not as it should be.
    :param end_seconds: where the axis of time ends; more than 0.
    """
    axis = _Axis(end_seconds)
    parts = [_text(_LEFT, 34, title, "title")]
    styled = [
        (line, "bad" if alarm and not number else "dim")
        for number, fact in enumerate(facts)
        for line in textwrap.wrap(_clean(fact), _COLUMNS)
    ]
    parts += [_text(_LEFT, 56 + 17 * number, line, style) for number, (line, style) in enumerate(styled)]
    y = 56 + 17 * len(styled) + 34
    heights = []
    for panel in panels:
        parts += _panel(panel, axis, y)
        heights.append((y, y + panel.height))
        y += panel.height + _GAP
    bottom = y - _GAP
    parts += _time(axis, bottom, panels)
    parts += _marked(marks, spans, axis, heights)
    listed, y = _explained(marks, bottom + 52)
    parts += listed
    described = "; ".join(facts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" '
        f"aria-label={quoteattr(_clean(title))}>\n"
        f"<title>{_safe(title)}</title>\n<desc>{_safe(described)}</desc>\n<style>{_STYLE}</style>\n"
        f'<rect class="ground" width="{_WIDTH}" height="{y}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


class _Axis:
    """The axis of time, seconds to the right."""

    def __init__(self, end: float) -> None:
        self.end = end

    def x(self, seconds: float) -> float:
        """Return the horizontal place of a moment."""
        return round(_LEFT + _PLOT * min(max(seconds / self.end, 0.0), 1.0), 1)


def _panel(panel: Panel, axis: _Axis, top: int) -> list[str]:
    bottom = top + panel.height
    most = _most([value for curve in panel.curves for _, value in curve.points])
    scale = panel.top or _round_up(most, panel.base)
    parts = [_text(_LEFT, top - 10, panel.title, "head")]
    x = _LEFT + 8.0 * len(panel.title) + 20
    for curve in panel.curves if len(panel.curves) > 1 else ():
        parts.append(f'<path class="curve {curve.style}" d="M{x:g} {top - 14}h24"/>')
        parts.append(_text(x + 30, top - 10, curve.name, "dim"))
        x += 60 + 7.0 * len(curve.name)
    for share in (0.0, 0.5, 1.0):
        y = round(bottom - share * panel.height, 1)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:g}h{_PLOT}"/>')
        parts.append(_text(_LEFT - 8, y + 4, panel.show(share * scale) if share else "0", "dim", end=True))
    if not most:
        parts.append(_text(_LEFT + 12, (top + bottom) / 2 + 4, "no figures were kept of this run", "dim"))
        return parts
    for curve in panel.curves:
        parts += _curve(curve, axis, scale, bottom, panel.height)
    return parts


def _most(values: list[float]) -> float:
    """Return the largest value, but for a few far above all others: these are cut off, or they would press it flat."""
    values = sorted(value for value in values if math.isfinite(value))
    if not values:
        return 0.0
    usual = values[int(0.95 * (len(values) - 1))]
    return usual if usual and values[-1] > _FAR * usual else values[-1]


def _curve(curve: Curve, axis: _Axis, scale: float, bottom: int, height: int) -> list[str]:
    path = area = ""
    for run in _unbroken(
        [each for each in _thinned(curve.points) if math.isfinite(each[0]) and math.isfinite(each[1])]
    ):
        points = [
            (axis.x(at), round(bottom - height * min(max(value / scale, 0.0), 1.0), 1)) for at, value in run
        ]
        line = f"M{points[0][0]:g} {points[0][1]:g}"
        for x, y in points[1:]:
            line += f"H{x:g}V{y:g}" if curve.steps else f"L{x:g} {y:g}"
        path += line
        area += f"{line}L{points[-1][0]:g} {bottom}H{points[0][0]:g}Z"
    if not path:
        return []
    parts = [f'<path class="area fill-{curve.style}" d="{area}"/>'] if curve.area else []
    return [*parts, f'<path class="curve {curve.style}" d="{path}"><title>{_safe(curve.name)}</title></path>']


def _unbroken(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Split points into runs; between two runs nobody can say what was, as the controller was away."""
    gaps = sorted(after[0] - before[0] for before, after in pairwise(points))
    longest = max(_BREAK_SECONDS, _BREAK_TIMES * gaps[len(gaps) // 2]) if gaps else math.inf
    runs = [list(points[:1])] if points else []
    for before, after in pairwise(points):
        if after[0] - before[0] > longest:
            runs.append([])
        runs[-1].append(after)
    return runs


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = max(1, math.ceil(len(points) / _MOST_POINTS))
    kept = list(points[::stride])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def _time(axis: _Axis, bottom: int, panels: Sequence[Panel]) -> list[str]:
    parts = []
    step = _round_up(axis.end / 8, 1000)
    digits = max(0, -math.floor(math.log10(step)))
    for number in range(int(axis.end / step + 1e-9) + 1):
        x = axis.x(number * step)
        parts.append(f'<path class="grid" d="M{x:g} {bottom}v5"/>')
        text = f"{number * step:.{digits}f}"
        parts.append(f'<text class="dim" x="{x:g}" y="{bottom + 19}" text-anchor="middle">{text}</text>')
    return [*parts, _text(_LEFT - 8, bottom + 19, "seconds", "dim", end=True)] if panels else []


def _marked(
    marks: Sequence[Mark], spans: Sequence[TimeSpan], axis: _Axis, heights: Sequence[tuple[int, int]]
) -> list[str]:
    top, bottom = heights[0][0], heights[-1][1]
    parts = []
    for span in spans:
        left, right = axis.x(span.begin), axis.x(span.end)
        left = min(left, right - _LEAST_SPAN)
        bad = " bad" if span.bad else ""
        parts.append(
            f'<rect class="span{bad}" x="{left:g}" y="{top}" width="{right - left:g}" height="{bottom - top}">'
            f"<title>{_safe(span.text)}</title></rect>"
        )
        parts.append(_text(left - 6, bottom - 8, span.text, f"span-text{bad}", end=left > _WIDTH / 2))
    last = -math.inf
    row = 0
    for mark in marks:
        x = axis.x(mark.at_seconds)
        row = (row + 1) % 3 if x - last < 16 else 0  # numbers of marks close together stand above each other
        last = x
        lines = "".join(f"M{x:g} {begin - 2}V{end}" for begin, end in heights)
        parts.append(f'<path class="mark" d="{lines}"><title>{_safe(mark.text)}</title></path>')
        parts.append(_text(x + 3, top + 10 + 12 * row, str(mark.number), "number"))
    return parts


def _explained(marks: Sequence[Mark], y: int) -> tuple[list[str], int]:
    parts = [_text(_LEFT, y, "Decisions", "head")] if marks else []
    y += 4 if marks else -28
    for mark in marks:
        lines = textwrap.wrap(_clean(mark.text), _COLUMNS) or [""]
        for number, line in enumerate(lines):
            y += 17
            if not number:
                parts.append(_text(_LEFT - 8, y, str(mark.number), "number", end=True))
            parts.append(_text(_LEFT, y, line, "dim" if number else ""))
    return parts, y + 22


def _text(x: float, y: float, text: str, style: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:g}" y="{y:g}"{anchor}>{_safe(text)}</text>'


def _round_up(value: float, base: int) -> float:
    """Return the next of 1, 2, 5 (or of 1, 2, 4 … 512) times a power of `base`."""
    if value <= 0:
        return 1.0
    power = base ** math.floor(math.log(value, base))
    steps = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if base == 1024 else (1, 2, 5, 10, 20, 50, 100, 200, 500)
    for step in steps:
        if value <= step * power * (1 + 1e-9):
            return float(step * power)
    return float(base * power)


def _clean(text: str) -> str:
    """Return the text as XML can hold it: a guest's name may have anything in it."""
    return "".join(each if each.isprintable() else " " for each in text)


def _safe(text: str) -> str:
    return escape(_clean(text))
