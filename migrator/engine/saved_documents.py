"""Documents as they are in the journal, without what the engine keeps there for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from migrator.api.documents import EvacuationDocument, MigrationDocument


def saved_migration(saved: Mapping[str, Any]) -> MigrationDocument:
    """Return a migration as it is in the journal."""
    return MigrationDocument.model_validate(_public(saved))


def saved_evacuation(saved: Mapping[str, Any]) -> EvacuationDocument:
    """Return an evacuation as it is in the journal."""
    return EvacuationDocument.model_validate(_public(saved))


def _public(saved: Mapping[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in saved.items() if key != "_private"}
