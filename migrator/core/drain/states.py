"""How far an evacuation is, and each of its guests."""

from __future__ import annotations

from enum import StrEnum


class GuestStanding(StrEnum):
    """How far a guest of an evacuation is."""

    #: Waits for its turn.
    WAITING = "waiting"
    #: Its migration is under way.
    MIGRATING = "migrating"
    #: Runs on another host.
    MOVED = "moved"
    #: No host can take it now; tried again when the inventory changes.
    NO_TARGET = "no-target"
    #: Its state is in a file, and it runs nowhere until it is loaded.
    SAVED = "saved"
    #: Failed so often that it is left; its reason is said.
    SET_ASIDE = "set-aside"
    #: Its migration is held for a person.
    HELD = "held"
    #: It ended by itself, or somebody else took it away.
    GONE = "gone"


class EvacuationState(StrEnum):
    """Where an evacuation, or a restore, is."""

    #: Begins by itself when its window does.
    SCHEDULED = "scheduled"
    RUNNING = "running"
    #: The host is empty (evacuate), or everyone who could is back (restore).
    COMPLETED = "completed"
    #: Nothing more can be done by itself, and guests are left.
    INCOMPLETE = "incomplete"
    #: Somebody asked for it; every guest runs somewhere.
    CANCELLED = "cancelled"
    #: Its deadline passed with ``on_deadline: stop``, or its window ended.
    STOPPED = "stopped"
