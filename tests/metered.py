"""Metrics of a service that the test plays."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families as read_text

from migrator.metrics import Metrics, Probes
from migrator.metrics.gauges import BrokerGauges
from tests.fake_queries import FakeQueries


@dataclass
class Clock:
    """Both clocks, moved by the test."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Service:
    """Metrics of a service that the test plays."""

    clock: Clock = field(default_factory=Clock)
    queries: FakeQueries = field(default_factory=FakeQueries)
    broker: bool | None = True

    def __post_init__(self) -> None:
        probes = Probes(
            broker=lambda: None if self.broker is None else BrokerGauges(connected=self.broker),
            lease_ages=lambda: {"site": 0.5},
            controller_migrations=lambda: {"one": 3},
        )
        self.metrics = Metrics(
            queries=self.queries,
            version="1.2.3",
            probes=probes,
            page_url="https://page.example",
            clock=self.clock,
            now=self.clock,
        )

    async def values(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """Every sample of a scrape: by name, by labels."""
        text, _ = await self.metrics.scrape(None)
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in read_text(text.decode()):
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                assert labels not in found.setdefault(sample.name, {}), f"twice: {sample}"
                found[sample.name][labels] = sample.value
        return found

    async def value(self, name: str, **labels: str) -> float | None:
        """One sample; ``None`` where there is none."""
        return (await self.values()).get(f"migrator_{name}", {}).get(tuple(sorted(labels.items())))
