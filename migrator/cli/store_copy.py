"""``migrator store copy``: the journal goes from its file to a server."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from migrator import settings as configuration
from migrator.cli import Exit, tables
from migrator.errors import JournalError, RecordError, UsageError
from migrator.settings import DEFAULT_PATH
from migrator.store.backend import Server
from migrator.store.copying import copy_journal
from migrator.store.place import journal_name, journal_place
from migrator.text import clean


def main(config: Path | None, *, json_output: bool) -> None:
    """Copy, and print what was copied.

    :raise UsageError: the configuration names no server, there is nothing to copy, or the server has a journal.
    """
    store = configuration.load(config or DEFAULT_PATH).store
    place = journal_place(store)
    if not isinstance(place, Server):
        raise UsageError("store.url: names no server to copy the journal to: see docs/postgresql.md")
    try:
        copied = asyncio.run(copy_journal(store.path, place))
    except (JournalError, RecordError) as error:
        print(f"migrator: {clean(error)}", file=sys.stderr)
        sys.exit(Exit.FAILED)
    if json_output:
        print(
            json.dumps(
                {"from": str(store.path), "to": store.url, "tables": [asdict(each) for each in copied]}
            )
        )
        return
    rows = ((each.table, str(each.rows), each.digest[:16]) for each in copied)
    tables.table(("TABLE", "ROWS", "SHA-256"), rows, empty="")
    print(f"the journal is in {clean(journal_name(store))}, and the same as {store.path}")
