"""Messages about wrong fields of a request, for whoever sent it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

#: Of ids, hosts, sites and policies.
NAME_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
#: Of a file on a host, absolute; no byte in it ends a line or a name.
HOST_FILE_PATTERN = r"^/[^\x00-\x1f\x7f]{1,1000}[^/\x00-\x1f\x7f]$"

#: More would be no line for a person any more.
_MOST_SAID = 3

_NO_MOMENT = "must be a time with its zone, as 2026-01-31T22:00:00Z"

#: By pydantic's type of error.
_KINDS = {
    "missing": "is missing",
    "string_type": "must be text",
    "string_unicode": "must be text in UTF-8",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a number, neither inf nor nan",
    "int_parsing_size": "must be a whole number, and has too many digits",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "datetime_type": _NO_MOMENT,
    "datetime_parsing": _NO_MOMENT,
    "datetime_from_date_parsing": _NO_MOMENT,
    "timezone_aware": _NO_MOMENT,
}
#: Where a number ends: the word for it in pydantic's error, and ours.
_BOUNDS = {
    "greater_than_equal": ("ge", "{:g} or more"),
    "greater_than": ("gt", "more than {:g}"),
    "less_than_equal": ("le", "{:g} or less"),
    "less_than": ("lt", "less than {:g}"),
}
#: Of hosts that might have been meant so many are named.
_MOST_HOSTS = 20


def no_such_host(name: str, hosts: Iterable[str]) -> str:
    """Return one line that says that there is no host of that name, and which there are."""
    known = sorted(hosts)
    if not known:
        return f"there is no host {name}; there are none: [[hosts]]"
    more = f", and {len(known) - _MOST_HOSTS} more" if len(known) > _MOST_HOSTS else ""
    return f"there is no host {name}; there {_are(tuple(known[:_MOST_HOSTS]))}{more}"


def refuse_number(value: Any) -> Any:
    """For a field of a time: pydantic would take a number for one too, also as text.

    :raise PydanticCustomError: it is one.
    """
    if isinstance(value, (int, float)) or (isinstance(value, str) and re.fullmatch(r"[\s\d.eE+-]*", value)):
        raise PydanticCustomError("datetime_type", "a number is no time")
    return value


def describe(problems: Sequence[Mapping[str, Any]], *, known: Iterable[str] = ()) -> str:
    """Pydantic's errors in one line; what was given is not repeated.

    :param known: the fields that there are.
    """
    said = [f"{_place(problem['loc'])} {_wrong(problem, tuple(known))}" for problem in problems[:_MOST_SAID]]
    more = len(problems) - len(said)
    return "; ".join(said) + (f" (and {more} more)" if more else "")


def _place(location: Sequence[int | str]) -> str:
    place = ""
    for part in location:
        place += f"[{part}]" if isinstance(part, int) else f".{part[:64]}"
    return f"{place.removeprefix('.')}:" if place else "the command"


def _wrong(problem: Mapping[str, Any], known: tuple[str, ...]) -> str:
    limits: Mapping[str, Any] = problem.get("ctx") or {}
    match problem["type"]:
        case "string_pattern_mismatch" if limits.get("pattern") == NAME_PATTERN:
            return "is not a name: 1 to 64 of A-Z a-z 0-9 . _ -"
        case "string_pattern_mismatch" if limits.get("pattern") == HOST_FILE_PATTERN:
            return "must be the absolute path of a file: /srv/saved/NAME.state"
        case "extra_forbidden":
            return f"there is no such field (there {_are(known)})"
        case "string_too_long":
            return f"must not have more than {limits['max_length']} characters"
        case "too_long":
            return f"must not have more than {limits['max_length']} entries"
        case "literal_error" | "enum":
            return f"must be {limits['expected']}"
        case kind if kind in _KINDS:
            return _KINDS[kind]
        case kind if kind in _BOUNDS:
            key, words = _BOUNDS[kind]
            return f"must be {words.format(limits[key])}"
    said = re.sub(r"^\w+ should ", "must ", str(problem["msg"]))
    return f"{said[:1].lower()}{said[1:]}"


def _are(known: tuple[str, ...]) -> str:
    if not known:
        return "are none"
    return f"{'is' if len(known) == 1 else 'are'} {', '.join(known)}"
