"""What else must be there for ``[traces]``: the extra, and the files that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from migrator import tracing
from migrator.errors import UsageError
from migrator.settings.models import TracesSettings
from migrator.tracing import Collector

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x20-\x7e\t]+")


def collector(settings: TracesSettings) -> Collector | None:
    """Where to send; ``None``: nowhere.

    :raise UsageError: a file is not as it should be.
    """
    if not settings.endpoint:
        return None
    return Collector(
        endpoint=settings.url,
        headers=_headers(settings),
        ca_file=settings.ca_file,
        timeout_seconds=settings.timeout,
        sample_ratio=settings.sample_ratio,
    )


def problems(settings: TracesSettings) -> Iterator[tuple[str, str]]:
    """What keeps it from being used: the key, and why; nothing of a file's contents."""
    if not settings.endpoint:
        return
    if not tracing.installed():
        yield "endpoint", f"traces take OpenTelemetry, which is not installed: {tracing.HOW_TO_INSTALL}"
    if settings.ca_file is not None and not settings.ca_file.is_file():
        yield "ca_file", f"{settings.ca_file} cannot be read: there is no such file"
    try:
        _headers(settings)
    except UsageError as error:
        yield "headers_file", str(error)


def _headers(settings: TracesSettings) -> dict[str, str]:
    """A line each, ``Name: value``; empty lines and those that begin with # are passed over."""
    file = settings.headers_file
    if file is None:
        return {}
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{file} cannot be read: {why}") from None
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, value = line.partition(":")
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value := value.strip()):
            raise UsageError(f"{file}, line {number} is no header: write it like Authorization: Bearer ...")
        found[name] = value
    return found
