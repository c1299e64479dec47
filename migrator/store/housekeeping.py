"""Upkeep of the journal while the service runs: old entries are forgotten, and one that failed is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from migrator import logs
from migrator.errors import JournalError
from migrator.settings.models import StoreSettings
from migrator.store.journal import SqlJournal

#: A journal that cannot be written is tried so often, in seconds, so that new work is taken again once it can.
_PROBE_SECONDS = 5.0


async def keep_house(journal: SqlJournal, section: Callable[[], StoreSettings]) -> None:
    """Prune the journal at its intervals, and probe it while it cannot be written; until cancelled.

    :param section: ``[store]`` as it is in force now.
    """
    log, loop = logs.logger(), asyncio.get_running_loop()
    pruned = loop.time()
    while True:
        await asyncio.sleep(_PROBE_SECONDS)
        if journal.complaint:
            await journal.probe()
        elif loop.time() - pruned >= section().prune_interval:
            pruned = loop.time()
            try:
                # By the earlier of two clocks: what is forgotten does not come back when one was wrong.
                now = min(datetime.now(UTC), await journal.now())
                await journal.prune(now - timedelta(seconds=section().retention))
            except JournalError as error:
                log.warning("not pruned", error=str(error))
