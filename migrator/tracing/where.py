"""Where traces go, and whether they can."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: What to do where :func:`installed` is False.
HOW_TO_INSTALL = "pip install 'migrator[traces]', or make install TRACES=1"


@dataclass(frozen=True, kw_only=True)
class Collector:
    """What takes traces by OTLP over HTTP."""

    #: The whole URL.
    endpoint: str
    #: Sent with everything; may be secret.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Authorities to believe; ``None``: those that the library brings.
    ca_file: Path | None = None
    #: Of one attempt to deliver, repetitions included.
    timeout_seconds: float = 10.0
    #: The share of traces that is recorded of those whose caller does not say.
    sample_ratio: float = 1.0


def installed() -> bool:
    """The extra is there; imports nothing of it."""
    try:
        return all(
            importlib.util.find_spec(name) is not None
            for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
        )
    except ModuleNotFoundError:  # not even a package above it
        return False
