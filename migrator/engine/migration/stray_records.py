"""Records of steps that the journal does not know as those of a migration under way: never ignored at a start.

They are there where journal and records were not restored together, or where a record could not be put away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from migrator import logs
from migrator.core.inventory import Guest
from migrator.core.policy import from_fields
from migrator.engine.migration import take_over
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.services import SessionServices
from migrator.errors import RecordError
from migrator.ports import Journal, StrayRecord


async def sort_out(
    strays: Sequence[StrayRecord],
    *,
    journal: Journal,
    services: SessionServices,
    callbacks: Mapping[str, Any],
) -> tuple[list[JournalledSession], list[str]]:
    """Put away the records of migrations that have ended by the journal; those of unknown ones become held migrations.

    Those of migrations that the journal has, and this version cannot read, are left as they are.

    :return: these, and one line for each record that is too damaged for that.
    :raise JournalError: the journal cannot be read.
    """
    log = logs.logger()
    held, complaints = [], []
    for stray in strays:
        document = await journal.find("migration", stray.migration)
        if document is not None and document.get("ended_at") is None:
            complaints.append(
                f"migration {stray.migration} is under way, and this version cannot read it: nothing is done about it, "
                "nor about its guest, until a newer one acts"
            )
            continue
        if document is not None:
            log.warning("record of an ended migration put away", migration=stray.migration, record=stray.path)
            try:
                await services.records.put_away(
                    stray.migration, {"state": document["state"], "by": "journal"}
                )
            except RecordError as error:
                complaints.append(str(error))
            continue
        session = _session(stray, services, callbacks)
        if session is None:
            complaints.append(
                f"{stray.path} is the record of a migration that the journal does not know, and cannot be read: look "
                "for its guest at both hosts (a QEMU that stands still or runs twice), then move the file away"
            )
        else:
            held.append(session)
    for complaint in complaints:
        log.warning("record left over", what=complaint)
    return held, complaints


def _session(
    stray: StrayRecord, services: SessionServices, callbacks: Mapping[str, Any]
) -> JournalledSession | None:
    facts = stray.facts
    if facts is None:
        return None
    try:
        session = JournalledSession(
            identifier=stray.migration,
            guest=Guest.from_fields(facts["guest_fields"]),
            target=facts["target"],
            policy=from_fields(facts["policy"]),
            services=services,
            **callbacks,
        )
        take_over.orphan(session, facts, stray.path)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # of a version that did not write all of it
    return session
