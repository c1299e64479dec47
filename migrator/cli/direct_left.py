"""Records that an earlier ``migrator direct`` left of the same two ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from migrator.cli.show import Screen
from migrator.errors import RecordError
from migrator.store.records import Unfinished, unfinished


async def left_by_another(
    source: str,
    destination: str,
    screen: Screen,
    is_gone: Callable[[str, Mapping[str, Any]], Awaitable[bool]],
) -> Unfinished | None:
    """The record of an unfinished migration of this pair; one that concerns only one of them is a refusal.

    A record of which both processes are gone has nothing left to act on and is put away.

    :param is_gone: tells whether the process that was once at an address is certainly gone.
    """
    mine: Unfinished | None = None
    for left in unfinished():
        pair = (left.facts["source"]["address"], left.facts["destination"]["address"])
        if source not in pair and destination not in pair:
            continue
        gone = [
            await is_gone(where, left.facts[side]["identity"])
            for where, side in zip(pair, ("source", "destination"), strict=True)
        ]
        if all(gone):
            left.claim().put_away({"state": "both processes are gone"})
            screen.line(
                f"an unfinished migration from {pair[0]} to {pair[1]} has ended with both of its processes, and the "
                "guest with them, unless somebody moved it on; its record is put away in "
                f"{left.record.directory / 'ended'}"
            )
        elif pair == (source, destination):
            mine = left
        else:
            raise RecordError(
                f"an unfinished migration from {pair[0]} to {pair[1]} concerns one of these; end it first: "
                f"migrator direct --source {pair[0]} --destination {pair[1]} (its record is {left.record.path})"
            )
    return mine
