"""Parsing of what commands on a host print, without trust: it is understood, or a :class:`HostError` says what is not.

A host may have been broken into, or have programs that print otherwise than those we know. Whatever they print costs
that host, and nothing else.
"""

from __future__ import annotations

from types import TracebackType

from migrator.errors import HostError
from migrator.text import clean

#: What reading a text raises that is not what its reader expects. RuntimeError: a generator that wanted more of it.
_STRANGE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(StopIteration, RuntimeError),
)
#: The greatest number that is believed: above what any machine has of anything, and below what a float loses.
_GREATEST = 2**60


class reading_output:  # noqa: N801 - it is used like a function
    """Context for parsing a host's output: ``with reading_output(host, "its sockets"):``.

    :raise HostError: it could not be read.
    """

    def __init__(self, host: str, what: str) -> None:
        self._host, self._what = host, what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, _STRANGE):
            why = clean(" ".join(str(error)[:300].split())) or type(error).__name__
            raise HostError(
                self._host, f"what it shows of {self._what} cannot be understood ({why})"
            ) from error


def number(text: str, base: int = 10) -> int:
    """Parse a number that a machine may have.

    :raise ValueError: it is none.
    """
    found = int(text[:64], base)
    if abs(found) > _GREATEST or len(text) > 64:
        raise ValueError(f"{text[:20]}… is no number of anything")
    return found
