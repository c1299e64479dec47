"""Guests that cannot move live: whether they may be shut down and started anew at the target instead. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from migrator.core.findings import errors_first, finding
from migrator.core.model import Finding, Severity
from migrator.core.policy import Policy
from migrator.units import show_seconds

#: Code of the finding which says that a guest is shut down and started anew.
COLD_START = "cold-start"
#: Code with which a person accepts that a guest that does not shut down is ended by force.
BY_FORCE = "guest-not-shut-down"
#: Seconds that a QEMU takes to end, and another to start in its place, at the most where nothing is wrong.
START_SECONDS = 10.0
#: Seconds after which the power button is pressed besides, where an agent was asked first.
BUTTON_SECONDS = 10.0
#: Errors about what a guest that runs has, or needs to go on: none of them is in the way of one that begins anew.
_OF_LIVE_MOVES = frozenset(
    {
        *(
            "blocked",
            "card-stays",
            "cpu-features",
            "cpu-flags",
            "cpu-model",
            "cpu-topology",
            "machine-unversioned",
        ),
        *("nested-abilities", "tcg-loses-writes", "user-networks", "userfaultfd", "vfio"),
        *("libvirt-cpu", "libvirt-host-device", "libvirt-unsafe-cache"),
    }
)
#: Errors that need not be judged for a guest that stands still for longer than any ceiling anyway.
_CEILINGS = frozenset({"ceiling-infeasible", "ceiling-exceeded"})


def instead(found: Sequence[Finding], policy: Policy, *, guest: str, target: str) -> tuple[Finding, ...]:
    """Return the findings with those about live moves as warnings, where they are all that is against a move and the
    policy has the guest started anew; else as they are.

    :param guest: its name, for people.
    """
    errors = [each for each in found if each.severity is Severity.ERROR]
    if not policy.cold or not errors or not {each.code for each in errors} <= _OF_LIVE_MOVES:
        return tuple(found)
    reasons = "; ".join(dict.fromkeys(f"{each.code}: {each.message}" for each in errors))
    limit = show_seconds(policy.max_shutdown_seconds)
    text = (
        f"{guest} cannot move live ({reasons}): it is shut down, within {limit}, and started anew at {target}; it is "
        "away until it has booted there"
    )
    return errors_first([*without_live(found), finding(COLD_START, text)])


def without_live(found: Sequence[Finding]) -> list[Finding]:
    """Return the findings that concern a guest that is started anew."""
    return [each for each in found if each.code not in _OF_LIVE_MOVES | _CEILINGS]


def not_shut_down(seconds: float) -> Finding:
    """Return what is said of a guest that was asked to shut down and has not in so many seconds."""
    return finding(
        BY_FORCE,
        f"the guest was asked to shut down and has not within {show_seconds(seconds)}; it goes on, and "
        "stays off if it should shut down later",
        "give its policy a longer max_shutdown, or have it ended by force then: --accept guest-not-shut-down",
    )


def is_cold(found: Sequence[Finding]) -> bool:
    """Tell whether the guest of these findings is shut down and started anew."""
    return any(each.code == COLD_START for each in found)


#: Options that say how a QEMU begins, each with whether it has a value; they are given anew.
_BEGINNINGS = {
    **dict.fromkeys(("incoming", "loadvm", "loadstate", "pidfile", "writeconfig", "dump-vmstate"), True),
    **dict.fromkeys(("S", "daemonize"), False),
}


def from_the_start(argv: Sequence[str]) -> list[str]:
    """Return the command line of a QEMU without what says how it begins: it has a guest that boots."""
    kept, rest = list(argv[:1]), iter(argv[1:])
    for word in rest:
        takes = _BEGINNINGS.get(word.lstrip("-")) if word.startswith("-") else None
        if takes is None:
            kept.append(word)
        elif takes:
            next(rest, "")
    return kept


def stays_after_shutdown(argv: Sequence[str]) -> bool:
    """Tell whether a QEMU of that command line goes on when its guest has shut down."""
    words = [word.lstrip("-") for word in argv]
    return "no-shutdown" in words or any("shutdown=pause" in word for word in words)
