"""Names of guests, hosts and what is under way, for the shell: quickly, or none at all."""

from __future__ import annotations

import logging
import os
import shlex
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

import typer

from migrator.errors import MigratorError

#: A person waits for it with a finger on the key.
_TIMEOUT_SECONDS = 0.5


def hosts(incomplete: str) -> list[str]:
    """Return the hosts whose name begins so."""
    return _names(incomplete, lambda get: [host["host"] for host in get("hosts")])


def guests(incomplete: str) -> list[str]:
    """Return names of guests that begin so; of those that share a name ``HOST/NAME``; a uuid once it was begun."""

    def all_of(get: Callable[[str], list[dict[str, Any]]]) -> Iterable[str]:
        found = get("guests")
        names = [guest["name"] for guest in found]
        for guest in found:
            alone = guest["name"] and names.count(guest["name"]) == 1
            yield (
                guest["name"]
                if alone
                else f"{guest['host']}/{guest['name']}"
                if guest["name"]
                else guest["guest"]
            )
            if incomplete and guest["uuid"]:
                yield guest["uuid"]

    return _names(incomplete, all_of)


def under_way(incomplete: str) -> list[str]:
    """Return ids of migrations and evacuations that have not ended."""
    return _names(
        incomplete,
        lambda get: [
            one["id"] for kind in ("migrations", "evacuations") for one in get(f"{kind}?active=true")
        ],
    )


def cancellable(incomplete: str) -> list[str]:
    """Return ids of migrations and evacuations that may be cancelled now."""
    return _names(
        incomplete,
        lambda get: [
            one["id"]
            for kind in ("migrations", "evacuations")
            for one in get(f"{kind}?active=true")
            if one.get("can_cancel", True)
        ],
    )


def for_postcopy(incomplete: str) -> list[str]:
    """Return ids of migrations that may be switched to postcopy now."""
    return _names(
        incomplete,
        lambda get: [one["id"] for one in get("migrations?active=true") if one.get("can_postcopy", True)],
    )


def held(incomplete: str) -> list[str]:
    """Return ids of held migrations."""
    return _names(
        incomplete,
        lambda get: [one["id"] for one in get("migrations?active=true") if one["state"] == "held"],
    )


def tokens(context: typer.Context, incomplete: str) -> list[str]:
    """Return names of the tokens that have not been revoked, where the journal may be read; it is left as it is."""
    from migrator.cli import tokens as known  # noqa: PLC0415 - only when the shell asks

    logging.disable()
    try:
        found = known.names(context.params.get("config"))
    except (MigratorError, OSError, sqlite3.Error):
        return []
    return _offered(incomplete, found)


def policies(incomplete: str) -> list[str]:
    """Return the policies of the service, or where none answers those built in."""
    known = ("default", "gentle", "must-finish", "postcopy-first", "save", "cold", "offline")
    found = _names(incomplete, lambda get: [policy["name"] for policy in get("policies")])
    return found or [name for name in known if name.startswith(incomplete)]


def one_of(*words: str) -> Callable[[str], list[str]]:
    """Complete fixed words that begin so."""

    # Typer looks at the annotations, which a lambda has none of.
    def offer(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return offer


def _names(
    incomplete: str, read: Callable[[Callable[[str], list[dict[str, Any]]]], Iterable[str]]
) -> list[str]:
    from migrator.cli.client import ServiceClient  # noqa: PLC0415 - only when the shell asks

    logging.disable()
    try:
        client = ServiceClient(timeout_seconds=_TIMEOUT_SECONDS)
        found = list(read(lambda path: client.get(path)["items"]))
    except MigratorError:
        return []
    return _offered(incomplete, found)


def _offered(incomplete: str, found: Iterable[str]) -> list[str]:
    # A name with a control character in it would end the shell's line early.
    names = sorted({name for name in found if name.startswith(incomplete) and name.isprintable()})
    # The other shells quote what they insert themselves; in a quotation that was begun nothing is to be done.
    if not os.environ.get("_MIGRATOR_COMPLETE", "").endswith("bash") or _in_quotes(
        os.environ.get("COMP_WORDS", "")
    ):
        return names
    return [_ForBash(name) for name in names]


class _ForBash(str):
    """A name that is compared as it is, and written as it has to stand in a line of the shell's."""

    __slots__ = ()

    def __format__(self, _: str) -> str:
        return "".join(char if char.isalnum() or char in "_@%+=:,./-" else f"\\{char}" for char in str(self))


def _in_quotes(line: str) -> bool:
    try:
        shlex.split(line)
    except ValueError as error:
        return "quotation" in str(error)
    return False
