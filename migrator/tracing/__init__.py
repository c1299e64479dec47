"""Traces for OpenTelemetry: each migration and evacuation as a span, its phases as children (docs/tracing.md).

An optional extra: nothing is imported of OpenTelemetry before :meth:`Tracing.start`.
"""

from migrator.tracing.listening import Tracing
from migrator.tracing.where import Collector, collector

__all__ = ["Collector", "Tracing", "collector"]
