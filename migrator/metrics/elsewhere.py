"""Metrics of a service whose counters are in one process and whose documents are also in another, which is scraped.

The counters are made into text where they count, in portions of a millisecond or two, at most once a second. Gauges of
migrations, hosts and guests, by far the most series, are made where the scrape is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from prometheus_client import Counter, Histogram
from prometheus_client.exposition import choose_encoder
from pydantic import TypeAdapter

from migrator.metrics.counters import PastMigration
from migrator.metrics.gauges import Gauges, GaugeSnapshot

#: The last line of OpenMetrics.
_END = b"# EOF\n"
#: What was counted is asked for no more often.
_SECONDS = 1.0
#: Without an answer in this time what was counted before is shown, and the lag that there is.
_ANSWER_SECONDS = 2.0
#: Formats that are remembered; a scraper asks for one.
_FORMATS = 8


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Figures that only the process which counts knows."""

    #: Counters and histograms, in the format that was asked for, and its content type.
    text: str
    content_type: str
    #: See :class:`GaugeSnapshot`.
    failures: Mapping[str, PastMigration]
    downtimes: Mapping[str, PastMigration]
    decisions: Mapping[str, Mapping[str, float]]
    lease_held: bool | None
    journal_writable: bool
    lag_seconds: float
    look_stretch_ratio: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """Return it for :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, given: Any) -> Counts:
        """Return what :meth:`as_json` was made of."""
        return _COUNTS.validate_python(given)


_COUNTS = TypeAdapter(Counts)


class _One:
    """A registry of one family: what an encoder needs of it."""

    def __init__(self, family: Counter | Histogram) -> None:
        self.collect = family.collect


async def encode(families: list[Counter | Histogram], accept: str) -> tuple[str, str]:
    """Return the text of counters and histograms and its content type; others have their turn between two of them."""
    encoder, content_type = choose_encoder(accept)
    parts = []
    for family in families:
        parts.append(encoder(_One(family)).removesuffix(_END))
        await asyncio.sleep(0)
    return b"".join(parts).decode(), content_type


class ScrapedElsewhere:
    """Answers scrapes from the documents of this process and what the other has counted.

    :param look: the documents of this process: a snapshot without what is in :class:`Counts`.
    :param ask: asks the other process for its counts, in the format of the header ``Accept``.
    """

    def __init__(self, *, look: Callable[[], GaugeSnapshot], ask: Callable[[str], Awaitable[Counts]]) -> None:
        self._look, self._ask = look, ask
        #: By format: when it was answered, and what.
        self._known: dict[str, tuple[float, Counts]] = {}
        self._asking: dict[str, asyncio.Task[Counts]] = {}

    async def scrape(self, accept: str | None) -> tuple[bytes, str]:
        """Answer one scrape: the text, and its content type.

        :raise MigratorError: the other process has not said yet what it counted.
        """
        counts = await self._counts((accept or "")[:200])
        snapshot = replace(
            self._look(),
            failures=counts.failures,
            downtimes=counts.downtimes,
            decisions=counts.decisions,
            lease_held=counts.lease_held,
            journal_writable=counts.journal_writable,
            lag_seconds=counts.lag_seconds,
            look_stretch_ratio=counts.look_stretch_ratio,
        )
        return await asyncio.to_thread(_render, snapshot, counts)

    async def _counts(self, accept: str) -> Counts:
        known = self._known.get(accept)
        if known is not None and time.monotonic() - known[0] < _SECONDS:
            return known[1]
        asking = self._asking.get(accept)
        if asking is None:
            asking = asyncio.create_task(self._ask_anew(accept), name="ask what was counted")
            self._asking[accept] = asking
            asking.add_done_callback(lambda done: self._asked(accept, done))
        done, _ = await asyncio.wait({asking}, timeout=_ANSWER_SECONDS)
        if not done and known is not None:
            # Its event loop is as late as that.
            at, counts = known
            return replace(counts, lag_seconds=max(counts.lag_seconds, time.monotonic() - at - _SECONDS))
        return await asyncio.shield(asking)

    def _asked(self, accept: str, asking: asyncio.Task[Counts]) -> None:
        self._asking.pop(accept, None)
        if not asking.cancelled():
            asking.exception()  # whoever waited has it; perhaps nobody did any more

    async def _ask_anew(self, accept: str) -> Counts:
        counts = await self._ask(accept)
        if len(self._known) >= _FORMATS:
            self._known.clear()
        self._known[accept] = time.monotonic(), counts
        return counts


def _render(snapshot: GaugeSnapshot, counts: Counts) -> tuple[bytes, str]:
    end = _END if "openmetrics" in counts.content_type else b""
    parts = [counts.text.encode()]
    for text in Gauges(snapshot).texts():
        parts.append(text.encode())
        time.sleep(0)  # lets the event loop have its turn
    return b"".join((*parts, end)), counts.content_type
