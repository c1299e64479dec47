"""Answers to commands: replies, and refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from migrator.api.documents import CheckDocument, MigrationDocument, ResolutionDocument
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.inventory_documents import HostDocument
from migrator.api.plan_documents import PlanDocument, RestorePlanDocument
from migrator.api.saved_documents import SavedGuestDocument, SavedGuestsDocument
from migrator.api.site_documents import HooksDocument, PoliciesDocument
from migrator.errors import MigratorError

#: What a command's outcome is about.
Answer = (
    MigrationDocument
    | EvacuationDocument
    | HostDocument
    | PlanDocument
    | RestorePlanDocument
    | CheckDocument
    | ResolutionDocument
    | SavedGuestDocument
    | SavedGuestsDocument
    | PoliciesDocument
    | HooksDocument
)


class Refusal(MigratorError):
    """A command was refused and nothing was changed.

    :ivar code: stable: ``invalid``, ``forbidden``, ``not-found``, ``ambiguous``, ``conflict``, ``expired``,
        ``id-reused``, ``not-now``, ``preflight``, ``unavailable``.
    """

    #: The HTTP status of each.
    STATUS: ClassVar[Mapping[str, int]] = {
        "invalid": 422,
        "forbidden": 403,
        "not-found": 404,
        "ambiguous": 409,
        "conflict": 409,
        "expired": 410,
        "id-reused": 422,
        "not-now": 409,
        "preflight": 409,
        "unavailable": 503,
    }

    def __init__(self, code: str, message: str, *, findings: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.findings = findings or []


class Reply(BaseModel):
    """The answer to a command. ``accepted`` may be followed by an ``outcome`` when what it began has ended."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["accepted", "refused", "outcome"]
    id: str | None = None
    verb: str
    #: With ``refused``: see :class:`Refusal`, and one line for a person.
    code: str | None = None
    message: str | None = None
    findings: list[dict[str, Any]] = []
    #: What was begun or found, as its document.
    subject: (
        Literal[
            "migration",
            "evacuation",
            "host",
            "plan",
            "restore-plan",
            "check",
            "resolution",
            "saved",
            "policies",
            "hooks",
        ]
        | None
    ) = None
    subject_id: str | None = None
    body: dict[str, Any] | None = None

    @property
    def status(self) -> int:
        """Status code of HTTP for this reply."""
        if self.kind == "refused":
            return Refusal.STATUS[self.code or "invalid"]
        return 202 if self.subject in ("migration", "evacuation") else 200
