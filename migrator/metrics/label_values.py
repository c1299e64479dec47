"""Values that labels of metrics can have: every list is closed, so that the number of series is known beforehand."""

from __future__ import annotations

from migrator.core.inventory import HostState
from migrator.core.migration.convergence_state import ActionKind
from migrator.core.migration.invariants import VIOLATED, Invariant
from migrator.core.migration.lifecycle import Step
from migrator.core.model import Mode, State

#: How a migration can end; each is counted once.
RESULTS = tuple(str(state) for state in State if state.final)
MODES = tuple(str(mode) for mode in Mode)
#: What a migration goes through, each timed.
PHASES = tuple(str(state) for state in State if not state.final)
HOST_STATES = tuple(str(state) for state in HostState)
EVACUATION_RESULTS = ("completed", "incomplete", "cancelled", "stopped")
#: Standings of a guest in an evacuation that need a person or another host.
STUCK = ("no-target", "set-aside", "held")
INTERFACES = ("http", "mqtt")
VERBS = (
    "migrate",
    "save",
    "load",
    "discard",
    "saved",
    "evacuate",
    "restore",
    "activate",
    "cordon",
    "uncordon",
    "roll",
    "cancel",
    "postcopy",
    "resolve",
    "plan",
    "check",
    "policies",
    "hooks",
    "unknown",
)
#: What becomes of a postcopy stream that broke.
RECOVERY_RESULTS = ("recovered", "held")
COMMAND_RESULTS = ("accepted", "refused", "repeated")
#: What stands for a word that is not in a list.
OTHER = "other"
#: Decisions about what a migration has left, once it has ended.
AFTER_THE_END = ("source-image-compared", "source-image-kept", "source-image-removed")
#: What the controller decides: steering, steps of the lifecycle, and what it says beside them.
ACTIONS = (
    *sorted(
        {
            *map(str, ActionKind),
            *map(str, Step),
            *(
                "ceiling-exceeded",
                "compress",
                "guard",
                "group",
                "guest-clock",
                "guest-flush",
                "held",
                "hook",
                "network-learned",
                "no-postcopy",
                "pacing",
                "park",
                "plain-stream",
                "resolve",
            ),
            *("postcopy-stall-exceeded", "postcopy-stall-forecast", "quiet-start"),
            *(
                "copy-disk",
                "run-state",
                "stream-broken",
                "stream-recovered",
                "take-up",
                "too-late",
                "tunnel",
                "undo",
                "writes-not-noted",
                *AFTER_THE_END,
                "unplug",
            ),
            VIOLATED,
        }
    ),
    OTHER,
)
#: Safety invariants of a migration.
INVARIANTS = (*(str(invariant) for invariant in Invariant), OTHER)
#: As the errors of the QMP layer are called.
QMP_ERRORS = ("unreachable", "occupied", "timed-out", "strange-answer", "command-failed", OTHER)
SPAN_RESULTS = ("sent", "dropped")
JOURNAL_OPERATIONS = ("read", "write", OTHER)
#: Who was gone when another controller took over: who planned, or who drove a migration.
TAKEOVER_REASONS = ("planner-gone", "driver-gone")
#: Commands of QMP beyond this many go under ``other``; migrator itself sends about forty.
MOST_COMMANDS = 64
#: Guests beyond this many are not shown one by one.
MOST_GUESTS = 20_000
