"""Traces for OpenTelemetry: each migration and evacuation as a span, its phases as children (docs/tracing.md).

An optional extra: nothing is imported of OpenTelemetry before :meth:`Tracing.start`.
"""

from migrator.tracing.collector_settings import Collector, collector
from migrator.tracing.subscriber import Tracing

__all__ = ["Collector", "Tracing", "collector"]
