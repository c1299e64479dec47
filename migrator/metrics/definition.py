"""The form in which a metric is described."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The type of a metric, as Prometheus calls it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, kw_only=True)
class Described:
    """One metric."""

    #: As a query names it; of a histogram, without ``_bucket``.
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    #: Upper bounds of a histogram, and why these.
    buckets: tuple[float, ...] = ()
    why: str = ""
    #: How many series there can be: M active migrations, E evacuations, H hosts, G guests, C controllers and
    #: one more; a number is constant.
    series: str = "1"


def counter(name: str, text: str, *labels: str, series: str = "1") -> Described:
    """Return a counter; `series` as in :class:`Described`."""
    return Described(name=name, kind=Kind.COUNTER, help=text, labels=labels, series=series)


def gauge(name: str, text: str, *labels: str, series: str = "1") -> Described:
    """Return a gauge; `series` as in :class:`Described`."""
    return Described(name=name, kind=Kind.GAUGE, help=text, labels=labels, series=series)


def histogram(
    name: str, text: str, *labels: str, buckets: tuple[float, ...], why: str, times: int = 1
) -> Described:
    """Return a histogram.

    :param times: combinations that its labels can have.
    """
    series = str(times * (len(buckets) + 3))
    return Described(
        name=name,
        kind=Kind.HISTOGRAM,
        help=text,
        labels=labels,
        buckets=buckets,
        why=why,
        series=series,
    )


def migration_gauge(name: str, text: str) -> Described:
    """Return a gauge of every active migration."""
    return gauge(f"migrator_migration_{name}", text, "migration", "guest", series="M")


def evacuation_gauge(name: str, text: str) -> Described:
    """Return a gauge of every evacuation under way."""
    return gauge(f"migrator_evacuation_{name}", text, "evacuation", "host", series="E")
