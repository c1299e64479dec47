"""Where traces go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from migrator.settings.models import TracesSettings
from migrator.settings.traces import headers

#: What holds where nothing is configured.
_UNSAID = TracesSettings()


@dataclass(frozen=True, kw_only=True)
class Collector:
    """A collector that takes traces by OTLP over HTTP."""

    #: The whole URL.
    endpoint: str
    #: Sent with everything; may be secret.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Authorities to believe; ``None``: those that the library brings.
    ca_file: Path | None = None
    #: Of one attempt to deliver, repetitions included.
    timeout_seconds: float = _UNSAID.timeout
    #: The share of traces that is recorded of those whose caller does not say.
    sample_ratio: float = _UNSAID.sample_ratio


def collector(settings: TracesSettings) -> Collector | None:
    """Return where to send; ``None``: nowhere.

    :raise UsageError: the file of headers is not as it should be.
    """
    if not settings.endpoint:
        return None
    return Collector(
        endpoint=settings.url,
        headers=headers(settings),
        ca_file=settings.ca_file,
        timeout_seconds=settings.timeout,
        sample_ratio=settings.sample_ratio,
    )
