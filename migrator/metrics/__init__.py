"""Metrics for Prometheus: what is counted, what is shown at a scrape, and the list of all of it.

The service makes one :class:`Metrics`, gives its methods to whoever has something to count, starts it, and answers
``/metrics`` with :meth:`Metrics.scrape`.
"""

from migrator.metrics.document import document
from migrator.metrics.exposition import Metrics, Probes

__all__ = ["Metrics", "Probes", "document"]
