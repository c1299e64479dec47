"""Actions that a plan asks for; :mod:`migrator.engine.reconciler` carries them out."""

from __future__ import annotations

from dataclasses import dataclass

from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.states import EvacuationState
from migrator.core.inventory import Guest
from migrator.core.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Change:
    """An evacuation is different from before. Void where it has changed meanwhile: the next plan sees that."""

    before: Evacuation
    after: Evacuation
    #: Others are told of it at once.
    announce: bool


@dataclass(frozen=True, kw_only=True)
class End:
    """An evacuation has ended."""

    evacuation: str
    state: EvacuationState


@dataclass(frozen=True, kw_only=True)
class Begin:
    """A guest of an evacuation is to be migrated."""

    evacuation: str
    guest: Guest
    target: str
    reason: str
    policy: Policy
    #: The group whose guests are switched together; empty: it is switched when it can be.
    moved_with: str = ""


@dataclass(frozen=True, kw_only=True)
class SaveGuest:
    """A guest of an evacuation is to be saved into a file on its host: it cannot leave otherwise."""

    evacuation: str
    guest: Guest
    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Drive:
    """A migration that waits in its queue is to be prepared."""

    migration: str


@dataclass(frozen=True, kw_only=True)
class Admit:
    """A migration that is ready has its links now."""

    migration: str


@dataclass(frozen=True, kw_only=True)
class SetShare:
    """A migration's stream may take so much of its links."""

    migration: str
    bytes_per_second: int


@dataclass(frozen=True, kw_only=True)
class StartPostcopy:
    """A guest is to run at its target before all of its memory is there."""

    migration: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CancelMigration:
    """A guest stays where it is, as far as that is still safe."""

    migration: str
    #: Why, where it is not the whole evacuation that ends.
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class AllowSwitch:
    """A guest whose switch was held for its group may be switched."""

    migration: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LookAgain:
    """A host is to be looked at: what is known of it may not be so any more."""

    host: str
    #: The plan waits for it: a look that begins from now on.
    awaited: bool = False


Action = (
    Change
    | End
    | Begin
    | SaveGuest
    | Drive
    | Admit
    | SetShare
    | StartPostcopy
    | AllowSwitch
    | CancelMigration
    | LookAgain
)
