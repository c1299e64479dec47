"""Structured logs to standard error, through structlog.

structlog takes a tenth of a second to import, and a migration that goes well logs nothing, so it is imported with the
first line that is logged.
"""

from __future__ import annotations

import functools
import logging
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from migrator.text import clean_lines

#: Characters of one value in a log line; of what is longer the middle is left out.
_LONGEST = 8000
#: Warnings of asyncio that are remembered, so that each is logged once.
_REMEMBERED = 100

_verbose = False
_json = False
_level = logging.DEBUG
_about: ContextVar[dict[str, Any]] = ContextVar("about")


def configure(*, verbose: bool = False, json: bool = False, level: str = "debug") -> None:
    """Errors to standard error, and everything else too if `verbose`.

    :param json: one JSON object a line, for a machine, instead of columns for a person.
    :param level: ``debug``, ``info``, ``warning`` or ``error``: what is less than that is left out.
    """
    global _verbose, _json, _level
    _verbose, _json, _level = verbose, json, logging.getLevelNamesMapping()[level.upper()]
    _structlog.cache_clear()
    library = logging.getLogger("asyncio")
    library.propagate = not verbose
    (library.addHandler if verbose else library.removeHandler)(_asyncio_handler)


class _AsyncioHandler(logging.Handler):
    """Logs what asyncio says by itself like everything else; a warning, which may come with every write, once."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """See :meth:`logging.Handler.emit`."""
        message = record.getMessage()
        if record.levelno < logging.ERROR:
            if message in self._said:
                return
            if len(self._said) < _REMEMBERED:
                self._said.add(message)
        fields = {}
        if record.exc_info and record.exc_info[1] is not None:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        try:
            logger().warning("asyncio", what=message, **fields)
        except (OSError, ValueError):
            self.handleError(record)  # a log that cannot be written


_asyncio_handler = _AsyncioHandler(logging.WARNING)


class Logger:
    """A logger that every line carries the given fields of."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def info(self, event: str, **fields: Any) -> None:
        """For who wants to follow every step."""
        if _verbose:
            _structlog().info(event, **{**_about.get({}), **self._fields, **fields})

    def warning(self, event: str, **fields: Any) -> None:
        """Something went wrong that the controller copes with."""
        if _verbose:
            _structlog().warning(event, **{**_about.get({}), **self._fields, **fields})


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Every line from within carries `fields`, and every line of tasks that are begun within."""
    token = _about.set({**_about.get({}), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def logger(**fields: Any) -> Logger:
    """A logger whose lines carry `fields`: the migration, the guest, the host, as far as there is one."""
    return Logger(**fields)


def _cleaned(log: Any, method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Remove control characters: guests, hosts and clients may say what acts on the terminal that a log is read on."""
    del log, method  # as structlog calls every processor
    return {key: _clean_value(value) for key, value in line.items()}


def _clean_value(value: Any) -> Any:
    if isinstance(value, str):
        return _cut(clean_lines(value))
    if isinstance(value, (int, float)) or value is None:
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean_value(each) for each in value]
    return _cut(clean_lines(value))


def _cut(text: str) -> str:
    """Keep the beginning and the end of a long text: a traceback's last line says most."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 4]} … {text[-3 * _LONGEST // 4 :]}"


@functools.cache
def _structlog() -> Any:
    import structlog  # noqa: PLC0415 - see above

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=_json),
            _cleaned,
            structlog.processors.JSONRenderer()
            if _json
            else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    return structlog.get_logger()
