"""The phases of a migration's session: it is in one at a time, and goes only to those that may follow it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from migrator.core.model import View


class Phase(StrEnum):
    """The part of its way on which a controller has a migration; others see its :class:`~migrator.core.model.State`."""

    #: Nothing was begun, and neither end is open.
    QUEUED = "queued"
    #: Its source is opened and checked, and its destination started. The guest notices nothing.
    PREPARING = "preparing"
    #: Both ends are set up; it waits for its turn.
    READY = "ready"
    #: Its turn has come: it is looked at again, and put on record.
    BEGINNING = "beginning"
    #: Its record was begun: a driver moves the guest, or undoes what was done.
    DRIVEN = "driven"
    #: Nobody drives it: its controller has stopped, or is another's and has just been read from journal or record.
    LEFT = "left"
    #: A person must look, or an end answer.
    HELD = "held"
    #: Nothing more will happen to it.
    ENDED = "ended"


#: What may follow each phase. Back to ``QUEUED``: nothing was sent, or all was put back, and it begins anew.
FOLLOWING: Mapping[Phase, frozenset[Phase]] = {
    Phase.QUEUED: frozenset({Phase.PREPARING, Phase.LEFT, Phase.HELD, Phase.ENDED}),
    Phase.PREPARING: frozenset({Phase.READY, Phase.QUEUED, Phase.HELD, Phase.ENDED}),
    Phase.READY: frozenset({Phase.BEGINNING, Phase.QUEUED, Phase.HELD, Phase.ENDED}),
    Phase.BEGINNING: frozenset({Phase.DRIVEN, Phase.QUEUED, Phase.HELD, Phase.ENDED}),
    Phase.DRIVEN: frozenset({Phase.LEFT, Phase.QUEUED, Phase.HELD, Phase.ENDED}),
    Phase.LEFT: frozenset({Phase.DRIVEN, Phase.QUEUED, Phase.HELD, Phase.ENDED}),
    Phase.HELD: frozenset({Phase.DRIVEN, Phase.QUEUED, Phase.HELD, Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A try to move the guest under the migration's id."""

    #: How often it was begun from the start: one that a controller had to leave before anything was sent is begun anew.
    number: int = 1
    #: The record of this attempt is there, or was: a missing one does not mean that nothing was done.
    recorded: bool = False
    #: It was taken up once though its target could not be asked.
    went_without: bool = False


@dataclass(frozen=True, kw_only=True)
class PreflightRefusal:
    """Preflight refused the migration; nothing was changed."""

    #: Only because something could not be asked, which may pass; else trying again without a change is no use.
    may_pass: bool = False
    #: Trying another target is no use either.
    everywhere: bool = False


@dataclass(frozen=True, kw_only=True)
class Hold:
    """The reason why a migration is held, beside what its outcome says."""

    #: An end could not be asked: the migration may be taken up again once that answers.
    unreachable: bool = False
    #: What both ends showed then; ``None`` where they could not be looked at together.
    shown: tuple[View, View] | None = None
