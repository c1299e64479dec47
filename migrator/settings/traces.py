"""Requirements of ``[traces]``: the extra, and the files that it names."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator

from migrator.errors import UsageError
from migrator.settings.models import TracesSettings

#: What to do where :func:`installed` is false.
HOW_TO_INSTALL = "pip install 'migrator[traces]', or make install TRACES=1"

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x20-\x7e\t]+")


def installed() -> bool:
    """Tell whether the extra is there; imports nothing of it."""
    try:
        return all(
            importlib.util.find_spec(name) is not None
            for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
        )
    except ModuleNotFoundError:  # not even a package above it
        return False


def problems(settings: TracesSettings) -> Iterator[tuple[str, str]]:
    """Return the problems that keep it from being used: the key, and why; nothing of a file's contents."""
    if not settings.endpoint:
        return
    if not installed():
        yield "endpoint", f"traces take OpenTelemetry, which is not installed: {HOW_TO_INSTALL}"
    if settings.ca_file is not None and not settings.ca_file.is_file():
        yield "ca_file", f"{settings.ca_file} cannot be read: there is no such file"
    try:
        headers(settings)
    except UsageError as error:
        yield "headers_file", str(error)


def headers(settings: TracesSettings) -> dict[str, str]:
    """Read what is sent with everything: a line each, ``Name: value``; empty lines and comments (#) are skipped.

    :raise UsageError: the file cannot be read, or a line is no header; its contents are not repeated.
    """
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
